"""Noise schedules: diffusion time t in [0, 1] to a noise level, and back.

All noise levels are measured by logsnr = log(alpha^2 / sigma^2). The process is
variance preserving: alpha^2 + sigma^2 = 1. The angle phi = atan(sigma / alpha) is the
same quantity in a form that is exact at both ends: alpha = cos(phi), sigma = sin(phi).

Every function takes NumPy arrays (float64, on the host: sampler tables) and JAX
arrays (inside a jit: training) alike.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.errors import UserError
from vdm_jax.settings import discrete

Array = Any  # np.ndarray on the host, jax.Array inside a jit


class NoiseLevel(NamedTuple):
    """A noise level, as a denoiser gets it.

    logsnr, alpha and sigma have shape [], [b] or, with a level per frame, [b, f].
    `step_index` counts the sampler's steps from 0 at t = 1; guidance weights are looked
    up by it. It is 0 in training. `call` numbers the denoiser's calls within one step
    of a sampler: noise that is drawn for a call differs from that of the next call.
    """

    step_index: Array
    logsnr: Array
    alpha: Array
    sigma: Array
    call: Array = 0


def stratified_times(key: jax.Array, n: int, dtype: Any = None) -> jax.Array:
    """Return n diffusion times in [0, 1), evenly spread with one random offset.

    Each is uniform; together they cover the schedule, which lowers the variance of
    the loss (Kingma et al. 2021, appendix I.1).
    """
    offset = jax.random.uniform(key, (), dtype)
    return (offset + jnp.arange(n, dtype=offset.dtype) / n) % 1.0


class Schedule(Protocol):
    """A noise schedule; `SCHEDULES` lists the implementations by name.

    It owns the levels of sampling (`grid`) and of training (`training_times`): samplers
    and losses read them from here. A subclass that defines `angle` has uniform times in
    both; one with other levels overrides the method.
    """

    def angle(self, t: Array) -> Array:
        """Map diffusion time in [0, 1] to phi = atan(sigma / alpha), increasing."""
        ...

    def grid(self, n: int) -> np.ndarray:
        """Return the phi between n steps of a sampler, float64 [n + 1], decreasing.

        Step i starts at entry i and ends at entry i + 1. The default has uniform times
        from 1 down to 1/n, then phi = 0 and not the clipped angle at t = 0.
        """
        return np.append(self.angle(np.linspace(1.0, 0.0, n + 1)[:-1]), 0.0)

    def step_angle(self, k: Array, n: Array) -> Array:
        """Return the phi at which the last k of n steps start, 0 for k = 0.

        Both may be traced. Steps that halve, as distillation needs them, are those of
        `grid`: its entry n - k is this one, and 2 k of 2 n steps start where k of n do.
        """
        xp = array_namespace(k)
        return xp.where(k == 0, 0.0, self.angle(k / n))

    def training_times(self, key: jax.Array, n: int, dtype: Any = None) -> jax.Array:
        """Draw the diffusion times [n] of a training batch; the default is uniform."""
        return stratified_times(key, n, dtype)


def array_namespace(x: Array):
    """Return the module that computes on `x`: numpy or jax.numpy."""
    return jnp if isinstance(x, jax.Array) else np


def logsnr_from_angle(angle: Array) -> Array:
    """Return the log signal-to-noise ratio at phi; +inf at phi = 0."""
    xp = array_namespace(angle)
    return 2.0 * (xp.log(xp.cos(angle)) - xp.log(xp.sin(angle)))


def angle_from_logsnr(logsnr: Array) -> Array:
    """Return phi of a log signal-to-noise ratio."""
    xp = array_namespace(logsnr)
    return xp.arctan(xp.exp(-logsnr / 2))


def noise_level_from_angle(angle: Array, step_index: Array = 0) -> NoiseLevel:
    """Return the noise level at phi."""
    xp = array_namespace(angle)
    logsnr = logsnr_from_angle(angle)
    return NoiseLevel(step_index, logsnr, xp.cos(angle), xp.sin(angle))


def noise_level(schedule: Schedule, t: Array, step_index: Array = 0) -> NoiseLevel:
    """Return the noise level of `schedule` at diffusion time `t`."""
    return noise_level_from_angle(schedule.angle(t), step_index)


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """Cosine schedule with clipped logsnr, optionally shifted.

    logsnr(t) = -2 log tan(a t + b), so the angle a t + b is linear in t (Salimans &
    Ho 2022, appendix; Video Diffusion Models, section 2, clips at +-20).
    `logsnr_shift` is added to the whole curve and keeps the clip range (Hoogeboom et
    al. 2023, "simple diffusion", section 3.1). It is negative for larger or smoother
    data: 2 log(base / size) where `base` pixels a side need no shift (equation 4).
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    logsnr_shift: float = 0.0

    def angle(self, t: Array) -> Array:
        """Map diffusion time in [0, 1] to phi."""
        xp = array_namespace(t)
        low, high = (
            math.atan(math.exp(-(end - self.logsnr_shift) / 2))
            for end in (self.logsnr_max, self.logsnr_min)
        )
        unshifted = low + (high - low) * t
        # tan(phi) is multiplied by exp(-shift / 2); atan2 keeps that exact near pi/2.
        scale = math.exp(-self.logsnr_shift / 2)
        return xp.arctan2(scale * xp.sin(unshifted), xp.cos(unshifted))

    def logsnr(self, t: Array) -> Array:
        """Map diffusion time in [0, 1] to the log signal-to-noise ratio, decreasing."""
        return logsnr_from_angle(self.angle(t))


