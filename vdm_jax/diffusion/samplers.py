"""Samplers: each is a table, a step, and the one loop.

The table is made on the host in float64: one row a step, from t = 1 down, with the
noise levels at which the denoiser is asked and the coefficients of the update. Its
last grid point is phi = 0 (alpha 1, sigma 0) and not the clipped end, so the last row
returns the predicted video by itself and no sampler has a branch for it.

Inside a jit the table is an argument padded to `MAX_STEPS` rows and the loop's bounds
are traced: one compiled program serves every number of steps, and the host can run
it in chunks. Noise is an argument too, a function of (step, draw): see `normal`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.diffusion import process, schedules
from vdm_jax.diffusion.process import Array, Denoiser
from vdm_jax.diffusion.schedules import NoiseLevel, Schedule

MAX_STEPS = 1024

Table = dict[str, np.ndarray]
NoiseFn = Callable[[Array, int], Array]  # (table row, draw) -> standard normal like z


class Sampler(NamedTuple):
    """`table(schedule, n)`; `init(z) -> carry`; `step(denoise, carry, row, ...)`.

    The carry is (z, memory): what a multistep method remembers of earlier steps.
    step: (denoise, carry, step, row, noise, cond) -> carry, elementwise in z and the
    prediction, `noise(draw)` being that step's own draws.
    """

    table: Callable[[Schedule, int], Table]
    step: Callable[..., tuple[Array, Any]]
    init: Callable[[Array], tuple[Array, Any]] = lambda z: (z, ())


def grid(schedule: Schedule, n: int) -> tuple[NoiseLevel, NoiseLevel]:
    """Noise levels of n steps from noise to data: (from [n], to [n]).

    The schedule chooses where they are (`Schedule.times`); the last goes to phi = 0.
    """
    angle = np.append(schedule.angle(schedule.sampling_times(n)), 0.0)
    with np.errstate(divide="ignore"):
        points = schedules.noise_level_from_angle(angle, np.arange(n + 1))
    return _slice_levels(points, slice(None, -1)), _slice_levels(points, slice(1, None))


def _slice_levels(points: NoiseLevel, rows: slice) -> NoiseLevel:
    index, logsnr, alpha, sigma, _ = points
    return NoiseLevel(index[rows], logsnr[rows], alpha[rows], sigma[rows])


def _clipped_end(schedule: Schedule) -> NoiseLevel:
    """The clipped end of a schedule: where a call that would stand at phi = 0 is made.

    Its coefficient in the table is 0; at phi = 0 itself the network has no input.
    """
    return schedules.noise_level(schedule, np.zeros(1))


def _level_columns(step: NoiseLevel, name: str = "") -> Table:
    """The columns that say at which noise level a row makes a call."""
    levels = {"logsnr": step.logsnr, "alpha": step.alpha, "sigma": step.sigma}
    return {name + key: value for key, value in levels.items()}


def _call_level(
    row: dict[str, Array], step: NoiseLevel, name: str, call: int
) -> NoiseLevel:
    """The noise level of a row's call beyond the first, from the columns of `name`."""
    keys = "logsnr", "alpha", "sigma"
    return NoiseLevel(step.step_index, *(row[name + key] for key in keys), call=call)


def _second_call_columns(schedule: Schedule, s: NoiseLevel, name: str) -> Table:
    """Columns of calls at the target of each row, the last one's at the clipped end."""
    end = _clipped_end(schedule)
    inner = _slice_levels(s, slice(None, -1))
    points = (np.append(a, b) for a, b in zip(inner[1:4], end[1:4], strict=True))
    return _level_columns(NoiseLevel(s.step_index, *points, call=0), name)


def _ddim_table(schedule: Schedule, n: int) -> Table:
    t, s = grid(schedule, n)
    return {**_level_columns(t), "next_alpha": s.alpha, "next_sigma": s.sigma}


def _ddim_step(denoise, carry, step, row, noise, cond):
    z, memory = carry
    x, eps = denoise(z, step, cond)
    return row["next_alpha"] * x + row["next_sigma"] * eps, memory


