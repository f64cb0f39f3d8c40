"""Laws of the noise schedules: T-SCHED."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion import schedules

# t, logsnr, alpha, sigma of the cosine schedule clipped at +-20, worked out apart
# from this package.
VECTORS = np.array(
    [
        [0, 20.000000, 1.00000000, 0.00004540],
        [1 / 256, 10.172535, 0.99998090, 0.00618093],
        [0.10, 3.684990, 0.98768266, 0.15647034],
        [0.25, 1.762619, 0.92387085, 0.38270440],
        [0.50, 0, 0.70710678, 0.70710678],
        [0.75, -1.762619, 0.38270440, 0.92387085],
        [1, -20, 0.00004540, 1.00000000],
    ]
)
SHIFTS = [0.0, -3.0, 1.5]
GRID = np.linspace(0, 1, 2001)


def test_cosine_vectors_in_float64():
    t, logsnr, alpha, sigma = VECTORS.T
    step = schedules.step_at(schedules.Cosine(), t)
    np.testing.assert_allclose(step.logsnr, logsnr, atol=5e-7)
    np.testing.assert_allclose(step.alpha, alpha, atol=5e-9)
    np.testing.assert_allclose(step.sigma, sigma, atol=5e-9)


def test_cosine_vectors_in_float32():
    """Near t=1 tan() costs float32 about 1e-3 of logsnr; alpha and sigma keep 1e-6."""
    t, logsnr, alpha, sigma = VECTORS.T
    step = schedules.step_at(schedules.Cosine(), jnp.asarray(t, jnp.float32))
    assert step.logsnr.dtype == step.alpha.dtype == step.sigma.dtype == jnp.float32
    np.testing.assert_allclose(step.logsnr[:-1], logsnr[:-1], atol=1e-4)
    np.testing.assert_allclose(step.logsnr[-1], logsnr[-1], atol=5e-3)
    np.testing.assert_allclose(step.alpha, alpha, atol=1e-6)
    np.testing.assert_allclose(step.sigma, sigma, atol=1e-6)


@pytest.mark.parametrize("shift", SHIFTS)
def test_logsnr_decreases_strictly_between_its_ends(shift):
    logsnr = schedules.Cosine(logsnr_min=-12, logsnr_max=9, shift=shift).logsnr(GRID)
    assert (np.diff(logsnr) < 0).all()
    np.testing.assert_allclose(logsnr[[0, -1]], [9, -12], rtol=0, atol=1e-9)


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_step_is_consistent(shift):
    """alpha^2 + sigma^2 = 1, and logsnr and angle are those of alpha and sigma."""
    schedule = schedules.Cosine(shift=shift)
    step = schedules.step_at(schedule, GRID)
    np.testing.assert_allclose(step.alpha**2 + step.sigma**2, 1, atol=1e-12)
    ratio = 2 * np.log(step.alpha / step.sigma)
    np.testing.assert_allclose(step.logsnr, ratio, atol=1e-9)
    angle = np.arctan2(step.sigma, step.alpha)
    np.testing.assert_allclose(schedule.angle(GRID), angle, atol=1e-12)


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_step_is_consistent_in_float32(shift):
    t = jnp.linspace(0, 1, 2001)
    step = schedules.step_at(schedules.Cosine(shift=shift), t)
    np.testing.assert_allclose(step.alpha**2 + step.sigma**2, 1, atol=1e-6)
    assert (np.asarray(step.alpha) > 0).all() and (np.asarray(step.sigma) > 0).all()
    ratio = 2 * np.log(np.float64(step.alpha) / np.float64(step.sigma))
    np.testing.assert_allclose(step.logsnr, ratio, atol=1e-2)


def test_angle_is_linear_in_time():
    """phi = a t + b: equal steps of t are equal rotations."""
    angle = schedules.Cosine().angle(GRID)
    b = np.arctan(np.exp(-10.0))
    np.testing.assert_allclose(angle, b + (np.pi / 2 - 2 * b) * GRID, atol=1e-12)


@pytest.mark.parametrize("shift", SHIFTS)
def test_time_is_the_inverse_of_logsnr(shift):
    schedule = schedules.Cosine(shift=shift)
    found = schedule.time(schedule.logsnr(GRID))
    np.testing.assert_allclose(found, GRID, rtol=0, atol=1e-12)
    single = schedule.time(schedule.logsnr(jnp.asarray(GRID, jnp.float32)))
    np.testing.assert_allclose(single, GRID, rtol=0, atol=1e-5)


def test_logsnr_is_the_angle_that_the_network_embeds():
    """atan(exp(-logsnr/2)) is the angle again, hence t."""
    schedule = schedules.Cosine()
    angle = np.arctan(np.exp(-schedule.logsnr(GRID) / 2))
    first, last = schedule.angle(np.array([0.0, 1.0]))
    np.testing.assert_allclose((angle - first) / (last - first), GRID, atol=1e-12)


@pytest.mark.parametrize("shift", [-3.0, 1.5])
def test_shift_scales_the_signal_to_noise_ratio(shift):
    """alpha/sigma = e^{shift/2} times that of the cosine over the moved range."""
    shifted = schedules.step_at(schedules.Cosine(shift=shift), GRID)
    plain = schedules.Cosine(logsnr_min=-20 - shift, logsnr_max=20 - shift)
    plain = schedules.step_at(plain, GRID)
    np.testing.assert_allclose(
        shifted.alpha / shifted.sigma,
        np.exp(shift / 2) * plain.alpha / plain.sigma,
        rtol=1e-9,
    )
    # Away from the clipped ends the range does not matter.
    same_range = schedules.Cosine().logsnr(GRID)
    inner = slice(200, 1801)
    np.testing.assert_allclose(
        shifted.logsnr[inner], same_range[inner] + shift, atol=5e-3
    )


def test_no_shift_is_the_plain_schedule():
    shifted, plain = schedules.Cosine(shift=0.0), schedules.Cosine()
    np.testing.assert_array_equal(shifted.logsnr(GRID), plain.logsnr(GRID))
    np.testing.assert_array_equal(shifted.angle(GRID), plain.angle(GRID))


@pytest.mark.parametrize("shift", SHIFTS)
def test_numpy_and_jax_agree_in_float64(shift, x64):
    schedule = schedules.Cosine(shift=shift)
    host = schedules.step_at(schedule, GRID)
    device = jax.jit(lambda t: schedules.step_at(schedule, t))(jnp.asarray(GRID))
    assert isinstance(host.alpha, np.ndarray) and host.alpha.dtype == np.float64
    assert device.alpha.dtype == jnp.float64
    np.testing.assert_allclose(device.alpha, host.alpha, rtol=0, atol=1e-12)
    np.testing.assert_allclose(device.sigma, host.sigma, rtol=0, atol=1e-12)
    np.testing.assert_allclose(device.logsnr, host.logsnr, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(), (3,), (3, 4)])
def test_a_step_has_the_shape_of_its_times(shape):
    step = schedules.step_at(schedules.Cosine(), jnp.full(shape, 0.3), index=7)
    assert step.logsnr.shape == step.alpha.shape == step.sigma.shape == shape
    assert int(step.index) == 7


def test_examples_take_turns_among_schedules():
    """Each example has the level of its own schedule at its own time."""
    plain, noisy = schedules.Cosine(), schedules.Cosine(shift=-3.0)
    turns = schedules.TakingTurns((plain, noisy))
    t = np.linspace(0.1, 0.9, 5)
    angle = turns.angle(t)
    np.testing.assert_array_equal(angle[0::2], plain.angle(t[0::2]))
    np.testing.assert_array_equal(angle[1::2], noisy.angle(t[1::2]))
    np.testing.assert_allclose(turns.angle(jnp.asarray(t)), angle, atol=1e-6)
