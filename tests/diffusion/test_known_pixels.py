"""Laws of replacement, reconstruction guidance and the mean over areas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.analytic import append_axes, final_z, gaussian, level_at
from vdm_jax.diffusion import (
    guidance,
    process,
    samplers,
    schedules,
)

B, SHAPE = 3, (3, 2, 4, 4, 1)
LEVELS = [-20.0, -4.0, 0.0, 4.0, 20.0]
NO_CLASS, SPREAD = 0.25, 0.5


def noise(dtype=np.float64, shape=SHAPE):
    return jnp.asarray(np.random.default_rng(3).standard_normal(shape), dtype)


# Replacement.

EVERY = {name: make() for name, make in samplers.SAMPLERS.items()} | {
    "corrected": samplers.with_langevin_corrector(samplers.ancestral(0.1)),
    "churned": samplers.heun(s_churn=10.0),
    "corrected heun": samplers.with_langevin_corrector(samplers.heun(s_churn=10.0)),
}


def mask_of(shape=SHAPE):
    return jnp.asarray(np.random.default_rng(8).random((*shape[:-1], 1)) < 0.4)


def tanh_denoiser(z, level, cond):
    """Predict by a nonlinear function that mixes pixels."""
    x = 0.9 * jnp.tanh(z + 0.5 * jnp.roll(z, 1, axis=1) + jnp.roll(z, 1, axis=2) ** 2)
    return process.from_x(x, z, level)


@pytest.mark.parametrize("sampler", list(EVERY.values()), ids=list(EVERY))
def test_replaced_pixels_end_as_the_known_ones(sampler):
    """They are equal bit for bit; the other pixels differ."""
    known, mask = noise(np.float32) / 2, mask_of()
    draws = noise(np.float32, (4, *SHAPE))

    @jax.jit
    def run(table, n):
        fresh = lambda s: jnp.roll(draws[s.step_index], 5 + s.call, 2)  # noqa: E731
        fn = guidance.replace_known(tanh_denoiser, known, mask, fresh)
        draw = lambda i, number: jnp.roll(draws[i], number, 3)  # noqa: E731
        return final_z(sampler, fn, draws[0], table, 0, n, draw, None)

    for n in (1, 4):
        z = run(samplers.pad_table(sampler.table(schedules.Cosine(), n), np.float32), n)
        np.testing.assert_array_equal(z[mask], known[mask])
        assert np.isfinite(z).all() and (z[~mask] != known[~mask]).all()


@pytest.mark.parametrize("sampler", list(EVERY.values()), ids=list(EVERY))
def test_every_call_replaces_with_its_own_noise(sampler):
    calls, n = [], 3

    def noise_of(level):
        calls.append((int(level.step_index), int(level.call)))
        return noise(np.float32)

    known, mask = jnp.zeros(SHAPE), mask_of()
    fn = guidance.replace_known(tanh_denoiser, known, mask, noise_of)
    table = sampler.table(schedules.Cosine(), n)
    with jax.disable_jit():
        zeros = lambda i, d: jnp.zeros(SHAPE)  # noqa: E731
        final_z(sampler, fn, noise(np.float32), table, 0, n, zeros, None)
    assert len(set(calls)) == len(calls) >= n
    assert {index for index, _ in calls} == set(range(n))


@pytest.mark.parametrize("logsnr", LEVELS)
def test_the_network_sees_known_pixels_at_the_level_of_the_rest(logsnr, x64):
    """It gets q(z_t | known) where the mask is true, z elsewhere."""
    level, mask, known = level_at(logsnr), mask_of(), noise() / 2
    eps, z = noise() + 1, noise()[::-1]
    seen = []

    def record(z, level, cond):
        seen.append(z)
        return tanh_denoiser(z, level, cond)

    actual = guidance.replace_known(record, known, mask, lambda level: eps)(
        z, level, None
    )
    mixed = np.where(mask, level.alpha * known + level.sigma * eps, z)
    np.testing.assert_allclose(seen[0], mixed, rtol=0, atol=1e-12)
    inner = tanh_denoiser(jnp.asarray(mixed), level, None)
    np.testing.assert_allclose(actual.x, np.where(mask, known, inner.x), atol=1e-12)
    np.testing.assert_allclose(actual.eps, np.where(mask, eps, inner.eps), rtol=1e-9)
    z_again = level.alpha * actual.x + level.sigma * actual.eps
    np.testing.assert_allclose(z_again, mixed, rtol=0, atol=1e-9)


# Reconstruction guidance.


def missing(known, mask):
    """Return the residual of the known pixels."""
    return lambda x: jnp.where(mask, known - x, 0)


@pytest.mark.parametrize("logsnr", [-20.0, -4.0, 0.0, 4.0])
def test_reconstruction_follows_the_gradient_of_the_squares(logsnr, x64):
    """x - w alpha d(|known - x|^2 / 2)/dz by finite differences: a sum, not a mean."""
    z, known, mask, level, w = (
        noise(),
        noise()[::-1] / 2,
        mask_of(),
        level_at(logsnr),
        3.0,
    )

    def half_squares(z):
        x = tanh_denoiser(z, level, None).x
        return jnp.sum(jnp.where(mask, (known - x) ** 2, 0)) / 2

    inner = tanh_denoiser(z, level, None)
    fn = guidance.reconstruction_guidance(tanh_denoiser, missing(known, mask), w)
    actual = fn(z, level, None)
    slope = -(actual.x - inner.x) / (w * level.alpha)
    for position in [(0, 0, 0, 0, 0), (1, 1, 2, 3, 0), (2, 0, 3, 1, 0)]:
        h = jnp.zeros(SHAPE).at[position].set(1e-5)
        expected = (half_squares(z + h) - half_squares(z - h)) / 2e-5
        np.testing.assert_allclose(slope[position], expected, rtol=1e-6, atol=1e-9)
    z_again = level.alpha * actual.x + level.sigma * actual.eps
    np.testing.assert_allclose(z_again, z, rtol=0, atol=1e-12)


def test_a_zero_residual_is_no_correction(x64):
    z, level = noise(), level_at(-1.0)
    plain = tanh_denoiser(z, level, None)
    fn = guidance.reconstruction_guidance(
        tanh_denoiser, missing(plain.x, mask_of()), 9.0
    )
    np.testing.assert_array_equal(fn(z, level, None).x, plain.x)


def test_reconstruction_of_a_gaussian(x64):
    """x + w alpha k (known - x) where known; k = dx/dz; weights by row, parts summed.

    Each video has its own noise level, as it may in training.
    """
    z, known, mask = noise(), noise()[::-1] / 2, mask_of()
    level = level_at(np.array([-3.0, 0.0, 5.0]), step_index=1)
    weights = jnp.asarray([[0.0], [2.0], [5.0]])

    def plain(z, level, cond):
        return gaussian(0.1, SPREAD)(z, level, cond)

    def residual(x):
        r = missing(known, mask)(x)
        return {"one": r, "two": [2 * r]}  # squares add up to five times those of r

    alpha, sigma = append_axes(level.alpha), append_axes(level.sigma)
    k = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
    x = plain(z, level, None).x
    expected = x + jnp.where(mask, 5 * 2.0 * alpha * k * (known - x), 0)
    actual = guidance.reconstruction_guidance(plain, residual, weights)(z, level, None)
    np.testing.assert_allclose(actual.x, expected, rtol=0, atol=1e-12)
    z_again = alpha * actual.x + sigma * actual.eps
    np.testing.assert_allclose(z_again, z, rtol=0, atol=1e-12)


@pytest.mark.parametrize("logsnr", LEVELS)
def test_the_exact_weight_finds_known_gaussian_pixels(logsnr, x64):
    """With w = 1 + exp(-logsnr) / s^2 known pixels are predicted exactly, for any z."""
    z, known, mask, level = noise(), noise()[::-1] / 2, mask_of(), level_at(logsnr)
    weights = guidance.snr_dependent_weight(1.0, 1 / SPREAD**2)
    np.testing.assert_allclose(
        weights(level), 1 + np.exp(-logsnr) / SPREAD**2, rtol=1e-12
    )
    plain = gaussian(0.1, SPREAD)
    fn = guidance.reconstruction_guidance(plain, missing(known, mask), weights)
    expected = np.where(mask, known, plain(z, level, None).x)
    np.testing.assert_allclose(fn(z, level, None).x, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("logsnr", [-4.0, 0.0, 4.0])
def test_reconstruction_is_the_missing_term_of_two_gaussians(logsnr, x64):
    """E[b | z, a] = E[b | z] + sigma^2 / alpha d log q(a | z) / dz_b, exactly.

    q(a | z) is a Gaussian of variance p, so its weight is sigma^2 / (alpha^2 p), the
    exact weight where a and b are independent; a is the first of two pixels.
    """
    covariance = np.array([[1.0, 0.6], [0.6, 0.5]])
    level, z, a = level_at(logsnr), np.array([0.4, -0.9]), 0.7
    alpha, sigma = float(level.alpha), float(level.sigma)
    total = alpha**2 * covariance + sigma**2 * np.eye(2)
    gain = alpha * covariance @ np.linalg.inv(total)
    posterior = covariance - alpha * gain @ covariance

    def plain(z, level, cond):
        x = jnp.asarray(gain) @ z.ravel()
        return process.from_x(x.reshape(z.shape), z, level)

    def residual(x):
        return a - x[:, :, 0]

    w = sigma**2 / (alpha**2 * posterior[0, 0])
    fn = guidance.reconstruction_guidance(plain, residual, w)
    actual = fn(jnp.asarray(z).reshape(1, 1, 2, 1, 1), level, None).x.ravel()
    # Given a and z, b depends on its own z alone.
    mean_given_a = covariance[1, 0] / covariance[0, 0] * a
    rest = covariance[1, 1] - covariance[1, 0] ** 2 / covariance[0, 0]
    weight = alpha * rest / (alpha**2 * rest + sigma**2)
    np.testing.assert_allclose(
        actual[1], mean_given_a + weight * (z[1] - alpha * mean_given_a)
    )
    np.testing.assert_allclose(actual[0], a)


# The area mean, and upscaling with it.


@pytest.mark.parametrize("k, l", [(1, 1), (2, 2), (3, 2), (4, 6)])
def test_area_downsample_by_whole_factors_is_the_average_pool(k, l, x64):  # noqa: E741
    h, w = 2, 3
    x = noise(shape=(2, 3, h * k, w * l, 2))
    pooled = np.asarray(x).reshape(2, 3, h, k, w, l, 2).mean((3, 5))
    np.testing.assert_allclose(
        guidance.area_downsample(x, h, w), pooled, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("small", [(1, 1), (3, 2), (4, 5), (5, 7)])
def test_area_downsample_keeps_constants_and_means_at_any_size(small, x64):
    x = noise(shape=(1, 2, 5, 7, 3))
    actual = guidance.area_downsample(x, *small)
    assert actual.shape == (1, 2, *small, 3)
    constant = guidance.area_downsample(jnp.ones_like(x), *small)
    np.testing.assert_allclose(constant, 1, rtol=0, atol=1e-12)
    np.testing.assert_allclose(actual.mean((2, 3)), x.mean((2, 3)), atol=1e-12)
    if small == (5, 7):
        np.testing.assert_allclose(actual, x, rtol=0, atol=1e-12)


def test_area_downsample_shares_a_pixel_by_area(x64):
    """From three to two: each covers one pixel and a half."""
    x = jnp.asarray([1.0, 10.0, 100.0]).reshape(1, 1, 3, 1, 1)
    actual = guidance.area_downsample(x, 2, 1).ravel()
    np.testing.assert_allclose(actual, [(1 + 5) / 1.5, (5 + 100) / 1.5])


@pytest.mark.parametrize("logsnr", [-6.0, 0.0, 6.0])
@pytest.mark.parametrize("k", [2, 4])
def test_upscaling_white_noise_is_exact(k, logsnr, x64):
    """Compare with E[x | z, mean over areas]; weight k^2 (1 + exp(-logsnr) / s^2)."""
    z, level = noise(), level_at(logsnr)
    size = 4 // k
    low = noise(shape=(*SHAPE[:2], size, size, 1)) / 3
    plain = gaussian(0.0, SPREAD)
    weight = guidance.snr_dependent_weight(k**2, k**2 / SPREAD**2)
    fn = guidance.reconstruction_guidance(
        plain, lambda x: low - guidance.area_downsample(x, size, size), weight
    )
    actual = fn(z, level, None).x
    pool = np.kron(np.eye(size), np.full((1, k), 1 / k))
    pool = np.kron(pool, pool)  # [size^2, 16]
    alpha, sigma = float(level.alpha), float(level.sigma)
    posterior = np.eye(16) / (1 / SPREAD**2 + alpha**2 / sigma**2)
    gain = posterior @ pool.T @ np.linalg.inv(pool @ posterior @ pool.T)
    x, y = (np.reshape(a, (B, 2, -1)) for a in (plain(z, level, None).x, low))
    expected = x + (y - x @ pool.T) @ gain.T
    np.testing.assert_allclose(actual.reshape(B, 2, -1), expected, atol=1e-12)
    np.testing.assert_allclose(
        guidance.area_downsample(actual, size, size), low, atol=1e-9
    )
