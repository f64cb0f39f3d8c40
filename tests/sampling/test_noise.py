"""Laws of a whole sampling, of a model whose every answer is known.

Its network is silent, so that the preconditioning alone predicts: the denoiser is the
exact one of independent Gaussian pixels with the data's mean and variance.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import sampling
from vdm_jax.conditions.low_resolution import LowResolution
from vdm_jax.diffusion import samplers, schedules
from vdm_jax.model import DiffusionModel
from vdm_jax.sampling import Observation, Settings

SHAPE = (4, 8, 8, 2)
HALF = np.arange(SHAPE[0]).reshape(1, -1, 1, 1, 1) < SHAPE[0] // 2
PARAMS = {"network": {}, "conditioning_encoder": {}}


class Silent:
    """A network, or a conditioning encoder, whose answer is 0."""

    def apply(self, params, first, *more, **how):
        return jnp.zeros_like(first)


def gaussian(mean=0.1, variance=0.01, stage=None):
    """A model of its own, whose programs no other test has compiled."""
    return DiffusionModel(
        Silent(),  # type: ignore[arg-type]
        Silent(),  # type: ignore[arg-type]
        schedules.Cosine(),
        schedules.Cosine(),
        SHAPE,
        mean=mean,
        variance=variance,
        low_resolution=stage,
    )


@pytest.mark.parametrize("size", [(4, 4), (8, 1)])
def test_the_exact_weight_meets_the_area_means_and_moves_nothing_else(size, x64):
    """A mean of k pixels has a k-th of their variance: the scale says so."""
    model, (h, w) = gaussian(), size
    rng = np.random.default_rng(0)
    low = rng.uniform(-0.2, 0.2, (2, SHAPE[0], h, w, SHAPE[3]))
    known = Observation(np.zeros((1, *SHAPE)), np.zeros((1, *SHAPE[:3], 1), bool), low)
    settings = Settings(
        steps=16, clip_x=0.0, reconstruction_weight=1.0, reconstruction_schedule="exact"
    )

    def parts(**asked):
        made = sampling.sample(model, PARAMS, 2, settings, **asked)
        cells = made.reshape(2, SHAPE[0], h, 8 // h, w, 8 // w, SHAPE[3])
        means = cells.mean((3, 5), keepdims=True)
        return means.reshape(low.shape), cells - means

    means, rest = parts(known=known)
    np.testing.assert_allclose(means, low, atol=1e-6)
    np.testing.assert_allclose(rest, parts()[1], atol=1e-9)


class Share:
    """A conditioning encoder: a share by the label, a fifth where it is not kept."""

    def apply(self, params, logsnr, frames, cond):
        share = 0.5 + 0.1 * cond["label"][:, 0]
        return jnp.where(cond["keep"]["label"], share, 0.2)


class Linear:
    """A network: that share of z."""

    def apply(self, params, z, share, train, rngs):
        return share.reshape(-1, 1, 1, 1, 1) * z


def linear():
    """Its first step is of as much signal as noise."""
    return dataclasses.replace(
        gaussian(0.0, 1.0),
        network=Linear(),
        conditioning_encoder=Share(),
        schedule=schedules.Cosine(logsnr_min=0.0),
        output="x",
        attributes=(("a", "b"),),
        label_drop=0.1,
    )


def test_guidance_is_away_from_each_video_s_own_negative_label():
    z = 0.1 * np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)
    labels, negative = np.array([[0], [1], [0]]), np.array([[1], [0], [-1]])
    settings = Settings(steps=1, guidance_scale=2.0, batch_size=2)
    told = {"labels": labels, "start": z}
    made = sampling.sample(linear(), PARAMS, 3, settings, **told)
    share = 0.5 + 0.1 * labels
    expected = (3 * share - 2 * 0.2).reshape(-1, 1, 1, 1, 1) * z
    np.testing.assert_allclose(made, expected, atol=1e-6)
    made = sampling.sample(
        linear(), PARAMS, 3, settings, **told, negative_labels=negative
    )
    expected = (3 * share - 2 * (0.5 + 0.1 * negative)).reshape(-1, 1, 1, 1, 1) * z
    np.testing.assert_allclose(made, expected, atol=1e-6)


def test_branches_are_combined_then_pulled_at_then_clipped_then_replaced(x64):
    """One step to the prediction itself, whose every part has a closed form."""
    rng = np.random.default_rng(0)
    z, video = rng.normal(size=(2, 2, *SHAPE))
    low = rng.uniform(-1, 1, (2, SHAPE[0], 4, 4, SHAPE[3]))
    known = Observation(np.clip(video, -1, 1), HALF, low)
    settings = Settings(
        steps=1, guidance_scale=2.0, reconstruction_weight=3.0, clip_x=0.6
    )
    labels = np.zeros((2, 1), np.int32)
    made = sampling.sample(
        linear(), PARAMS, 2, settings, labels=labels, observation=known, initial_noise=z
    )

    def means(x):
        return x.reshape(2, SHAPE[0], 4, 2, 4, 2, SHAPE[3]).mean((3, 5))

    g = 0.5 + 2.0 * (0.5 - 0.2)
    pulled = 3.0 * np.sqrt(0.5) * g * (low - g * means(z)).repeat(2, 2).repeat(2, 3)
    expected = np.clip(g * z + pulled, -0.6, 0.6)
    inside = np.abs(expected) < 0.6
    assert 0.2 < inside.mean() < 0.8
    expected = np.where(HALF, known.video, expected)
    after = slice(SHAPE[0] // 2, None)  # of frames that are not given
    np.testing.assert_allclose(made[:, after], expected[:, after], atol=1e-9)
    np.testing.assert_array_equal(made[:, : after.start], known.video[:, : after.start])


class Given:
    """A conditioning encoder, and a network: the video that a stage is given, how noisy it is.

    The first channel is the video's, the second says the level.
    """

    def apply(self, params, first, second, *more, **how):
        if not isinstance(second, int):  # the network: z and what the encoder returned
            return second
        video, level = more[0]["low"], more[0]["low_logsnr"]
        level = jnp.broadcast_to(level.reshape(-1, 1, 1, 1, 1), video[..., :1].shape)
        return jnp.concatenate([video[..., :1], level / 20], axis=-1)


@pytest.mark.parametrize("snr", [50.0, 400.0])
def test_a_stage_is_given_the_noise_that_it_is_told_of(snr):
    told = Given()
    model = dataclasses.replace(
        gaussian(0.0, 1.0, LowResolution("ssr", 2, SHAPE)),
        network=told,
        conditioning_encoder=told,
        output="x",
    )
    own = np.linspace(-0.4, 0.4, 5, dtype=np.float32).reshape(-1, 1, 1, 1, 1)
    low = np.broadcast_to(own, (5, SHAPE[0], 4, 4, SHAPE[3]))
    settings = Settings(steps=1, augmentation_snr=snr, clip_x=0.0, batch_size=2)
    made = sampling.sample(model, PARAMS, 5, settings, low_res=low)
    alpha2 = snr / (1 + snr)
    np.testing.assert_allclose(20 * made[..., 1], np.log(snr), rtol=1e-4)
    noise = made[..., 0] - np.sqrt(alpha2) * own[..., 0]
    assert np.abs(noise.mean((1, 2, 3))).max() < 0.05
    assert noise.var() == pytest.approx(1 - alpha2, rel=0.15)


@pytest.fixture
def draws(monkeypatch):
    """Every noise that any program draws while it runs, video by video."""
    seen, normal = [], samplers.normal

    def spied(*args):
        noise = normal(*args)
        jax.debug.callback(lambda each: seen.extend(np.asarray(each)), noise)
        return noise

    monkeypatch.setattr(samplers, "normal", spied)
    return seen


GIVEN = Observation(np.zeros((1, *SHAPE)), HALF)
LOW = {"low": np.zeros((2, SHAPE[0], 4, 4, SHAPE[3]), np.float32)}
STEPS = 3


@pytest.mark.parametrize(
    "settings, asked, count",
    [
        # Of a video: its start, then of each step the sampler's own, the corrector's,
        # and at each call that of the pixels that are replaced.
        ({"sampler": "ancestral", "corrector": 0.1}, {"known": GIVEN}, 1 + 4 * STEPS),
        ({"sampler": "heun", "churn": 5.0}, {"known": GIVEN}, 1 + 3 * STEPS),
        # And once the noise on what a stage is given.
        ({"sampler": "ancestral"}, LOW, 2 + STEPS),
    ],
)
def test_no_noise_is_drawn_twice(draws, settings, asked, count):
    """Neither within a video, nor by other videos, seeds, stages or blocks."""
    model = gaussian(stage=LowResolution("ssr", 2, SHAPE) if "low" in asked else None)
    settings = Settings(
        steps=STEPS, reconstruction_weight=0.0, batch_size=2, **settings
    )
    each = {}, {"seed": 1}, {"stage": 1}, {"block": 1}, {"first": 2}
    for which in each:
        sampling.sample(model, PARAMS, 2, settings, **asked, **which)
    jax.effects_barrier()
    assert len(draws) == 2 * len(each) * count
    assert len({noise.tobytes() for noise in draws}) == len(draws)


def test_no_block_of_a_long_video_has_the_noise_of_another(draws):
    known = Observation(np.zeros((1, 10, *SHAPE[1:])), np.zeros((1, 10, 1, 1, 1), bool))
    settings = Settings(steps=STEPS, sampler="ancestral", batch_size=2)
    model = gaussian()
    for backward in (False, True):
        draws.clear()
        sampling.extend_in_blocks(model, PARAMS, 2, settings, known, backward=backward)
        jax.effects_barrier()
        assert len({noise.tobytes() for noise in draws}) == len(draws)
        assert len(draws) == 2 * (1 + STEPS + 3 * (1 + 2 * STEPS))
