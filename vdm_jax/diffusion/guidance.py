"""Guidance: functions from a denoiser to a denoiser.

They nest in the order replace(clip_x(reconstruct(cfg(windows(denoise))))): the network
is asked, its branches are combined, what is known pulls at the prediction, it is kept
in range, and what leaves is a prediction that still explains z.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.diffusion.process import (
    Array,
    Denoiser,
    Prediction,
    diffuse,
    expand,
    with_x,
)
from vdm_jax.diffusion.schedules import Step, namespace

Combine = Callable[[Step, Prediction, Prediction], Prediction]

RESCALE = 0.7  # Lin et al. 2024, section 3.4


def _pair(a: Array, b: Array) -> Array:
    """[b, ...] twice -> [2b, ...], interleaved, so a sharded batch stays in place."""
    return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])


def cfg(denoise: Denoiser, null: Callable, combine: Combine) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022; VDM section 2).

    `null(cond)` is the unconditional twin of a condition, of the same structure. Both
    branches go through the network in one call of twice the batch.
    """

    def guided(z: Array, step: Step, cond) -> Prediction:
        twice = Step(*(jnp.repeat(a, 2, 0) if jnp.ndim(a) else a for a in step))
        both = denoise(_pair(z, z), twice, jax.tree.map(_pair, cond, null(cond)))
        split = [a.reshape(-1, 2, *a.shape[1:]) for a in both]
        given = Prediction(*(a[:, 0] for a in split))
        free = Prediction(*(a[:, 1] for a in split))
        return combine(step, given, free)

    return guided


Weights = Array | Callable[[Step], Array]


def weight_of(weights: Weights, step: Step) -> Array:
    """The weight of a step: a number, the row of an array, or a function of the step.

    A row holds for all calls of a step; a function can tell their levels apart.
    """
    if callable(weights):
        return weights(step)
    return weights[step.index] if jnp.ndim(weights) else weights


def linear(weights: Array) -> Combine:
    """(1 + w) conditional - w unconditional, the convention of VDM: w = 0 is off.

    weights: [] or one row a sampler step, [n], [n, b] or [n, b, f], looked up by
    `step.index`; an axis of 1 stands for all.
    Imagen's weight is this one plus 1.
    """

    def combine(step: Step, given: Prediction, free: Prediction) -> Prediction:
        w = expand(jnp.asarray(weight_of(weights, step), given.x.dtype), given.x)
        return Prediction(*(g + w * (g - f) for g, f in zip(given, free, strict=True)))

    return combine


def _z(p: Prediction, step: Step) -> Array:
    """The z that a prediction explains."""
    return diffuse(p.x, p.eps, step)


def _over_video(x: Array, reduce: Callable, keep: bool = True) -> Array:
    """reduce over all but the first axis, those kept as 1."""
    return reduce(x, axis=tuple(range(1, x.ndim)), keepdims=keep)


def rescaled(weights: Array, share: float = RESCALE) -> Combine:
    """`linear`, its x then brought back to the spread of the conditional one.

    The standard deviation is over a whole video; share: how far, 0 is `linear`, 1 all
    the way (Lin et al. 2024, "Common diffusion noise schedules", equations 15 and 16).
    """
    plain = linear(weights)

    def combine(step: Step, given: Prediction, free: Prediction) -> Prediction:
        x = plain(step, given, free).x
        factor = _over_video(given.x, jnp.std) / _over_video(x, jnp.std)
        return with_x(x * (1 - share + share * factor), _z(given, step), step)

    return combine


def projected(weights: Array, parallel: float = 0.0) -> Combine:
    """Adaptive projected guidance without its momentum, which would be a state.

    Of w (conditional - unconditional) the part along the conditional x, which
    saturates, counts `parallel` times; 1 is `linear` (Sadat et al. 2024, "Eliminating
    oversaturation", equation 7). The projection is over a whole video.
    """

    def combine(step: Step, given: Prediction, free: Prediction) -> Prediction:
        w = expand(jnp.asarray(weight_of(weights, step), given.x.dtype), given.x)
        change = given.x - free.x
        size = _over_video(given.x**2, jnp.sum)
        along = _over_video(change * given.x, jnp.sum) / size * given.x
        x = given.x + w * (change - (1 - parallel) * along)
        return with_x(x, _z(given, step), step)

    return combine


COMBINES: dict[str, Callable[[Array], Combine]] = {
    "linear": linear,
    "rescaled": rescaled,
    "projected": projected,
}


# Weights by the step, on the host: float64 [n], made for the table of a sampler.


def constant(n: int, w: float) -> np.ndarray:
    """The same weight at every step."""
    return np.full(n, float(w))


def interval(logsnr: np.ndarray, w: float, low: float, high: float) -> np.ndarray:
    """w where low <= logsnr <= high, else 0 (Kynkaanniemi et al. 2024, equation 6).

    logsnr: of the table's rows.
    """
    return np.where((logsnr >= low) & (logsnr <= high), float(w), 0.0)


