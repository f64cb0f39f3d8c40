"""Samplers: each has a table and a step, and all share one loop.

The table is computed on the host in float64. It has one row per step, from t = 1 down:
the noise levels of the denoiser's calls and the coefficients of the update. Its last
grid point is phi = 0 (alpha 1, sigma 0) and not the clipped end of the schedule. So the
last row returns the predicted video, and no sampler has a branch for it.

Inside a jit the table is an argument padded to `MAX_STEPS` rows, and the loop's bounds
are traced: one compiled program serves every number of steps, and the host can run
it in chunks. Noise is an argument too, a function of (step index, draw): see `normal`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.diffusion import process, schedules
from vdm_jax.diffusion import unipc as unipc_table
from vdm_jax.diffusion.process import Array, Denoiser
from vdm_jax.diffusion.schedules import NoiseLevel, Schedule

MAX_STEPS = 1024

Table = dict[str, np.ndarray]  # column -> one value per step
NoiseFn = Callable[[Array, int], Array]  # (step index, draw) -> standard normal like z


class Sampler(NamedTuple):
    """A sampler: `table(schedule, n)`, `init(z) -> carry` and `step(...) -> carry`.

    The carry is (z, memory). A multistep method stores earlier predictions in memory.
    step: (denoise, carry, level, coef, noise, cond) -> carry, elementwise in z and the
    prediction. `coef` holds the values of the table's columns in this step's row, and
    `noise(draw)` returns this step's own draws. A run that starts at a later row than 0
    has no memory of the rows before: it reads `first_row(table, row)`.
    """

    table: Callable[[Schedule, int], Table]
    step: Callable[..., tuple[Array, Any]]
    init: Callable[[Array], tuple[Array, Any]] = lambda z: (z, ())
    first_row: Callable[[Table, int], Table] = lambda table, row: table


def grid(schedule: Schedule, n: int) -> tuple[NoiseLevel, NoiseLevel]:
    """Return the noise levels where n steps start and where they end, [n] each.

    The schedule chooses them (`Schedule.grid`).
    """
    with np.errstate(divide="ignore"):
        points = schedules.noise_level_from_angle(schedule.grid(n), np.arange(n + 1))
    return _slice_levels(points, slice(None, -1)), _slice_levels(points, slice(1, None))


def _slice_levels(points: NoiseLevel, rows: slice) -> NoiseLevel:
    return NoiseLevel(*(column[rows] for column in points[:4]))


def _level_columns(level: NoiseLevel, prefix: str = "") -> Table:
    """Return the columns that hold the noise level of each row's call."""
    columns = {"logsnr": level.logsnr, "alpha": level.alpha, "sigma": level.sigma}
    return {prefix + key: value for key, value in columns.items()}


def call_level(
    coef: dict[str, Array], step_index: Array, prefix: str = "", call: int = 0
) -> NoiseLevel:
    """Return the noise level of a row's call, from its columns with that prefix."""
    columns = (coef[prefix + key] for key in ("logsnr", "alpha", "sigma"))
    return NoiseLevel(step_index, *columns, call=call)


def _second_call_columns(schedule: Schedule, s: NoiseLevel, prefix: str) -> Table:
    """Return columns of calls at each row's target; the last is at t = 0, not phi = 0.

    The network has no input for phi = 0. The table's coefficient of such a call is 0.
    """
    end = schedules.noise_level(schedule, np.zeros(1))
    points = (np.append(a[:-1], b) for a, b in zip(s[1:4], end[1:4], strict=True))
    return _level_columns(NoiseLevel(s.step_index, *points), prefix)


def _ddim_table(schedule: Schedule, n: int) -> Table:
    t, s = grid(schedule, n)
    return {**_level_columns(t), "next_alpha": s.alpha, "next_sigma": s.sigma}


def _ddim_step(denoise, carry, level, coef, noise, cond):
    z, memory = carry
    x, eps = denoise(z, level, cond)
    return coef["next_alpha"] * x + coef["next_sigma"] * eps, memory


