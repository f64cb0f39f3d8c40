"""Laws of a whole sampling, with a model whose every prediction is known.

Its network returns 0, so that the preconditioning alone predicts: the denoiser is the
exact one of independent Gaussian pixels with the data's mean and variance.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.seams.fps import Fps
from vdm_jax import sampling
from vdm_jax.codec import Patch
from vdm_jax.conditions.label import Label
from vdm_jax.conditions.low_resolution import LowResolution
from vdm_jax.diffusion import samplers, schedules
from vdm_jax.model import DiffusionModel
from vdm_jax.sampling import Observation, SamplingInputs, Settings

SHAPE = (4, 8, 8, 2)
HALF = np.arange(SHAPE[0]).reshape(1, -1, 1, 1, 1) < SHAPE[0] // 2
PARAMS = {"network": {}, "conditioning_encoder": {}}


class Zero:
    """A network, or a conditioning encoder, that returns 0."""

    def apply(self, params, first, *more, **how):
        return jnp.zeros_like(first)


def gaussian(mean=0.1, variance=0.01, stage=None):
    """Return a new model, whose programs no other test has compiled."""
    return DiffusionModel(
        Zero(),  # type: ignore[arg-type]
        Zero(),  # type: ignore[arg-type]
        schedules.Cosine(),
        schedules.Cosine(),
        SHAPE,
        mean=mean,
        variance=variance,
        conditions=(("low_resolution", stage),) if stage else (),
    )


@pytest.mark.parametrize("size", [(4, 4), (8, 1)])
def test_the_exact_weight_meets_the_area_means_and_moves_nothing_else(size, x64):
    """A mean of k pixels has a k-th of their variance: the scale says so."""
    model, (h, w) = gaussian(), size
    rng = np.random.default_rng(0)
    low = rng.uniform(-0.2, 0.2, (2, SHAPE[0], h, w, SHAPE[3]))
    known = Observation(np.zeros((1, *SHAPE)), np.zeros((1, *SHAPE[:3], 1), bool), low)
    settings = Settings(
        sampler="ddim",
        steps=16,
        clip_x=0.0,
        reconstruction_weight=1.0,
        reconstruction_schedule="exact",
    )

    def parts(observation=None):
        inputs = SamplingInputs(observation=observation)
        videos = sampling.sample(model, PARAMS, 2, settings, inputs)
        cells = videos.reshape(2, SHAPE[0], h, 8 // h, w, 8 // w, SHAPE[3])
        means = cells.mean((3, 5), keepdims=True)
        return means.reshape(low.shape), cells - means

    means, rest = parts(known)
    np.testing.assert_allclose(means, low, atol=1e-6)
    np.testing.assert_allclose(rest, parts()[1], atol=1e-9)


class LabelGain:
    """A conditioning encoder: a gain by the label, a fifth where it is not kept."""

    def apply(self, params, logsnr, frames, cond):
        gain = 0.5 + 0.1 * cond["label"][:, 0]
        return jnp.where(cond["keep"]["label"], gain, 0.2)


class Linear:
    """A network: z times the gain."""

    def apply(self, params, z, gain, train, rngs):
        return gain.reshape(-1, 1, 1, 1, 1) * z


def linear():
    """Return a linear model whose first step has as much signal as noise."""
    return dataclasses.replace(
        gaussian(0.0, 1.0),
        network=Linear(),
        conditioning_encoder=LabelGain(),
        schedule=schedules.Cosine(logsnr_min=0.0),
        prediction_type="x",
        conditions=(("label", Label((("a", "b"),), dropout=0.1)),),
    )


def test_each_video_has_its_own_negative_label():
    z = 0.1 * np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)
    labels, negative = np.array([[0], [1], [0]]), np.array([[1], [0], [-1]])
    settings = Settings(sampler="ddim", steps=1, guidance_scale=3.0, batch_size=2)
    inputs = SamplingInputs({"label": labels}, initial_noise=z)
    made = sampling.sample(linear(), PARAMS, 3, settings, inputs)
    gain = 0.5 + 0.1 * labels
    expected = (3 * gain - 2 * 0.2).reshape(-1, 1, 1, 1, 1) * z
    np.testing.assert_allclose(made, expected, atol=1e-6)
    inputs = SamplingInputs({"label": labels}, {"label": negative}, initial_noise=z)
    made = sampling.sample(linear(), PARAMS, 3, settings, inputs)
    expected = (3 * gain - 2 * (0.5 + 0.1 * negative)).reshape(-1, 1, 1, 1, 1) * z
    np.testing.assert_allclose(made, expected, atol=1e-6)


def test_guidance_then_reconstruction_then_clipping_then_replacement(x64):
    """One step to the prediction itself, whose every part has a closed form."""
    rng = np.random.default_rng(0)
    z, video = rng.normal(size=(2, 2, *SHAPE))
    low = rng.uniform(-1, 1, (2, SHAPE[0], 4, 4, SHAPE[3]))
    known = Observation(np.clip(video, -1, 1), HALF, low)
    settings = Settings(
        sampler="ddim",
        steps=1,
        guidance_scale=3.0,
        reconstruction_weight=2.0,
        clip_x=0.6,
    )
    labels = np.zeros((2, 1), np.int32)
    inputs = SamplingInputs({"label": labels}, observation=known, initial_noise=z)
    made = sampling.sample(linear(), PARAMS, 2, settings, inputs)

    def means(x):
        return x.reshape(2, SHAPE[0], 4, 2, 4, 2, SHAPE[3]).mean((3, 5))

    g = 0.5 + 2.0 * (0.5 - 0.2)
    pulled = 2.0 * np.sqrt(0.5) * g * (low - g * means(z)).repeat(2, 2).repeat(2, 3)
    expected = np.clip(g * z + pulled, -0.6, 0.6)
    inside = np.abs(expected) < 0.6
    assert 0.2 < inside.mean() < 0.8
    expected = np.where(HALF, known.video, expected)
    after = slice(SHAPE[0] // 2, None)  # frames that are not known
    np.testing.assert_allclose(made[:, after], expected[:, after], atol=1e-9)
    np.testing.assert_array_equal(made[:, : after.start], known.video[:, : after.start])


class ShowLowRes:
    """A conditioning encoder, and a network that returns a stage's input video.

    The first channel is the video's, the second is its noise level.
    """

    def apply(self, params, first, second, *more, **how):
        if not isinstance(second, int):  # the network: z and what the encoder returned
            return second
        video, level = more[0]["low_res"], more[0]["low_res_logsnr"]
        level = jnp.broadcast_to(level.reshape(-1, 1, 1, 1, 1), video[..., :1].shape)
        return jnp.concatenate([video[..., :1], level / 20], axis=-1)


@pytest.mark.parametrize("snr", [50.0, 400.0])
def test_a_stage_s_input_has_the_noise_level_of_its_condition(snr):
    network = ShowLowRes()
    model = dataclasses.replace(
        gaussian(0.0, 1.0, LowResolution("ssr", 2, shape=SHAPE)),
        network=network,
        conditioning_encoder=network,
        prediction_type="x",
    )
    own = np.linspace(-0.4, 0.4, 5, dtype=np.float32).reshape(-1, 1, 1, 1, 1)
    low = np.broadcast_to(own, (5, SHAPE[0], 4, 4, SHAPE[3]))
    settings = Settings(
        sampler="ddim", steps=1, augmentation_snr=snr, clip_x=0.0, batch_size=2
    )
    inputs = SamplingInputs({"low_resolution": low})
    made = sampling.sample(model, PARAMS, 5, settings, inputs)
    alpha2 = snr / (1 + snr)
    np.testing.assert_allclose(20 * made[..., 1], np.log(snr), rtol=1e-4)
    noise = made[..., 0] - np.sqrt(alpha2) * own[..., 0]
    assert np.abs(noise.mean((1, 2, 3))).max() < 0.05
    assert noise.var() == pytest.approx(1 - alpha2, rel=0.15)


@pytest.fixture
def draws(monkeypatch):
    """Return a list of every noise that a program draws while it runs."""
    seen, normal = [], samplers.normal

    def spied(*args):
        noise = normal(*args)
        jax.debug.callback(lambda each: seen.extend(np.asarray(each)), noise)
        return noise

    monkeypatch.setattr(samplers, "normal", spied)
    return seen


KNOWN = Observation(np.zeros((1, *SHAPE)), HALF)
LOW = {"low_resolution": np.zeros((2, SHAPE[0], 4, 4, SHAPE[3]), np.float32)}
STEPS = 3


@pytest.mark.parametrize(
    "settings, inputs, count",
    [
        # Of a video: its start, then of each step the sampler's own, the corrector's,
        # and at each call that of the pixels that are replaced.
        (
            {"sampler": "ancestral", "langevin_delta": 0.1},
            SamplingInputs(observation=KNOWN),
            1 + 4 * STEPS,
        ),
        (
            {"sampler": "heun", "s_churn": 5.0},
            SamplingInputs(observation=KNOWN),
            1 + 3 * STEPS,
        ),
        # And once the noise on a stage's low-resolution input.
        ({"sampler": "ancestral"}, SamplingInputs(LOW), 2 + STEPS),
    ],
)
def test_no_noise_is_drawn_twice(draws, settings, inputs, count):
    """Neither within a video, nor by other videos, seeds, stages or blocks."""
    stage = LowResolution("ssr", 2, shape=SHAPE) if inputs.cond else None
    model = gaussian(stage=stage)
    settings = Settings(
        steps=STEPS, reconstruction_weight=0.0, batch_size=2, **settings
    )
    each = {}, {"seed": 1}, {"stage": 1}, {"block": 1}, {"first_video": 2}
    for index in each:
        run = sampling.Run(**index)
        sampling.sample(model, PARAMS, 2, settings, inputs, run)
    jax.effects_barrier()
    assert len(draws) == 2 * len(each) * count
    assert len({noise.tobytes() for noise in draws}) == len(draws)


def test_no_block_of_a_long_video_has_the_noise_of_another(draws):
    known = Observation(np.zeros((1, 10, *SHAPE[1:])), np.zeros((1, 10, 1, 1, 1), bool))
    settings = Settings(
        ancestral_gamma=0.0, steps=STEPS, sampler="ancestral", batch_size=2
    )
    model = gaussian()
    for backward in (False, True):
        draws.clear()
        inputs = SamplingInputs(observation=known)
        sampling.extend_in_blocks(model, PARAMS, 2, settings, inputs, backward=backward)
        jax.effects_barrier()
        assert len({noise.tobytes() for noise in draws}) == len(draws)
        assert len(draws) == 2 * (1 + STEPS + 3 * (1 + 2 * STEPS))


class White:
    """A network: z of a white video, times what the encoder returned."""

    def apply(self, params, z, gain, train, rngs):
        white = Patch().encode(jnp.ones((len(z), *SHAPE)))
        return gain.reshape(-1, 1, 1, 1, 1) * white


class Kept:
    """A conditioning encoder: 1 where fps is kept, else -1."""

    def apply(self, params, logsnr, frames, cond):
        return jnp.where(cond["keep"]["fps"], 1.0, -1.0)


def test_z_is_clipped_by_the_codec_and_a_missing_condition_is_dropped():
    """White is 2 in the first coefficients of a patch, beyond the limit of pixels."""
    model = dataclasses.replace(
        gaussian(0.0, 1.0),
        network=White(),
        conditioning_encoder=Kept(),
        codec=Patch(),
        conditions=(("fps", Fps(dropout=0.1)),),
        prediction_type="x",
    )
    settings = Settings(sampler="ddim", steps=1)
    for cond, grey in (({"fps": np.full(2, 8.0)}, 1.0), ({}, -1.0)):
        made = sampling.sample(model, PARAMS, 2, settings, SamplingInputs(cond))
        np.testing.assert_allclose(made, np.full((2, *SHAPE), grey), atol=1e-6)