def oscillating(n: int, high: float, low: float, first: float = 0.1) -> np.ndarray:
    """`high` for the first share of the steps, then low and high in turn.

    Imagen Video, section 2.7: 15 and 1. The paper does not say how long the first
    stretch is.
    """
    start = int(np.ceil(first * n))
    after = np.arange(n) - start
    return np.where((after < 0) | (after % 2 == 1), float(high), float(low))


def by_frame(n: int, first: float, last: float, frames: int) -> np.ndarray:
    """[n, 1, f]: weights that grow evenly from the first frame to the last."""
    return np.tile(np.linspace(first, last, frames), (n, 1, 1))


def clip_x(denoise: Denoiser, limit: float = 1.0) -> Denoiser:
    """Static thresholding: x is clipped to +-limit and eps rebuilt from it."""

    def clipped(z: Array, step: Step, cond) -> Prediction:
        x = jnp.clip(denoise(z, step, cond).x, -limit, limit)
        return with_x(x, z, step)

    return clipped


def clip_percentile(denoise: Denoiser, percentile: float = 99.5) -> Denoiser:
    """Dynamic thresholding (Imagen, section 2.3): x is clipped to +-s, divided by s.

    s is the percentile of |x| over all frames of a video, at least 1: taken frame by
    frame it would flicker.
    """

    def clipped(z: Array, step: Step, cond) -> Prediction:
        x = denoise(z, step, cond).x
        size = jnp.abs(x).reshape(x.shape[0], -1)
        s = jnp.maximum(jnp.quantile(size, percentile / 100, axis=1), 1.0)
        s = expand(s, x).astype(x.dtype)
        return with_x(jnp.clip(x, -s, s) / s, z, step)

    return clipped


def reconstruct(
    denoise: Denoiser, residual: Callable[[Array], Any], weights: Weights
) -> Denoiser:
    """Reconstruction guidance (VDM, section 3.1, equations 6 and 7).

    x - w alpha / 2 d|residual(x)|^2 / dz, the gradient through the denoiser: the sum of
    squares, not their mean, so that the weight is the paper's.

    residual(x): known minus predicted, an array or a tree of arrays whose squares are
    summed; x [b, f, h, w, c] is not clipped. weights: as for `weight_of`.
    """

    def guided(z: Array, step: Step, cond) -> Prediction:
        def half_squares(z):
            x = denoise(z, step, cond).x
            return sum(jnp.sum(r**2) / 2 for r in jax.tree.leaves(residual(x))), x

        gradient, x = jax.grad(half_squares, has_aux=True)(z)
        w = expand(jnp.asarray(weight_of(weights, step) * step.alpha, z.dtype), z)
        return with_x(x - w * gradient, z, step)

    return guided


def growing(base: Array, slope: Array) -> Callable[[Step], Array]:
    """base + slope / SNR, a weight for `reconstruct` that grows towards the noise.

    With base = 1 and slope = 1 / variance it is exact of independent Gaussian pixels of
    that variance: the posterior's variance of known pixels is 1 / (1 / variance + SNR),
    where VDM writes 1 / SNR. It meets a gradient that falls as fast as it grows.
    """
    return lambda step: base + slope * namespace(step.logsnr).exp(-step.logsnr)


def replace(
    denoise: Denoiser, known: Array, mask: Array, noise: Callable[[Step], Array]
) -> Denoiser:
    """The replacement method (VDM, section 3.1; Song et al. 2021, appendix I.2).

    Where `mask` is true z is overwritten by a fresh draw of q(z_t | known) before every
    call, and the prediction by what it was made of: the last step of any sampler then
    leaves `known` itself, bit for bit.

    known, mask: broadcast to z. noise(step): standard normal like z, new for each
    (step.index, step.call).
    """

    def replaced(z: Array, step: Step, cond) -> Prediction:
        eps = noise(step)
        p = denoise(jnp.where(mask, diffuse(known, eps, step), z), step, cond)
        return Prediction(jnp.where(mask, known, p.x), jnp.where(mask, eps, p.eps))

    return replaced


def down(x: Array, height: int, width: int) -> Array:
    """[b, f, h, w, c] to [b, f, height, width, c] by the mean over areas.

    Linear, without aliasing, for any sizes that are no larger; whole factors give the
    average pool.
    """
    xp = namespace(x)
    rows = xp.asarray(_areas(x.shape[2], height), x.dtype)
    columns = xp.asarray(_areas(x.shape[3], width), x.dtype)
    return xp.einsum("yh,bfhwc,xw->bfyxc", rows, x, columns)


def _areas(size: int, smaller: int) -> np.ndarray:
    """[smaller, size]: each row the mean of the pixels that it covers, in part too."""
    edges = np.linspace(0, size, smaller + 1)
    low, high = edges[:-1, None], edges[1:, None]
    pixel = np.arange(size)[None]
    share = np.minimum(high, pixel + 1) - np.maximum(low, pixel)
    return np.maximum(share, 0) * smaller / size
