"""Laws of progressive and guidance distillation.

For Gaussian data the exact denoiser is a line in z, and so is every target made of
it: students are fitted exactly, by the loss itself, and whole chains of halvings have
a known end.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion import (
    distillation,
    guidance,
    losses,
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


def over(a, like):
    """Append axes to [] or [b], to broadcast with [b, f, h, w, c]."""
    return jnp.reshape(a, jnp.shape(a) + (1,) * (like.ndim - jnp.ndim(a)))


def normal(*shape, seed=0, dtype=float):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def gaussian(mean, spread):
    """Return the exact denoiser of N(mean, spread^2), each [] or [b]."""

    def denoise(z, level, cond):
        m, s, alpha, sigma = (over(a, z) for a in (mean, spread, *level[2:4]))
        off = (z - alpha * m) / (alpha**2 * s**2 + sigma**2)
        return process.Prediction(m + alpha * s**2 * off, sigma * off)

    return denoise


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
    return over(jnp.cos(end), z) * x + over(jnp.sin(end), z) * eps


def target_of(teacher, schedule, z, i, n, double=False, cond=None):
    at = distillation.student_step(schedule, jnp.asarray(i), n, double)
    return distillation.progressive_target(teacher, schedule, z, at, cond), at


# Start, middle and end of the steps.


@each_schedule
@pytest.mark.parametrize("double", DOUBLE)
@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_steps_are_on_the_grids_of_the_samplers(n, double, schedule, x64):
    """Plain: the halves are steps of one of 2n. Double: they are steps of one of n."""
    i = every(n)
    at = distillation.student_step(schedule, jnp.asarray(i), n, double)
    for actual, expected in zip(
        at, expected_interval(schedule, i, n, double), strict=True
    ):
        assert actual.shape == i.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-14)


@each_schedule
@pytest.mark.parametrize("n", [1, 3, 1000, 8192])
def test_the_last_step_ends_at_exactly_zero(n, schedule):
    """It does not end at the clipped end; a double step from i = 2 ends there too."""
    i = every(n, 8192)
    plain = distillation.student_step(schedule, jnp.asarray(i), n)
    double = distillation.student_step(schedule, jnp.asarray(i), n, double=True)
    for at in (plain, double):
        assert all(angle.dtype == jnp.float32 for angle in at)
        assert (at.start > 0).all()
    for angle, last in [
        (plain.middle, 0),
        (plain.end, 1),
        (double.middle, 1),
        (double.end, 2),
    ]:
        np.testing.assert_array_equal(angle == 0, i <= last)
        assert (angle >= 0).all() and (angle < plain.start).all()
    expected = expected_interval(schedule, i, n)
    np.testing.assert_allclose(plain.start, expected[0], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(plain.middle, expected[1], rtol=1e-6, atol=1e-8)


@each_schedule
@pytest.mark.parametrize("double", DOUBLE)
def test_the_teacher_is_called_at_both_starts_and_never_without_noise(double, schedule):
    """It has no input at phi = 0: that call is at the schedule's own end."""
    n, calls, cond = 8, [], {"label": jnp.arange(ROWS)}
    i, z, teacher = every(n), normal(ROWS, *VIDEO), recorded(smooth(0), calls)
    target, _ = target_of(teacher, schedule, z, i, n, double, cond)
    assert target.shape == z.shape and target.dtype == jnp.float32
    start, middle, _ = expected_interval(schedule, i, n, double)
    middle = np.maximum(middle, schedule.angle(np.zeros(())))
    assert len(calls) == 2
    np.testing.assert_array_equal(calls[0][0], z)
    for (_, level, passed), angle in zip(calls, (start, middle), strict=True):
        assert passed is cond
        there = schedules.noise_level_from_angle(angle)
        assert all(np.shape(a) == (ROWS,) for a in level[1:4])
        np.testing.assert_allclose(level.logsnr, there.logsnr, atol=5e-3)
        np.testing.assert_allclose(level.alpha, there.alpha, atol=1e-6)
        np.testing.assert_allclose(level.sigma, there.sigma, rtol=1e-5, atol=1e-9)


# The target.

