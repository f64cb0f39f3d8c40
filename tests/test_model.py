"""The model around the network: preconditioning, conditions and their dropout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conditions.change import change, with_text
from tests.small_model import smoke_config
from vdm_jax import build
from vdm_jax.diffusion import process, schedules


@pytest.fixture(scope="module")
def model():
    return build.build_model(smoke_config())


@pytest.fixture(scope="module")
def params(model):
    return model.init(jax.random.key(0))


def predict(model, params, z, t):
    """Return the prediction at times t under label 0, and the noise level."""
    batch = {"label": np.zeros((len(z), 2), np.int32)}
    level = schedules.noise_level(model.schedule, jnp.asarray(t))
    denoise = jax.jit(model.denoiser(params))
    return denoise(z, level, model.raw_conditions(batch)), level


def test_a_preconditioned_model_starts_as_the_best_linear_prediction(model, params):
    """At init the network is 0: what is left must be E[x | z] of Gaussian data."""
    z = jax.random.normal(jax.random.key(1), (3, *model.shape))
    for t in (0.02, 0.5, 0.98):
        prediction, level = predict(model, params, z, [t] * 3)
        alpha, sigma = level.alpha[0], level.sigma[0]
        mean, variance = model.mean, model.variance
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        exact = mean + gain * (z - alpha * mean)
        np.testing.assert_allclose(prediction.x, exact, atol=2e-5)


def test_identity_preconditioning_is_the_plain_v_network(model, params):
    """At init v = 0, so its loss is E[v^2] = alpha^2 + sigma^2 E[x^2]."""
    plain = dataclasses.replace(model, mean=0.0, variance=1.0)
    z = jax.random.normal(jax.random.key(1), (2, *model.shape))
    prediction, level = predict(plain, params, z, [0.3, 0.9])
    np.testing.assert_allclose(process.velocity(prediction, level), 0, atol=1e-6)


@pytest.mark.parametrize("prediction_type", ["v", "eps", "x"])
def test_x_and_eps_of_a_prediction_reproduce_z(model, params, prediction_type):
    other = dataclasses.replace(
        model, prediction_type=prediction_type, mean=0.0, variance=1.0
    )
    noisy = jax.tree.map(
        lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params
    )
    z = jax.random.normal(jax.random.key(1), (2, *model.shape))
    prediction, level = predict(other, noisy, z, [0.3, 0.7])
    np.testing.assert_allclose(
        process.diffuse(prediction.x, prediction.eps, level), z, atol=1e-5
    )


def test_condition_dropout_has_its_rates_and_drops_each_independently(model):
    """Label, text and each attribute, of a video and of each independent image."""
    n = 4000
    dropping = change(model, label={"dropout": 0.3, "attribute_dropout": 0.1})
    dropping = with_text(dropping, dropout=0.2)
    batch = {
        "label": jnp.ones((n, 3, 2), jnp.int32),
        "text": jnp.zeros((n, 3, 1, 2)),
        "text_mask": jnp.ones((n, 3, 1), bool),
    }
    cond = dropping.raw_conditions(batch)
    after = dropping.condition_dropout(cond, jax.random.key(0))
    assert jax.tree.structure(after) == jax.tree.structure(cond)
    dropped = [~after["keep"]["label"], ~after["keep"]["text"], after["label"] < 0]
    dropped = np.concatenate([np.reshape(each, (n, -1)) for each in dropped], axis=1)
    rates = [0.3] * 3 + [0.2] * 3 + [0.1] * 6
    np.testing.assert_allclose(dropped.mean(0), rates, atol=0.03)
    np.testing.assert_allclose(np.corrcoef(dropped.T), np.eye(12), atol=0.08)


def test_unconditional_keeps_no_condition_and_shares_the_arrays(model):
    whole = with_text(model, dropout=0.1)
    batch = {
        "label": jnp.ones((3, 2), jnp.int32),
        "text": jnp.ones((3, 1, 2)),
        "text_mask": jnp.ones((3, 1), bool),
    }
    cond = whole.with_guidance_weight(whole.raw_conditions(batch), jnp.ones(3))
    uncond = whole.unconditional(cond)
    assert uncond["keep"].keys() == {"label", "text"}
    assert not any(mask.any() for mask in uncond["keep"].values())
    assert all(uncond[name] is cond[name] for name in cond if name != "keep")
    kept = with_text(model).unconditional(cond)["keep"]  # never dropped in training
    assert kept["text"].all() and not kept["label"].any()


def test_cfg_needs_a_condition_that_training_dropped(model):
    assert model.supports_cfg
    assert not change(model, label={"dropout": 0.0}).supports_cfg
    assert not dataclasses.replace(model, conditions=()).supports_cfg


@pytest.fixture(scope="module")
def joint():
    """A model with labels and text, and a batch of 2 videos and 3 images each."""
    config = smoke_config()
    config.conditioning.update(text_dim=6, text_dropout=0.1, label_dropout=0.1)
    layers = ("temporal_conv", "cross_attention", "temporal_attention")
    config.network.update(levels=(dict(channels=8, blocks=1, layers=layers),))
    model = build.build_model(config)
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    params = jax.tree.map(
        lambda p: p + 0.2 * jax.random.normal(next(keys), p.shape, p.dtype),
        model.init(jax.random.key(0)),
    )
    denoise = jax.jit(model.denoiser(params))
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
        level = schedules.noise_level(model.schedule, jnp.array([0.4, 0.6]))
        return denoise(model.normalize(batch["video"]), level, cond).x

    return model, batch, x_of


def part(batch, frames, condition):
    """Return these frames of a batch, all under the conditions of this index."""
    conditions = {
        name: batch[name][:, condition] for name in ("label", "text", "text_mask")
    }
    return conditions | {
        name: batch[name][:, frames] for name in ("video", "frame_mask")
    }


def test_an_image_has_its_own_label_and_text(joint):
    """In a joint batch the video and each image are predicted as they are alone."""
    model, batch, x_of = joint
    frames, whole = model.shape[0], x_of(batch)
    video = x_of(part(batch, slice(frames), 0))
    np.testing.assert_allclose(whole[:, :frames], video, atol=1e-4)
    for i in range(3):
        image = x_of(part(batch, slice(frames + i, frames + i + 1), i + 1))
        np.testing.assert_allclose(whole[:, frames + i], image[:, 0], atol=1e-4)
        other = x_of(part(batch, slice(frames + i, frames + i + 1), 0))
        assert abs(whole[:, frames + i] - other[:, 0]).mean() > 1e-2


def test_the_video_and_each_image_are_dropped_separately(joint):
    model, batch, x_of = joint
    frames, whole = model.shape[0], x_of(batch)
    keep = jnp.array([[True, True, False, True]] * 2)
    some = x_of(batch, lambda masks: dict.fromkeys(masks, keep))
    changed = abs(np.asarray(some - whole)).mean((0, 2, 3, 4)) > 1e-3
    assert changed.tolist() == [i == frames + 1 for i in range(frames + 3)]
    dropped = model.condition_dropout(model.raw_conditions(batch), jax.random.key(0))
    assert all(mask.shape == (2, 4) for mask in dropped["keep"].values())