def ddim() -> Sampler:
    """Return DDIM: z_s = alpha_s x + sigma_s eps (Song et al. 2021, equation 12)."""
    return Sampler(_ddim_table, _ddim_step)


def _inversion_table(schedule: Schedule, n: int) -> Table:
    t, s = grid(schedule, n)
    table = _second_call_columns(schedule, s, "")
    table |= {"next_alpha": t.alpha, "next_sigma": t.sigma}
    return {key: value[::-1] for key, value in table.items()}


def _inversion_at_end_table(schedule: Schedule, n: int) -> Table:
    table = _inversion_table(schedule, n)
    return {**table, "logsnr": grid(schedule, n)[0].logsnr[::-1]}


def ddim_inversion(at_end: bool = False) -> Sampler:
    """Return DDIM from data to noise, the inverse of DDIM (Song et al. 2021, 4.3).

    Each step uses the prediction at its start in place of the one at its end, so
    inversion followed by DDIM errs by O(1 / n). Row i is step n - 1 - i of `ddim`.

    at_end: tell the network the level at which the step ends, as the codes of
      Tune-A-Video (arXiv:2212.11565) and diffusers do; z is of that at its start.
    """
    table = _inversion_at_end_table if at_end else _inversion_table
    return Sampler(table, _ddim_step)


def _ancestral_step(denoise, carry, level, coef, noise, cond):
    z, memory = carry
    x = denoise(z, level, cond).x
    return coef["z_coef"] * z + coef["x_coef"] * x + coef["std"] * noise(0), memory


def ancestral(gamma: float = 0.0) -> Sampler:
    """Return a sampler of q(z_s | z_t, x) (VDM, section 2, eq. 4).

    gamma: interpolates the log variance, from the posterior's (0) to the transition's
    (1). The last step adds no noise.
    """

    def table(schedule: Schedule, n: int) -> Table:
        t, s = grid(schedule, n)
        z_coef, x_coef, lower = process.posterior(s, t)
        upper = process.transition(s, t)[1]
        std = np.sqrt(lower ** (1 - gamma) * upper**gamma) * (s.sigma > 0)
        return {**_level_columns(t), "z_coef": z_coef, "x_coef": x_coef, "std": std}

    return Sampler(table, _ancestral_step)


def _dpm_table(schedule: Schedule, n: int) -> Table:
    t, s = grid(schedule, n)
    h = (s.logsnr - t.logsnr) / 2  # of log(alpha / sigma); infinite in the last row
    extrapolation = np.zeros(n)  # 1 / (2 r), r = length of the last step / this one's
    extrapolation[1:-1] = h[1:-1] / (2 * h[:-2])
    weight = -s.alpha * np.expm1(-h)
    return {
        **_level_columns(t),
        "z_coef": s.sigma / t.sigma,
        "x_coef": weight * (1 + extrapolation),
        "previous_x_coef": -weight * extrapolation,
    }


def _dpm_first_row(table: Table, row: int) -> Table:
    """Return the table with a step of first order in this row, as it is in row 0."""
    x_coef, previous = table["x_coef"].copy(), table["previous_x_coef"].copy()
    x_coef[row] += previous[row]
    previous[row] = 0.0
    return {**table, "x_coef": x_coef, "previous_x_coef": previous}


def _dpm_step(denoise, carry, level, coef, noise, cond):
    z, previous_x = carry
    x = denoise(z, level, cond).x
    z = coef["z_coef"] * z + coef["x_coef"] * x + coef["previous_x_coef"] * previous_x
    return z, x


def dpm() -> Sampler:
    """Return DPM-Solver++(2M): second order, one call a step (Lu et al. 2022, alg. 2).

    The first and the last step do not use the previous prediction: they are steps of
    DDIM. Second order needs steps of log SNR that shrink in proportion to 1 / n, as
    those of `Karras` do. A cosine's do not at its ends; the order is 1.4 to 1.8 there.
    """
    return Sampler(
        _dpm_table, _dpm_step, lambda z: (z, jnp.zeros_like(z)), _dpm_first_row
    )