# N, i -> x1, z between, x2, z'', x~ and v~ for N(0, .5^2) and z = 1.
VECTORS = {
    (4, 3): [0.10748276, 0.92267329, 0.16675978, 0.82380052, 0.14106036, 0.26155609],
    (1, 1): [0.00001135, 0.70711481, 0.20000227, 0.20000227, 0.20000227, -0.19995687],
}


@pytest.mark.parametrize("n, i", list(VECTORS))
def test_vectors(n, i, x64):
    calls, z, denoise = [], jnp.ones((1, 1, 1, 1, 1)), gaussian(0.0, 0.5)
    v, at = target_of(recorded(denoise, calls), COSINE, z, [i], n)
    (_, first, _), (between, second, _) = calls
    actual = [
        denoise(z, first, None).x,
        between,
        denoise(between, second, None).x,
        distillation.rotate(z, v, at.start - at.end),
        process.from_v(v, z, first).x,
        v,
    ]
    np.testing.assert_allclose(np.ravel(actual), VECTORS[n, i], rtol=0, atol=6e-9)


@each_schedule
@pytest.mark.parametrize("kind", ["v", "x"])
@pytest.mark.parametrize("double", DOUBLE)
@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_one_step_of_the_target_is_two_of_the_teacher(n, double, kind, schedule, x64):
    """It holds for every i, the last interval included, without approximation."""
    i, z, teacher = every(n), 3 * normal(ROWS, *VIDEO), smooth(n, kind)
    start, middle, end = expected_interval(schedule, i, n, double)
    clipped_middle = np.maximum(middle, schedule.angle(np.zeros(())))
    expected = ddim(teacher, z, start, middle)
    then = ddim(teacher, expected, clipped_middle, end)
    one = over(jnp.asarray(middle == end), z)  # a double step from 1/n is a single one
    expected = jnp.where(one, expected, then)
    v, _ = target_of(teacher, schedule, z, i, n, double)
    student = lambda z, level, cond: process.from_v(v, z, level)  # noqa: E731
    actual = ddim(student, z, start, end)
    assert np.abs(actual - z).max() > 0.1
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_any_two_rotations_merge_into_one(seed, x64):
    """The two steps have any length, also zero, also towards the noise."""
    rng = np.random.default_rng(seed)
    angles = rng.uniform(0.01, np.pi / 2 - 0.01, (3, ROWS))
    angles = np.sort(angles, axis=0)[::-1] if seed else np.sort(angles, axis=0)
    angles[2, :4] = angles[1, :4]
    angles[1, 4:8] = angles[0, 4:8]
    start, middle, end = angles
    z, v1, v2 = (2 * normal(ROWS, *VIDEO, seed=seed + k) for k in range(3))
    fixed = lambda v: lambda z, level, cond: process.from_v(v, z, level)  # noqa: E731
    between = ddim(fixed(v1), z, start, middle)
    expected = ddim(fixed(v2), between, middle, end)
    at = distillation.StudentStep(*map(jnp.asarray, angles))
    v = distillation.merge_two_ddim_steps(z, v1, v2, at)
    actual = ddim(fixed(v), z, start, end)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("delta", [-0.7, 0.0, 1e-4, 1.3])
def test_a_step_of_ddim_is_a_rotation(delta, x64):
    z, v = (normal(ROWS, *VIDEO, seed=k) for k in (0, 1))
    start = np.linspace(0.75, 1.4, ROWS)
    student = lambda z, level, cond: process.from_v(v, z, level)  # noqa: E731
    expected = ddim(student, z, start, start - delta)
    actual = distillation.rotate(z, v, jnp.full(ROWS, delta))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-14)


def algorithm_2(denoise, z, i, n):
    """Return the x target of Salimans & Ho's algorithm 2, in the precision of z.

    In the last interval, whose end there is the clipped one, the teacher's second x.
    """
    angle = [COSINE.angle(np.maximum(i - k / 2, 0) / n) for k in range(3)]
    level, half, end = (
        schedules.NoiseLevel(
            0, *(a.astype(z.dtype) for a in schedules.noise_level_from_angle(a)[1:4])
        )
        for a in angle
    )
    tall = lambda a: a.reshape(-1, 1, 1, 1, 1)  # noqa: E731
    x, eps = (np.asarray(a, z.dtype) for a in denoise(z, level, None))
    z_half = tall(half.alpha) * x + tall(half.sigma) * eps
    x2, eps = (np.asarray(a, z.dtype) for a in denoise(z_half, half, None))
    z_end = tall(end.alpha) * x2 + tall(end.sigma) * eps
    ratio = tall(end.sigma / level.sigma)
    x_target = (z_end - ratio * z) / (tall(end.alpha) - ratio * tall(level.alpha))
    return np.where(tall(i == 1), x2, x_target)


