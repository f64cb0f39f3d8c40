"""The default weight of an observation, and weights that area means do not bear."""

import dataclasses

import numpy as np
import pytest

from tests.sampling.test_noise import PARAMS, SHAPE, gaussian
from vdm_jax import sampling
from vdm_jax.errors import UserError
from vdm_jax.sampling import Observation, SamplingInputs, Settings

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
    found = sampling.with_reconstruction_weight(settings, known)
    assert found == dataclasses.replace(settings, reconstruction_weight=weight)
    assert sampling.with_reconstruction_weight(found, known) == found
    own = dataclasses.replace(settings, reconstruction_weight=1.5)
    assert sampling.with_reconstruction_weight(own, known) == own


def test_a_library_s_default_meets_the_area_means():
    known, made = Observation(*NOTHING, low_of(2, 0.1)), []
    for weight in (None, 1.0, 1.5):
        settings = Settings(sampler="ddim", steps=4, reconstruction_weight=weight)
        inputs = SamplingInputs(observation=known)
        made.append(sampling.sample(gaussian(), PARAMS, 2, settings, inputs))
    np.testing.assert_array_equal(made[0], made[1])
    assert (made[0] != made[2]).any()


@pytest.mark.parametrize("weight", [0.0, 2.1, 50.0])
def test_a_weight_that_no_area_mean_bears_is_one_line(weight):
    known, model = Observation(*NOTHING, low_of(2, 0.1)), gaussian(variance=0.2)
    settings = Settings(sampler="ddim", steps=4, reconstruction_weight=weight)
    with pytest.raises(UserError, match="for a low-resolution clip") as refusal:
        inputs = SamplingInputs(observation=known)
        sampling.sample(model, PARAMS, 2, settings, inputs)
    assert str(refusal.value).startswith(f"reconstruction_weight={weight:g} for")
    assert "\n" not in str(refusal.value)
    frames = Observation(*FRAMES)  # replaced, so they bear it
    assert sampling.with_reconstruction_weight(settings, frames) == settings


def test_area_means_of_known_pixels_bear_more():
    """A quarter of the pixels is unknown: four times the weight is the same step."""
    (video, mask), low = NOTHING, low_of(1, 0.1)
    mask = mask.copy()
    mask[:, :, ::2] = mask[:, :, :, ::2] = True
    settings = Settings(reconstruction_weight=8.0)
    assert sampling.with_reconstruction_weight(settings, Observation(video, mask, low))
    with pytest.raises(UserError, match="to 2 over the fraction of unknown pixels"):
        sampling.with_reconstruction_weight(settings, Observation(video, ~mask, low))
    mask[:] = True
    settings = dataclasses.replace(settings, reconstruction_weight=1e4)
    assert sampling.with_reconstruction_weight(settings, Observation(video, mask, low))