def clip_angle(angle: Array, logsnr_min: float, logsnr_max: float) -> Array:
    """Clip phi to a range of logsnr: the range in which networks are trained."""
    low, high = (math.atan(math.exp(-end / 2)) for end in (logsnr_max, logsnr_min))
    return array_namespace(angle).clip(angle, low, high)


@dataclasses.dataclass(frozen=True)
class Interpolated(Schedule):
    """Cosine schedule whose shift changes linearly with t.

    It is `logsnr_shift` at the data and `noise_logsnr_shift` at the noise:
    logsnr(t) = (1 - t) Cosine(logsnr_shift) + t Cosine(noise_logsnr_shift)
    (Hoogeboom et al. 2023, section 3.1, "interpolated").
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    logsnr_shift: float = 0.0
    noise_logsnr_shift: float = 0.0

    def angle(self, t: Array) -> Array:
        """Map diffusion time in [0, 1] to phi."""
        data, noise = (
            Cosine(self.logsnr_min, self.logsnr_max, shift).logsnr(t)
            for shift in (self.logsnr_shift, self.noise_logsnr_shift)
        )
        return angle_from_logsnr((1 - t) * data + t * noise)


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
        """Map diffusion time in [0, 1] to phi."""
        xp = array_namespace(t)
        integral = self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2
        angle = xp.arctan(xp.sqrt(xp.expm1(integral)))
        return clip_angle(angle, self.logsnr_min, self.logsnr_max)


@dataclasses.dataclass(frozen=True)
class Flow(Schedule):
    """Flow matching's straight path (1 - tau) x + tau eps with tau = t, clipped.

    sigma / alpha = t / (1 - t). `logsnr_shift` is -2 log s of the time shift
    tau' = s tau / (1 + (s - 1) tau) (Esser et al. 2024, section 5.3.2).
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    logsnr_shift: float = 0.0

    def angle(self, t: Array) -> Array:
        """Map diffusion time in [0, 1] to phi."""
        xp = array_namespace(t)
        angle = xp.arctan2(math.exp(-self.logsnr_shift / 2) * t, 1 - t)
        return clip_angle(angle, self.logsnr_min, self.logsnr_max)


