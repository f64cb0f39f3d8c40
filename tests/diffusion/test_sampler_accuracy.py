"""Variance, order and samples of the samplers, on data with exact denoisers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.analytic import final_z, gaussian
from tests.diffusion.sampler_cases import (
    COSINE,
    DDIM,
    DPM,
    HEUN,
    SAMPLERS,
    SHIFTS,
    UNIPC,
    affine,
    mixture,
    padded,
    spread_of,
    std,
)
from vdm_jax.diffusion import (
    samplers,
    schedules,
)

# Final std / true std for data N(0, s^2) by (s, N): DDIM, gamma = 0, .1, .3, 1, and
# gamma = 0 with the corrector; an independent float64 recursion, to the digits shown.
STD_RATIO = {
    (1.0, 16): [0.9257, 0.8798, 0.8898, 0.9106, 0.9952, 0.8918],
    (1.0, 256): [0.9952, 0.9907, 0.9916, 0.9934, 1.0000, 0.9968],
    (0.5, 64): [0.9762, 0.9479, 0.9538, 0.9661, 1.0134, 0.9570],
    (0.5, 256): [0.9940, 0.9854, 0.9871, 0.9907, 1.0035, 0.9918],
    (0.1, 256): [0.9759, 0.9423, 0.9495, 0.9643, 1.0223, 0.9507],
}


@pytest.mark.parametrize("column, name", list(enumerate(SAMPLERS)))
def test_variance_of_gaussian_samples(column, name, x64):
    for n in (16, 64, 256):
        rows = {s: r[column] for (s, k), r in STD_RATIO.items() if k == n}
        spread = np.array(list(rows))
        ratio = std(SAMPLERS[name], COSINE, n, spread) / spread
        np.testing.assert_allclose(ratio, list(rows.values()), rtol=0, atol=1e-3)
        # The reference has four digits: the error is its rounding.
        np.testing.assert_allclose(ratio, list(rows.values()), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["ddim", "ancestral(0.3)"])
def test_variance_in_float32(name):
    column = list(SAMPLERS).index(name)
    ratio = std(SAMPLERS[name], COSINE, 64, [0.5])[0] / 0.5
    np.testing.assert_allclose(ratio, STD_RATIO[0.5, 64][column], rtol=0, atol=1e-3)


@pytest.mark.parametrize("n, about", [(8, 0.85625), (64, 0.98091), (256, 0.99519)])
def test_ddim_on_unit_gaussians_is_a_product_of_cosines(n, about, x64):
    """v^ = 0, so a step multiplies z by the cosine of its angle; the last ends at 0."""
    actual = std(DDIM, COSINE, n, [1.0])[0]
    b = np.arctan(np.exp(-10.0))
    a = np.pi / 2 - 2 * b
    exact = np.cos(a / n) ** (n - 1) * np.cos(a / n + b)
    np.testing.assert_allclose(actual, exact, rtol=0, atol=1e-12)
    np.testing.assert_allclose(actual, about, rtol=0, atol=5e-5)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_upper_variance_is_exact_on_unit_gaussians(n, shift, x64):
    """gamma = 1, s = 1: every step has variance 1, the last alpha_{1/n}^2."""
    schedule, sampler = schedules.Cosine(logsnr_shift=shift), SAMPLERS["ancestral(1.0)"]
    before = std(sampler, schedule, n, [1.0], stop=n - 1, rows=16)[0]
    np.testing.assert_allclose(before, 1, rtol=0, atol=1e-12)
    alpha = schedules.noise_level(schedule, np.float64(1 / n)).alpha
    after = std(sampler, schedule, n, [1.0], rows=16)[0]
    np.testing.assert_allclose(after, alpha, rtol=1e-12, atol=1e-12)


def test_upper_variance_is_exact_in_float32():
    actual = std(SAMPLERS["ancestral(1.0)"], COSINE, 16, [1.0], stop=15, rows=16)[0]
    np.testing.assert_allclose(actual, 1, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("n", [2, 5, 16])
def test_lower_variance_is_exact_on_a_point(n, shift, x64):
    """gamma = 0, s = 0: z_{1/n} has standard deviation sigma_{1/n}, the output 0."""
    schedule, sampler = schedules.Cosine(logsnr_shift=shift), SAMPLERS["ancestral(0.0)"]
    first, last = schedules.noise_level(schedule, np.array([1.0, 1 / n])).sigma
    before = std(sampler, schedule, n, [0.0], n - 1, start=first, rows=16)[0]
    np.testing.assert_allclose(before, last, rtol=0, atol=1e-12)
    assert std(sampler, schedule, n, [0.0], start=first, rows=16)[0] < 1e-12


@pytest.mark.parametrize("spread", [0.1, 0.5, 2.0])
def test_ddim_converges_to_the_probability_flow(spread, x64):
    """First order: the error of the map z_1 -> x halves when the steps double."""
    counts = [32, 64, 128, 256]
    end = schedules.noise_level(COSINE, np.float64(1.0))
    exact = spread / np.sqrt(end.alpha**2 * spread**2 + end.sigma**2)
    table = [padded(DDIM.table(COSINE, n)) for n in counts]
    actual = [
        affine(DDIM, jnp.asarray([spread]), rows, n)[0][0]
        for rows, n in zip(table, counts, strict=True)
    ]
    error = np.abs(np.array(actual) - exact)
    ratio = error[:-1] / error[1:]
    assert error[-1] < 0.03 * spread
    assert (ratio > 1.8).all() and (ratio < 2.2).all(), ratio


def test_ddim_maps_the_mean_to_the_mean(x64):
    """The flow through alpha_t mu: a run that starts on it remains on it."""
    n, mean = 16, jnp.asarray(0.7)
    table = DDIM.table(COSINE, n)
    z = jnp.full((1, 1, 2, 2, 1), table["alpha"][0] * 0.7)
    for i in range(n):
        z = final_z(DDIM, gaussian(mean, 0.4), z, table, i, i + 1, None, None)
        alpha = table["alpha"][i + 1] if i + 1 < n else 1.0
        np.testing.assert_allclose(z, alpha * 0.7, rtol=0, atol=1e-12)


# Second order, two calls, churn, inversion.


def test_dpm_on_a_gaussian(x64):
    """Relative errors of the standard deviation, to the digits shown; s = .5."""
    shown = {16: "-2.8e-03", 32: "5.8e-03", 64: "3.0e-03", 128: "1.1e-03"}
    for n, expected in (shown | {256: "3.6e-04"}).items():
        assert f"{std(DPM, COSINE, n, [0.5])[0] / 0.5 - 1:.1e}" == expected
    assert f"{std(DDIM, COSINE, 64, [0.5])[0] / 0.5 - 1:.1e}" == "-2.4e-02"


@dataclasses.dataclass(frozen=True)
class Between(schedules.Schedule):
    """n equal steps of angle from logsnr -8 to 8; one more row never runs."""

    n: int

    def angle(self, t):
        low, high = np.arctan(np.exp(np.array([-4.0, 4.0])))
        fraction = (t * (self.n + 1) - 1) / self.n
        return low + (high - low) * np.maximum(fraction, 0.0)


@functools.partial(jax.jit, static_argnums=0)
def slope(sampler, table, n):
    """Return the factor by which a run without noise scales its start."""
    z = jnp.ones((1, 1, 1, 1, 1))
    quiet = lambda i, draw: jnp.zeros(z.shape)  # noqa: E731
    return final_z(sampler, gaussian(0.0, 0.5), z, table, 0, n, quiet, None).ravel()[0]


@pytest.mark.parametrize(
    "sampler, order, within",
    [(DDIM, 1, 0.05), (DPM, 2, 0.15), (HEUN, 2, 0.15), (UNIPC, 3, 0.15)],
)
def test_order_of_convergence(sampler, order, within, x64):
    """Measure errors against the exact probability flow, sqrt(V_s / V_t)."""
    counts = 64 * 2 ** np.arange(5)
    first, last = (0.25 / (1 + np.exp(-lam)) + 1 / (1 + np.exp(lam)) for lam in (-8, 8))
    exact = np.sqrt(last / first)
    tables = [padded(sampler.table(Between(n), n + 1), 1025) for n in counts]
    actual = [slope(sampler, *run) for run in zip(tables, counts, strict=True)]
    error = np.abs(np.array(actual) / exact - 1)
    fitted = -np.polyfit(np.log(counts), np.log(error), 1)[0]
    assert abs(fitted - order) < within, (fitted, error)


@pytest.mark.parametrize("delta", [0.1, 0.4])
@pytest.mark.parametrize("row", [0, 1, 2])
def test_the_corrector_alone_is_stationary(row, delta, x64):
    """500 corrections at one level: variance V / (1 - delta sigma^2 / (4 V))."""
    count, spread = 500, np.array([0.25, 0.5])
    sampler = samplers.with_langevin_corrector(samplers.ancestral(0.0), delta)
    table = sampler.table(COSINE, 4)
    still = {"z_coef": 1.0, "x_coef": 0.0, "std": 0.0}  # the predictor does nothing
    table = {key: np.full(count, still.get(key, v[row])) for key, v in table.items()}
    actual = spread_of(*affine(sampler, jnp.asarray(spread), table, count), 0.0) ** 2
    level = schedules.noise_level(COSINE, 0.75 - row / 4)
    variance = level.alpha**2 * spread**2 + level.sigma**2
    expected = variance / (1 - delta * level.sigma**2 / (4 * variance))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "denoise",
    [gaussian(0.3, 0.5), mixture([0.5, 0.5], [-1.0, 1.0], [0.3, 0.3])],
    ids=["gaussian", "mixture"],
)
def test_ddim_reverses_its_inversion(denoise, x64):
    """Inversion, then DDIM: an error of order 1 / n."""
    counts, x = 32 * 2 ** np.arange(4), jnp.linspace(-1.4, 1.4, 15)
    x = x.reshape(1, 15, 1, 1, 1)

    @jax.jit
    def back(there, here, n):
        z = final_z(samplers.ddim_inversion(), denoise, x, there, 0, n, None, None)
        return z, final_z(DDIM, denoise, z, here, 0, n, None, None)

    errors = []
    for n in counts:
        tables = [s.table(COSINE, n) for s in (samplers.ddim_inversion(), DDIM)]
        z, actual = back(*(padded(table) for table in tables), n)
        errors.append(np.abs(actual - x).max())
    ratio = np.divide(errors[:-1], errors[1:])
    assert errors[-1] < 0.03 and (ratio > 1.7).all() and (ratio < 2.3).all(), errors
    # In between z is noise: for the Gaussian it is the standardised input.
    assert np.abs(z).max() < 3.5 and np.abs(z).max() > 1.0


KARRAS = schedules.Karras()

# .3 N(-1, .1^2) + .7 N(.5, .2^2): the distance W1 of 20000 samples to it.
BUMPS = ((0.3, 0.7), (-1.0, 0.5), (0.1, 0.2))


@pytest.mark.parametrize(
    "sampler, schedule, n",
    [
        (DDIM, COSINE, 256),
        (DPM, COSINE, 256),
        (SAMPLERS["ancestral(0.1)"], COSINE, 256),
        (SAMPLERS["corrected"], COSINE, 256),
        (HEUN, KARRAS, 64),
        (samplers.heun(s_churn=10.0), KARRAS, 64),
    ],
    ids=["ddim", "dpm", "ancestral(0.1)", "corrected", "heun", "churned"],
)
def test_samples_of_a_mixture(sampler, schedule, n):
    shape = (20_000, 1, 1, 1, 1)

    @jax.jit
    def run(key, table):
        def noise(i, draw):
            draw_key = jax.random.fold_in(jax.random.fold_in(key, i), draw)
            return jax.random.normal(draw_key, shape)

        z = jax.random.normal(key, shape)
        return final_z(sampler, mixture(*BUMPS), z, table, 0, n, noise, None)

    actual = np.sort(np.ravel(run(jax.random.key(0), sampler.table(schedule, n))))
    x = np.linspace(-2, 2, 40_001)
    density = sum(
        w / s * np.exp(-(((x - m) / s) ** 2) / 2)
        for w, m, s in zip(*BUMPS, strict=True)
    )
    below = np.cumsum(density) / np.sum(density)
    quantiles = np.interp((np.arange(len(actual)) + 0.5) / len(actual), below, x)
    assert np.mean(np.abs(actual - quantiles)) < 0.03