def ddim() -> Sampler:
    """z_s = alpha_s x + sigma_s eps, deterministic (Song et al. 2021, equation 12)."""
    return Sampler(_ddim_table, _ddim_step)


def _inversion_table(schedule: Schedule, n: int) -> Table:
    t, s = grid(schedule, n)
    table = {
        **_second_call_columns(schedule, s, ""),
        "next_alpha": t.alpha,
        "next_sigma": t.sigma,
    }
    return {key: value[::-1] for key, value in table.items()}


def ddim_inversion() -> Sampler:
    """DDIM from data to noise, the way that DDIM takes back (Song et al. 2021, 4.3).

    The prediction at the near end of each step stands for the one at its far end, so
    there and back differ by O(1 / n). Row i is the step n - 1 - i of `ddim`.
    """
    return Sampler(_inversion_table, _ddim_step)


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
        return {**_level_columns(t), "z_coef": z_coef, "x_coef": x_coef, "std": std}

    return Sampler(table, _ancestral_step)


def _dpm_table(schedule: Schedule, n: int) -> Table:
    t, s = grid(schedule, n)
    h = (s.logsnr - t.logsnr) / 2  # of log(alpha / sigma); infinite in the last row
    back = np.zeros(n)  # 1 / (2 r), r the ratio of the step before to this one
    back[1:-1] = h[1:-1] / (2 * h[:-2])
    weight = -s.alpha * np.expm1(-h)
    return {
        **_level_columns(t),
        "z_coef": s.sigma / t.sigma,
        "x_coef": weight * (1 + back),
        "last_coef": -weight * back,
    }


def _dpm_step(denoise, carry, step, row, noise, cond):
    z, last = carry
    x = denoise(z, step, cond).x
    moved = row["z_coef"] * z + row["x_coef"] * x + row["last_coef"] * last
    return moved, x


def dpm() -> Sampler:
    """DPM-Solver++(2M), second order, one call a step (Lu et al. 2022, algorithm 2).

    The first and the last step have no memory to use, or no need of it: there it is
    DDIM. Second order needs steps of log SNR that shrink evenly with their number, as
    those of `Karras` do. A cosine's do not at its ends: there the order is 1.4 to 1.8.
    """
    return Sampler(_dpm_table, _dpm_step, lambda z: (z, jnp.zeros_like(z)))


def _heun_step(denoise, carry, step, row, noise, cond):
    z, memory = carry
    z = row["scale"] * z + row["churn_std"] * noise(0)
    x, eps = denoise(z, step, cond)
    ahead = row["next_alpha"] * x + row["next_sigma"] * eps
    there = denoise(ahead, _call_level(row, step, "next_call_", 1), cond)
    return ahead + row["correction"] * (there.eps - eps), memory


def heun(
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1,
) -> Sampler:
    """EDM's second-order sampler (Karras et al. 2022, algorithm 2): two calls a step.

    In EDM's state z / alpha the slope in sigma / alpha is eps: an Euler step, which is
    DDIM, then half of the change of eps. The last step stays an Euler step, its second
    call counts for nothing. churn, s_min, s_max, s_noise: the paper's S_churn, S_tmin,
    S_tmax (of sigma / alpha), S_noise; churn never leaves the schedule's range. Meant
    for `Karras` levels: a first step from logsnr -20 is too long for a trapezoid.
    """

    def table(schedule: Schedule, n: int) -> Table:
        t, s = grid(schedule, n)
        edm, edm_next = process.edm_sigma(t), process.edm_sigma(s)
        inside = (edm >= s_tmin) & (edm <= s_tmax)
        factor = 1 + min(s_churn / n, math.sqrt(2) - 1) * inside
        noisiest = schedule.angle(np.ones(1))
        angle = np.minimum(np.arctan2(factor * t.sigma, t.alpha), noisiest)
        raised = schedules.noise_level_from_angle(angle, t.step_index)
        edm_raised = process.edm_sigma(raised)
        added = np.sqrt(np.maximum(edm_raised**2 - edm**2, 0))
        return {
            **_level_columns(raised),
            **_second_call_columns(schedule, s, "next_call_"),
            "scale": raised.alpha / t.alpha,
            "churn_std": s_noise * raised.alpha * added,
            "next_alpha": s.alpha,
            "next_sigma": s.sigma,
            "correction": s.alpha * (edm_next - edm_raised) / 2 * (s.sigma > 0),
        }

    return Sampler(table, _heun_step)


