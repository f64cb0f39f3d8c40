"""Shrinkage by DDIM over the rounds of progressive distillation.

    python -m experiments.ddim_shrinkage.ddim_shrinkage

The data is one pixel, normal with deviation s. The first teacher is the exact denoiser.
A student is a linear function for each of its times, fitted by least squares to
`progressive_target` on drawn data, as training does. Prints the deviation of samples
over that of the data, for the students and for DDIM with the exact denoiser, and writes
it to ddim_shrinkage.json.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.diffusion import distillation, process, samplers, schedules

FILE = Path(__file__).with_suffix(".json")
SCHEDULE = schedules.Cosine()
DRAWS = 256  # examples that each linear function is fitted to
FIRST_STEPS = 1024


def exact(s: float) -> process.Denoiser:
    """Return the denoiser E[x | z] of normal data."""

    def denoise(z, level, cond):
        alpha, sigma = process.alpha_sigma(level, z)
        x = alpha * s**2 / (alpha**2 * s**2 + sigma**2) * z
        return process.from_x(x, z, level)

    return denoise


def linear(slopes: np.ndarray) -> process.Denoiser:
    """Return the denoiser v = slope z, the slope that of the step, i = 1..n."""
    n = len(slopes)
    angles = SCHEDULE.angle(np.arange(1, n + 1) / n)

    def denoise(z, level, cond):
        angle = jnp.arctan2(jnp.asarray(level.sigma), jnp.asarray(level.alpha))
        nearest = jnp.abs(angle[..., None] - angles).argmin(-1)
        v = process.append_dims(jnp.asarray(slopes)[nearest], z) * z
        return process.from_v(v, z, level)

    return denoise


def fit(teacher: process.Denoiser, s: float, n: int, key) -> np.ndarray:
    """Return slopes [n] of a student of n steps, by least squares on noisy data."""
    i = jnp.repeat(jnp.arange(1, n + 1), DRAWS)
    at = distillation.student_step(SCHEDULE, i, n)
    x, eps = jax.random.normal(key, (2, len(i), 1, 1, 1, 1))
    z = process.diffuse(s * x, eps, schedules.noise_level_from_angle(at.start))
    target = distillation.progressive_target(teacher, SCHEDULE, z, at, None)
    z, target = (a.reshape(n, DRAWS) for a in (z, target))
    return np.asarray((z * target).sum(1) / (z * z).sum(1))


def deviation(denoise: process.Denoiser, n: int) -> float:
    """Return the deviation of DDIM samples in n steps, linear in the noise."""
    sampler = samplers.ddim()
    table = samplers.pad_table(sampler.table(SCHEDULE, n), np.float64)
    carry = sampler.init(jnp.ones((1, 1, 1, 1, 1)))
    z, _ = samplers.sample_loop(
        sampler, denoise, carry, table, 0, n, lambda i, d: 0, None
    )
    return abs(float(z.item()))


def main() -> None:
    """Print and write a table for wide and for narrow data."""
    jax.config.update("jax_enable_x64", True)
    print("steps   s = 1: student   DDIM    s = .5: student   DDIM")
    chains = {1.0: exact(1.0), 0.5: exact(0.5)}
    rows = {}
    for s, teacher in chains.items():
        key, n = jax.random.key(0), FIRST_STEPS
        rows.setdefault(n, []).extend([deviation(teacher, n) / s] * 2)
        while n > 1:
            n //= 2
            teacher = linear(fit(teacher, s, n, jax.random.fold_in(key, n)))
            rows.setdefault(n, []).extend(
                [deviation(teacher, n) / s, deviation(exact(s), n) / s]
            )
    for n, row in rows.items():
        wide, ddim, narrow, ddim_narrow = (f"{ratio:.4f}" for ratio in row)
        print(f"{n:5}          {wide}   {ddim}           {narrow}   {ddim_narrow}")
    names = "wide", "wide, ddim", "narrow", "narrow, ddim"
    result = [
        {"steps": n} | dict(zip(names, row, strict=True)) for n, row in rows.items()
    ]
    command = "python -m experiments.ddim_shrinkage.ddim_shrinkage"
    FILE.write_text(json.dumps({"command": command, "rows": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
