"""Laws of the steps and the targets of progressive distillation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.analytic import (
    append_axes,
    gaussian,
)
from tests.diffusion.distillation_cases import (
    COSINE,
    DOUBLE,
    ROWS,
    VIDEO,
    ddim,
    each_schedule,
    every,
    expected_interval,
    normal,
    recorded,
    smooth,
    target_of,
)
from vdm_jax.diffusion import (
    distillation,
    process,
    schedules,
)

# Start, middle and end of the steps.


@each_schedule
@pytest.mark.parametrize("double", DOUBLE)
@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_steps_are_on_the_grids_of_the_samplers(n, double, schedule, x64):
    """Plain: the halves are steps of one of 2n. Double: they are steps of one of n."""
    i = every(n)
    interval = distillation.student_step(schedule, jnp.asarray(i), n, double)
    for actual, expected in zip(
        interval, expected_interval(schedule, i, n, double), strict=True
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
    for interval in (plain, double):
        assert all(angle.dtype == jnp.float32 for angle in interval)
        assert (interval.start > 0).all()
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
    v, interval = target_of(recorded(denoise, calls), COSINE, z, [i], n)
    (_, first, _), (between, second, _) = calls
    actual = [
        denoise(z, first, None).x,
        between,
        denoise(between, second, None).x,
        distillation.rotate(z, v, interval.start - interval.end),
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
    one = append_axes(
        jnp.asarray(middle == end)
    )  # a double step from 1/n is a single one
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
    interval = distillation.StudentStep(*map(jnp.asarray, angles))
    v = distillation.merge_two_ddim_steps(z, v1, v2, interval)
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
    v, interval = target_of(gaussian(0.0, spread), COSINE, z, i, n)
    return process.from_v(v, z, schedules.noise_level_from_angle(interval.start)).x


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