def _unipc_step(denoise, carry, level, coef, noise, cond):
    z, (last_z, old_x, older_x) = carry
    x = denoise(z, level, cond).x
    z = coef["keep"] * z + coef["last_z_coef"] * last_z + coef["new_coef"] * x
    z = z + coef["old_coef"] * old_x + coef["older_coef"] * older_x
    predicted = coef["z_coef"] * z + coef["x_coef"] * x
    return predicted + coef["previous_x_coef"] * old_x, (z, x, old_x)


def unipc() -> Sampler:
    """Return UniPC: each prediction also corrects z (Zhao et al. 2023, algorithm 5).

    One call a step. Its predictor is that of `dpm` and needs levels as that does; with
    the correction it is of third order.
    """

    def table(schedule: Schedule, n: int) -> Table:
        t, s = grid(schedule, n)
        return {**_level_columns(t), **unipc_table.columns(t, s)}

    def init(z: Array) -> tuple[Array, Any]:
        return z, (jnp.zeros_like(z),) * 3

    return Sampler(table, _unipc_step, init, unipc_table.first_row)


def _heun_step(denoise, carry, level, coef, noise, cond):
    z, memory = carry
    z = coef["scale"] * z + coef["churn_std"] * noise(0)
    x, eps = denoise(z, level, cond)
    euler = coef["next_alpha"] * x + coef["next_sigma"] * eps
    second = denoise(euler, call_level(coef, level.step_index, "next_call_", 1), cond)
    return euler + coef["correction"] * (second.eps - eps), memory


def heun(s_churn: float = 0.0) -> Sampler:
    """Return EDM's second-order sampler (Karras et al. 2022, algorithm 2).

    It makes two calls a step. In EDM's state z / alpha the derivative with respect to
    sigma / alpha is eps: a step is an Euler step, which is DDIM, plus half of the
    change of eps. The last step remains an Euler step; its second call has no effect.
    s_churn is the paper's S_churn, at all noise levels and with S_noise = 1. Churn
    never leaves the schedule's range. Use it with `Karras` levels: a first step from
    logsnr -20 is too long for the trapezoidal rule.
    """

    def table(schedule: Schedule, n: int) -> Table:
        t, s = grid(schedule, n)
        edm, edm_next = process.edm_sigma(t), process.edm_sigma(s)
        factor = 1 + min(s_churn / n, math.sqrt(2) - 1)
        max_angle = schedule.angle(np.ones(1))
        angle = np.minimum(np.arctan2(factor * t.sigma, t.alpha), max_angle)
        raised = schedules.noise_level_from_angle(angle, t.step_index)
        edm_raised = process.edm_sigma(raised)
        added = np.sqrt(np.maximum(edm_raised**2 - edm**2, 0))
        return {
            **_level_columns(raised),
            **_second_call_columns(schedule, s, "next_call_"),
            "scale": raised.alpha / t.alpha,
            "churn_std": raised.alpha * added,
            "next_alpha": s.alpha,
            "next_sigma": s.sigma,
            "correction": s.alpha * (edm_next - edm_raised) / 2 * (s.sigma > 0),
        }

    return Sampler(table, _heun_step)


def _restart_ddim_step(denoise, carry, level, coef, noise, cond):
    z, memory = carry
    x, eps = denoise(z, level, cond)
    far = coef["far_alpha"] * x + coef["far_sigma"] * eps
    return coef["scale"] * far + coef["std"] * noise(0), memory


def restart_ddim() -> Sampler:
    """Return the N-step stochastic sampler of Meng et al. 2022, section 3.3.

    A step is two steps of DDIM down and one step back up with fresh noise. It needs a
    distilled model that learned the double step from every grid point. The last step
    is a single one.
    """

    def table(schedule: Schedule, n: int) -> Table:
        t, s = grid(schedule, n)
        far = _slice_levels(s, slice(1, None))  # for all rows but the last
        scale, variance = process.transition(far, _slice_levels(s, slice(None, -1)))
        return {
            **_level_columns(t),
            "far_alpha": np.append(far.alpha, s.alpha[-1]),
            "far_sigma": np.append(far.sigma, s.sigma[-1]),
            "scale": np.append(scale, 1.0),
            "std": np.append(np.sqrt(variance), 0.0),
        }

    return Sampler(table, _restart_ddim_step)


