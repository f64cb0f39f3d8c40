"""Reconstruction guidance towards an observation: its residual and its weight."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vdm_jax.diffusion import guidance as guiding
from vdm_jax.errors import UserError
from vdm_jax.sampling.settings import Settings
from vdm_jax.sampling.types import Observation

PIXEL_WEIGHT = 9.0  # default w_r for known frames and pixels, that of VDM
UPSCALE_WEIGHT = 1.0  # for area means: the guided prediction then has these means
MAX_UPSCALE_WEIGHT = 2.0  # times the fraction of an area whose pixels are unknown


def observation_residual(
    observation: Observation, decode: Callable[[jax.Array], jax.Array]
) -> Callable[[jax.Array], list[jax.Array]]:
    """Return the function x -> known minus predicted, of z and of its video's means.

    observation: with z in place of the video. decode: z -> video. x: the predicted z.

    The mean of k pixels has a k-th of their variance. Its residual is multiplied by
    sqrt(k), so that one weight w_r means the same for both terms.
    """

    def residual(x: jax.Array) -> list[jax.Array]:
        parts = [jnp.where(observation.mask, observation.video - x, 0)]
        if observation.low_res is not None:
            h, w = observation.low_res.shape[2:4]
            video = decode(x)
            scale = (video.shape[2] * video.shape[3] / (h * w)) ** 0.5
            means = guiding.area_downsample(video, h, w)
            parts.append(scale * (observation.low_res - means))
        return parts

    return residual


def with_reconstruction_weight(
    settings: Settings, observation: Observation
) -> Settings:
    """Return the settings with a weight w_r; where it is None the observation decides.

    Near the data the guided prediction is a gradient step of size w_r on half the
    squares of the residual. It multiplies the error of an area's mean by 1 - w_r times
    the fraction of the area whose pixels are not known: above 2 the error grows from
    step to step. Known pixels are replaced, and bear any weight.

    Raises:
      UserError: a weight above that, or 0, where area means are known.
    """
    weight = settings.reconstruction_weight
    if weight is None:
        weight = PIXEL_WEIGHT if observation.low_res is None else UPSCALE_WEIGHT
    if observation.low_res is not None:
        size = observation.low_res.shape[2:4]
        unknown = guiding.area_downsample(1.0 - observation.mask, *size).max()
        if not weight or weight * unknown > MAX_UPSCALE_WEIGHT:
            raise UserError(
                f"reconstruction_weight={weight:g} for a low-resolution clip: a weight "
                f"above 0, since it replaces no pixel, to {MAX_UPSCALE_WEIGHT:g} over "
                "the fraction of unknown pixels, beyond which the error grows; "
                f"{UPSCALE_WEIGHT:g} is the default"
            )
    return dataclasses.replace(settings, reconstruction_weight=weight)
