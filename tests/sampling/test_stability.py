"""The default weight of an observation, and weights that diverge."""

import dataclasses

import numpy as np
import pytest

from tests.sampling.test_noise import PARAMS, SHAPE, gaussian
from vdm_jax import sampling
from vdm_jax.diffusion import guidance, samplers, schedules
from vdm_jax.errors import UserError
from vdm_jax.sampling import (
    Observation,
    SamplingInputs,
    Settings,
    batches,
    reconstruction,
    stability,
)

NOTHING = np.zeros((1, *SHAPE)), np.zeros((1, *SHAPE[:3], 1), bool)
FRAMES = np.zeros((1, *SHAPE)), np.arange(SHAPE[0])[None, :, None, None, None] < 2


def low_of(n, deviation):
    """Area means [n, f, 4, 4, c] of independent pixels."""
    pixels = np.random.default_rng(0).standard_normal((n, *SHAPE)) * deviation
    f, h, w, c = SHAPE
    return pixels.reshape(n, f, 4, h // 4, 4, w // 4, c).mean((3, 5))


@pytest.mark.parametrize("means, weight", [(True, 1.0), (False, 9.0)])
def test_the_weight_follows_what_is_observed(means, weight):
    """In the library as on the command line; a weight in the settings is kept."""
    known = Observation(*NOTHING, low_of(2, 0.1)) if means else Observation(*FRAMES)
    settings = Settings(sampler="ddim", steps=4)
    found = sampling.with_reconstruction_weight(gaussian(), settings, known)
    assert found == dataclasses.replace(settings, reconstruction_weight=weight)
    assert sampling.with_reconstruction_weight(gaussian(), found, known) == found
    own = dataclasses.replace(settings, reconstruction_weight=1.5)
    assert sampling.with_reconstruction_weight(gaussian(), own, known) == own


def test_a_library_s_default_meets_the_area_means():
    known, made = Observation(*NOTHING, low_of(2, 0.1)), []
    for weight in (None, 1.0, 1.5):
        settings = Settings(sampler="ddim", steps=4, reconstruction_weight=weight)
        inputs = SamplingInputs(observation=known)
        made.append(sampling.sample(gaussian(), PARAMS, 2, settings, inputs))
    np.testing.assert_array_equal(made[0], made[1])
    assert (made[0] != made[2]).any()


@pytest.mark.parametrize("weight", [4.5, 9.0, 50.0])
def test_a_weight_that_diverges_is_named_with_one_that_does_not(weight):
    known, model = Observation(*NOTHING, low_of(2, 0.1)), gaussian(variance=0.2)
    settings = Settings(
        ancestral_gamma=0.0, steps=64, sampler="ancestral", reconstruction_weight=weight
    )
    with pytest.raises(UserError) as refusal:
        inputs = SamplingInputs(observation=known)
        sampling.sample(model, PARAMS, 2, settings, inputs)
    line = str(refusal.value)
    assert line.startswith(f"reconstruction_weight={weight:g} diverges for a low-res")
    assert "64 steps of ancestral" in line and "\n" not in line
    most = float(line.split("without guidance: ")[1].split(" at most")[0])
    assert 2 < most < 4.5
    allowed = dataclasses.replace(settings, reconstruction_weight=most - 0.1)
    assert sampling.with_reconstruction_weight(model, allowed, known) == allowed
    frames = Observation(*FRAMES)  # replaced, so they bear it
    assert sampling.with_reconstruction_weight(model, settings, frames) == settings


def test_area_means_of_known_pixels_bear_more():
    """A quarter of the pixels is unknown: four times the weight is the same step."""
    (video, mask), low = NOTHING, low_of(1, 0.1)
    mask = mask.copy()
    mask[:, :, ::2] = mask[:, :, :, ::2] = True
    settings = Settings(
        ancestral_gamma=0.0, steps=16, sampler="ancestral", reconstruction_weight=8.0
    )
    assert sampling.with_reconstruction_weight(
        gaussian(), settings, Observation(video, mask, low)
    )
    with pytest.raises(UserError, match="diverges"):
        sampling.with_reconstruction_weight(
            gaussian(), settings, Observation(video, ~mask, low)
        )
    mask[:] = True
    settings = dataclasses.replace(settings, reconstruction_weight=1e4)
    assert sampling.with_reconstruction_weight(
        gaussian(), settings, Observation(video, mask, low)
    )


def test_area_means_need_a_weight():
    settings = Settings(sampler="ddim", steps=2, reconstruction_weight=0.0)
    with pytest.raises(UserError, match="a weight above 0"):
        sampling.with_reconstruction_weight(
            gaussian(), settings, Observation(*NOTHING, low_of(1, 0.1))
        )


@pytest.mark.parametrize(
    "changes",
    [
        {
            "sampler": "ancestral",
            "ancestral_gamma": 0.0,
            "steps": 8,
            "reconstruction_schedule": "exact",
        },  # fmt: skip
        {"sampler": "heun", "steps": 8},
        {"sampler": "dpm", "steps": 8, "sampling_schedule": "karras"},
    ],
)
def test_the_limit_is_where_whole_samplings_diverge(monkeypatch, changes, x64):
    """Gaussian videos, whose denoiser is exact: the error is smaller below it."""
    monkeypatch.setattr(batches, "with_reconstruction_weight", lambda m, s, o: s)
    model, deviation = gaussian(0.0, 0.04), 0.2
    low = low_of(8, deviation)
    settings = Settings(clip_x=0.0, **changes)
    sampler = reconstruction.make_sampler(settings)
    table = sampler.table(reconstruction.make_schedule(model, settings), settings.steps)
    exact = settings.reconstruction_schedule == "exact"
    weights = guidance.snr_dependent_weight(20.0, 20.0 / 0.04 * exact)
    limit = 20 * stability.largest_stable_fraction(sampler, table, weights, 0.04)
    assert 1 < limit < 5

    def ends(weight):
        each = dataclasses.replace(settings, reconstruction_weight=weight)
        inputs = SamplingInputs(observation=Observation(*NOTHING, low))
        made = sampling.generate(model, PARAMS, 8, each, inputs)  # not clipped
        made = made.reshape(8, SHAPE[0], 4, 2, 4, 2, SHAPE[3])
        return np.std(made.mean((3, 5)) - low) / np.std(low)

    assert ends(limit / 2) < 1 < ends(2 * limit)
    assert ends(1.0) < 0.2


def test_the_final_error_is_a_sum_of_the_noises():
    """DDIM in one step is the prediction itself: a known start, one error."""
    sampler, schedule = samplers.ddim(), schedules.Cosine(-2.0, 8.0)
    table = sampler.table(schedule, 1)
    level = schedules.noise_level(schedule, np.ones(()))
    variance, weight = 0.3, 1.7
    spread = level.alpha**2 * variance + level.sigma**2
    gain = level.alpha * variance / spread
    pull = weight * level.alpha * gain
    x = np.hypot(gain, level.sigma * np.sqrt(variance / spread))
    expected = abs(1 - pull) * np.hypot(x, np.sqrt(variance))
    found = stability.final_rms_error(
        sampler, table, guidance.snr_dependent_weight(weight, 0.0), variance
    )
    assert found == pytest.approx(expected, rel=1e-12)
    harmless = guidance.snr_dependent_weight(0.5, 0.0)
    assert stability.largest_stable_fraction(sampler, table, harmless, variance) == 1
