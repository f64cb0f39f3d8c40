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
    by it. In training it is 0. `call` numbers the calls within one step of a sampler,
    so that what draws noise for a call draws it anew for the next.
    """

    index: Array
    logsnr: Array
    alpha: Array
    sigma: Array
    call: Array = 0


class Schedule(Protocol):
    """What a schedule offers; those below are made by name from `SCHEDULES`."""

    def angle(self, t: Array) -> Array:
        """Diffusion time in [0, 1] -> phi = atan(sigma / alpha), increasing."""
        ...

    def times(self, n: int) -> np.ndarray:
        """Where a sampler of n steps asks, from noise to data; after them comes phi=0.

        float64 [n], uniform from 1 down to 1/n.
        """
        return np.linspace(1.0, 0.0, n + 1)[:-1]


def namespace(x: Array):
    """The module, numpy or jax.numpy, that computes on `x`."""
    return jnp if isinstance(x, jax.Array) else np


def logsnr_of_angle(angle: Array) -> Array:
    """Log signal-to-noise ratio of phi; +inf at phi = 0."""
    xp = namespace(angle)
    return 2.0 * (xp.log(xp.cos(angle)) - xp.log(xp.sin(angle)))


def angle_of_logsnr(logsnr: Array) -> Array:
    """phi of a log signal-to-noise ratio."""
    xp = namespace(logsnr)
    return xp.arctan(xp.exp(-logsnr / 2))


def step_of_angle(angle: Array, index: Array = 0) -> Step:
    """The noise level at phi."""
    xp = namespace(angle)
    return Step(index, logsnr_of_angle(angle), xp.cos(angle), xp.sin(angle))


def step_at(schedule: Schedule, t: Array, index: Array = 0) -> Step:
    """The noise level of `schedule` at diffusion time `t`."""
    return step_of_angle(schedule.angle(t), index)


def resolution_shift(size: float, base: float = 64.0) -> float:
    """Shift of logsnr for videos of `size` pixels a side: 2 log(base / size).

    base: the size at which the plain schedule suits (Hoogeboom et al. 2023, eq. 4).
    """
    return 2 * math.log(base / size)


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """Cosine schedule with clipped logsnr, optionally shifted.

    logsnr(t) = -2 log tan(a t + b), so the angle a t + b is linear in t (Salimans &
    Ho 2022, appendix; Video Diffusion Models, section 2, clips at +-20). `shift`
    moves the whole curve by that much logsnr, down for larger or smoother data
    (`resolution_shift`), and keeps the clip range (Hoogeboom et al. 2023, "simple
    diffusion", section 3.1).
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


def _within(angle: Array, logsnr_min: float, logsnr_max: float) -> Array:
    """phi, kept to a range of logsnr: networks are not asked beyond it."""
    low, high = (math.atan(math.exp(-end / 2)) for end in (logsnr_max, logsnr_min))
    return namespace(angle).clip(angle, low, high)


@dataclasses.dataclass(frozen=True)
class Interpolated(Schedule):
    """A cosine whose shift goes from `shift` at the data to `noise_shift` at the noise.

    logsnr(t) = (1 - t) Cosine(shift) + t Cosine(noise_shift) (Hoogeboom et al. 2023,
    section 3.1, "interpolated").
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    shift: float = 0.0
    noise_shift: float = 0.0

    def angle(self, t: Array) -> Array:
        """Diffusion time in [0, 1] -> phi."""
        data, noise = (
            Cosine(self.logsnr_min, self.logsnr_max, shift).logsnr(t)
            for shift in (self.shift, self.noise_shift)
        )
        return angle_of_logsnr((1 - t) * data + t * noise)


@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    """DDPM's beta from 1e-4 to .02 in 1000 steps, in continuous time, clipped.

    (sigma / alpha)^2 = exp(beta_min t + (beta_max - beta_min) t^2 / 2) - 1 (Song et al.
    2021, "Score-based generative modeling", appendix C). It ends at logsnr -10.
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    beta_min: float = 0.1
    beta_max: float = 20.0

    def angle(self, t: Array) -> Array:
        """Diffusion time in [0, 1] -> phi."""
        xp = namespace(t)
        grown = self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2
        angle = xp.arctan(xp.sqrt(xp.expm1(grown)))
        return _within(angle, self.logsnr_min, self.logsnr_max)


@dataclasses.dataclass(frozen=True)
class Flow(Schedule):
    """Flow matching's straight path (1 - tau) x + tau eps with tau = t, clipped.

    sigma / alpha = t / (1 - t). `shift` of logsnr is -2 log s of the time shift
    tau' = s tau / (1 + (s - 1) tau) (Esser et al. 2024, section 5.3.2).
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    shift: float = 0.0

    def angle(self, t: Array) -> Array:
        """Diffusion time in [0, 1] -> phi."""
        xp = namespace(t)
        angle = xp.arctan2(math.exp(-self.shift / 2) * t, 1 - t)
        return _within(angle, self.logsnr_min, self.logsnr_max)


@dataclasses.dataclass(frozen=True)
class Karras(Schedule):
    """EDM's noise levels, evenly spaced in sigma^(1 / rho) (Karras et al. 2022, eq. 5).

    sigma here is EDM's, which is sigma / alpha. A sampler asks at both ends.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def angle(self, t: Array) -> Array:
        """Diffusion time in [0, 1] -> phi."""
        low, high = (s ** (1 / self.rho) for s in (self.sigma_min, self.sigma_max))
        return namespace(t).arctan((low + t * (high - low)) ** self.rho)

    def times(self, n: int) -> np.ndarray:
        """float64 [n], uniform from 1 down to 0."""
        return np.linspace(1.0, 0.0, n) if n > 1 else np.ones(1)


SCHEDULES: dict[str, type] = {
    "cosine": Cosine,
    "interpolated": Interpolated,
    "linear": Linear,
    "flow": Flow,
    "karras": Karras,
}


def named(name: str, logsnr_min: float, logsnr_max: float, **shifts) -> Schedule:
    """A schedule of `SCHEDULES` held to a range of logsnr, with the shifts it takes.

    Karras keeps EDM's own ends where they lie inside the range.
    """
    made = SCHEDULES[name]
    if made is Karras:
        low, high = (math.exp(-end / 2) for end in (logsnr_max, logsnr_min))
        usual = Karras()
        return Karras(max(low, usual.sigma_min), min(high, usual.sigma_max))
    takes = {field.name for field in dataclasses.fields(made)}
    shifts = {key: value for key, value in shifts.items() if key in takes}
    return made(logsnr_min=logsnr_min, logsnr_max=logsnr_max, **shifts)


def logsnr_range(schedule: Schedule) -> tuple[float, float]:
    """(lowest, highest) logsnr of a schedule."""
    angle = schedule.angle(np.array([1.0, 0.0]))
    low, high = logsnr_of_angle(angle)
    return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class TakingTurns(Schedule):
    """For training: the examples of a batch [b] take turns among several schedules.

    Detail is learned at little noise, motion and place at much; a small model trained
    on one schedule learns one of them late.
    """

    schedules: tuple[Schedule, ...]

    def angle(self, t: Array) -> Array:
        """Diffusion times [b] -> phi [b]."""
        xp = namespace(t)
        angles = xp.stack([schedule.angle(t) for schedule in self.schedules])
        example = xp.arange(t.shape[0])
        return angles[example % len(self.schedules), example]