@functools.partial(jax.jit, static_argnums=0)
def x_target(spread, z, i, n):
    v, at = target_of(gaussian(0.0, spread), COSINE, z, i, n)
    return process.from_v(v, z, schedules.noise_level_from_angle(at.start)).x


@pytest.mark.parametrize("n", [1, 2, 16, 64])
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_the_target_is_that_of_algorithm_2(spread, n, x64):
    i, z = every(n), np.asarray(normal(ROWS, 1, 1, 2, 1))
    actual = x_target(spread, z, i, n)
    expected = algorithm_2(gaussian(0.0, spread), z, i, n)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-13)


def test_float32_targets_are_exact_where_algorithm_2_cancels():
    """Both against float64, for every i: 1e-6 up to 8192 steps; algorithm 2 loses 4e-3.

    It divides by a difference that falls with the length of the step.
    """
    rows, error = 8192, {}
    z = np.random.default_rng(5).standard_normal((rows, 1, 1, 1, 1)).astype(np.float32)
    for n in (1, 2, 16, 512, 1024, 8192):
        i = every(n, rows)
        with jax.enable_x64(True):
            exact = np.asarray(x_target(0.5, z.astype(np.float64), i, n))
        error[n] = [
            np.abs(form - exact).max()
            for form in (
                x_target(0.5, z, i, n),
                algorithm_2(gaussian(0.0, 0.5), z, i, n),
            )
        ]
        assert error[n][0] < 1e-6, error
    assert error[512][1] > 5e-5 and error[8192][1] > 1e-3, error


# Gaussian data: lines fitted by the loss, and a chain of halvings.


def line_denoiser(k, c):
    """Return the denoiser v^ = k z + c, each [] or [b]."""
    return lambda z, level, cond: process.from_v(over(k, z) * z + over(c, z), z, level)


def by_time(lines, n):
    """Return a denoiser of lines [2, kinds, rows] at t = row / n; cond is the kind."""

    def denoise(z, level, kind):
        row = jnp.round(COSINE.time_from_logsnr(level.logsnr) * n).astype(int)
        return line_denoiser(*lines[:, kind, row])(z, level, None)

    return denoise


@functools.partial(jax.jit, static_argnums=3)
def fitted(target, z, at, weighting="snr_plus_one"):
    """Return the line [2, b] of least loss, which is quadratic: one Newton step."""

    def total(line):
        student = line_denoiser(*line)
        args = student, target, z, at, None, weighting
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
    x = over(np.asarray(mean)[kind], jnp.zeros(shape))
    x = x + over(np.asarray(spread)[kind], x) * normal(*shape, seed=seed)
    return kind, x, normal(*shape, seed=seed + 1)


@jax.jit
def halved(lines, n, kind, x, eps):
    """Return the lines that a student of n steps learns from a teacher of 2n."""
    rows = len(x) // lines.shape[1]
    i = jnp.tile(jnp.arange(rows), lines.shape[1]) % n + 1
    at = distillation.student_step(COSINE, i, n)
    z = process.diffuse(x, eps, schedules.noise_level_from_angle(at.start))
    target = distillation.progressive_target(by_time(lines, 2 * n), COSINE, z, at, kind)
    return jnp.full_like(lines, jnp.nan).at[:, kind, i].set(fitted(target, z, at.start))


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
    target, at = target_of(gaussian(0.0, spread), COSINE, z, i, n)
    actual = fitted(target, z, at.start, weighting)
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
        t = COSINE.time_from_logsnr(level.logsnr) - 1 / n
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
    v, at = target_of(flow_map(0.5, n), COSINE, z, i, n, double=True)
    start, _, end = expected_interval(COSINE, i, n, double=True)
    actual = distillation.rotate(z, v, at.start - at.end)
    expected = over(jnp.asarray(flow(start, end, 0.5)), z) * z
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


# The loss.