def _stochastic_step(denoise, carry, step, row, noise, cond):
    z, memory = carry
    x, eps = denoise(z, step, cond)
    ahead = row["far_alpha"] * x + row["far_sigma"] * eps
    return row["scale"] * ahead + row["std"] * noise(0), memory


def restart_ddim() -> Sampler:
    """Two steps of DDIM down, one back up with fresh noise (Meng et al. 2022, 3.3).

    For a distilled model that knows the double step from every grid point; the last
    step is a single one.
    """

    def table(schedule: Schedule, n: int) -> Table:
        t, s = grid(schedule, n)
        far = _slice_levels(s, slice(1, None))  # of all rows but the last
        scale, variance = process.transition(far, _slice_levels(s, slice(None, -1)))
        return {
            **_level_columns(t),
            "far_alpha": np.append(far.alpha, 1.0),
            "far_sigma": np.append(far.sigma, 0.0),
            "scale": np.append(scale, 1.0),
            "std": np.append(np.sqrt(variance), 0.0),
        }

    return Sampler(table, _stochastic_step)


def with_langevin_corrector(sampler: Sampler, delta: float = 0.1) -> Sampler:
    """A sampler followed by one step of Langevin dynamics at each level (VDM, 3.1).

    z - delta / 2 sigma eps(z) + sqrt(delta) sigma noise: twice the calls. The one after
    the last step counts for nothing, since sigma is 0 there.
    """

    def table(schedule: Schedule, n: int) -> Table:
        s = grid(schedule, n)[1]
        return {
            **sampler.table(schedule, n),
            **_second_call_columns(schedule, s, "corrector_"),
            "drift": delta / 2 * s.sigma,
            "corrector_std": math.sqrt(delta) * s.sigma,
        }

    def step(denoise, carry, at, row, noise, cond):
        z, memory = sampler.step(denoise, carry, at, row, noise, cond)
        eps = denoise(z, _call_level(row, at, "corrector_", 2), cond).eps
        return z - row["drift"] * eps + row["corrector_std"] * noise(1), memory

    return Sampler(table, step, sampler.init)


SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ddim": ddim,
    "ancestral": ancestral,
    "dpm": dpm,
    "heun": heun,
    "stochastic": restart_ddim,
}


def pad_table(table: Table, dtype) -> dict[str, Array]:
    """The table as jit arguments of one shape whatever its number of rows."""
    rows = len(table["logsnr"])
    pad = max(MAX_STEPS, rows) - rows
    return {k: np.pad(v, (0, pad)).astype(dtype) for k, v in table.items()}


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
    """Rows start..stop of the table; `start` and `stop` may be traced."""

    def body(i: Array, carry):
        row = {k: v[i] for k, v in table.items()}
        step = NoiseLevel(i, row["logsnr"], row["alpha"], row["sigma"])
        return sampler.step(denoise, carry, step, row, lambda d: noise(i, d), cond)

    table = {k: jnp.asarray(v, carry[0].dtype) for k, v in table.items()}
    return jax.lax.fori_loop(start, stop, body, carry)


def key_from_seed(seed: int | Array) -> Array:
    """The key of a seed. Its kind is named: JAX's setting may be another."""
    return jax.random.key(seed, impl="threefry2x32")


def video_keys(seed: Array, stage: Array, block: Array, videos: Array) -> Array:
    """One key a video, from the video's own number and never from its place.

    A batch may be split, padded or spread over devices and processes, and each video
    still sees the same noise. seed, stage, block: 32 bits, traced or not; videos: int
    [b] -> keys [b].
    """
    key = key_from_seed(seed)
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
