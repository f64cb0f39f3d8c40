"""Laws of the forward process and of predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.analytic import level_at
from vdm_jax.diffusion import process, schedules

LEVELS = [-20.0, -5.0, 0.0, 5.0, 20.0]
KINDS = ["v", "eps", "x", "flow"]
TIMES = [(0.0, 0.4), (0.25, 0.5), (0.6, 0.61), (0.75, 1.0), (0.0, 1.0)]


def pair(shape=(2, 3, 4, 4, 1), dtype=np.float64):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for _ in "ab"]


def output(kind, x, eps, level):
    """Return the output of a perfect network of this prediction type."""
    v = level.alpha * eps - level.sigma * x
    return {"x": x, "eps": eps, "v": v, "flow": eps - x}[kind]


def noise_levels(schedule, s, t):
    return [schedules.noise_level(schedule, np.float64(u)) for u in (s, t)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("logsnr", LEVELS)
def test_every_prediction_type_recovers_x_and_eps(kind, logsnr, x64):
    x, eps = pair()
    level = level_at(logsnr)
    z = process.diffuse(x, eps, level)
    np.testing.assert_allclose(z, level.alpha * x + level.sigma * eps, atol=1e-15)
    prediction = process.PREDICTION_TYPES[kind](output(kind, x, eps, level), z, level)
    np.testing.assert_allclose(prediction.x, x, atol=1e-9)
    np.testing.assert_allclose(prediction.eps, eps, atol=1e-9)
    v = level.alpha * eps - level.sigma * x
    np.testing.assert_allclose(process.velocity(prediction, level), v, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("logsnr", LEVELS)
def test_a_wrong_output_round_trips_too(kind, logsnr, x64):
    """x -> v -> x, eps -> x -> eps, ... for outputs that match no clean video."""
    z, out = pair()
    level = level_at(logsnr)
    first = process.PREDICTION_TYPES[kind](out, z, level)
    assert isinstance(first, process.Prediction)
    scale = max(1.0, np.abs(first.x).max(), np.abs(first.eps).max())
    np.testing.assert_allclose(
        level.alpha * first.x + level.sigma * first.eps, z, rtol=0, atol=1e-9
    )
    for other in KINDS:
        through = {
            "x": first.x,
            "eps": first.eps,
            "v": process.velocity(first, level),
            "flow": first.eps - first.x,
        }[other]
        again = process.PREDICTION_TYPES[other](through, z, level)
        atol = 1e-9 * scale
        np.testing.assert_allclose(again.x, first.x, rtol=0, atol=atol)
        np.testing.assert_allclose(again.eps, first.eps, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("logsnr", LEVELS)
def test_float32_errors_have_the_bound_of_the_prediction_type(kind, logsnr):
    """eps amplifies rounding by sigma/alpha in x, x by alpha/sigma in eps, v by 1.

    So does flow, which divides by alpha + sigma >= 1.
    """
    x, eps = pair(dtype=np.float32)
    level = level_at(logsnr, dtype=np.float32)
    z = process.diffuse(x, eps, level)
    prediction = process.PREDICTION_TYPES[kind](output(kind, x, eps, level), z, level)
    gain = np.exp(np.array([-logsnr, logsnr]) / 2)  # of x, of eps
    lossy = {"v": [0, 0], "eps": [1, 0], "x": [0, 1], "flow": [0, 0]}[kind]
    gain = np.maximum(gain, 1) * lossy
    # Seven roundings of numbers of at most 8, of 2^-24 each, amplified.
    x_error, eps_error = np.maximum(gain, 1) * 56 * 2.0**-24
    assert prediction.x.dtype == prediction.eps.dtype == jnp.float32
    np.testing.assert_allclose(prediction.x, x, rtol=0, atol=x_error)
    np.testing.assert_allclose(prediction.eps, eps, rtol=0, atol=eps_error)


@pytest.mark.parametrize("logsnr", LEVELS)
def test_from_x_computes_eps(logsnr, x64):
    z, x = pair()
    level = level_at(logsnr)
    prediction = process.from_x(x, z, level)
    np.testing.assert_array_equal(prediction.x, x)
    rebuilt = (z - level.alpha * x) / level.sigma
    np.testing.assert_allclose(prediction.eps, rebuilt, rtol=1e-9)


@pytest.mark.parametrize("logsnr", LEVELS)
def test_edm_for_unit_variance_predicts_minus_v(logsnr, x64):
    """F = -v in D = c_skip y + c_out F (Karras et al. 2022, Table 1, unit data)."""
    z, v = pair()
    level = level_at(logsnr)
    denoised = process.PREDICTION_TYPES["v"](v, z, level).x
    sigma, noisy = level.sigma / level.alpha, z / level.alpha
    c_skip, c_out = 1 / (sigma**2 + 1), sigma / jnp.sqrt(sigma**2 + 1)
    np.testing.assert_allclose((denoised - c_skip * noisy) / c_out, -v, atol=1e-9)


@pytest.mark.parametrize("logsnr", LEVELS)
def test_flow_velocity_is_a_mixture_of_z_and_v(logsnr, x64):
    """u = (sigma - alpha) z + (alpha + sigma) v, also for arbitrary outputs."""
    z, v = pair()
    level = level_at(logsnr)
    u = (level.sigma - level.alpha) * z + (level.alpha + level.sigma) * v
    actual, expected = process.from_flow(u, z, level), process.from_v(v, z, level)
    np.testing.assert_allclose(actual.x, expected.x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(actual.eps, expected.eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("logsnr", LEVELS)
def test_noise_level_in_edm_variables(logsnr, x64):
    level = level_at(logsnr)
    np.testing.assert_allclose(process.edm_sigma(level), np.exp(-logsnr / 2), rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2,), (2, 3)])
def test_levels_per_example_and_per_frame(kind, shape, x64):
    """Levels of shape [b] or [b, f] act on each part as a level [] on it alone."""
    z, out = pair()
    levels = np.linspace(-8, 8, 6).reshape(2, 3)[:, : shape[1] if shape[1:] else 1]
    levels = levels.reshape(shape)
    level = level_at(levels)

    def all_functions(z, out, level):
        prediction = process.PREDICTION_TYPES[kind](out, z, level)
        again = process.from_x(prediction.x, z, level)
        v = process.velocity(prediction, level)
        return prediction, again, v, process.diffuse(out, z, level)

    together = all_functions(z, out, level)
    for i in np.ndindex(shape):
        alone = all_functions(z[i], out[i], level_at(levels[i]))
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-12),
            together,
            alone,
        )


def condition(mean, covariance, value):
    """Mean and covariance of y[0] given y[1:] = value, y Gaussian: any such y."""
    gain = np.linalg.solve(covariance[1:, 1:], covariance[1:, 0])
    rest = covariance[0, 0] - gain @ covariance[1:, 0]
    return mean[0] + gain @ (value - mean[1:]), rest


@pytest.mark.parametrize("shift", [0.0, -3.0])
@pytest.mark.parametrize("s, t", TIMES)
def test_posterior_is_the_conditional_of_the_joint(s, t, shift, x64):
    """q(z_s|z_t,x) equals the conditional of the joint Gaussian of (z_s, z_t) given x.

    The joint is built from the definition only: z_s = alpha_s x + sigma_s e and
    z_t = (alpha_t/alpha_s) z_s + fresh noise, so that z_t has its own marginal.
    """
    level_s, level_t = noise_levels(schedules.Cosine(logsnr_shift=shift), s, t)
    ratio = level_t.alpha / level_s.alpha
    covariance = np.array(
        [
            [level_s.sigma**2, ratio * level_s.sigma**2],
            [ratio * level_s.sigma**2, level_t.sigma**2],
        ]
    )
    z_coef, x_coef, var = process.posterior(level_s, level_t)
    for x, z in [(1.0, 0.0), (0.0, 1.0), (-0.7, 1.9)]:
        mean = np.array([level_s.alpha, level_t.alpha]) * x
        expected, expected_var = condition(mean, covariance, np.array([z]))
        np.testing.assert_allclose(z_coef * z + x_coef * x, expected, atol=1e-12)
        np.testing.assert_allclose(var, expected_var, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shift", [0.0, -3.0])
@pytest.mark.parametrize("s, t", TIMES)
def test_transition_composes_with_the_marginal(s, t, shift, x64):
    """q(z_t|z_s) q(z_s|x) integrates to q(z_t|x): mean and variance."""
    level_s, level_t = noise_levels(schedules.Cosine(logsnr_shift=shift), s, t)
    scale, var = process.transition(level_s, level_t)
    np.testing.assert_allclose(scale * level_s.alpha, level_t.alpha, atol=1e-12)
    total = var + scale**2 * level_s.sigma**2
    np.testing.assert_allclose(total, level_t.sigma**2, atol=1e-12)


@pytest.mark.parametrize("s, t", TIMES)
def test_posterior_and_transition_are_one_joint(s, t, x64):
    """Bayes: both factorisations give the same covariance of (z_s, z_t)."""
    level_s, level_t = noise_levels(schedules.Cosine(), s, t)
    scale, _ = process.transition(level_s, level_t)
    z_coef, x_coef, var = process.posterior(level_s, level_t)
    covariance = z_coef * level_t.sigma**2
    np.testing.assert_allclose(covariance, scale * level_s.sigma**2, atol=1e-12)
    total = var + z_coef**2 * level_t.sigma**2
    np.testing.assert_allclose(total, level_s.sigma**2, atol=1e-12)
    mean = z_coef * level_t.alpha + x_coef
    np.testing.assert_allclose(mean, level_s.alpha, atol=1e-12)


@pytest.mark.parametrize(
    "t, s, expected",
    [
        (0.5, 0.25, [0.22419744, 0.76533931, 1.21330414e-1, 4.14202546e-1]),
        (1, 0.75, [0.00010125, 0.38270440, 8.53537329e-1, 9.99999986e-1]),
    ],
)
def test_step_vectors(t, s, expected, x64):
    """z_coef, x_coef, posterior and transition variance computed by hand."""
    pair_ = noise_levels(schedules.Cosine(), s, t)
    actual = [*process.posterior(*pair_), process.transition(*pair_)[1]]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=6e-9)


def test_small_steps_keep_their_variance_in_float32():
    """1 - exp(-small) by expm1: the variance of a small step is not rounded away."""
    low, high = np.float32([-0.001, 0.0]), np.float32([0.0, 0.001])
    single = [level_at(v, dtype=np.float32) for v in (high, low)]

    def variances(level_s, level_t):
        post, var = (
            process.posterior(level_s, level_t),
            process.transition(level_s, level_t),
        )
        return np.float64([post[1], post[2], var[1]])

    sigma2 = 1 / (1 + np.exp(np.float64([high, low])))
    one_minus_r = -np.expm1(np.float64(low) - np.float64(high))
    alpha_s = np.sqrt(1 / (1 + np.exp(-np.float64(high))))
    expected = one_minus_r * np.array([alpha_s, sigma2[0], sigma2[1]])
    np.testing.assert_allclose(variances(*single), expected, rtol=1e-5)
