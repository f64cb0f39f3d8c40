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
    append_dims,
    diffuse,
    from_x,
)
from vdm_jax.diffusion.schedules import NoiseLevel, array_namespace

CombineFn = Callable[[NoiseLevel, Prediction, Prediction], Prediction]

RESCALE = 0.7  # Lin et al. 2024, section 3.4


def _interleave(a: Array, b: Array) -> Array:
    """[b, ...] twice -> [2b, ...], interleaved, so a sharded batch stays in place."""
    return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])


def cfg(denoise: Denoiser, null: Callable, combine: CombineFn) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022; VDM section 2).

    `null(cond)` is the unconditional twin of a condition, of the same structure. Both
    branches go through the network in one call of twice the batch.
    """

    def guided(z: Array, step: NoiseLevel, cond) -> Prediction:
        twice = NoiseLevel(*(jnp.repeat(a, 2, 0) if jnp.ndim(a) else a for a in step))
        both = denoise(
            _interleave(z, z), twice, jax.tree.map(_interleave, cond, null(cond))
        )
        split = [a.reshape(-1, 2, *a.shape[1:]) for a in both]
        given = Prediction(*(a[:, 0] for a in split))
        free = Prediction(*(a[:, 1] for a in split))
        return combine(step, given, free)

    return guided


Weights = Array | Callable[[NoiseLevel], Array]


def weight_at(weights: Weights, step: NoiseLevel) -> Array:
    """The weight of a step: a number, the row of an array, or a function of the step.

    A row holds for all calls of a step; a function can tell their levels apart.
    """
    if callable(weights):
        return weights(step)
    return weights[step.step_index] if jnp.ndim(weights) else weights


def linear(scales: Array) -> CombineFn:
    """Return uncond + s (cond - uncond), with the scale s of Imagen: s = 1 is off.

    scales: [] or one row per sampler step, [n], [n, b] or [n, b, f], looked up by
    `step.step_index`; an axis of 1 is broadcast. VDM writes w = s - 1.
    """

    def combine(step: NoiseLevel, cond: Prediction, uncond: Prediction) -> Prediction:
        s = append_dims(jnp.asarray(weight_at(scales, step), cond.x.dtype), cond.x)
        return Prediction(*(u + s * (c - u) for c, u in zip(cond, uncond, strict=True)))

    return combine


def _implied_z(p: Prediction, step: NoiseLevel) -> Array:
    """The z that a prediction explains."""
    return diffuse(p.x, p.eps, step)


def _reduce_video(x: Array, reduce: Callable, keep: bool = True) -> Array:
    """reduce over all but the first axis, those kept as 1."""
    return reduce(x, axis=tuple(range(1, x.ndim)), keepdims=keep)


def rescaled(scales: Array, phi: float = RESCALE) -> CombineFn:
    """`linear`, then x rescaled towards the standard deviation of the conditional x.

    The standard deviation is over a whole video. phi: how far, 0 is `linear`, 1 all
    the way (Lin et al. 2024, "Common diffusion noise schedules", equations 15 and 16).
    """
    plain = linear(scales)

    def combine(step: NoiseLevel, cond: Prediction, uncond: Prediction) -> Prediction:
        x = plain(step, cond, uncond).x
        factor = _reduce_video(cond.x, jnp.std) / _reduce_video(x, jnp.std)
        return from_x(x * (1 - phi + phi * factor), _implied_z(cond, step), step)

    return combine


def projected(scales: Array, eta: float = 0.0) -> CombineFn:
    """Adaptive projected guidance, without its momentum, which would be a state.

    cond + (s - 1) (cond - uncond), where the part of the difference along the
    conditional x, which saturates, counts `eta` times; 1 is `linear` (Sadat et al.
    2024, "Eliminating oversaturation", equation 7). The projection is over a whole
    video.
    """

    def combine(step: NoiseLevel, cond: Prediction, uncond: Prediction) -> Prediction:
        s = append_dims(jnp.asarray(weight_at(scales, step), cond.x.dtype), cond.x)
        change = cond.x - uncond.x
        size = _reduce_video(cond.x**2, jnp.sum)
        along = _reduce_video(change * cond.x, jnp.sum) / size * cond.x
        x = cond.x + (s - 1) * (change - (1 - eta) * along)
        return from_x(x, _implied_z(cond, step), step)

    return combine


COMBINES: dict[str, Callable[[Array], CombineFn]] = {
    "linear": linear,
    "rescaled": rescaled,
    "projected": projected,
}


# Guidance scales of the steps, on the host: float64 [n], made for a sampler's table.


def constant(n: int, scale: float) -> np.ndarray:
    """Return the same scale for every step."""
    return np.full(n, float(scale))


def interval(logsnr: np.ndarray, scale: float, low: float, high: float) -> np.ndarray:
    """Return the scale where low <= logsnr <= high, else 1 (Kynkaanniemi et al. 2024).

    Equation 6. logsnr: of the table's rows.
    """
    return np.where((logsnr >= low) & (logsnr <= high), float(scale), 1.0)


def oscillating(
    n: int, high: float, low: float, first_fraction: float = 0.1
) -> np.ndarray:
    """`high` for the first share of the steps, then low and high in turn.

    Imagen Video, section 2.7: 15 and 1. The paper does not say how long the first
    stretch is.
    """
    start = int(np.ceil(first_fraction * n))
    after = np.arange(n) - start
    return np.where((after < 0) | (after % 2 == 1), float(high), float(low))


def linear_over_frames(n: int, first: float, last: float, frames: int) -> np.ndarray:
    """[n, 1, f]: weights that grow evenly from the first frame to the last."""
    return np.tile(np.linspace(first, last, frames), (n, 1, 1))


def clip_x(denoise: Denoiser, limit: float = 1.0) -> Denoiser:
    """Static thresholding: x is clipped to +-limit and eps rebuilt from it."""

    def clipped(z: Array, step: NoiseLevel, cond) -> Prediction:
        x = jnp.clip(denoise(z, step, cond).x, -limit, limit)
        return from_x(x, z, step)

    return clipped


def dynamic_threshold(denoise: Denoiser, percentile: float = 99.5) -> Denoiser:
    """Dynamic thresholding (Imagen, section 2.3): x is clipped to +-s, divided by s.

    s is the percentile of |x| over all frames of a video, at least 1: taken frame by
    frame it would flicker.
    """

    def clipped(z: Array, step: NoiseLevel, cond) -> Prediction:
        x = denoise(z, step, cond).x
        size = jnp.abs(x).reshape(x.shape[0], -1)
        s = jnp.maximum(jnp.quantile(size, percentile / 100, axis=1), 1.0)
        s = append_dims(s, x).astype(x.dtype)
        return from_x(jnp.clip(x, -s, s) / s, z, step)

    return clipped


def reconstruction_guidance(
    denoise: Denoiser, residual: Callable[[Array], Any], weights: Weights
) -> Denoiser:
    """Reconstruction guidance (VDM, section 3.1, equations 6 and 7).

    x - w alpha / 2 d|residual(x)|^2 / dz, the gradient through the denoiser: the sum of
    squares, not their mean, so that the weight is the paper's.

    residual(x): known minus predicted, an array or a tree of arrays whose squares are
    summed; x [b, f, h, w, c] is not clipped. weights: as for `weight_of`.
    """

    def guided(z: Array, step: NoiseLevel, cond) -> Prediction:
        def half_squares(z):
            x = denoise(z, step, cond).x
            return sum(jnp.sum(r**2) / 2 for r in jax.tree.leaves(residual(x))), x

        gradient, x = jax.grad(half_squares, has_aux=True)(z)
        w = append_dims(jnp.asarray(weight_at(weights, step) * step.alpha, z.dtype), z)
        return from_x(x - w * gradient, z, step)

    return guided


def snr_dependent_weight(base: Array, slope: Array) -> Callable[[NoiseLevel], Array]:
    """base + slope / SNR, a weight for `reconstruct` that grows towards the noise.

    With base = 1 and slope = 1 / variance it is exact of independent Gaussian pixels of
    that variance: the posterior's variance of known pixels is 1 / (1 / variance + SNR),
    where VDM writes 1 / SNR. It meets a gradient that falls as fast as it grows.
    """
    return lambda step: base + slope * array_namespace(step.logsnr).exp(-step.logsnr)


def replace_known(
    denoise: Denoiser, known: Array, mask: Array, noise: Callable[[NoiseLevel], Array]
) -> Denoiser:
    """The replacement method (VDM, section 3.1; Song et al. 2021, appendix I.2).

    Where `mask` is true z is overwritten by a fresh draw of q(z_t | known) before every
    call, and the prediction by what it was made of: the last step of any sampler then
    leaves `known` itself, bit for bit.

    known, mask: broadcast to z. noise(step): standard normal like z, new for each
    (step.step_index, step.call).
    """

    def replaced(z: Array, step: NoiseLevel, cond) -> Prediction:
        eps = noise(step)
        p = denoise(jnp.where(mask, diffuse(known, eps, step), z), step, cond)
        return Prediction(jnp.where(mask, known, p.x), jnp.where(mask, eps, p.eps))

    return replaced


def area_downsample(x: Array, height: int, width: int) -> Array:
    """[b, f, h, w, c] to [b, f, height, width, c] by the mean over areas.

    Linear, without aliasing, for any sizes that are no larger; whole factors give the
    average pool.
    """
    xp = array_namespace(x)
    rows = xp.asarray(area_matrix(x.shape[2], height), x.dtype)
    columns = xp.asarray(area_matrix(x.shape[3], width), x.dtype)
    return xp.einsum("yh,bfhwc,xw->bfyxc", rows, x, columns)


def area_matrix(size: int, smaller: int) -> np.ndarray:
    """[smaller, size]: each row the mean of the pixels that it covers, in part too."""
    edges = np.linspace(0, size, smaller + 1)
    low, high = edges[:-1, None], edges[1:, None]
    pixel = np.arange(size)[None]
    share = np.minimum(high, pixel + 1) - np.maximum(low, pixel)
    return np.maximum(share, 0) * smaller / size
