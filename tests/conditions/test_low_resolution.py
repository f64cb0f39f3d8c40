"""The low-resolution condition: resampling, and noise conditioning augmentation."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.conditions import low_resolution
from vdm_jax.conditions.low_resolution import LowResolution

SSR = LowResolution("ssr", 2, shape=(4, 8, 12, 3))
TSR = LowResolution("tsr", 2, shape=(8, 4, 6, 3))


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    "snr, alpha, t", [(3, 0.8660, 1 / 3), (5, 0.9129, 0.268), (1, math.sqrt(0.5), 0.5)]
)
def test_snr_by_imagen_videos_table(snr, alpha, t):
    """SNR 3 is logsnr 1.0986, alpha .8660, t = 1/3 of the cosine schedule."""
    assert low_resolution.time_from_snr(snr) == pytest.approx(t, abs=5e-4)
    level = low_resolution.schedules.noise_level(
        low_resolution.AUGMENTATION_SCHEDULE,
        np.array([low_resolution.time_from_snr(snr)]),
    )
    assert level.alpha[0] == pytest.approx(alpha, abs=1e-4)
    assert level.logsnr[0] == pytest.approx(math.log(snr), abs=1e-6)


def test_no_noise_is_time_0():
    assert (
        low_resolution.time_from_snr(math.inf) == 0
        and low_resolution.time_from_snr(0) == 1
    )


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("fill", ["repeat", "blank"])
def test_input_frames_keep_their_places(factor, fill):
    stage = dataclasses.replace(
        TSR, factor=factor, temporal_fill=fill, shape=(12, 4, 6, 3)
    )
    low = jnp.asarray(rng().normal(size=(2, *stage.input_shape)))
    t, eps = jnp.zeros(2), jnp.zeros((2, *stage.shape))
    cond = stage.from_observation(low, t, eps)["low_res"]
    assert cond.shape == (2, *stage.null((1,))["low_res"].shape[1:])
    np.testing.assert_allclose(cond[:, ::factor, ..., :3], low, rtol=1e-5, atol=1e-5)
    assert np.all(cond[..., 3].mean((0, 2, 3)) == (np.arange(12) % factor == 0))
    between = np.delete(np.asarray(cond[..., :3]), np.s_[::factor], axis=1)
    if fill == "blank":
        assert np.all(between == 0)
    else:
        repeated = np.asarray(cond[:, ::factor, ..., :3]).repeat(factor - 1, axis=1)
        np.testing.assert_array_equal(between, repeated)


def test_upsampling_inverts_temporal_downsampling_at_the_input_frames():
    x = jnp.asarray(rng().normal(size=(2, 8, 4, 6, 3)))
    np.testing.assert_array_equal(TSR.observation(x), x[:, ::2])
    up, mask = TSR.upsample(TSR.observation(x))
    np.testing.assert_array_equal(jnp.where(mask, up, x), x)


def test_a_ramp_is_upsampled_to_a_ramp():
    """Bilinear at pixel centres, half a pixel apart; constant beyond the ends."""
    ramp = jnp.arange(6.0)[None, None, None, :, None] * jnp.ones((1, 4, 4, 6, 3))
    up, mask = SSR.upsample(ramp)
    assert up.shape == (1, *SSR.shape) and mask.all()
    expected = np.arange(12) / 2 - 0.25
    np.testing.assert_allclose(up[0, 1, 3, 1:-1, 0], expected[1:-1], atol=1e-6)


def test_downsampling_is_anti_aliased():
    """A checkerboard of single pixels vanishes at half the size."""
    board = (np.indices((8, 12)).sum(0) % 2 * 2.0 - 1)[None, None, :, :, None]
    down = SSR.observation(jnp.asarray(np.tile(board, (1, 4, 1, 1, 3))))
    assert np.abs(np.asarray(down)[:, :, 1:-1, 1:-1]).max() < 1e-6


@pytest.mark.parametrize("snr", [math.inf, 10, 5, 3, 1])
def test_noise_keeps_the_variance(snr):
    """Var[c] = alpha^2 Var[u] + sigma^2 = 1 for u of variance 1."""
    t = jnp.full(64, low_resolution.time_from_snr(snr))
    low = jnp.asarray(rng().normal(size=(64, *TSR.input_shape)))
    eps = jnp.asarray(rng(1).normal(size=(64, *TSR.shape)))
    cond = TSR.from_observation(low, t, eps)
    assert np.var(cond["low_res"][..., :3]) == pytest.approx(1, abs=0.03)
    expected = 20 if snr == math.inf else math.log(snr)
    np.testing.assert_allclose(cond["low_res_logsnr"], expected, atol=1e-4)


def test_noise_is_independent_per_frame_with_one_level_per_video():
    low = jnp.zeros((3, *TSR.input_shape))
    _, cond = TSR.prepare_batch(jnp.zeros((3, *TSR.shape)), jax.random.key(0))
    noise = np.asarray(cond["low_res"][..., :3])
    assert not np.allclose(noise[:, 0], noise[:, 1])
    sigma = np.exp(-np.logaddexp(0, np.asarray(cond["low_res_logsnr"])) / 2)
    np.testing.assert_allclose(noise.std((1, 2, 3, 4)), sigma, rtol=0.1)
    assert len(np.unique(sigma)) == 3 and low.shape == (3, *TSR.input_shape)


@pytest.mark.parametrize("noise", [(0.0, 0.5), (0.25, 0.25), (0.5, 1.0)])
def test_training_draws_augmentation_times_between_the_bounds(noise):
    stage = dataclasses.replace(SSR, augmentation_time=noise)
    x = jnp.zeros((500, 1, 8, 12, 3))
    stage = dataclasses.replace(stage, shape=(1, 8, 12, 3))
    _, cond = stage.prepare_batch(x, jax.random.key(1))
    t = np.arctan(np.exp(-np.asarray(cond["low_res_logsnr"]) / 2)) / (np.pi / 2)
    assert t.min() >= noise[0] - 1e-4 and t.max() <= noise[1] + 1e-4
    assert t.mean() == pytest.approx(np.mean(noise), abs=0.02)


@pytest.mark.parametrize("fill", ["repeat", "blank"])
def test_independent_images_have_an_input_in_space_only(fill):
    stage = dataclasses.replace(TSR, temporal_fill=fill)
    x = jnp.asarray(rng().normal(size=(2, 11, 4, 6, 3)))
    same, cond = stage.prepare_batch(x, jax.random.key(0))
    assert cond["low_res"].shape == (2, 11, 4, 6, 4)
    assert np.all(np.asarray(cond["low_res"])[:, 8:] == 0)
    np.testing.assert_array_equal(same, x)
    x = jnp.asarray(rng().normal(size=(2, 7, 8, 12, 3)))
    _, cond = SSR.prepare_batch(x, jax.random.key(0))
    assert cond["low_res"].shape == (2, 7, 8, 12, 3)
    assert np.asarray(cond["low_res"])[:, 4:].any(axis=(2, 3, 4)).all()


def test_the_clip_and_its_input_are_cropped_alike():
    stage = dataclasses.replace(SSR, train_crop=(4, 6), augmentation_time=(0.0, 0.0))
    x = jnp.asarray(rng().normal(size=(32, 4, 8, 12, 3)))
    cut, cond = stage.prepare_batch(x, jax.random.key(2))
    assert cut.shape == (32, 4, 4, 6, 3) and cond["low_res"].shape == cut.shape
    places = set()
    for video, part in zip(np.asarray(x), np.asarray(cut), strict=True):
        at = [
            (i, j)
            for i in range(0, 5, 2)
            for j in range(0, 7, 2)
            if np.array_equal(video[:, i : i + 4, j : j + 6], part)
        ]
        assert len(at) == 1
        places |= set(at)
    assert len(places) == 12  # 3 x 4, all of them
    up, _ = stage.upsample(stage.observation(cut))
    np.testing.assert_allclose(cond["low_res"], up, atol=1e-3)
