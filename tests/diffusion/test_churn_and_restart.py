"""Laws of the churn of Heun's sampler and of restart_ddim."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.analytic import final_z
from tests.diffusion.sampler_cases import (
    COSINE,
    HEUN,
    affine,
    padded,
    spread_of,
    std,
    tanh_denoiser,
)
from vdm_jax.diffusion import (
    process,
    samplers,
    schedules,
)

# Row of eight steps -> alpha_s / alpha_k and the std of the noise added back.
RESTART_VECTORS = {0: (0.50985490, 0.86026041), 6: (0.98077864, 0.19512371)}


@pytest.mark.parametrize("row", list(RESTART_VECTORS))
def test_restart_ddim_step_vectors(row, x64):
    """z_s = scale (alpha_k x + sigma_k eps) + std noise, k two steps down."""
    sampler = samplers.restart_ddim()
    table, shape = sampler.table(COSINE, 8), (1, 1, 1, 1, 1)

    def run(x, eps, fresh):
        x, eps, fresh = (jnp.full(shape, a) for a in (x, eps, fresh))
        denoise = lambda z, level, cond: process.Prediction(x, eps)  # noqa: E731
        return final_z(
            sampler, denoise, x, table, row, row + 1, lambda i, draw: fresh, None
        ).ravel()[0]

    scale, std = RESTART_VECTORS[row]
    far = schedules.noise_level(COSINE, 1 - (row + 2) / 8)
    alpha, sigma = (far.alpha, far.sigma) if row < 6 else (1.0, 0.0)
    actual = jax.jacfwd(run, (0, 1, 2))(0.3, 0.2, 0.1)
    np.testing.assert_allclose(actual, [scale * alpha, scale * sigma, std], atol=6e-9)


def flow_map(spread, table):
    """Return the denoiser whose DDIM step to (k_alpha, k_sigma) is the exact flow's."""

    def denoise(z, level, cond):
        alpha, sigma = (
            table["k_" + key][level.step_index] for key in ("alpha", "sigma")
        )
        now = level.alpha**2 * spread**2 + level.sigma**2
        there = jnp.sqrt((alpha**2 * spread**2 + sigma**2) / now) * z
        x = (level.sigma * there - sigma * z) / (
            level.sigma * alpha - sigma * level.alpha
        )
        return process.from_x(x, z, level)

    return denoise


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 16])
def test_restart_ddim_with_the_exact_flow_keeps_the_marginals(n, x64):
    sampler, spread = samplers.restart_ddim(), 0.5
    angle = np.append(COSINE.angle(1 - np.arange(n) / n), [0.0, 0.0])
    angle[n] = 0.0
    far = np.append(angle[2:], 0.0)[:n]
    table = sampler.table(COSINE, n) | {"k_alpha": np.cos(far), "k_sigma": np.sin(far)}
    start = np.hypot(np.cos(angle[0]) * spread, np.sin(angle[0]))
    parts = affine(sampler, jnp.asarray([spread]), padded(table, 16), n, flow_map)
    actual = spread_of(*parts, start) ** 2
    np.testing.assert_allclose(actual, spread**2, rtol=0, atol=1e-10)


KARRAS = schedules.Karras()


def test_heun_without_churn_ignores_noise(x64):
    n, z = 4, jnp.ones((1, 1, 2, 2, 1))
    table = HEUN.table(KARRAS, n)
    actual, quiet = (
        final_z(HEUN, tanh_denoiser, z, table, 0, n, lambda i, d, a=a: a * z, None)
        for a in (1e6, 0.0)
    )
    np.testing.assert_array_equal(actual, quiet)
    np.testing.assert_array_equal(table["scale"], 1)
    np.testing.assert_array_equal(table["churn_std"], 0)


@pytest.mark.parametrize("churn", [0.0, 5.0, 40.0])
def test_heun_with_churn_keeps_the_variance(churn, x64):
    """The data is N(0, s^2), the start N(0, 1) at EDM's sigma 80."""
    sampler, spread = samplers.heun(s_churn=churn), np.array([0.1, 0.5, 1.0])
    coarse, fine = (std(sampler, KARRAS, n, spread) / spread - 1 for n in (64, 256))
    assert (np.abs(fine) < 3e-3).all() and (np.abs(coarse) < 3e-2).all()
    assert (np.abs(fine) < np.abs(coarse) / 8).all()  # nearly second order


@pytest.mark.parametrize("schedule", [COSINE, KARRAS], ids=["cosine", "karras"])
@pytest.mark.parametrize("n", [3, 16, 256])
def test_churn_raises_the_noise_by_its_factor(schedule, n, x64):
    """sigma^ = (1 + min(S_churn / N, sqrt 2 - 1)) sigma, up to the schedule's end."""
    churn, sampler = 80.0, samplers.heun(s_churn=80.0)
    table, plain = sampler.table(schedule, n), HEUN.table(schedule, n)
    sigma = plain["sigma"] / plain["alpha"]
    factor = 1 + min(churn / n, np.sqrt(2) - 1)
    most = np.exp(-schedules.noise_level(schedule, np.ones(1)).logsnr / 2)
    expected = np.minimum(factor * sigma, most)
    assert (table["logsnr"] >= -2 * np.log(most) - 1e-9).all()
    np.testing.assert_allclose(table["sigma"] / table["alpha"], expected, rtol=1e-9)
    # With the added noise z is a draw of the raised level: alpha^ x, variance sigma^^2.
    np.testing.assert_allclose(table["scale"] * plain["alpha"], table["alpha"])
    variance = (table["scale"] * plain["sigma"]) ** 2 + table["churn_std"] ** 2
    np.testing.assert_allclose(variance, table["sigma"] ** 2, rtol=1e-9)
