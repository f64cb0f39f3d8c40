"""Reconstruction guidance towards an observation: its residual and its weight."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vdm_jax.codec import Codec
from vdm_jax.diffusion import guidance as guiding
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel
from vdm_jax.sampling import stability
from vdm_jax.sampling.settings import (
    Settings,
    make_sampler,
    make_schedule,
    reconstruction_base_slope,
)
from vdm_jax.sampling.types import Observation

PIXEL_WEIGHT = 9.0  # default w_r for known frames and pixels, that of VDM
UPSCALE_WEIGHT = 1.0  # for area means: the guided prediction then has these means


def observation_residual(
    observation: Observation, codec: Codec
) -> Callable[[jax.Array], list[jax.Array]]:
    """Return the function x -> known minus predicted, of z and of its video's means.

    observation: with z in place of the video. x: the predicted z.

    The mean of k pixels has a k-th of their variance. Its residual is multiplied by
    sqrt(k), so that one weight w_r means the same for both terms.
    """

    def residual(x: jax.Array) -> list[jax.Array]:
        parts = [jnp.where(observation.mask, observation.video - x, 0)]
        if observation.low_res is not None:
            h, w = observation.low_res.shape[2:4]
            video = codec.decode(x)
            scale = (video.shape[2] * video.shape[3] / (h * w)) ** 0.5
            means = guiding.area_downsample(video, h, w)
            parts.append(scale * (observation.low_res - means))
        return parts

    return residual


def with_reconstruction_weight(
    model: DiffusionModel, settings: Settings, observation: Observation
) -> Settings:
    """Return the settings with a weight w_r; where it is None the observation decides.

    Near the data the guided prediction is a gradient step of size w_r on half the
    squares of the residual. It multiplies the error of an area's mean by 1 - w_r times
    the fraction of the area whose pixels are not known. Above 2 a step makes the error
    larger; how large it ends depends on the steps before
    (`stability.final_rms_error`). Known pixels are replaced, and bear any weight.

    Raises:
      UserError: a weight with which the area means end further off than without
        guidance, or 0 where area means are known.
    """
    weight = settings.reconstruction_weight
    if weight is None:
        weight = PIXEL_WEIGHT if observation.low_res is None else UPSCALE_WEIGHT
    settings = dataclasses.replace(settings, reconstruction_weight=weight)
    if observation.low_res is None:
        return settings
    if not weight:
        raise UserError(
            "reconstruction_weight=0 replaces known pixels and cannot follow a "
            "low-resolution clip: a weight above 0"
        )
    size = observation.low_res.shape[2:4]
    unknown = float(guiding.area_downsample(1.0 - observation.mask, *size).max())
    if weight * unknown <= UPSCALE_WEIGHT:
        return settings
    sampler, variance = make_sampler(settings), model.variance
    base, slope = (unknown * w for w in reconstruction_base_slope(settings, variance))
    table = sampler.table(make_schedule(model, settings), settings.steps)
    fraction = stability.largest_stable_fraction(
        sampler, table, guiding.snr_dependent_weight(base, slope), variance
    )
    if fraction < 1:
        limit = max(fraction * weight, UPSCALE_WEIGHT)
        raise UserError(
            f"reconstruction_weight={weight:g} diverges for a low-resolution clip, "
            f"whose pixels end further off in {settings.steps} steps of "
            f"{settings.sampler} than without guidance: {limit:.2g} at most, "
            f"{UPSCALE_WEIGHT:g} is the default"
        )
    return settings
