"""Laws of the loss of a student and of the steps that it draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.analytic import WEIGHTINGS_ON_X, append_axes
from tests.diffusion.distillation_cases import (
    COSINE,
    DOUBLE,
    ROWS,
    VIDEO,
    every,
    normal,
    recorded,
    smooth,
    target_of,
)
from vdm_jax.diffusion import (
    distillation,
    losses,
    process,
    schedules,
)

# The loss.

LEVELS = np.resize([-20.0, -5.0, -1.0, 0.0, 1.5, 1.7, 5.0, 20.0], ROWS)


def test_every_weighting_is_written_out_here():
    assert set(WEIGHTINGS_ON_X) == set(losses.WEIGHTINGS)


@pytest.mark.parametrize("name", list(WEIGHTINGS_ON_X))
def test_the_loss_weighs_the_error_of_x(name, x64):
    """The default is SNR + 1, the error of v."""
    z, target, out = (normal(ROWS, *VIDEO, seed=k) for k in range(3))
    angle = jnp.asarray(np.arctan(np.exp(-LEVELS / 2)))
    student = lambda z, level, cond: process.from_v(out, z, level)  # noqa: E731
    args = student, target, z, angle, None
    actual = distillation.student_loss(*args, weighting=name)
    alpha, sigma = (append_axes(np.sqrt(1 / (1 + np.exp(k * LEVELS)))) for k in (-1, 1))
    x, x_hat = (alpha * z - sigma * v for v in (target, out))
    square = np.mean((x - x_hat) ** 2, axis=(1, 2, 3, 4))
    assert actual.shape == LEVELS.shape
    np.testing.assert_allclose(
        actual, WEIGHTINGS_ON_X[name](np.exp(LEVELS)) * square, rtol=1e-9
    )
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
    v, interval = target_of(smooth(2), COSINE, z, i, 4)
    level = schedules.noise_level_from_angle(interval.start)
    right = process.from_v(v, z, level)
    students = {
        "right": lambda z, level, cond: right,
        "v": lambda z, level, cond: process.from_v(v + error, z, level),
        "eps": lambda z, level, cond: process.from_eps(right.eps + error, z, level),
    }
    loss = {
        name: distillation.student_loss(student, v, z, interval.start, None)
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
        v, interval = target(teacher)
        args = network(student), v + offset, z, interval.start, None
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
        v, interval = target_of(smooth(3), COSINE, z, i, n, double)
        student = smooth(4)
        return i, v, distillation.student_loss(student, v, z, interval.start, None)

    z = normal(ROWS, *VIDEO)
    traced = jax.jit(update)
    for n in (64, 32, 1):
        key = jax.random.key(n)
        actual = traced(z, key, n)
        assert len(traces) == 1 and traced._cache_size() == 1
        for a, b in zip(actual, update(z, key, n), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        traces.pop()
