"""The diffusion process: adding noise, what a prediction is, and the posteriors.

z_t = alpha_t x + sigma_t eps. A network may output v, eps or x; everything else sees
a `Prediction(x, eps)`. Video Diffusion Models, section 2; Salimans & Ho 2022,
section 4 and appendix D for v.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from vdm_jax.diffusion.schedules import Array, Step, namespace


class Prediction(NamedTuple):
    """What a denoiser says of z: the clean video and the noise in it, shaped as z."""

    x: Array
    eps: Array


Denoiser = Callable[[Array, Step, Any], Prediction]  # (z, step, cond)


def expand(a: Array, like: Array) -> Array:
    """`a` of shape [], [b] or [b, f], with axes appended to broadcast with `like`."""
    return a.reshape(a.shape + (1,) * (like.ndim - a.ndim))


def levels(step: Step, like: Array) -> tuple[Array, Array]:
    """(alpha, sigma) of `step`, broadcastable with `like`."""
    return expand(step.alpha, like), expand(step.sigma, like)


def diffuse(x: Array, eps: Array, step: Step) -> Array:
    """z = alpha x + sigma eps, a draw of q(z_t | x)."""
    alpha, sigma = levels(step, x)
    return alpha * x + sigma * eps


def velocity(prediction: Prediction, step: Step) -> Array:
    """v = alpha eps - sigma x; never divides (Salimans & Ho 2022, appendix D)."""
    alpha, sigma = levels(step, prediction.x)
    return alpha * prediction.eps - sigma * prediction.x


def from_v(v: Array, z: Array, step: Step) -> Prediction:
    """A rotation: exact at every noise level."""
    alpha, sigma = levels(step, z)
    return Prediction(x=alpha * z - sigma * v, eps=sigma * z + alpha * v)


def from_eps(eps: Array, z: Array, step: Step) -> Prediction:
    """Divides by alpha: an error in eps grows by exp(-logsnr / 2), 2e4 at -20."""
    alpha, sigma = levels(step, z)
    return Prediction(x=(z - sigma * eps) / alpha, eps=eps)


def with_x(x: Array, z: Array, step: Step) -> Prediction:
    """The prediction of a given clean video: eps is rebuilt, so z stays explained.

    Divides by sigma; the sampler multiplies it by the next, smaller sigma. The one
    place where a clipped or guided x turns back into a prediction.
    """
    alpha, sigma = levels(step, z)
    return Prediction(x=x, eps=(z - alpha * x) / sigma)


def from_flow(u: Array, z: Array, step: Step) -> Prediction:
    """Of flow matching's velocity u = eps - x; divides by alpha + sigma, at least 1."""
    alpha, sigma = levels(step, z)
    total = alpha + sigma
    return Prediction(x=(z - sigma * u) / total, eps=(z + alpha * u) / total)


PREDICTIONS: dict[str, Callable[[Array, Array, Step], Prediction]] = {
    "v": from_v,
    "eps": from_eps,
    "x": with_x,
    "flow": from_flow,
}


def edm_sigma(step: Step) -> Array:
    """The noise level of EDM, whose state is z / alpha (Karras et al. 2022, eq. 1)."""
    return step.sigma / step.alpha


def flow_time(step: Step) -> Array:
    """tau of (1 - tau) x + tau eps, flow matching's state, z / (alpha + sigma)."""
    return step.sigma / (step.alpha + step.sigma)


def of_edm(denoise: Callable[[Array, Array, Any], Array]) -> Denoiser:
    """The denoiser of a model of EDM: D(z / alpha, sigma / alpha, cond) -> x."""

    def denoiser(z: Array, step: Step, cond: Any) -> Prediction:
        state = z / expand(step.alpha, z)
        return with_x(denoise(state, edm_sigma(step), cond), z, step)

    return denoiser


def of_flow(flow: Callable[[Array, Array, Any], Array]) -> Denoiser:
    """The denoiser of a flow model: u((1 - tau) x + tau eps, tau, cond) -> eps - x."""

    def denoiser(z: Array, step: Step, cond: Any) -> Prediction:
        state = z / expand(step.alpha + step.sigma, z)
        return from_flow(flow(state, flow_time(step), cond), z, step)

    return denoiser


def transition(step_s: Step, step_t: Step) -> tuple[Array, Array]:
    """(scale, variance) of q(z_t | z_s), s less noisy than t (VDM, equation 1)."""
    xp = namespace(step_t.logsnr)
    variance = -xp.expm1(step_t.logsnr - step_s.logsnr) * step_t.sigma**2
    return step_t.alpha / step_s.alpha, variance


def posterior(step_s: Step, step_t: Step) -> tuple[Array, Array, Array]:
    """(z coefficient, x coefficient, variance) of q(z_s | z_t, x) (VDM, equation 3)."""
    xp = namespace(step_t.logsnr)
    difference = step_t.logsnr - step_s.logsnr
    kept, lost = xp.exp(difference), -xp.expm1(difference)
    z_coef = kept * step_s.alpha / step_t.alpha
    return z_coef, lost * step_s.alpha, lost * step_s.sigma**2
