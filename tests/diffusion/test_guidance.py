"""Laws of guidance and thresholding: T-CFG."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion import guidance, process, samplers, schedules

B, SHAPE = 3, (3, 2, 4, 4, 1)
LEVELS = [-20.0, -4.0, 0.0, 4.0, 20.0]
MEANS = np.array([0.8, -0.3, 0.1])  # of the classes; without a class it is 0.25
NO_CLASS, SPREAD = 0.25, 0.5


def at(logsnr, index=0, dtype=np.float64):
    logsnr = np.asarray(logsnr, np.float64)
    alpha = np.sqrt(1 / (1 + np.exp(-logsnr)))
    sigma = np.sqrt(1 / (1 + np.exp(logsnr)))
    levels = (jnp.asarray(a, dtype) for a in (logsnr, alpha, sigma))
    return schedules.Step(jnp.asarray(index), *levels)


def over(a, like):
    return jnp.reshape(a, jnp.shape(a) + (1,) * (like.ndim - jnp.ndim(a)))


def gaussian(mean, spread, z, step):
    """E[x|z] for x ~ N(mean, spread^2), and the eps that goes with it."""
    alpha, sigma, mean = (over(a, z) for a in (step.alpha, step.sigma, mean))
    variance = alpha**2 * spread**2 + sigma**2
    x = mean + alpha * spread**2 * (z - alpha * mean) / variance
    return process.Prediction(x, sigma * (z - alpha * mean) / variance)


def denoise(z, step, cond):
    """Exact denoiser of class-conditional Gaussians; no class where keep is false."""
    mean = jnp.asarray(MEANS, z.dtype)[cond["label"]]
    mean = jnp.where(cond["keep"]["label"], mean, jnp.asarray(NO_CLASS, z.dtype))
    return gaussian(mean, SPREAD, z, step)


def null(cond):
    return {**cond, "keep": jax.tree.map(jnp.zeros_like, cond["keep"])}


def condition(b=B):
    labels = jnp.asarray(np.resize(np.arange(3), b))
    return {"label": labels, "keep": {"label": jnp.ones((b,), bool)}}


def noise(dtype=np.float64, shape=SHAPE):
    return jnp.asarray(np.random.default_rng(3).standard_normal(shape), dtype)


def loop(sampler, denoise, z, table, start, stop, noise, cond):
    carry = sampler.init(z)
    return samplers.loop(sampler, denoise, carry, table, start, stop, noise, cond)[0]


def guided(weights, inner=denoise):
    return guidance.cfg(inner, null, guidance.linear(jnp.asarray(weights)))


@pytest.mark.parametrize("logsnr", LEVELS)
def test_no_weight_is_no_guidance(logsnr, x64):
    z, cond, step = noise(), condition(), at(logsnr)
    found, plain = guided([0.0])(z, step, cond), denoise(z, step, cond)
    np.testing.assert_allclose(found.x, plain.x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.eps, plain.eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("logsnr", LEVELS)
@pytest.mark.parametrize("w", [0.5, 3.0, -1.0])
def test_x_v_and_eps_spaces_are_equivalent(w, logsnr):
    """(1+w) c - w u of x, of eps and of v are one prediction, which still fits z."""
    z, cond, step = noise(np.float32), condition(), at(logsnr, dtype=np.float32)
    found = guided(np.float32([w]))(z, step, cond)
    assert isinstance(found, process.Prediction) and found.x.dtype == jnp.float32
    c, u = (denoise(z, step, k) for k in (cond, null(cond)))
    spaces = {
        "x": lambda p: p.x,
        "eps": lambda p: p.eps,
        "v": lambda p: process.velocity(p, step),
    }
    for name, of in spaces.items():
        expected = (1 + w) * of(c) - w * of(u)
        np.testing.assert_allclose(of(found), expected, atol=1e-5, err_msg=name)
    z_again = step.alpha * found.x + step.sigma * found.eps
    np.testing.assert_allclose(z_again, z, atol=1e-5)


@pytest.mark.parametrize("logsnr", LEVELS)
def test_gaussian_classes_move_their_mean(logsnr, x64):
    """Equal covariances: guidance is the exact denoiser of N(c + w (c - u), s^2)."""
    z, cond, step, w = noise(), condition(), at(logsnr), 2.5
    mean = jnp.asarray(MEANS + w * (MEANS - NO_CLASS))
    expected = gaussian(mean, SPREAD, z, step)
    found = guided([w])(z, step, cond)
    np.testing.assert_allclose(found.x, expected.x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.eps, expected.eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler", [samplers.ddim(), samplers.ancestral(0.3)])
def test_guided_sampling_draws_from_the_moved_gaussian(sampler, x64):
    w, n, cond, z = 1.5, 8, condition(), noise()
    mean = jnp.asarray(MEANS + w * (MEANS - NO_CLASS))
    draws = jnp.asarray(np.random.default_rng(4).standard_normal((n, *SHAPE)))
    table = sampler.table(schedules.Cosine(), n)
    found, expected = (
        loop(sampler, fn, z, table, 0, n, lambda i, _: draws[i], cond)
        for fn in (guided(np.full(n, w)), lambda z, s, _: gaussian(mean, SPREAD, z, s))
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_weights_are_looked_up_by_the_index_of_the_step(x64):
    weights = np.array([15.0, 1.0, 15.0, 0.0, 2.0])
    z, cond = noise(), condition()

    @jax.jit
    def at_index(weights, index):
        step = at(1.0)._replace(index=index)
        return guided(weights)(z, step, cond).x

    c, u = (denoise(z, at(1.0), k).x for k in (cond, null(cond)))
    for i, w in enumerate(weights):
        expected = (1 + w) * c - w * u
        found = at_index(weights, i)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert at_index._cache_size() == 1


def test_a_step_of_the_loop_takes_its_own_weight(x64):
    """Weight only in the last step: the same as the plain run, then one guided step."""
    sampler, n, cond, z = samplers.ddim(), 4, condition(), noise()
    table = sampler.table(schedules.Cosine(), n)

    def run(fn, z, start, stop):
        return loop(sampler, fn, z, table, start, stop, None, cond)

    found = run(guided([0.0, 0.0, 0.0, 3.0]), z, 0, n)
    expected = run(guided(np.full(n, 3.0)), run(denoise, z, 0, n - 1), n - 1, n)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert np.abs(found - run(denoise, z, 0, n)).max() > 0.1


def test_one_weight_serves_every_step(x64):
    z, cond = noise(), condition()
    for index in (0, 3, 1000):
        step = at(1.0, index)
        found, expected = guided(2.5)(z, step, cond), guided([2.5])(z, at(1.0), cond)
        np.testing.assert_array_equal(found.x, expected.x)


@pytest.mark.parametrize("shape", [(B,), (B, 2)])
def test_weights_per_example_and_per_frame(shape, x64):
    weights = np.random.default_rng(5).uniform(0, 4, (6, *shape))
    z, cond, step = noise(), condition(), at(0.5, index=2)
    c, u = (denoise(z, step, k).x for k in (cond, null(cond)))
    w = over(weights[2], z)
    np.testing.assert_allclose(
        guided(weights)(z, step, cond).x, (1 + w) * c - w * u, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("levels", [1.0, np.array([-3.0, 0.0, 5.0])])
def test_both_branches_are_one_interleaved_call(levels, x64):
    """[b, ...] -> [b, 2, ...] -> [2b, ...]: one call, the twins side by side."""
    calls = []

    def recording(z, step, cond):
        calls.append((z, step, cond))
        return denoise(z, step, cond)

    z, cond, step = noise(), condition(), at(levels)
    found = guided([2.0], recording)(z, step, cond)
    assert found.x.shape == found.eps.shape == z.shape
    ((seen, seen_step, seen_cond),) = calls
    assert seen.shape == (2 * B, *SHAPE[1:])
    np.testing.assert_array_equal(seen[0::2], z)
    np.testing.assert_array_equal(seen[1::2], z)
    np.testing.assert_array_equal(seen_cond["label"], np.repeat(cond["label"], 2))
    keep = np.asarray(seen_cond["keep"]["label"]).reshape(B, 2)
    assert (keep.sum(1) == 1).all(), "one twin keeps its condition, one drops it"
    for name in ("logsnr", "alpha", "sigma"):
        values, given = getattr(seen_step, name), getattr(step, name)
        full = np.broadcast_to(values, (2 * B,))
        np.testing.assert_array_equal(full, np.repeat(np.broadcast_to(given, B), 2))
    # Each example got its own twin, its own level and its own class.
    c, u = (denoise(z, step, k).x for k in (cond, null(cond)))
    np.testing.assert_allclose(found.x, 3 * c - 2 * u, rtol=0, atol=1e-12)


@pytest.mark.parametrize("logsnr", LEVELS)
@pytest.mark.parametrize("limit", [1.0, 0.4])
def test_static_threshold_clips_x_and_rebuilds_eps(logsnr, limit, x64):
    z, cond, step = 3 * noise(), condition(), at(logsnr)
    wild = lambda z, step, cond: process.with_x(2 * z, z, step)  # noqa: E731
    plain = wild(z, step, cond)
    found = guidance.clip_x(wild, limit=limit)(z, step, cond)
    expected = np.clip(plain.x, -limit, limit)
    assert (np.abs(plain.x) > limit).any()
    np.testing.assert_allclose(found.x, expected, rtol=0, atol=1e-12)
    z_again = step.alpha * found.x + step.sigma * found.eps
    np.testing.assert_allclose(z_again, z, rtol=0, atol=1e-12)


def test_static_threshold_clips_at_one_by_default(x64):
    wild = lambda z, step, cond: process.with_x(2 * z, z, step)  # noqa: E731
    found = guidance.clip_x(wild)(3 * noise(), at(0.0), None)
    assert np.abs(found.x).max() == 1


def test_static_threshold_leaves_what_is_within(x64):
    z, cond, step = noise(), condition(), at(-2.0)
    plain = denoise(z, step, cond)
    found = guidance.clip_x(denoise, limit=10.0)(z, step, cond)
    np.testing.assert_array_equal(found.x, plain.x)
    np.testing.assert_allclose(found.eps, plain.eps, rtol=0, atol=1e-12)


def test_guidance_then_threshold(x64):
    """The clip sees the guided x."""
    z, cond, step = noise(), condition(), at(1.0)
    found = guidance.clip_x(guided([4.0]))(z, step, cond)
    expected = np.clip(guided([4.0])(z, step, cond).x, -1, 1)
    np.testing.assert_allclose(found.x, expected, rtol=0, atol=1e-12)