@dataclasses.dataclass(frozen=True)
class Karras(Schedule):
    """EDM's noise levels, evenly spaced in sigma^(1 / rho) (Karras et al. 2022, eq. 5).

    sigma here is EDM's, which is sigma / alpha.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def angle(self, t: Array) -> Array:
        """Map diffusion time in [0, 1] to phi."""
        low, high = (s ** (1 / self.rho) for s in (self.sigma_min, self.sigma_max))
        return array_namespace(t).arctan((low + t * (high - low)) ** self.rho)

    def grid(self, n: int) -> np.ndarray:
        """Return the phi of uniform times from 1 down to 0, both included, then 0."""
        times = np.linspace(1.0, 0.0, n) if n > 1 else np.ones(1)
        return np.append(self.angle(times), 0.0)


# Name -> (training steps, n, offset) -> n timesteps, decreasing (Lin et al. 2023,
# arXiv:2305.08891, table 2). Those of "fractional" are between two whole ones.
TIMESTEP_SPACINGS: dict[str, Callable[[int, int, int], np.ndarray]] = {
    "leading": lambda steps, n, offset: np.arange(n)[::-1] * (steps // n) + offset,
    "trailing": lambda steps, n, _: (steps - np.arange(n) * (steps / n)).round() - 1,
    "linspace": lambda steps, n, _: np.linspace(0, steps - 1, n).round()[::-1],
    "fractional": lambda steps, n, _: np.linspace(0, steps - 1, n)[::-1],
}
BETA_SCHEDULES: dict[str, Callable[[float, float, int], np.ndarray]] = {
    "scaled_linear": lambda low, high, n: np.linspace(low**0.5, high**0.5, n) ** 2,
    "linear": np.linspace,
}


@dataclasses.dataclass(frozen=True)
class Discrete(discrete.Discrete, Schedule):
    """A table of noise levels by timestep 0..train_steps - 1: alpha^2 = prod(1 - beta).

    The fields are those of a config's section `discrete`. Diffusion time t is timestep
    / (train_steps - 1). Between two timesteps sigma / alpha is linear, as in diffusers'
    Euler sampler.
    """

    def edm_sigmas(self) -> np.ndarray:
        """Return sigma / alpha of all timesteps, float64 [train_steps], increasing."""
        make = BETA_SCHEDULES[self.beta_schedule]
        betas = make(self.beta_start, self.beta_end, self.train_steps)
        alphas_cumprod = np.cumprod(1 - betas)
        return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)

    def angle(self, t: Array) -> Array:
        """Map diffusion time in [0, 1] to phi."""
        return self._angle_of_timestep(t * (self.train_steps - 1))

    def _angle_of_timestep(self, timestep: Array) -> Array:
        xp = array_namespace(timestep)
        sigmas = self.edm_sigmas()
        return xp.arctan(xp.interp(timestep, np.arange(len(sigmas)), sigmas))

    def timestep(self, logsnr: Array) -> Array:
        """Return the timestep of a log SNR, a float in 0..train_steps - 1.

        A float32 of the log SNR of a timestep determines it to 2e-4. What is nearer to
        an integer than 1e-3 is that integer, so the levels of training lose nothing.
        """
        xp = array_namespace(logsnr)
        sigmas = self.edm_sigmas()
        timestep = xp.interp(xp.exp(-logsnr / 2), sigmas, np.arange(len(sigmas)))
        nearest = timestep.round()
        return xp.where(abs(timestep - nearest) < 1e-3, nearest, timestep)

    def timesteps(self, n: int) -> np.ndarray:
        """Return the timesteps at which n steps of a sampler start, decreasing.

        Raises:
          UserError: there are fewer than n.
        """
        count = n + int(self.skip_last and self.timestep_spacing != "trailing")
        if n >= 1 and count <= self.train_steps:
            spacing = TIMESTEP_SPACINGS[self.timestep_spacing]
            timesteps = spacing(self.train_steps, count, self.steps_offset)[:n]
            if timesteps[0] < self.train_steps:
                return timesteps
        raise UserError(
            f"{n} steps of a sampler on a discrete schedule: its timesteps are 0 to "
            f"{self.train_steps - 1}; use fewer steps, at least 1"
        )

    def grid(self, n: int) -> np.ndarray:
        """Return the phi of `timesteps`, then of timestep 0 or phi = 0.

        A step ends at the next entry of the list. diffusers' DDIM ends train_steps / n
        timesteps further, which is no entry where n does not divide train_steps.
        """
        angles = self._angle_of_timestep(self.timesteps(n).astype(np.float64))
        return np.append(angles, 0.0 if self.set_alpha_to_one else self.angle(0.0))

    def step_angle(self, k: Array, n: Array) -> Array:
        """Return the phi of "trailing" timesteps, which alone halve; 0 for k = 0.

        n is a power of two, which makes the division exact.
        """
        xp = array_namespace(k)
        timestep = xp.round(k * self.train_steps / n) - 1
        return xp.where(k == 0, 0.0, self._angle_of_timestep(timestep))

    def training_times(self, key: jax.Array, n: int, dtype: Any = None) -> jax.Array:
        """Draw the times [n] of whole timesteps, uniform over all and stratified."""
        u = stratified_times(key, n, dtype)
        last = self.train_steps - 1
        return jnp.minimum(jnp.floor(u * self.train_steps), last) / last


SCHEDULES: dict[str, type] = {
    "cosine": Cosine,
    "interpolated": Interpolated,
    "linear": Linear,
    "flow": Flow,
    "karras": Karras,
    "discrete": Discrete,
}


def make_schedule(
    name: str, logsnr_min: float, logsnr_max: float, **shifts: float
) -> Schedule:
    """Return a schedule of `SCHEDULES`, clipped to a range of logsnr.

    shifts: values of `logsnr_shift` and `noise_logsnr_shift`; a schedule without the
    field ignores its value. Karras keeps EDM's own ends where they are in the range. A
    discrete schedule is Stable Diffusion's table, whatever the range.
    """
    schedule_type = SCHEDULES[name]
    if schedule_type is Karras:
        low, high = (math.exp(-end / 2) for end in (logsnr_max, logsnr_min))
        edm = Karras()
        return Karras(max(low, edm.sigma_min), min(high, edm.sigma_max))
    fields = {field.name for field in dataclasses.fields(schedule_type)}
    values = {"logsnr_min": logsnr_min, "logsnr_max": logsnr_max, **shifts}
    return schedule_type(**{k: v for k, v in values.items() if k in fields})


def logsnr_range(schedule: Schedule) -> tuple[float, float]:
    """Return the lowest and the highest logsnr of a schedule."""
    angle = schedule.angle(np.array([1.0, 0.0]))
    low, high = logsnr_from_angle(angle)
    return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class AlternatingSchedules(Schedule):
    """Several schedules for training: example i of a batch [b] uses schedule i mod n.

    Detail is learned at low noise, motion and position at high noise. A small model
    that trains on one schedule learns one of the two late.
    """

    schedules: tuple[Schedule, ...]

    def angle(self, t: Array) -> Array:
        """Map diffusion times [b] to phi [b]."""
        xp = array_namespace(t)
        angles = xp.stack([schedule.angle(t) for schedule in self.schedules])
        return self._alternate(angles)

    def training_times(self, key: jax.Array, n: int, dtype: Any = None) -> jax.Array:
        """Draw the diffusion times [n], each from its example's schedule."""
        times = [each.training_times(key, n, dtype) for each in self.schedules]
        return self._alternate(jnp.stack(times))

    def _alternate(self, values: Array) -> Array:
        """Select from [schedules, b] the value of each example's schedule, [b]."""
        example = array_namespace(values).arange(values.shape[1])
        return values[example % len(self.schedules), example]
