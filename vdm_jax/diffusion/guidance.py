"""Guidance: functions from a denoiser to a denoiser.

They nest in the order threshold(cfg(denoise)): the network is asked, its branches
are combined, and what leaves is a prediction that still explains z.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vdm_jax.diffusion.process import Array, Denoiser, Prediction, expand, with_x
from vdm_jax.diffusion.schedules import Step

Combine = Callable[[Step, Prediction, Prediction], Prediction]


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


def linear(weights: Array) -> Combine:
    """(1 + w) conditional - w unconditional, the convention of VDM: w = 0 is off.

    weights: [] or one row a sampler step, [n], [n, b] or [n, b, f], looked up by
    `step.index`.
    Imagen's weight is this one plus 1.
    """

    def combine(step: Step, given: Prediction, free: Prediction) -> Prediction:
        w = weights[step.index] if jnp.ndim(weights) else weights
        w = expand(jnp.asarray(w, given.x.dtype), given.x)
        return Prediction(*(g + w * (g - f) for g, f in zip(given, free, strict=True)))

    return combine


def clip_x(denoise: Denoiser, limit: float = 1.0) -> Denoiser:
    """Static thresholding: x is clipped to +-limit and eps rebuilt from it."""

    def clipped(z: Array, step: Step, cond) -> Prediction:
        x = jnp.clip(denoise(z, step, cond).x, -limit, limit)
        return with_x(x, z, step)

    return clipped
