"""Samplers: each is a table, a step, and the one loop.

The table is made on the host in float64: one row a step, from t = 1 down, with the
noise level at which the denoiser is asked and the coefficients of the update. Its
last grid point is phi = 0 (alpha 1, sigma 0) and not the clipped end, so the last row
returns the predicted video by itself and no sampler has a branch for it.

Inside a jit the table is an argument padded to `MAX_STEPS` rows and the loop's bounds
are traced: one compiled program serves every number of steps, and the host can run
it in chunks. Noise is an argument too, a function of (step, draw): see `normal`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.diffusion import process, schedules
from vdm_jax.diffusion.process import Array, Denoiser
from vdm_jax.diffusion.schedules import Schedule, Step

MAX_STEPS = 1024

Table = dict[str, np.ndarray]
Noise = Callable[[Array, int], Array]  # (table row, draw) -> standard normal like z


class Sampler(NamedTuple):
    """`table(schedule, n)`; `init(z) -> carry`; `step(denoise, carry, row, ...)`.

    The carry is (z, memory): what a multistep method remembers of earlier steps.
    step: (denoise, carry, step, row, noise, cond) -> carry, elementwise in z and the
    prediction, `noise(draw)` being that step's own draws.
    """

    table: Callable[[Schedule, int], Table]
    step: Callable[..., tuple[Array, Any]]
    init: Callable[[Array], tuple[Array, Any]] = lambda z: (z, ())


def grid(schedule: Schedule, n: int) -> tuple[Step, Step]:
    """Noise levels of n uniform steps of time from 1 to 0: (from [n], to [n])."""
    angle = schedule.angle(np.linspace(1.0, 0.0, n + 1))
    angle[-1] = 0.0
    with np.errstate(divide="ignore"):
        logsnr = schedules.logsnr_of_angle(angle)
    points = Step(np.arange(n + 1), logsnr, np.cos(angle), np.sin(angle))
    return Step(*(a[:-1] for a in points)), Step(*(a[1:] for a in points))


def _calls(step: Step) -> Table:
    """The columns every table has: the noise level at which a row asks."""
    return {"logsnr": step.logsnr, "alpha": step.alpha, "sigma": step.sigma}


def _ddim_table(schedule: Schedule, n: int) -> Table:
    t, s = grid(schedule, n)
    return {**_calls(t), "next_alpha": s.alpha, "next_sigma": s.sigma}


def _ddim_step(denoise, carry, step, row, noise, cond):
    z, memory = carry
    x, eps = denoise(z, step, cond)
    return row["next_alpha"] * x + row["next_sigma"] * eps, memory


def ddim() -> Sampler:
    """z_s = alpha_s x + sigma_s eps, deterministic (Song et al. 2021, equation 12)."""
    return Sampler(_ddim_table, _ddim_step)


def _ancestral_step(denoise, carry, step, row, noise, cond):
    z, memory = carry
    x = denoise(z, step, cond).x
    return row["z_coef"] * z + row["x_coef"] * x + row["std"] * noise(0), memory


def ancestral(gamma: float = 0.0) -> Sampler:
    """A draw of q(z_s | z_t, x) with interpolated variance (VDM section 2, eq. 4).

    gamma: 0 is the posterior's own variance, 1 the transition's; the geometric mean
    between them. No noise is added in the last step.
    """

    def table(schedule: Schedule, n: int) -> Table:
        t, s = grid(schedule, n)
        z_coef, x_coef, lower = process.posterior(s, t)
        upper = process.transition(s, t)[1]
        std = np.sqrt(lower ** (1 - gamma) * upper**gamma) * (s.sigma > 0)
        return {**_calls(t), "z_coef": z_coef, "x_coef": x_coef, "std": std}

    return Sampler(table, _ancestral_step)


SAMPLERS: dict[str, Callable[..., Sampler]] = {"ddim": ddim, "ancestral": ancestral}


def padded(table: Table, dtype) -> dict[str, Array]:
    """The table as jit arguments of one shape whatever its number of rows."""
    rows = len(table["logsnr"])
    pad = max(MAX_STEPS, rows) - rows
    return {k: np.pad(v, (0, pad)).astype(dtype) for k, v in table.items()}


def loop(
    sampler: Sampler,
    denoise: Denoiser,
    carry: tuple[Array, Any],
    table: dict[str, Array],
    start: Array,
    stop: Array,
    noise: Noise,
    cond,
) -> tuple[Array, Any]:
    """Rows start..stop of the table; `start` and `stop` may be traced."""

    def body(i: Array, carry):
        row = {k: v[i] for k, v in table.items()}
        step = Step(i, row["logsnr"], row["alpha"], row["sigma"])
        return sampler.step(denoise, carry, step, row, lambda d: noise(i, d), cond)

    table = {k: jnp.asarray(v, carry[0].dtype) for k, v in table.items()}
    return jax.lax.fori_loop(start, stop, body, carry)


def video_keys(seed: int, stage: int, block: int, videos: Array) -> Array:
    """One key a video, from the video's own number and never from its place.

    A batch may be split, padded or spread over devices and processes, and each video
    still sees the same noise. videos: int [b] -> keys [b].
    """
    key = jax.random.key(seed)
    for part in (stage, block):
        key = jax.random.fold_in(key, part)
    return jax.vmap(lambda video: jax.random.fold_in(key, video))(jnp.asarray(videos))


def normal(
    keys: Array, step: Array, draw: int, shape: tuple[int, ...], dtype=None
) -> Array:
    """Standard normal [b, *shape], one draw a key; no two (step, draw) coincide.

    Step 0 is the noise that a video starts from; row i of a table draws at i + 1.
    """

    def one(key):
        key = jax.random.fold_in(jax.random.fold_in(key, step), draw)
        return jax.random.normal(key, shape, dtype)

    return jax.vmap(one)(keys)
