"""The training loss of a denoiser, per example, with every usual weighting.

At fixed z, x - x_hat = -sigma (v - v_hat) and eps - eps_hat = alpha (v - v_hat), so
every weighting of the literature is a bounded factor on the squared v error: nothing
overflows at either end of the schedule (a weight on the x error reaches exp(20)).
"""

from collections.abc import Callable

import jax.numpy as jnp

from vdm_jax.diffusion import process
from vdm_jax.diffusion.process import Array, Denoiser, Prediction, append_dims, diffuse
from vdm_jax.diffusion.schedules import NoiseLevel

MIN_SNR_GAMMA = 5.0  # Hang et al. 2023, section 3.4

# Weight on |x - x_hat|^2, in the comment, times sigma^2. Salimans & Ho 2022, section
# 4; min-SNR: Hang et al. 2023, equation 8.
WEIGHTINGS: dict[str, Callable[[NoiseLevel], Array]] = {
    "constant": lambda level: level.sigma**2,  # 1
    "snr": lambda level: level.alpha**2,  # SNR: the eps loss of DDPM
    "truncated_snr": lambda level: jnp.maximum(level.alpha**2, level.sigma**2),
    "snr_plus_one": lambda level: jnp.ones_like(level.alpha),  # SNR + 1: the v loss
    "flow": lambda level: (level.alpha + level.sigma) ** 2,  # flow matching's eps - x
    "min_snr": lambda level: jnp.minimum(
        level.alpha**2, MIN_SNR_GAMMA * level.sigma**2
    ),
}


def diffusion_loss(
    denoise: Denoiser,
    x: Array,
    eps: Array,
    level: NoiseLevel,
    cond,
    weighting: str = "snr_plus_one",
    frame_weight: Array | None = None,
) -> Array:
    """Return the weighted squared error [b] of a denoiser.

    x, eps: [b, f, h, w, c], the clean video in [-1, 1] and standard normal noise.
    level: one per example [b], or per frame [b, f]. It is a mean over frames
    (the independent images of joint training included, VDM section 3), pixels and
    channels. frame_weight: see `weighted_v_loss`.
    """
    prediction = denoise(diffuse(x, eps, level), level, cond)
    target = process.velocity(Prediction(x, eps), level)
    error = process.velocity(prediction, level) - target
    return weighted_v_loss(error, level, weighting, frame_weight)


def weighted_v_loss(
    error: Array,
    level: NoiseLevel,
    weighting: str,
    frame_weight: Array | None = None,
) -> Array:
    """Square, weight and average a v error [b, f, h, w, c]; returns [b].

    frame_weight: [b, f] of the mean over frames, 0 for given ones; None is 1 each. The
      loss of a clip without any weight is 0.
    """
    square = append_dims(WEIGHTINGS[weighting](level), error) * error**2
    if frame_weight is None:
        return square.reshape(square.shape[0], -1).mean(axis=1)
    of_frame = square.reshape(*square.shape[:2], -1).mean(axis=2)
    return (frame_weight * of_frame).sum(axis=1) / frame_weight.sum(axis=1).clip(1)
