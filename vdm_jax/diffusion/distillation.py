"""Distillation: what a student is to predict, and its loss.

Progressive distillation (PD; Salimans & Ho 2022, algorithm 2) makes one step of a
student land where two of its teacher's do; guided distillation (Meng et al. 2022) puts
the two branches of guidance into one call of a student that is told the weight.

Everything is in v and in angles phi = atan(sigma / alpha), where a step of DDIM is a
rotation: nothing divides by a small number, and the last step has no case of its own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.diffusion import losses, schedules
from vdm_jax.diffusion.process import Array, Denoiser, append_dims, velocity
from vdm_jax.diffusion.schedules import Schedule


class StudentStep(NamedTuple):
    """A student's step from `start` to `end`, the teacher's two by way of `middle`.

    Angles [b], falling. At the data `end` is 0, which no network is asked about.
    """

    start: Array
    middle: Array
    end: Array


def student_step(
    schedule: Schedule, i: Array, n: Array, double: bool = False
) -> StudentStep:
    """The step of a student of n steps that begins at t = i / n.

    i: int [b], 1..n; n: int [], may be traced. A plain step ends at (i - 1) / n. With
    `double`, for the stochastic sampler, it ends at (i - 2) / n, and from i = 1 there
    is a single one to the data, which the teacher takes in one as well: it knows the
    double of its own, half as long, step (after Meng et al. 2022, algorithm 3, whose
    teacher halves that one too).
    """
    n = jnp.asarray(n, jnp.result_type(float))

    def angle(back: float) -> Array:
        left = jnp.maximum(i - back, 0)
        return jnp.where(left == 0, 0.0, schedule.angle(left / n))

    return StudentStep(*map(angle, (0.0, 1.0, 2.0) if double else (0.0, 0.5, 1.0)))


def rotate(z: Array, v: Array, delta: Array) -> Array:
    """A step of DDIM: cos(d) z - sin(d) v, d the fall of the angle (PD, appendix D)."""
    delta = append_dims(delta, z)
    return jnp.cos(delta) * z - jnp.sin(delta) * v


def merge_two_ddim_steps(
    z: Array, v1: Array, v2: Array, interval: StudentStep
) -> Array:
    """v of the one step that lands where two do, v1 at z and v2 where the first landed.

    v = (sin d1 cos d2 v1 + sin d2 v2 - sin d1 sin d2 z) / sin(d1 + d2). The same as
    the x target of PD's algorithm 2 (`x = alpha z - sigma v`), which subtracts numbers
    that are nearly equal: in float32 that one errs by 4e-3 at 8192 steps.
    """
    d1, d2 = (
        append_dims(d, z)
        for d in (interval.start - interval.middle, interval.middle - interval.end)
    )
    first = jnp.sin(d1) * jnp.cos(d2) * v1 - jnp.sin(d1) * jnp.sin(d2) * z
    return (first + jnp.sin(d2) * v2) / jnp.sin(d1 + d2)


def progressive_target(
    teacher: Denoiser, schedule: Schedule, z: Array, interval: StudentStep, cond
) -> Array:
    """What the student is to predict at z: v of the teacher's two steps of DDIM.

    z: [b, f, h, w, c] at `at.start`. Nothing is clipped. No gradient reaches the
    teacher. The schedule says down to which noise the teacher may be asked.
    """

    def v(z: Array, angle: Array) -> Array:
        step = schedules.noise_level_from_angle(jnp.maximum(angle, schedule.angle(0.0)))
        return velocity(teacher(z, step, cond), step)

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
) -> Array:
    """Weighted squared error [b] of a student's v at z, where the noise is `angle` [b].

    weighting: of losses.WEIGHTINGS, all of them weights on |x - x_hat|^2 (PD, section
    4). In v they differ by bounded factors.
    """
    step = schedules.noise_level_from_angle(angle)
    error = velocity(student(z, step, cond), step) - jax.lax.stop_gradient(target)
    return losses.weighted_v_loss(error, step, weighting)


def sample_step_index(
    key: Array, batch: int, n: Array, time_power: Array | float = 1.0
) -> Array:
    """int32 [batch]: steps drawn from 1..n, those of t = u^late, u even over the batch.

    n and late may be traced. late: 1 draws all alike, more draws the steps near the
    data more often, whose errors no later step mends: 2 the last of eight nearly three
    times as often.
    """
    u = losses.stratified_times(key, batch) ** time_power
    return jnp.minimum(jnp.floor(u * n).astype(jnp.int32) + 1, n)