def with_langevin_corrector(sampler: Sampler, delta: float = 0.1) -> Sampler:
    """Return `sampler` with a step of Langevin dynamics after each step (VDM, 3.1).

    z - delta / 2 sigma eps(z) + sqrt(delta) sigma noise: one more call a step. The
    call after the last step has no effect, since sigma is 0 there.
    """

    def table(schedule: Schedule, n: int) -> Table:
        s = grid(schedule, n)[1]
        return {
            **sampler.table(schedule, n),
            **_second_call_columns(schedule, s, "corrector_"),
            "drift": delta / 2 * s.sigma,
            "corrector_std": math.sqrt(delta) * s.sigma,
        }

    def step(denoise, carry, level, coef, noise, cond):
        z, memory = sampler.step(denoise, carry, level, coef, noise, cond)
        corrector = call_level(coef, level.step_index, "corrector_", 2)
        eps = denoise(z, corrector, cond).eps
        return z - coef["drift"] * eps + coef["corrector_std"] * noise(1), memory

    return Sampler(table, step, sampler.init, sampler.first_row)


SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ddim": ddim,
    "ancestral": ancestral,
    "dpm": dpm,
    "unipc": unipc,
    "heun": heun,
    "stochastic": restart_ddim,
}


def pad_table(table: Table, dtype) -> dict[str, Array]:
    """Pad the table to `MAX_STEPS` rows: jit arguments of one shape for every n."""
    rows = len(table["logsnr"])
    pad = max(MAX_STEPS, rows) - rows
    return {
        name: np.pad(column, [(0, pad)] + [(0, 0)] * (column.ndim - 1)).astype(dtype)
        for name, column in table.items()
    }


def sample_loop(
    sampler: Sampler,
    denoise: Denoiser,
    carry: tuple[Array, Any],
    table: dict[str, Array],
    start: Array,
    stop: Array,
    noise: NoiseFn,
    cond,
) -> tuple[Array, Any]:
    """Run rows start..stop of the table; `start` and `stop` may be traced."""

    def body(i: Array, carry):
        coef = {k: v[i] for k, v in table.items()}
        level = call_level(coef, i)
        return sampler.step(denoise, carry, level, coef, lambda d: noise(i, d), cond)

    table = {k: jnp.asarray(v, carry[0].dtype) for k, v in table.items()}
    return jax.lax.fori_loop(start, stop, body, carry)


def key_from_seed(seed: int | Array) -> Array:
    """Return the threefry key of a seed, whatever JAX's default implementation is."""
    return jax.random.key(seed, impl="threefry2x32")


def video_keys(seed: Array, stage: Array, block: Array, videos: Array) -> Array:
    """Return one key per video, from the video's number and not its place in a batch.

    A batch may be split, padded or spread over devices and processes, and each video
    still gets the same noise. seed, stage, block: 32 bits, traced or not; videos: int
    [b] -> keys [b].
    """
    key = key_from_seed(seed)
    for part in (stage, block):
        key = jax.random.fold_in(key, part)
    return jax.vmap(lambda video: jax.random.fold_in(key, video))(jnp.asarray(videos))


def normal(
    keys: Array, step: Array, draw: int, shape: tuple[int, ...], dtype=None
) -> Array:
    """Draw standard normal [b, *shape] from each key; no two (step, draw) coincide.

    Step 0 is the initial noise of a video; row i of a table draws at step i + 1.
    """

    def draw_one(key):
        key = jax.random.fold_in(jax.random.fold_in(key, step), draw)
        return jax.random.normal(key, shape, dtype)

    return jax.vmap(draw_one)(keys)