LEVELS = np.resize([-20.0, -5.0, -1.0, 0.0, 1.5, 1.7, 5.0, 20.0], ROWS)

# A factor on the squared error of x, as each paper defines it: Salimans & Ho, section
# 4; Min-SNR (gamma = 5); "flow" is the error of eps - x.
ON_X = {
    "constant": lambda snr: np.ones_like(snr),
    "snr": lambda snr: snr,
    "truncated_snr": lambda snr: np.maximum(snr, 1),
    "snr_plus_one": lambda snr: snr + 1,
    "min_snr": lambda snr: np.minimum(snr, 5),
    "flow": lambda snr: (np.sqrt(snr) + 1) ** 2,
}


def test_every_weighting_is_written_out_here():
    assert set(ON_X) == set(losses.WEIGHTINGS)


@pytest.mark.parametrize("name", list(ON_X))
def test_the_loss_weighs_the_error_of_x(name, x64):
    """The default is SNR + 1, the error of v."""
    z, target, out = (normal(ROWS, *VIDEO, seed=k) for k in range(3))
    angle = jnp.asarray(np.arctan(np.exp(-LEVELS / 2)))
    student = lambda z, level, cond: process.from_v(out, z, level)  # noqa: E731
    args = student, target, z, angle, None
    actual = distillation.student_loss(*args, weighting=name)
    alpha, sigma = (over(np.sqrt(1 / (1 + np.exp(k * LEVELS))), z) for k in (-1, 1))
    x, x_hat = (alpha * z - sigma * v for v in (target, out))
    square = np.mean((x - x_hat) ** 2, axis=(1, 2, 3, 4))
    assert actual.shape == LEVELS.shape
    np.testing.assert_allclose(actual, ON_X[name](np.exp(LEVELS)) * square, rtol=1e-9)
    if name == "snr_plus_one":
        np.testing.assert_array_equal(distillation.student_loss(*args), actual)


def test_the_student_gets_z_at_the_start_and_the_condition(x64):
    calls, z, cond = [], normal(ROWS, *VIDEO), {"label": jnp.arange(ROWS)}
    angle = jnp.asarray(np.arctan(np.exp(-LEVELS / 2)))
    student = recorded(smooth(1), calls)
    loss = distillation.student_loss(student, jnp.zeros_like(z), z, angle, cond)
    assert loss.shape == LEVELS.shape
    ((seen_z, level, passed),) = calls
    assert passed is cond
    np.testing.assert_array_equal(seen_z, z)
    np.testing.assert_allclose(level.logsnr, LEVELS, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, rtol=1e-12)
    np.testing.assert_allclose(level.alpha**2 / level.sigma**2, np.exp(LEVELS))


def test_an_exact_student_has_no_loss_and_an_eps_error_is_amplified(x64):
    """An error e of eps becomes e / alpha in v and x: 2e4 e at t = 1."""
    z, error, i = normal(ROWS, *VIDEO), 1e-3, every(4)
    v, at = target_of(smooth(2), COSINE, z, i, 4)
    level = schedules.noise_level_from_angle(at.start)
    right = process.from_v(v, z, level)
    students = {
        "right": lambda z, level, cond: right,
        "v": lambda z, level, cond: process.from_v(v + error, z, level),
        "eps": lambda z, level, cond: process.from_eps(right.eps + error, z, level),
    }
    loss = {
        name: distillation.student_loss(student, v, z, at.start, None)
        for name, student in students.items()
    }
    np.testing.assert_allclose(loss["right"], 0, atol=1e-24)
    np.testing.assert_allclose(loss["v"], error**2, rtol=1e-9)
    np.testing.assert_allclose(loss["eps"], (error / level.alpha) ** 2, rtol=1e-6)
    assert (loss["eps"][i == 4] > 4e8 * error**2).all()


