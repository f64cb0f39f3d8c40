"""Noise schedules: diffusion time t in [0, 1] to a noise level, and back.

The currency is logsnr = log(alpha^2 / sigma^2), variance preserving: alpha^2 +
sigma^2 = 1. The angle phi = atan(sigma / alpha) is the same quantity in the form
that stays exact at both ends: alpha = cos(phi), sigma = sin(phi).

Every function takes NumPy arrays (float64, on the host: sampler tables) and JAX
arrays (inside a jit: training) alike.
"""

import dataclasses
import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # np.ndarray on the host, jax.Array inside a jit


class Step(NamedTuple):
    """A noise level, as a denoiser is told it: arrays [], [b] or, per frame, [b, f].

    `index` counts the sampler's steps from 0 at t = 1; guidance weights are looked up
    by it. In training it is 0.
    """

    index: Array
    logsnr: Array
    alpha: Array
    sigma: Array


class Schedule(Protocol):
    """What a schedule offers."""

    def angle(self, t: Array) -> Array:
        """Diffusion time in [0, 1] -> phi = atan(sigma / alpha), increasing."""
        ...


def namespace(x: Array):
    """The module, numpy or jax.numpy, that computes on `x`."""
    return jnp if isinstance(x, jax.Array) else np


def logsnr_of_angle(angle: Array) -> Array:
    """Log signal-to-noise ratio of phi; +inf at phi = 0."""
    xp = namespace(angle)
    return 2.0 * (xp.log(xp.cos(angle)) - xp.log(xp.sin(angle)))


def step_at(schedule: Schedule, t: Array, index: Array = 0) -> Step:
    """The noise level of `schedule` at diffusion time `t`."""
    xp = namespace(t)
    angle = schedule.angle(t)
    return Step(index, logsnr_of_angle(angle), xp.cos(angle), xp.sin(angle))


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Cosine schedule with clipped logsnr, optionally shifted.

    logsnr(t) = -2 log tan(a t + b), so the angle a t + b is linear in t (Salimans &
    Ho 2022, appendix; Video Diffusion Models, section 2, clips at +-20). `shift`
    moves the whole curve by that much logsnr, down for larger or smoother data, and
    keeps the clip range (Hoogeboom et al. 2023, "simple diffusion", section 3.1).
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    shift: float = 0.0

    def _ends(self) -> tuple[float, float]:
        """Angles of the unshifted curve at t = 0 and t = 1."""
        low = math.atan(math.exp(-(self.logsnr_max - self.shift) / 2))
        high = math.atan(math.exp(-(self.logsnr_min - self.shift) / 2))
        return low, high

    def angle(self, t: Array) -> Array:
        """Diffusion time in [0, 1] -> phi."""
        xp = namespace(t)
        low, high = self._ends()
        plain = low + (high - low) * t
        # tan(phi) is multiplied by exp(-shift / 2); atan2 keeps that exact near pi/2.
        scale = math.exp(-self.shift / 2)
        return xp.arctan2(scale * xp.sin(plain), xp.cos(plain))

    def logsnr(self, t: Array) -> Array:
        """Diffusion time in [0, 1] -> log signal-to-noise ratio, decreasing."""
        return logsnr_of_angle(self.angle(t))

    def time(self, logsnr: Array) -> Array:
        """Log signal-to-noise ratio -> diffusion time."""
        xp = namespace(logsnr)
        low, high = self._ends()
        return (xp.arctan(xp.exp((self.shift - logsnr) / 2)) - low) / (high - low)


@dataclasses.dataclass(frozen=True)
class TakingTurns:
    """For training: the examples of a batch [b] take turns among several schedules.

    Detail is learned at little noise, motion and place at much; a small model trained
    on one schedule learns one of them late.
    """

    schedules: tuple[Cosine, ...]

    def angle(self, t: Array) -> Array:
        """Diffusion times [b] -> phi [b]."""
        xp = namespace(t)
        angles = xp.stack([schedule.angle(t) for schedule in self.schedules])
        example = xp.arange(t.shape[0])
        return angles[example % len(self.schedules), example]
