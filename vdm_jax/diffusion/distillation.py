"""Targets and loss of distillation.

Progressive distillation (PD; Salimans & Ho 2022, algorithm 2) trains one step of a
student to equal two steps of its teacher. Guidance distillation (Meng et al. 2022)
trains a student that is conditioned on the guidance weight to replace both branches of
classifier-free guidance by one call.

Everything is in v and in angles phi = atan(sigma / alpha), where a step of DDIM is a
rotation: nothing divides by a small number, and the last step is no special case.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.diffusion import losses, schedules
from vdm_jax.diffusion.process import Array, Denoiser, append_dims, velocity
from vdm_jax.diffusion.schedules import Schedule


class StudentStep(NamedTuple):
    """Interval of a student's step; the teacher's two steps meet at `middle`.

    Angles [b], decreasing. The last interval ends at 0, where no network is called.
    """

    start: Array
    middle: Array
    end: Array


def student_step(
    schedule: Schedule, i: Array, n: Array, double: bool = False
) -> StudentStep:
    """Return the step of a student of n steps that starts where i steps are left.

    i: int [b], 1..n; n: int [], may be traced. On uniform times that is t = i / n. A
    plain step ends where i - 1 steps are left. With `double`, for the stochastic
    sampler, it ends where i - 2 are. From i = 1 a double step has only the single
    length that is left to the data. There the teacher takes one step instead of two,
    since it learned double steps of half the length. (Meng et al. 2022, algorithm 3,
    halves the teacher's last step too.)
    """
    n = jnp.asarray(n, jnp.result_type(float))

    def angle(steps_ahead: float) -> Array:
        return schedule.step_angle(2 * jnp.maximum(i - steps_ahead, 0), 2 * n)

    return StudentStep(*map(angle, (0.0, 1.0, 2.0) if double else (0.0, 0.5, 1.0)))


def rotate(z: Array, v: Array, delta: Array) -> Array:
    """Return cos(delta) z - sin(delta) v: DDIM by `delta` of angle (PD, appendix D)."""
    delta = append_dims(delta, z)
    return jnp.cos(delta) * z - jnp.sin(delta) * v


def merge_two_ddim_steps(
    z: Array, v1: Array, v2: Array, interval: StudentStep
) -> Array:
    """Return v of one DDIM step that equals two, with v1 at z and v2 at the middle.

    v = (sin d1 cos d2 v1 + sin d2 v2 - sin d1 sin d2 z) / sin(d1 + d2). It equals
    the x target of PD's algorithm 2 (`x = alpha z - sigma v`), which subtracts numbers
    that are nearly equal: in float32 that one errs by 4e-3 at 8192 steps.
    """
    d1 = append_dims(interval.start - interval.middle, z)
    d2 = append_dims(interval.middle - interval.end, z)
    first = jnp.sin(d1) * jnp.cos(d2) * v1 - jnp.sin(d1) * jnp.sin(d2) * z
    return (first + jnp.sin(d2) * v2) / jnp.sin(d1 + d2)


def progressive_target(
    teacher: Denoiser, schedule: Schedule, z: Array, interval: StudentStep, cond
) -> Array:
    """Return the student's target at z: v of the teacher's two steps of DDIM.

    z: [b, f, h, w, c] at `interval.start`. Nothing is clipped. No gradient reaches the
    teacher. The schedule's end at t = 0 is the lowest noise at which it is called.
    """

    def v(z: Array, angle: Array) -> Array:
        angle = jnp.maximum(angle, schedule.angle(0.0))
        level = schedules.noise_level_from_angle(angle)
        return velocity(teacher(z, level, cond), level)

    v1 = v(z, interval.start)
    v2 = v(rotate(z, v1, interval.start - interval.middle), interval.middle)
    return jax.lax.stop_gradient(merge_two_ddim_steps(z, v1, v2, interval))


def student_loss(
    student: Denoiser,
    target: Array,
    z: Array,
    angle: Array,
    cond,
    weighting: str = "snr_plus_one",
    frame_weight: Array | None = None,
) -> Array:
    """Return the weighted squared error [b] of a student's v at z, at `angle` [b].

    weighting: one of losses.WEIGHTINGS, all of them weights on |x - x_hat|^2 (PD,
    section 4). In v they differ by bounded factors. frame_weight: as for
    `losses.weighted_v_loss`.
    """
    level = schedules.noise_level_from_angle(angle)
    error = velocity(student(z, level, cond), level) - jax.lax.stop_gradient(target)
    return losses.weighted_v_loss(error, level, weighting, frame_weight)


def sample_step_index(
    key: Array, batch: int, n: Array, time_power: Array | float = 1.0
) -> Array:
    """Draw step indices from 1..n, int32 [batch]: t = u^time_power, u stratified.

    n and time_power may be traced. time_power 1 draws all steps equally often. A larger
    one draws the steps near the data more often, because no later step corrects their
    errors: 2 draws the last of eight nearly three times as often.
    """
    u = schedules.stratified_times(key, batch) ** time_power
    return jnp.minimum(jnp.floor(u * n).astype(jnp.int32) + 1, n)