@pytest.mark.parametrize("double", DOUBLE)
def test_no_gradient_reaches_the_teacher(double):
    """It is zero through its steps and through any target, also for shared weights."""
    z, i = normal(ROWS, *VIDEO), every(4)
    weights = {"k": jnp.ones(()), "c": jnp.full((), 0.3)}

    def network(w):
        def denoise(z, level, cond):
            return process.from_v(jnp.tanh(w["k"] * z + w["c"]), z, level)

        return denoise

    def target(teacher):
        return target_of(network(teacher), COSINE, z, i, 4, double)

    def loss(teacher, student, offset=0.0):
        v, at = target(teacher)
        args = network(student), v + offset, z, at.start, None
        return jnp.sum(distillation.student_loss(*args))

    gradient = jax.jit(jax.grad(loss, (0, 1, 2)))
    grad_teacher, grad_student, grad_offset = gradient(
        weights, weights, jnp.zeros_like(z)
    )
    grad_target = jax.jit(jax.grad(lambda w: jnp.sum(target(w)[0])))(weights)
    shared = jax.jit(jax.grad(lambda w: loss(w, w)))(weights)
    for name in weights:
        assert grad_teacher[name] == 0 and grad_target[name] == 0
        assert np.abs(grad_student[name]) > 1e-2
        np.testing.assert_allclose(shared[name], grad_student[name], rtol=1e-6)
    np.testing.assert_array_equal(grad_offset, 0)


# Sampling of step indices.


@functools.partial(jax.jit, static_argnums=(0, 2))
def drawn(batch, n, keys=1, seed=0):
    """Return steps [keys, batch]."""
    keys = jax.random.split(jax.random.key(seed), keys)
    return jax.vmap(lambda key: distillation.sample_step_index(key, batch, n))(keys)


@pytest.mark.parametrize("batch", [1, 3, 32])
@pytest.mark.parametrize("n", [1, 2, 7, 1000, 8191, 8192])
def test_steps_are_within_1_to_n(n, batch):
    i = np.asarray(drawn(batch, n, 4000))
    assert i.shape == (4000, batch) and i.dtype == np.int32
    assert i.min() >= 1 and i.max() <= n


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("n", [2, 5, 8, 8192])
def test_each_row_of_a_batch_draws_every_step_equally_often(n, batch):
    keys, bins = 4000, min(n, 16)
    i = np.asarray(drawn(batch, n, keys, seed=1))
    for row in i.T:
        frequency = np.bincount((row - 1) * bins // n, minlength=bins) / keys
        assert np.abs(frequency - 1 / bins).max() < 5 * np.sqrt(1 / bins / keys)


@pytest.mark.parametrize("n, batch", [(1, 1), (3, 3), (16, 16), (16, 32), (8192, 8192)])
def test_a_batch_of_n_has_every_step_once(n, batch):
    """A batch of 2n has every step twice."""
    i = np.sort(drawn(batch, n, 50, seed=2), axis=1)
    once = np.repeat(np.arange(1, n + 1), batch // n)
    np.testing.assert_array_equal(i, np.broadcast_to(once, i.shape))


def test_time_power_draws_the_last_steps_more_often():
    """P(i) is that of (i - 1) / n < u^time_power < i / n."""
    n, time_power, keys = 8, 2.0, 4000
    i = jax.vmap(
        lambda key: distillation.sample_step_index(key, 3, n, jnp.float32(time_power))
    )(jax.random.split(jax.random.key(5), keys))
    frequency = np.bincount(np.ravel(i), minlength=n + 1)[1:] / i.size
    ends = (np.arange(n + 1) / n) ** (1 / time_power)
    assert np.abs(frequency - np.diff(ends)).max() < 5 * np.sqrt(0.25 / keys)


def test_another_key_draws_other_steps():
    i = np.asarray(drawn(4, 8192, 50, seed=3))
    assert len(np.unique(i, axis=0)) == 50
    np.testing.assert_array_equal(i, drawn(4, 8192, 50, seed=3))


@pytest.mark.parametrize("double", DOUBLE)
def test_one_program_serves_every_number_grad_target(double):
    """n is traced; the result equals that of a program for this n alone."""
    traces = []

    def update(z, key, n):
        traces.append(n)
        i = distillation.sample_step_index(key, len(z), n)
        v, at = target_of(smooth(3), COSINE, z, i, n, double)
        student = smooth(4)
        return i, v, distillation.student_loss(student, v, z, at.start, None)

    z = normal(ROWS, *VIDEO)
    traced = jax.jit(update)
    for n in (64, 32, 1):
        key = jax.random.key(n)
        actual = traced(z, key, n)
        assert len(traces) == 1 and traced._cache_size() == 1
        for a, b in zip(actual, update(z, key, n), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        traces.pop()
