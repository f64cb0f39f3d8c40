"""Distillation of Gaussian data, fitted exactly.

For Gaussian data the exact denoiser is a line in z, and so is every target made of
it: students are fitted exactly, by the loss itself, and whole chains of halvings have
a known end.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.analytic import append_axes, gaussian
from tests.diffusion.distillation_cases import (
    COSINE,
    ROWS,
    VIDEO,
    every,
    expected_interval,
    grid,
    normal,
    slope,
    target_of,
)
from vdm_jax.diffusion import (
    distillation,
    guidance,
    process,
    samplers,
    schedules,
)

# Gaussian data: lines fitted by the loss, and a chain of halvings.


def line_denoiser(k, c):
    """Return the denoiser v^ = k z + c, each [] or [b]."""
    return lambda z, level, cond: process.from_v(
        append_axes(k) * z + append_axes(c), z, level
    )


def time_of(level):
    """Return the diffusion time of a level of COSINE, whose angle is linear in it."""
    low, high = COSINE.angle(np.array([0.0, 1.0]))
    return (jnp.arctan(jnp.exp(-level.logsnr / 2)) - low) / (high - low)


def by_time(lines, n):
    """Return a denoiser of lines [2, kinds, rows] at t = row / n; cond is the kind."""

    def denoise(z, level, kind):
        row = jnp.round(time_of(level) * n).astype(int)
        return line_denoiser(*lines[:, kind, row])(z, level, None)

    return denoise


@functools.partial(jax.jit, static_argnums=3)
def fitted(target, z, interval, weighting="snr_plus_one"):
    """Return the line [2, b] of least loss, which is quadratic: one Newton step."""

    def total(line):
        student = line_denoiser(*line)
        args = student, target, z, interval, None, weighting
        return jnp.sum(distillation.student_loss(*args))

    zero = jnp.zeros((2, len(z)), z.dtype)
    gradient = jax.grad(total)
    here = gradient(zero)
    hessian = [gradient(zero.at[j].set(1)) - here for j in (0, 1)]
    hessian = jnp.moveaxis(jnp.stack(hessian), 2, 0)  # [b, 2, 2], symmetric
    return -jnp.linalg.solve(hessian, here.T[..., None])[..., 0].T


def data(kinds, rows, mean, spread, seed=3):
    """Return kind [b], clean videos and noise [b, 1, 2, 2, 1], b = kinds rows."""
    kind = np.repeat(np.arange(kinds), rows)
    shape = kinds * rows, 1, 2, 2, 1
    mean, spread = (append_axes(np.asarray(a)[kind]) for a in (mean, spread))
    x = mean + spread * normal(*shape, seed=seed)
    return kind, x, normal(*shape, seed=seed + 1)


@jax.jit
def halved(lines, n, kind, x, eps):
    """Return the lines that a student of n steps learns from a teacher of 2n."""
    rows = len(x) // lines.shape[1]
    i = jnp.tile(jnp.arange(rows), lines.shape[1]) % n + 1
    interval = distillation.student_step(COSINE, i, n)
    z = process.diffuse(x, eps, schedules.noise_level_from_angle(interval.start))
    target = distillation.progressive_target(
        by_time(lines, 2 * n), COSINE, z, interval, kind
    )
    return (
        jnp.full_like(lines, jnp.nan)
        .at[:, kind, i]
        .set(fitted(target, z, interval.start))
    )


@functools.partial(jax.jit, static_argnums=0)
def sample(denoiser, parts, z, table, n, cond):
    """Run the real DDIM."""
    carry = samplers.ddim().init(z)
    denoise = denoiser(*parts)
    return samplers.sample_loop(
        samplers.ddim(), denoise, carry, table, 0, n, None, cond
    )[0]


def table_of(n):
    return samplers.pad_table(samplers.ddim().table(COSINE, n), np.float64)


@pytest.mark.parametrize("weighting", ["snr_plus_one", "truncated_snr", "snr"])
@pytest.mark.parametrize("spread", [1.0, 0.5])
def test_a_line_learns_the_known_slope(spread, weighting):
    """The factors cos d - sin d k of both halves multiply, for every weighting."""
    n, i = 16, every(16, 16)
    x, eps = (normal(n, 1, 2, 2, 1, seed=k) for k in (1, 2))
    phi = expected_interval(COSINE, i, n)
    z = process.diffuse(
        spread * x, eps, schedules.noise_level_from_angle(jnp.asarray(phi[0]))
    )
    target, interval = target_of(gaussian(0.0, spread), COSINE, z, i, n)
    actual = fitted(target, z, interval.start, weighting)
    factors = [
        np.cos(a - b) - np.sin(a - b) * slope(a, spread)
        for a, b in zip(phi, phi[1:], strict=False)
    ]
    delta = phi[0] - phi[2]
    expected = (np.cos(delta) - factors[0] * factors[1]) / np.sin(delta)
    assert np.abs(expected - slope(phi[0], spread)).max() > 0.01
    np.testing.assert_allclose(actual[0], expected, rtol=0, atol=1e-3)
    np.testing.assert_allclose(actual[1], 0, rtol=0, atol=1e-3)


def test_ten_halvings_preserve_the_map_of_the_teacher(x64):
    """1024 steps to 1: DDIM's own spread, .9988 (s = 1) and .9985 (s = .5), not 1."""
    n, spread = 1024, np.array([1.0, 0.5])
    k = slope(COSINE.angle(np.arange(n + 1) / n), spread[:, None])
    lines = jnp.stack([k, np.zeros_like(k)])
    kind, x, eps = data(2, n // 2, [0.0, 0.0], spread)
    z, which = jnp.ones((2, 1, 1, 1, 1)), jnp.arange(2)

    def ratio(lines, n):
        return np.ravel(sample(by_time, (lines, n), z, table_of(n), n, which)) / spread

    teacher = ratio(lines, n)
    np.testing.assert_allclose(teacher, [0.9988, 0.9985], rtol=0, atol=5e-5)
    while n > 1:
        n //= 2
        lines = halved(lines, n, kind, x, eps)
        np.testing.assert_allclose(ratio(lines, n), teacher, rtol=0, atol=1e-10)
    assert halved._cache_size() == 1


# Guidance distillation: classes N(c, s^2) and N(0.25, s^2) without a class.

MEANS, NO_CLASS, SPREAD, SCALES = np.array([0.8, -0.3]), 0.25, 0.5, np.array([1.5, 4])


def class_denoise(z, level, cond):
    mean = jnp.where(cond["keep"], jnp.asarray(MEANS)[cond["label"]], NO_CLASS)
    return gaussian(mean, SPREAD)(z, level, None)


def unconditional(cond):
    return cond | {"keep": jnp.zeros_like(cond["keep"])}


def guided(scales):
    """Return guidance with one scale per example."""
    return guidance.cfg(
        class_denoise, unconditional, guidance.linear(lambda level: scales)
    )


def test_guided_distillation_in_two_stages(x64):
    """The guided student learns the shifted Gaussian; halvings keep its DDIM output.

    Meng et al., sections 3.1 and 3.2: two kinds of example, each with its own scale.
    """
    n = 64
    kind, x, eps = data(2, n, MEANS, [SPREAD, SPREAD])
    i = np.tile(np.arange(1, n + 1), 2)
    angle = jnp.asarray(grid(COSINE, n)[i])
    level = schedules.noise_level_from_angle(angle)
    z = process.diffuse(x, eps, level)
    cond = {"label": jnp.asarray(kind), "keep": jnp.ones(kind.shape, bool)}
    teacher = guided(jnp.asarray(SCALES[kind]))
    target = process.velocity(teacher(z, level, cond), level)
    line = fitted(target, z, angle)
    # The exact denoiser of N(u + s (c - u), SPREAD^2): v^ = k (z - alpha m) - sigma m.
    mean = (NO_CLASS + SCALES * (MEANS - NO_CLASS))[kind]
    k = slope(angle, SPREAD)
    expected = [k, -(k * np.cos(angle) + np.sin(angle)) * mean]
    np.testing.assert_allclose(line, expected, rtol=0, atol=1e-9)

    lines = jnp.full((2, 2, n + 1), jnp.nan).at[:, kind, i].set(line)
    start, which = normal(2, 1, 2, 2, 1, seed=9), jnp.arange(2)
    one_each = {"label": which, "keep": jnp.ones(2, bool)}
    parts = (jnp.asarray(SCALES),)
    expected = sample(guided, parts, start, table_of(n), n, one_each)
    while n > 1:
        n //= 2
        lines = halved(lines, n, kind, x, eps)
        actual = sample(by_time, (lines, n), start, table_of(n), n, which)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9)
    unguided = sample(
        guided, (jnp.ones_like(parts[0]),), start, table_of(64), 64, one_each
    )
    assert (np.abs(unguided - expected).min((1, 2, 3, 4)) > 0.2).all()


