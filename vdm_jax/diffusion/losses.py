"""The training loss of a denoiser, per example, under every usual weighting.

At a given z, x - x_hat = -sigma (v - v_hat) and eps - eps_hat = alpha (v - v_hat), so
every weighting of the literature is a bounded factor on the squared v error: nothing
overflows at either end of the schedule (a weight on the x error reaches exp(20)).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vdm_jax.diffusion.process import (
    Array,
    Denoiser,
    Prediction,
    diffuse,
    expand,
    velocity,
)
from vdm_jax.diffusion.schedules import Step

MIN_SNR_GAMMA = 5.0  # Hang et al. 2023, section 3.4

# Weight on |x - x_hat|^2, in the comment, times sigma^2. Salimans & Ho 2022, section
# 4; min-SNR of Hang et al. 2023, equation 8.
WEIGHTINGS: dict[str, Callable[[Step], Array]] = {
    "constant": lambda step: step.sigma**2,  # 1
    "snr": lambda step: step.alpha**2,  # SNR: the eps loss of DDPM
    "truncated_snr": lambda step: jnp.maximum(step.alpha**2, step.sigma**2),
    "snr_plus_one": lambda step: jnp.ones_like(step.alpha),  # SNR + 1: the v loss
    "flow": lambda step: (step.alpha + step.sigma) ** 2,  # on eps - x: flow matching
    "min_snr": lambda step: jnp.minimum(step.alpha**2, MIN_SNR_GAMMA * step.sigma**2),
}


def diffusion_loss(
    denoise: Denoiser,
    x: Array,
    eps: Array,
    step: Step,
    cond,
    weighting: str = "snr_plus_one",
) -> tuple[Array, Prediction]:
    """Weighted squared error of a denoiser at one noise level per example.

    x, eps: [b, f, h, w, c], the clean video in [-1, 1] and standard normal noise.
    step: arrays [b] or [b, f]. Returns the loss [b], its mean over frames (the joint
    training's independent images included, VDM section 3), pixels and channels, and
    the prediction.
    """
    prediction = denoise(diffuse(x, eps, step), step, cond)
    error = velocity(prediction, step) - velocity(Prediction(x, eps), step)
    return weighted(error, step, weighting), prediction


def weighted(error: Array, step: Step, weighting: str) -> Array:
    """A v error [b, f, h, w, c], squared, weighted and averaged, [b]."""
    square = expand(WEIGHTINGS[weighting](step), error) * error**2
    return square.reshape(square.shape[0], -1).mean(axis=1)


def stratified_times(key: Array, n: int, dtype=None) -> Array:
    """n diffusion times in [0, 1), evenly spread with one random offset.

    Each is uniform; together they cover the schedule, which lowers the variance of
    the loss (Kingma et al. 2021, appendix I.1).
    """
    offset = jax.random.uniform(key, (), dtype)
    return (offset + jnp.arange(n, dtype=offset.dtype) / n) % 1.0
