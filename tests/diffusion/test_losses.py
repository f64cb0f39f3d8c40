"""Laws of the weightings and of the diffusion loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.analytic import WEIGHTINGS_ON_X, append_axes, level_at
from vdm_jax.diffusion import losses, process, schedules

LEVELS = np.array([-20.0, -5.0, -1.0, 0.0, 1.5, 1.7, 5.0, 20.0])
SHAPE = (len(LEVELS), 3, 2, 2, 1)


def videos(count, dtype=np.float64, shape=SHAPE):
    rng = np.random.default_rng(1)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(count)]


def network(out, kind="v"):
    """Return a denoiser whose network outputs `out` for every input."""
    return lambda z, level, cond: process.PREDICTION_TYPES[kind](out, z, level)


def example_mean(a):
    return np.mean(np.asarray(a), axis=(1, 2, 3, 4))


def test_the_table_has_these_weightings():
    assert set(losses.WEIGHTINGS) == set(WEIGHTINGS_ON_X)


@pytest.mark.parametrize("name", list(WEIGHTINGS_ON_X))
def test_weightings_by_their_definition_on_x(name, x64):
    x, eps, out = videos(3)
    level = level_at(LEVELS)
    loss = losses.diffusion_loss(network(out), x, eps, level, None, weighting=name)
    assert loss.shape == LEVELS.shape
    prediction = network(out)(process.diffuse(x, eps, level), level, None)
    expected = WEIGHTINGS_ON_X[name](np.exp(LEVELS)) * example_mean(
        (x - prediction.x) ** 2
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-9)


def test_snr_identities(x64):
    """eps error = SNR x error, v error = (1 + SNR) x error, truncated = the larger."""
    x, eps, out = videos(3)
    level = level_at(LEVELS)
    loss = {
        name: losses.diffusion_loss(network(out), x, eps, level, None, weighting=name)
        for name in WEIGHTINGS_ON_X
    }
    z = process.diffuse(x, eps, level)
    prediction_by_hand = process.PREDICTION_TYPES["v"](out, z, level)
    v = append_axes(level.alpha) * eps - append_axes(level.sigma) * x
    x_error = example_mean((x - prediction_by_hand.x) ** 2)
    eps_error = example_mean((eps - prediction_by_hand.eps) ** 2)
    v_error = example_mean((v - out) ** 2)
    for name, expected in {
        "constant": x_error,
        "snr": eps_error,
        "truncated_snr": np.maximum(x_error, eps_error),
        "snr_plus_one": v_error,
    }.items():
        np.testing.assert_allclose(loss[name], expected, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("name", list(WEIGHTINGS_ON_X))
def test_weights_on_the_v_error_are_bounded(name):
    level = level_at(np.linspace(-20, 20, 401), dtype=np.float32)
    weight = np.asarray(losses.WEIGHTINGS[name](level))
    assert weight.shape in [(401,), ()]
    most = 2.0001 if name == "flow" else 1  # (alpha + sigma)^2
    assert np.isfinite(weight).all()
    assert (weight >= 0).all() and (weight <= most).all()


@pytest.mark.parametrize("kind", ["v", "eps", "x"])
@pytest.mark.parametrize("name", list(WEIGHTINGS_ON_X))
def test_loss_and_gradient_are_finite_at_the_ends(name, kind):
    x, eps, out = videos(3, np.float32)
    level = level_at(np.resize([-20.0, 20.0], len(x)), dtype=np.float32)

    def loss(out):
        return losses.diffusion_loss(
            network(out, kind), x, eps, level, None, weighting=name
        )

    value, gradient = jax.jit(
        lambda out: (loss(out), jax.grad(lambda o: jnp.mean(loss(o)))(out))
    )(out)
    assert value.dtype == jnp.float32
    assert np.isfinite(value).all() and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", list(WEIGHTINGS_ON_X))
def test_float32_of_a_v_network_is_accurate_at_every_level(name):
    arrays = videos(3, np.float32)
    level = level_at(LEVELS, dtype=np.float32)
    x, eps, out = arrays
    loss = losses.diffusion_loss(network(out), x, eps, level, None, weighting=name)
    x, eps, out = (np.float64(a) for a in arrays)
    alpha, sigma = (np.sqrt(1 / (1 + np.exp(-s * LEVELS))) for s in (1, -1))
    v = append_axes(alpha) * eps - append_axes(sigma) * x
    weight = WEIGHTINGS_ON_X[name](np.exp(LEVELS)) * sigma**2
    np.testing.assert_allclose(loss, weight * example_mean((v - out) ** 2), rtol=1e-5)


def test_loss_of_a_network_that_outputs_zero(x64):
    """alpha^2 + sigma^2 E[x^2], and (1 + E[x^2]) / 2 over all times.

    eps is +-1 and orthogonal to x in every example, so that no average is left.
    """
    n, shape = 64, (64, 2, 4, 4, 1)
    signs = np.resize([1.0, -1.0], shape[2:])
    eps = jnp.asarray(np.broadcast_to(signs, shape))
    x = jnp.full(shape, 0.6)
    t = (np.arange(n) + 0.5) / n
    level = schedules.noise_level(schedules.Cosine(), t)
    loss = losses.diffusion_loss(network(jnp.zeros(shape)), x, eps, level, None)
    np.testing.assert_allclose(loss, level.alpha**2 + 0.36 * level.sigma**2, rtol=1e-12)
    np.testing.assert_allclose(jnp.mean(loss), (1 + 0.36) / 2, rtol=1e-12)


def test_a_perfect_network_has_no_loss(x64):
    x, eps = videos(2)
    level = level_at(LEVELS)
    v = append_axes(level.alpha) * eps - append_axes(level.sigma) * x
    for name in WEIGHTINGS_ON_X:
        loss = losses.diffusion_loss(network(v), x, eps, level, None, weighting=name)
        np.testing.assert_allclose(loss, 0, atol=1e-24)


def test_the_denoiser_gets_z_the_level_and_the_condition(x64):
    x, eps, out = videos(3)
    level = level_at(LEVELS)
    calls = []

    def denoise(z, level, cond):
        calls.append((z, level, cond))
        return process.PREDICTION_TYPES["v"](out, z, level)

    cond = {"label": jnp.arange(len(x))}
    losses.diffusion_loss(denoise, x, eps, level, cond)
    ((z, actual, passed),) = calls
    np.testing.assert_allclose(
        z, append_axes(level.alpha) * x + append_axes(level.sigma) * eps, atol=1e-15
    )
    np.testing.assert_array_equal(actual.logsnr, LEVELS)
    assert passed is cond


@pytest.mark.parametrize("name", list(WEIGHTINGS_ON_X))
def test_levels_per_frame(name, x64):
    """With one level per frame the loss is the mean of the frames' losses."""
    x, eps, out = videos(3, shape=(2, 3, 2, 2, 1))
    levels = np.array([[-7.0, 0.3, 6.0], [2.0, -1.0, 12.0]])
    together = losses.diffusion_loss(
        network(out), x, eps, level_at(levels), None, weighting=name
    )
    alone = [
        losses.diffusion_loss(
            network(out[:, i : i + 1]),
            x[:, i : i + 1],
            eps[:, i : i + 1],
            level_at(levels[:, i]),
            None,
            weighting=name,
        )
        for i in range(3)
    ]
    np.testing.assert_allclose(together, np.mean(alone, axis=0), rtol=1e-12)
