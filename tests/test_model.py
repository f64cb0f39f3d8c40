"""The model around the network: preconditioning, dropping, building, loading."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import shapes
from vdm_jax import build, runs
from vdm_jax.checkpoint import Checkpoints
from vdm_jax.diffusion import process, schedules
from vdm_jax.errors import UserError
from vdm_jax.pretrained import params as params_file
from vdm_jax.training.state import TrainState

ATTRIBUTES = (("a", "b", "c"), ("x", "y"))


def smoke_config():
    config = shapes.get_config("smoke").unlock()
    config.data.update(label_vocabulary=ATTRIBUTES, mean=-0.3, variance=0.2)
    return config


@pytest.fixture(scope="module")
def model():
    return build.build_model(smoke_config())


@pytest.fixture(scope="module")
def params(model):
    return model.init(jax.random.key(0))


def ask(model, params, z, t, label=None):
    batch = {"label": np.zeros((len(z), 2), np.int32) if label is None else label}
    step = schedules.noise_level(model.schedule, jnp.asarray(t))
    return model.denoiser(params)(z, step, model.raw_conditions(batch)), step


def test_preconditioned_start_is_the_best_linear_prediction(model, params):
    """At init the network is 0: what is left must be E[x | z] of Gaussian data."""
    z = jax.random.normal(jax.random.key(1), (3, *model.shape))
    for t in (0.02, 0.5, 0.98):
        prediction, step = ask(model, params, z, [t] * 3)
        alpha, sigma = step.alpha[0], step.sigma[0]
        mean, variance = model.mean, model.variance
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        exact = mean + gain * (z - alpha * mean)
        np.testing.assert_allclose(prediction.x, exact, atol=2e-5)


def test_identity_preconditioning_is_the_plain_v_network(model, params):
    """At init v = 0, so its loss is E[v^2] = alpha^2 + sigma^2 E[x^2]."""
    plain = dataclasses.replace(model, mean=0.0, variance=1.0)
    z = jax.random.normal(jax.random.key(1), (2, *model.shape))
    prediction, step = ask(plain, params, z, [0.3, 0.9])
    np.testing.assert_allclose(process.velocity(prediction, step), 0, atol=1e-6)


@pytest.mark.parametrize("output", ["v", "eps", "x"])
def test_every_prediction_explains_z(model, params, output):
    other = dataclasses.replace(model, output=output, mean=0.0, variance=1.0)
    noisy = jax.tree.map(
        lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params
    )
    z = jax.random.normal(jax.random.key(1), (2, *model.shape))
    prediction, step = ask(other, noisy, z, [0.3, 0.7])
    np.testing.assert_allclose(
        process.diffuse(prediction.x, prediction.eps, step), z, atol=1e-5
    )


def test_drop_leaves_out_the_share_it_names_of_each_by_itself(model):
    """Of label, text and each attribute, of a video and of each image beside it."""
    n = 4000
    dropping = dataclasses.replace(
        model, label_drop=0.3, attribute_drop=0.1, text_width=2, text_drop=0.2
    )
    batch = {
        "label": jnp.ones((n, 3, 2), jnp.int32),
        "text": jnp.zeros((n, 3, 1, 2)),
        "text_mask": jnp.ones((n, 3, 1), bool),
    }
    cond = dropping.raw_conditions(batch)
    dropped = dropping.condition_dropout(cond, jax.random.key(0))
    assert jax.tree.structure(dropped) == jax.tree.structure(cond)
    lost = [~dropped["keep"]["label"], ~dropped["keep"]["text"], dropped["label"] < 0]
    lost = np.concatenate([np.reshape(each, (n, -1)) for each in lost], axis=1)
    shares = [0.3] * 3 + [0.2] * 3 + [0.1] * 6
    np.testing.assert_allclose(lost.mean(0), shares, atol=0.03)
    np.testing.assert_allclose(np.corrcoef(lost.T), np.eye(12), atol=0.08)


def test_the_unconditional_twin_keeps_nothing_and_shares_the_rest(model):
    whole = dataclasses.replace(model, text_width=2)
    batch = {
        "label": jnp.ones((3, 2), jnp.int32),
        "text": jnp.ones((3, 1, 2)),
        "text_mask": jnp.ones((3, 1), bool),
    }
    cond = whole.with_guidance_weight(whole.raw_conditions(batch), jnp.ones(3))
    null = whole.unconditional(cond)
    assert null["keep"].keys() == {"label", "text"}
    assert not any(mask.any() for mask in null["keep"].values())
    assert all(null[name] is cond[name] for name in cond if name != "keep")


def test_guidable_needs_every_condition_dropped(model):
    assert model.supports_cfg
    assert not dataclasses.replace(model, label_drop=0.0).supports_cfg
    assert not dataclasses.replace(model, attributes=()).supports_cfg


def test_a_shipped_model_is_loaded(model, params, tmp_path):
    config = smoke_config()
    (tmp_path / "config.json").write_text(config.to_json())
    params_file.write(tmp_path / "params.safetensors", params)
    loaded = runs.load(tmp_path)
    assert loaded.model == model
    for a, b in zip(
        jax.tree.leaves(params), jax.tree.leaves(loaded.params), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-3)
        assert b.dtype == np.float32


@pytest.mark.parametrize("averages", [False, True])
def test_a_run_is_its_average_where_it_keeps_one(params, tmp_path, averages):
    (tmp_path / "config.json").write_text(smoke_config().to_json())
    average = jax.tree.map(lambda a: a + 1, params)
    none = jnp.zeros((), jnp.int32)
    state = TrainState(none, params, average if averages else None, (), none)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(3, state, {})
    checkpoints.close()
    loaded = runs.load(tmp_path)
    assert loaded.step == 3
    expected = average if averages else params
    for a, b in zip(*map(jax.tree.leaves, (loaded.params, expected)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_from_before_a_field_existed_is_read(model, tmp_path):
    fields = json.loads(smoke_config().to_json())
    for name in ("schedule", "noise_shift"):
        del fields["diffusion"][name]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert build.build_model(runs.read_config(tmp_path)) == model


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", schedules.Cosine(logsnr_shift=-1.0)),
        ("interpolated", schedules.Interpolated(logsnr_shift=-1.0)),
        ("flow", schedules.Flow(logsnr_shift=-1.0)),
    ],
)
def test_a_schedule_by_its_name(schedule, expected):
    config = smoke_config()
    config.diffusion.update(schedule=schedule, train_logsnr_shifts=())
    assert build.build_model(config).schedule == expected
    config.diffusion.update(schedule="linear", logsnr_shift=0.0)
    assert build.build_model(config).schedule == schedules.Linear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"diffusion": {"prediction_type": "noise"}}, "one of v, eps, x"),
        ({"diffusion": {"schedule": "linear"}}, "shift=-1.0: schedule 'linear' has"),
        ({"diffusion": {"schedule": "interpolated"}}, "train_shifts moves"),
        (
            {
                "diffusion": {
                    "prediction_type": "eps",
                    "logsnr_min": -25.0,
                    "precondition": False,
                }
            },
            "logsnr_min=-25.0 with an eps output",
        ),
        ({"diffusion": {"prediction_type": "eps"}}, "precondition"),
        ({"video": {"height": 18}}, "height"),
        ({"network": {"head_dim": 7}}, "head_dim"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    config = smoke_config()
    for section, fields in change.items():
        config[section].update(fields)
    with pytest.raises(UserError, match=message):
        build.build_model(config)


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no config.json"):
        runs.load(tmp_path)
    (tmp_path / "config.json").write_text(smoke_config().to_json())
    with pytest.raises(UserError, match="no checkpoint yet"):
        runs.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        runs.load(tmp_path)


def test_a_config_with_a_choice_that_is_gone_is_read(tmp_path):
    """`network.attention` named one program twice."""
    fields = json.loads(smoke_config().to_json())
    fields["network"]["attention"] = "dot_product"
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert build.build_model(runs.read_config(tmp_path)) == build.build_model(
        smoke_config()
    )


@pytest.fixture(scope="module")
def joint():
    """A model told by labels and by text, and a batch of 2 videos and 3 images each."""
    config = smoke_config()
    config.conditioning.update(text_dim=6, text_dropout=0.1, label_dropout=0.1)
    mixing = ("temporal_conv", "cross_attention", "temporal_attention")
    config.network.update(levels=(dict(channels=8, blocks=1, layers=mixing),))
    model = build.build_model(config)
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    params = jax.tree.map(
        lambda p: p + 0.2 * jax.random.normal(next(keys), p.shape, p.dtype),
        model.init(jax.random.key(0)),
    )
    rng = np.random.default_rng(0)
    frames = model.shape[0]
    batch = {
        "video": rng.integers(0, 256, (2, frames + 3, *model.shape[1:]), np.uint8),
        "frame_mask": np.tile(np.arange(frames + 3) < frames, (2, 1)),
        "label": rng.integers(0, 2, (2, 4, 2), np.int32),
        "text": rng.normal(size=(2, 4, 5, 6)).astype(np.float32),
        "text_mask": np.arange(5) < rng.integers(1, 6, (2, 4, 1)),
    }

    def x_of(batch, keep=None):
        cond = model.raw_conditions(batch)
        if keep is not None:
            cond["keep"] = keep(cond["keep"])
        step = schedules.noise_level(model.schedule, jnp.array([0.4, 0.6]))
        return model.denoiser(params)(model.encode(batch["video"]), step, cond).x

    return model, batch, x_of


def part(batch, frames, which):
    """These frames, told by number `which` of what the batch is told: one for all."""
    told = {name: batch[name][:, which] for name in ("label", "text", "text_mask")}
    return told | {name: batch[name][:, frames] for name in ("video", "frame_mask")}


def test_an_image_is_told_its_own_label_and_text(joint):
    """Beside a video, the video and each image are as they are alone."""
    model, batch, x_of = joint
    frames, whole = model.shape[0], x_of(batch)
    video = x_of(part(batch, slice(frames), 0))
    np.testing.assert_allclose(whole[:, :frames], video, atol=1e-4)
    for i in range(3):
        image = x_of(part(batch, slice(frames + i, frames + i + 1), i + 1))
        np.testing.assert_allclose(whole[:, frames + i], image[:, 0], atol=1e-4)
        other = x_of(part(batch, slice(frames + i, frames + i + 1), 0))
        assert abs(whole[:, frames + i] - other[:, 0]).mean() > 1e-2


def test_dropping_is_by_the_video_and_by_each_image(joint):
    model, batch, x_of = joint
    frames, whole = model.shape[0], x_of(batch)
    keep = jnp.array([[True, True, False, True]] * 2)
    some = x_of(batch, lambda old: dict.fromkeys(old, keep))
    changed = abs(np.asarray(some - whole)).mean((0, 2, 3, 4)) > 1e-3
    assert changed.tolist() == [i == frames + 1 for i in range(frames + 3)]
    dropped = model.condition_dropout(model.raw_conditions(batch), jax.random.key(0))
    assert all(mask.shape == (2, 4) for mask in dropped["keep"].values())


@pytest.mark.parametrize("kept, read", [(9.0, None), (50.0, 50.0)])
def test_a_weight_that_nobody_chose_follows_what_is_observed(tmp_path, kept, read):
    """Every config said 9 before there was a choice."""
    config = smoke_config()
    config.sample.reconstruction_weight = kept
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    assert runs.read_config(tmp_path).sample.reconstruction_weight == read


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("conditioning", "label_drop", "x"),
        ("data", "cache_dir", [1]),
        ("diffusion", "logsnr_max", None),
        ("diffusion", "shift", "1"),
        ("diffusion", "shift", 1e30),
        ("diffusion", "shift", math.nan),
        ("diffusion", "logsnr_min", math.nan),
        ("sample", "num", "4"),
        ("sample", "label", None),
        ("video", "fps", "x"),
        ("video", "fps", 0),
        ("video", "frames", -1),
        ("video", "frames", 2.5),
        ("video", "frames", None),
    ],
)
def test_a_value_of_another_kind_in_a_config_is_one_line(
    tmp_path, section, name, value
):
    fields = json.loads(shapes.get_config("cpu").to_json())
    fields["data"] |= {"mean": 0.0, "variance": 1.0, "attributes": []}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    runs.read_config(tmp_path)
    fields[section][name] = value
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="not a config that|not a path") as caught:
        runs.read_config(tmp_path)
    assert "\n" not in str(caught.value)
