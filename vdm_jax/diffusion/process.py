"""The diffusion process: noising, predictions, transition and posterior.

z_t = alpha_t x + sigma_t eps. A network may output v, eps, x or flow matching's
velocity; everything else sees a `Prediction(x, eps)`. Sources: VDM (Video Diffusion
Models), section 2; for v PD (Salimans & Ho 2022), section 4 and appendix D.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from vdm_jax.diffusion.schedules import Array, NoiseLevel, array_namespace


class Prediction(NamedTuple):
    """A denoiser's estimate of the clean video and of the noise in z, shaped as z."""

    x: Array
    eps: Array


Denoiser = Callable[[Array, NoiseLevel, Any], Prediction]  # (z, level, cond)


def append_dims(a: Array, like: Array) -> Array:
    """Append axes to `a` of shape [], [b] or [b, f], to broadcast it with `like`."""
    return a.reshape(a.shape + (1,) * (like.ndim - a.ndim))


def alpha_sigma(level: NoiseLevel, like: Array) -> tuple[Array, Array]:
    """Return alpha and sigma of `level`, broadcastable with `like`."""
    return append_dims(level.alpha, like), append_dims(level.sigma, like)


def diffuse(x: Array, eps: Array, level: NoiseLevel) -> Array:
    """Return z = alpha x + sigma eps, a draw of q(z_t | x)."""
    alpha, sigma = alpha_sigma(level, x)
    return alpha * x + sigma * eps


def velocity(prediction: Prediction, level: NoiseLevel) -> Array:
    """Return v = alpha eps - sigma x, without division (PD, appendix D)."""
    alpha, sigma = alpha_sigma(level, prediction.x)
    return alpha * prediction.eps - sigma * prediction.x


def from_v(v: Array, z: Array, level: NoiseLevel) -> Prediction:
    """Convert v to a prediction: a rotation, exact at every noise level."""
    alpha, sigma = alpha_sigma(level, z)
    return Prediction(x=alpha * z - sigma * v, eps=sigma * z + alpha * v)


def from_eps(eps: Array, z: Array, level: NoiseLevel) -> Prediction:
    """Convert eps to a prediction; divides by alpha.

    An error in eps is multiplied by exp(-logsnr / 2), 2e4 at logsnr -20.
    """
    alpha, sigma = alpha_sigma(level, z)
    return Prediction(x=(z - sigma * eps) / alpha, eps=eps)


def from_x(x: Array, z: Array, level: NoiseLevel) -> Prediction:
    """Convert x to a prediction: eps is computed such that alpha x + sigma eps = z.

    Divides by sigma; the sampler multiplies the result by the next, smaller sigma. A
    clipped or guided x becomes a prediction by this function alone. At sigma = 0, of a
    given frame, eps has no meaning and is finite.
    """
    alpha, sigma = alpha_sigma(level, z)
    divisor = array_namespace(sigma).where(sigma > 0, sigma, 1.0)
    return Prediction(x=x, eps=(z - alpha * x) / divisor)


def from_flow(u: Array, z: Array, level: NoiseLevel) -> Prediction:
    """Convert flow matching's velocity u = eps - x to a prediction.

    Divides by alpha + sigma, which is at least 1.
    """
    alpha, sigma = alpha_sigma(level, z)
    total = alpha + sigma
    return Prediction(x=(z - sigma * u) / total, eps=(z + alpha * u) / total)


PREDICTION_TYPES: dict[str, Callable[[Array, Array, NoiseLevel], Prediction]] = {
    "v": from_v,
    "eps": from_eps,
    "x": from_x,
    "flow": from_flow,
}


def flow_time(level: NoiseLevel) -> Array:
    """Return flow matching's time sigma / (alpha + sigma), 0 at the data, 1 at noise.

    Its state is z / (alpha + sigma).
    """
    return level.sigma / (level.alpha + level.sigma)


def edm_sigma(level: NoiseLevel) -> Array:
    """Return EDM's sigma; its state is z / alpha (Karras et al. 2022, eq. 1)."""
    return level.sigma / level.alpha


def transition(level_s: NoiseLevel, level_t: NoiseLevel) -> tuple[Array, Array]:
    """Return scale and variance of q(z_t | z_s), s less noisy than t (VDM, eq. 1)."""
    xp = array_namespace(level_t.logsnr)
    variance = -xp.expm1(level_t.logsnr - level_s.logsnr) * level_t.sigma**2
    return level_t.alpha / level_s.alpha, variance


def posterior(level_s: NoiseLevel, level_t: NoiseLevel) -> tuple[Array, Array, Array]:
    """Return coefficients of z and x, and variance, of q(z_s | z_t, x) (VDM, eq. 3)."""
    xp = array_namespace(level_t.logsnr)
    difference = level_t.logsnr - level_s.logsnr
    ratio, one_minus_ratio = xp.exp(difference), -xp.expm1(difference)
    z_coef = ratio * level_s.alpha / level_t.alpha
    return z_coef, one_minus_ratio * level_s.alpha, one_minus_ratio * level_s.sigma**2