# Double steps, for the stochastic sampler.


def flow_map(spread, n):
    """Return the denoiser whose DDIM step from t to t - 1 / n is the exact flow's."""

    def denoise(z, level, cond):
        t = time_of(level) - 1 / n
        here = jnp.arctan2(level.sigma, level.alpha)
        there = jnp.where(t < 1e-9, 0.0, COSINE.angle(t))
        factor = flow(here, there, spread)
        k = (jnp.cos(here - there) - factor) / jnp.sin(here - there)
        return line_denoiser(k, jnp.zeros_like(k))(z, level, cond)

    return denoise


def flow(start, end, spread):
    """Return sqrt(V_s / V_t), by which the flow scales z for data N(0, spread^2)."""
    variance = [(np.cos(a) * spread) ** 2 + np.sin(a) ** 2 for a in (end, start)]
    return (variance[0] / variance[1]) ** 0.5


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_double_targets_of_an_exact_flow_are_the_flow(n, x64):
    """It covers two steps of 1 / n; from t = 1 / n the single last one."""
    i, z = every(n), 2 * normal(ROWS, *VIDEO)
    v, interval = target_of(flow_map(0.5, n), COSINE, z, i, n, double=True)
    start, _, end = expected_interval(COSINE, i, n, double=True)
    actual = distillation.rotate(z, v, interval.start - interval.end)
    expected = append_axes(jnp.asarray(flow(start, end, 0.5))) * z
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@jax.jit
def variance(slopes, table, n, start):
    """Return the variance of restart_ddim's output, from its Jacobian."""
    sampler, shape = samplers.restart_ddim(), (1, 1, 1, 1, 1)

    def run(z, draws):
        def denoise(z, level, cond):
            return line_denoiser(slopes[level.step_index], 0.0)(z, level, cond)

        noise = lambda i, draw: jnp.broadcast_to(draws[i], shape)  # noqa: E731
        carry = sampler.init(jnp.broadcast_to(z, shape))
        return samplers.sample_loop(sampler, denoise, carry, table, 0, n, noise, None)[
            0
        ].ravel()[0]

    of_start, of_noise = jax.jacfwd(run, (0, 1))(start, jnp.zeros_like(slopes))
    return (of_start * start) ** 2 + jnp.sum(of_noise**2)


def stochastic_variance(n, double, spread=0.5):
    """Return the variance with a student that learned double or plain steps."""
    i, z, teacher = every(n), jnp.ones((ROWS, *VIDEO)), flow_map(spread, 2 * n)
    if double:
        teacher = flow_map(spread, n)
    slopes = target_of(teacher, COSINE, z, i, n, double)[0][:n, 0, 0, 0, 0]
    slopes = np.pad(slopes[::-1], (0, 8 - n))
    table = samplers.restart_ddim().table(COSINE, n)
    table = {key: np.pad(value, (0, 8 - n)) for key, value in table.items()}
    first = COSINE.angle(np.ones(()))
    start = np.hypot(np.cos(first) * spread, np.sin(first))
    return float(variance(jnp.asarray(slopes), table, n, start))


@pytest.mark.parametrize("n", [2, 4, 8])
def test_the_stochastic_sampler_needs_double_steps(n, x64):
    """Double steps preserve the variance of the data exactly; plain steps do not.

    Meng et al., section 3.3.
    """
    actual = stochastic_variance(n, double=True)
    np.testing.assert_allclose(actual, 0.25, rtol=0, atol=1e-10)
    assert abs(stochastic_variance(n, double=False) - 0.25) > 0.02
