"""Schedules, teachers and grids that tests of distillation share."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.analytic import append_axes
from vdm_jax.diffusion import (
    distillation,
    process,
    samplers,
    schedules,
)

COSINE = schedules.Cosine()
SCHEDULES = {
    "cosine": COSINE,
    "shifted": schedules.Cosine(logsnr_shift=-3.0),
    "flow": schedules.Flow(),  # its halves are unequal
}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
DOUBLE = [False, True]
ROWS = 64  # a batch that holds every step, so that one shape serves every n
VIDEO = (2, 2, 2, 1)


def normal(*shape, seed=0, dtype=float):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def slope(angle, spread):
    """Return the slope in v^ = slope z for N(0, spread^2)."""
    a, s = np.cos(angle), np.sin(angle)
    return a * s * (1 - spread**2) / (a**2 * spread**2 + s**2)


def smooth(seed, kind="v"):
    """Return a nonlinear teacher that mixes pixels and fits no data."""
    mix = normal(8, 8, seed=seed)

    def denoise(z, level, cond):
        flat, logsnr = z.reshape(len(z), -1), level.logsnr[:, None] / 9
        out = 3 * jnp.sin(flat @ mix + logsnr) + flat * jnp.cos(2 * logsnr)
        return process.PREDICTION_TYPES[kind](out.reshape(z.shape), z, level)

    return denoise


def recorded(denoise, calls):
    def recording(z, level, cond):
        calls.append((z, level, cond))
        return denoise(z, level, cond)

    return recording


def grid(schedule, n):
    """Return phi of t = 0, 1/n, ..., 1 in a sampler of n steps, 0 at t = 0."""
    t = samplers.grid(schedule, n)[0]
    return np.append(0.0, np.arctan2(t.sigma, t.alpha)[::-1])


def every(n, rows=ROWS):
    """Return steps i [rows]: 1..n, repeated."""
    return np.resize(np.arange(1, n + 1), rows)


def expected_interval(schedule, i, n, double=False):
    """Return phi at start, middle and end of steps i of n, from the samplers' grids."""
    halves, fine = 2 if double else 1, grid(schedule, 2 * n)
    return [fine[np.maximum(2 * i - k * halves, 0)] for k in range(3)]


def ddim(denoise, z, start, end, cond=None):
    """Return alpha_s x + sigma_s eps for angles [b]."""
    level = schedules.noise_level_from_angle(jnp.asarray(start, z.dtype))
    x, eps = denoise(z, level, cond)
    return append_axes(jnp.cos(end)) * x + append_axes(jnp.sin(end)) * eps


def target_of(teacher, schedule, z, i, n, double=False, cond=None):
    interval = distillation.student_step(schedule, jnp.asarray(i), n, double)
    return distillation.progressive_target(
        teacher, schedule, z, interval, cond
    ), interval
