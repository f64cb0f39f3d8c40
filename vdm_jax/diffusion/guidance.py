"""Guidance: functions from a denoiser to a denoiser.

They nest in the order
replace_known(clip_x(reconstruction_guidance(cfg(average_windows(denoise))))), or for a
model that is given frames clean(clip_x(cfg(average_windows(denoise)))).
Each returns a prediction with alpha x + sigma eps = z; after `replace_known` z is the
one with replaced pixels.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.area_means import area_matrix
from vdm_jax.diffusion import process
from vdm_jax.diffusion.process import Array, Denoiser, Prediction, append_dims, diffuse
from vdm_jax.diffusion.schedules import NoiseLevel, array_namespace

CombineFn = Callable[[NoiseLevel, Prediction, Prediction], Prediction]

RESCALE_PHI = 0.7  # Lin et al. 2024, section 3.4


def _interleave(*branches: Array) -> Array:
    """Interleave k arrays [b, ...] to [k b, ...]; a sharded batch stays in place."""
    return jnp.stack(branches, axis=1).reshape(-1, *branches[0].shape[1:])


def branches(
    denoise: Denoiser,
    conds: Sequence[Callable[[Any], Any]],
    combine: Callable[..., Prediction],
) -> Denoiser:
    """Return a denoiser that combines k predictions, made in one call of k b examples.

    conds: k functions from the condition to that of a branch, of the same structure.
    combine(level, *predictions): of k predictions [b, ...], in the order of `conds`.
    """
    k = len(conds)

    def combined(z: Array, level: NoiseLevel, cond) -> Prediction:
        repeated = (jnp.repeat(a, k, 0) if jnp.ndim(a) else a for a in level)
        together = denoise(
            _interleave(*[z] * k),
            NoiseLevel(*repeated),
            jax.tree.map(_interleave, *(branch(cond) for branch in conds)),
        )
        split = [a.reshape(-1, k, *a.shape[1:]) for a in together]
        return combine(
            level, *(Prediction(*(a[:, i] for a in split)) for i in range(k))
        )

    return combined


def cfg(denoise: Denoiser, unconditional: Callable, combine: CombineFn) -> Denoiser:
    """Return a denoiser with classifier-free guidance (Ho & Salimans 2022; VDM, 2).

    `unconditional(cond)` returns a condition of the same structure, without the
    information to guide by. It is `branches` with two of them.
    """
    return branches(denoise, (lambda cond: cond, unconditional), combine)


Weights = Array | Callable[[NoiseLevel], Array]


def weight_at(weights: Weights, level: NoiseLevel) -> Array:
    """Return the weight at a noise level: [], [b] or [b, f].

    weights: a number, an array with one row per sampler step, or a function of the
    level. A row is used for all calls of a step; a function can differ between them.
    """
    if callable(weights):
        return weights(level)
    return weights[level.step_index] if jnp.ndim(weights) else weights


def linear(scales: Array) -> CombineFn:
    """Return uncond + s (cond - uncond), with the scale s of Imagen: s = 1 is off.

    scales: [] or one row per sampler step, [n], [n, b] or [n, b, f], looked up by
    `level.step_index`; an axis of 1 is broadcast. VDM writes w = s - 1.
    """

    def combine(level: NoiseLevel, cond: Prediction, uncond: Prediction) -> Prediction:
        s = append_dims(jnp.asarray(weight_at(scales, level), cond.x.dtype), cond.x)
        return Prediction(*(u + s * (c - u) for c, u in zip(cond, uncond, strict=True)))

    return combine


def _implied_z(p: Prediction, level: NoiseLevel) -> Array:
    """Return alpha x + sigma eps of a prediction."""
    return diffuse(p.x, p.eps, level)


def _reduce_video(x: Array, reduce: Callable) -> Array:
    """Reduce all axes but the first; they remain as axes of length 1."""
    return reduce(x, axis=tuple(range(1, x.ndim)), keepdims=True)


def rescaled(scales: Array, phi: float = RESCALE_PHI) -> CombineFn:
    """Return `linear` with x rescaled to the standard deviation of the conditional x.

    The standard deviation is over a whole video. phi: how far, 0 is `linear`, 1 all
    the way (Lin et al. 2024, "Common diffusion noise schedules", equations 15 and 16).
    """
    plain = linear(scales)

    def combine(level: NoiseLevel, cond: Prediction, uncond: Prediction) -> Prediction:
        x = plain(level, cond, uncond).x
        factor = _reduce_video(cond.x, jnp.std) / _reduce_video(x, jnp.std)
        x = x * (1 - phi + phi * factor)
        return process.from_x(x, _implied_z(cond, level), level)

    return combine


def projected(scales: Array, eta: float = 0.0) -> CombineFn:
    """Return adaptive projected guidance, without its momentum, which is a state.

    cond + (s - 1) (cond - uncond), where the part of the difference along the
    conditional x, which saturates, counts `eta` times; 1 is `linear` (Sadat et al.
    2024, "Eliminating oversaturation", equation 7). The projection is over a whole
    video.
    """

    def combine(level: NoiseLevel, cond: Prediction, uncond: Prediction) -> Prediction:
        s = append_dims(jnp.asarray(weight_at(scales, level), cond.x.dtype), cond.x)
        change = cond.x - uncond.x
        size = _reduce_video(cond.x**2, jnp.sum)
        along = _reduce_video(change * cond.x, jnp.sum) / size * cond.x
        x = cond.x + (s - 1) * (change - (1 - eta) * along)
        return process.from_x(x, _implied_z(cond, level), level)

    return combine


CFG_MODES: dict[str, Callable[[Array], CombineFn]] = {
    "linear": linear,
    "rescaled": rescaled,
    "projected": projected,
}


# Guidance scales of the steps, on the host: float64 [n], made for a sampler's table.


def interval(logsnr: np.ndarray, scale: float, low: float, high: float) -> np.ndarray:
    """Return the scale where low <= logsnr <= high, else 1 (Kynkaanniemi et al. 2024).

    Equation 6. logsnr: of the table's rows.
    """
    return np.where((logsnr >= low) & (logsnr <= high), float(scale), 1.0)


def oscillating(
    n: int, high: float, low: float, first_fraction: float = 0.1
) -> np.ndarray:
    """Return `high` for the first steps, then low and high alternately.

    first_fraction: the fraction of the steps before the alternation. Imagen Video,
    section 2.7, uses 15 and 1; it does not state this fraction.
    """
    first_steps = int(np.ceil(first_fraction * n))
    after = np.arange(n) - first_steps
    return np.where((after < 0) | (after % 2 == 1), float(high), float(low))


def clip_x(denoise: Denoiser, limit: float = 1.0) -> Denoiser:
    """Return a denoiser with static thresholding: x is clipped to +-limit."""

    def clipped(z: Array, level: NoiseLevel, cond) -> Prediction:
        x = jnp.clip(denoise(z, level, cond).x, -limit, limit)
        return process.from_x(x, z, level)

    return clipped


def dynamic_threshold(denoise: Denoiser, percentile: float = 99.5) -> Denoiser:
    """Return a denoiser with dynamic thresholding (Imagen, section 2.3).

    x is clipped to +-s and divided by s, the percentile of |x| over all frames of a
    video, at least 1. One s per frame would make the video flicker.
    """

    def clipped(z: Array, level: NoiseLevel, cond) -> Prediction:
        x = denoise(z, level, cond).x
        s = jnp.maximum(_quantile(jnp.abs(x), percentile / 100), 1.0)
        s = append_dims(s, x)
        return process.from_x(jnp.clip(x, -s, s) / s, z, level)

    return clipped


def _quantile(x: Array, q: float) -> Array:
    """Return the quantile [b] of each example of x [b, ...] >= 0, as jnp.quantile's.

    Values are counted instead of sorted, by bisection of the bits, which have the order
    of the values. So devices that share an example exchange counts, not its values. It
    has no gradient.
    """
    axes = tuple(range(1, x.ndim))
    position = q * (math.prod(x.shape[1:]) - 1)
    rank = math.floor(position)
    kind = {2: jnp.int16, 4: jnp.int32, 8: jnp.int64}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, kind)
    last = jnp.iinfo(kind).max

    def count(limit: Array) -> Array:
        return jnp.sum(bits <= append_dims(limit, x), axes)

    def halve(_, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        enough = count(middle) > rank
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    bounds = jnp.zeros(len(x), kind), jnp.full(len(x), last, kind)
    _, lower = jax.lax.fori_loop(0, 8 * x.dtype.itemsize, halve, bounds)
    above = jnp.where(bits > append_dims(lower, x), bits, last).min(axes)
    upper = jnp.where(count(lower) > math.ceil(position), lower, above)
    lower, upper = (jax.lax.bitcast_convert_type(b, x.dtype) for b in (lower, upper))
    return lower + (upper - lower) * (position - rank)


def reconstruction_guidance(
    denoise: Denoiser, residual: Callable[[Array], Any], weights: Weights
) -> Denoiser:
    """Return a denoiser with reconstruction guidance (VDM, section 3.1, eqs. 6 and 7).

    x - w alpha / 2 d|residual(x)|^2 / dz, with the gradient through the denoiser. The
    squares are summed, not averaged, so that the weight w is the paper's.

    residual(x): known minus predicted, an array or a tree of arrays whose squares are
    summed; x [b, f, h, w, c] is not clipped. weights: see `weight_at`.
    """

    def guided(z: Array, level: NoiseLevel, cond) -> Prediction:
        def half_squares(z):
            x = denoise(z, level, cond).x
            return sum(jnp.sum(r**2) / 2 for r in jax.tree.leaves(residual(x))), x

        gradient, x = jax.grad(half_squares, has_aux=True)(z)
        w = append_dims(
            jnp.asarray(weight_at(weights, level) * level.alpha, z.dtype), z
        )
        return process.from_x(x - w * gradient, z, level)

    return guided


def snr_dependent_weight(base: Array, slope: Array) -> Callable[[NoiseLevel], Array]:
    """Return base + slope / SNR, a reconstruction weight that increases with noise.

    With base = 1 and slope = 1 / variance it is exact for independent Gaussian pixels
    of that variance: the posterior variance of known pixels is
    1 / (1 / variance + SNR), where VDM writes 1 / SNR. The gradient decreases as fast
    as this weight increases.
    """
    return lambda level: base + slope * array_namespace(level.logsnr).exp(-level.logsnr)


def replace_known(
    denoise: Denoiser, known: Array, mask: Array, noise: Callable[[NoiseLevel], Array]
) -> Denoiser:
    """Return a denoiser with the replacement method (VDM, 3.1; Song et al. 2021, I.2).

    Where `mask` is true, z is replaced by a fresh draw of q(z_t | known) before every
    call, and the prediction by the (known, eps) of that draw. So the last step of any
    sampler returns `known` itself, bit for bit.

    known, mask: broadcast to z. noise(level): standard normal like z, new for each
    (level.step_index, level.call).
    """

    def replaced(z: Array, level: NoiseLevel, cond) -> Prediction:
        eps = noise(level)
        p = denoise(jnp.where(mask, diffuse(known, eps, level), z), level, cond)
        return Prediction(jnp.where(mask, known, p.x), jnp.where(mask, eps, p.eps))

    return replaced


def clean(denoise: Denoiser, known: Array, strength: Array) -> Denoiser:
    """Return a denoiser that reads given frames clean, at noise level 0.

    Frame-mask conditioning (Open-Sora 1.2, report 3). A frame is given while flow's
    time is above its strength: the denoiser sees `known` there, and the prediction is
    `known` and the eps that z implies. So z goes from its own noise to `known`, and is
    a draw of q(z_t | known) when the frame becomes active. At strength 0 a frame is
    given always, and the last step of any sampler returns it bit for bit; at 1 never.

    known: like z. strength: [b, f] in [0, 1]. level: of shape [], [b] or [b, f].
    """

    def conditioned(z: Array, level: NoiseLevel, cond) -> Prediction:
        logsnr, alpha, sigma = (
            a[:, None] if jnp.ndim(a) == 1 else a for a in level[1:4]
        )
        given = sigma / (alpha + sigma) > strength
        frames = level._replace(
            logsnr=jnp.where(given, jnp.inf, logsnr),
            alpha=jnp.where(given, 1.0, alpha),
            sigma=jnp.where(given, 0.0, sigma),
        )
        mask = append_dims(given, z)
        p = denoise(jnp.where(mask, known, z), frames, cond)
        kept = process.from_x(known, z, level)
        x, eps = (jnp.where(mask, a, b) for a, b in zip(kept, p, strict=True))
        return Prediction(x, eps)

    return conditioned


def area_downsample(x: Array, height: int, width: int) -> Array:
    """Downsample [b, f, h, w, c] to [b, f, height, width, c] by means over areas.

    It is linear and free of aliasing, for any target that is not larger. Integer
    factors give average pooling.
    """
    xp = array_namespace(x)
    rows = xp.asarray(area_matrix(x.shape[2], height), x.dtype)
    columns = xp.asarray(area_matrix(x.shape[3], width), x.dtype)
    return xp.einsum("yh,bfhwc,xw->bfyxc", rows, x, columns)
