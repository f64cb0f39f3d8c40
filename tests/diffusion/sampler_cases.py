"""Samplers and runs that tests of samplers share.

For Gaussian data the exact denoiser is linear, so a whole sampling run is affine in
its start and its noise. Its output variance then follows from its Jacobian, without
Monte Carlo and without a second copy of the recursion.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.analytic import final_z, gaussian
from vdm_jax.diffusion import (
    process,
    samplers,
    schedules,
)

COSINE = schedules.Cosine()
SHIFTS = [0.0, -3.0]
ROWS = 256  # padded length of a table
SAMPLERS = {"ddim": samplers.ddim()} | {
    f"ancestral({g})": samplers.ancestral(g) for g in (0.0, 0.1, 0.3, 1.0)
}
SAMPLERS["corrected"] = samplers.with_langevin_corrector(
    samplers.ancestral(0.0), delta=0.1
)
DDIM, DPM, HEUN = SAMPLERS["ddim"], samplers.dpm(), samplers.heun()
UNIPC = samplers.unipc()
CHURNED = samplers.heun(s_churn=10.0)
OTHERS = {
    "dpm": DPM,
    "unipc": UNIPC,
    "heun": HEUN,
    "churned": CHURNED,
    "restart_ddim": samplers.restart_ddim(),
    "corrected dpm": samplers.with_langevin_corrector(DPM),
}
EVERY = SAMPLERS | OTHERS
FEW = {name: SAMPLERS[name] for name in ("ddim", "ancestral(0.3)")}
MORE = FEW | OTHERS


def each(some):
    return pytest.mark.parametrize("sampler", list(some.values()), ids=list(some))


each_sampler = each(MORE)


def padded(table, rows=ROWS):
    """Append rows of NaN, which a test would notice if they ran."""
    return {
        key: np.concatenate([value, np.full(rows - len(value), np.nan)])
        for key, value in table.items()
    }


def centred(spread, table):
    return gaussian(0.0, spread)


@functools.partial(jax.jit, static_argnums=(0, 4))
def affine(sampler, spread, table, stop, denoiser=centred):
    """Return d out / d start [s] and d out / d noise [s, draws] on N(0, spread^2)."""
    spread = spread.reshape(-1, 1, 1, 1, 1)

    def run(start, noises):
        def noise(index, draw):
            return jnp.broadcast_to(noises[index, draw], spread.shape)

        z = jnp.broadcast_to(start, spread.shape)
        denoise = denoiser(spread, table)
        return final_z(sampler, denoise, z, table, 0, stop, noise, None).ravel()

    zeros = jnp.zeros((len(table["logsnr"]), 2), spread.dtype)
    of_start, of_noise = jax.jacfwd(run, (0, 1))(zeros[0, 0], zeros)
    return of_start, of_noise.reshape(len(of_start), -1)


def spread_of(of_start, of_noise, start):
    """Return the standard deviation of a run's output, its start ~ N(0, start^2)."""
    return np.sqrt((of_start * start) ** 2 + np.sum(np.square(of_noise), axis=1))


def std(sampler, schedule, n, spread, stop=None, start=1.0, rows=ROWS):
    """Return the standard deviation of the real sampler's output."""
    table = padded(sampler.table(schedule, n), rows)
    spread = jnp.asarray(spread, float)
    parts = affine(sampler, spread, table, n if stop is None else stop)
    return spread_of(*parts, start)


def tanh_denoiser(z, level, cond):
    return process.from_x(jnp.tanh(z * (1 + level.alpha)) * 0.9, z, level)


def mixture(weights, means, spreads):
    """Return the exact denoiser of a mixture of Gaussians."""

    def denoise(z, level, cond):
        parts = []
        for weight, mean, spread in zip(weights, means, spreads, strict=True):
            variance = level.alpha**2 * spread**2 + level.sigma**2
            off = z - level.alpha * mean
            log_weight = (
                jnp.log(weight) - jnp.log(variance) / 2 - off**2 / (2 * variance)
            )
            parts.append((log_weight, mean + level.alpha * spread**2 * off / variance))
        log_weights, x = (jnp.stack(part) for part in zip(*parts, strict=True))
        return process.from_x(jnp.sum(jax.nn.softmax(log_weights, 0) * x, 0), z, level)

    return denoise
