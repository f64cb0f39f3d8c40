"""Laws of classifier-free guidance and of thresholding."""

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
MEANS = np.array([0.8, -0.3, 0.1])  # of the classes; without a class it is 0.25
NO_CLASS, SPREAD = 0.25, 0.5


def denoise(z, level, cond):
    """Exact denoiser of class-conditional Gaussians; no class where keep is false."""
    mean = jnp.asarray(MEANS, z.dtype)[cond["label"]]
    mean = jnp.where(cond["keep"]["label"], mean, jnp.asarray(NO_CLASS, z.dtype))
    return gaussian(mean, SPREAD)(z, level, cond)


def unconditional(cond):
    return {**cond, "keep": jax.tree.map(jnp.zeros_like, cond["keep"])}


def condition(b=B):
    labels = jnp.asarray(np.resize(np.arange(3), b))
    return {"label": labels, "keep": {"label": jnp.ones((b,), bool)}}


def noise(dtype=np.float64, shape=SHAPE):
    return jnp.asarray(np.random.default_rng(3).standard_normal(shape), dtype)


def guided(scales, inner=denoise):
    return guidance.cfg(inner, unconditional, guidance.linear(jnp.asarray(scales)))


@pytest.mark.parametrize("logsnr", LEVELS)
def test_a_scale_of_one_is_no_guidance(logsnr, x64):
    z, cond, level = noise(), condition(), level_at(logsnr)
    actual, plain = guided([1.0])(z, level, cond), denoise(z, level, cond)
    np.testing.assert_allclose(actual.x, plain.x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(actual.eps, plain.eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("logsnr", LEVELS)
@pytest.mark.parametrize("scale", [1.5, 4.0, 0.0])
def test_x_v_and_eps_spaces_are_equivalent(scale, logsnr):
    """u + s (c - u) of x, eps or v is one prediction; alpha x + sigma eps = z."""
    z, cond, level = noise(np.float32), condition(), level_at(logsnr, dtype=np.float32)
    actual = guided(np.float32([scale]))(z, level, cond)
    assert isinstance(actual, process.Prediction) and actual.x.dtype == jnp.float32
    c, u = (denoise(z, level, k) for k in (cond, unconditional(cond)))
    spaces = {
        "x": lambda p: p.x,
        "eps": lambda p: p.eps,
        "v": lambda p: process.velocity(p, level),
    }
    for name, of in spaces.items():
        expected = of(u) + scale * (of(c) - of(u))
        np.testing.assert_allclose(of(actual), expected, atol=1e-5, err_msg=name)
    z_again = level.alpha * actual.x + level.sigma * actual.eps
    np.testing.assert_allclose(z_again, z, atol=1e-5)


@pytest.mark.parametrize("logsnr", LEVELS)
def test_gaussian_classes_move_their_mean(logsnr, x64):
    """Equal covariances: the exact denoiser of N(u + s (c - u), SPREAD^2)."""
    z, cond, level, scale = noise(), condition(), level_at(logsnr), 3.5
    mean = jnp.asarray(NO_CLASS + scale * (MEANS - NO_CLASS))
    expected = gaussian(mean, SPREAD)(z, level, None)
    actual = guided([scale])(z, level, cond)
    np.testing.assert_allclose(actual.x, expected.x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(actual.eps, expected.eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler", [samplers.ddim(), samplers.ancestral(0.3)])
def test_guided_sampling_draws_from_the_moved_gaussian(sampler, x64):
    scale, n, cond, z = 2.5, 8, condition(), noise()
    mean = jnp.asarray(NO_CLASS + scale * (MEANS - NO_CLASS))
    draws = jnp.asarray(np.random.default_rng(4).standard_normal((n, *SHAPE)))
    table = sampler.table(schedules.Cosine(), n)
    actual, expected = (
        final_z(sampler, fn, z, table, 0, n, lambda i, _: draws[i], cond)
        for fn in (
            guided(np.full(n, scale)),
            gaussian(mean, SPREAD),
        )
    )
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


def test_scales_are_looked_up_by_the_index_of_the_step(x64):
    scales = np.array([16.0, 2.0, 16.0, 1.0, 3.0])
    z, cond = noise(), condition()

    @jax.jit
    def at_index(scales, index):
        level = level_at(1.0)._replace(step_index=index)
        return guided(scales)(z, level, cond).x

    c, u = (denoise(z, level_at(1.0), k).x for k in (cond, unconditional(cond)))
    for i, scale in enumerate(scales):
        expected = u + scale * (c - u)
        actual = at_index(scales, i)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
    assert at_index._cache_size() == 1


def test_a_step_of_the_loop_takes_its_own_scale(x64):
    """Guidance only in the last step: the plain run, then one guided step."""
    sampler, n, cond, z = samplers.ddim(), 4, condition(), noise()
    table = sampler.table(schedules.Cosine(), n)

    def run(fn, z, start, stop):
        return final_z(sampler, fn, z, table, start, stop, None, cond)

    actual = run(guided([1.0, 1.0, 1.0, 4.0]), z, 0, n)
    expected = run(guided(np.full(n, 4.0)), run(denoise, z, 0, n - 1), n - 1, n)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
    assert np.abs(actual - run(denoise, z, 0, n)).max() > 0.1


def test_one_scale_serves_every_step(x64):
    z, cond = noise(), condition()
    for index in (0, 3, 1000):
        level = level_at(1.0, index)
        actual, expected = (
            guided(2.5)(z, level, cond),
            guided([2.5])(z, level_at(1.0), cond),
        )
        np.testing.assert_array_equal(actual.x, expected.x)


@pytest.mark.parametrize("shape", [(B,), (B, 2)])
def test_scales_per_example_and_per_frame(shape, x64):
    scales = np.random.default_rng(5).uniform(1, 5, (6, *shape))
    z, cond, level = noise(), condition(), level_at(0.5, step_index=2)
    c, u = (denoise(z, level, k).x for k in (cond, unconditional(cond)))
    s = append_axes(scales[2])
    np.testing.assert_allclose(
        guided(scales)(z, level, cond).x, u + s * (c - u), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("levels", [1.0, np.array([-3.0, 0.0, 5.0])])
def test_both_branches_are_one_interleaved_call(levels, x64):
    """[b, ...] -> [b, 2, ...] -> [2b, ...]: one call, the branches adjacent."""
    calls = []

    def recording(z, level, cond):
        calls.append((z, level, cond))
        return denoise(z, level, cond)

    z, cond, level = noise(), condition(), level_at(levels)
    actual = guided([3.0], recording)(z, level, cond)
    assert actual.x.shape == actual.eps.shape == z.shape
    ((seen_z, seen_level, seen_cond),) = calls
    assert seen_z.shape == (2 * B, *SHAPE[1:])
    np.testing.assert_array_equal(seen_z[0::2], z)
    np.testing.assert_array_equal(seen_z[1::2], z)
    np.testing.assert_array_equal(seen_cond["label"], np.repeat(cond["label"], 2))
    keep = np.asarray(seen_cond["keep"]["label"]).reshape(B, 2)
    assert (keep.sum(1) == 1).all(), "one branch keeps its condition, one drops it"
    for name in ("logsnr", "alpha", "sigma"):
        values, expected = getattr(seen_level, name), getattr(level, name)
        full = np.broadcast_to(values, (2 * B,))
        np.testing.assert_array_equal(full, np.repeat(np.broadcast_to(expected, B), 2))
    # Each example has its own level and its own class in both branches.
    c, u = (denoise(z, level, k).x for k in (cond, unconditional(cond)))
    np.testing.assert_allclose(actual.x, 3 * c - 2 * u, rtol=0, atol=1e-12)


@pytest.mark.parametrize("levels", [1.0, np.array([-3.0, 0.0, 5.0])])
def test_three_branches_of_one_call_are_three_calls(levels, x64):
    """Two weights, as for text and image: u + 2 (c - u) - 3 (o - u)."""
    conds = (
        lambda cond: cond,
        unconditional,
        lambda cond: {**cond, "label": (cond["label"] + 1) % 3},
    )
    calls = []

    def counted(z, level, cond):
        calls.append(z.shape[0])
        return denoise(z, level, cond)

    def combine(level, c, u, o):
        return process.Prediction(
            *(u + 2 * (c - u) - 3 * (o - u) for c, u, o in zip(c, u, o, strict=True))
        )

    z, cond, level = noise(), condition(), level_at(levels)
    actual = guidance.branches(counted, conds, combine)(z, level, cond)
    assert calls == [3 * B]
    apart = [denoise(z, level, branch(cond)) for branch in conds]
    assert all(np.abs(apart[0].x - each.x).max() > 1e-6 for each in apart[1:])
    expected = combine(level, *apart)
    np.testing.assert_allclose(actual.x, expected.x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(actual.eps, expected.eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("logsnr", LEVELS)
@pytest.mark.parametrize("limit", [1.0, 0.4])
def test_static_threshold_clips_x_and_recomputes_eps(logsnr, limit, x64):
    z, cond, level = 3 * noise(), condition(), level_at(logsnr)
    wild = lambda z, level, cond: process.from_x(2 * z, z, level)  # noqa: E731
    plain = wild(z, level, cond)
    actual = guidance.clip_x(wild, limit=limit)(z, level, cond)
    expected = np.clip(plain.x, -limit, limit)
    assert (np.abs(plain.x) > limit).any()
    np.testing.assert_allclose(actual.x, expected, rtol=0, atol=1e-12)
    z_again = level.alpha * actual.x + level.sigma * actual.eps
    np.testing.assert_allclose(z_again, z, rtol=0, atol=1e-12)


def test_static_threshold_clips_at_one_by_default(x64):
    wild = lambda z, level, cond: process.from_x(2 * z, z, level)  # noqa: E731
    actual = guidance.clip_x(wild)(3 * noise(), level_at(0.0), None)
    assert np.abs(actual.x).max() == 1


def test_static_threshold_keeps_x_within_the_limit(x64):
    z, cond, level = noise(), condition(), level_at(-2.0)
    plain = denoise(z, level, cond)
    actual = guidance.clip_x(denoise, limit=10.0)(z, level, cond)
    np.testing.assert_array_equal(actual.x, plain.x)
    np.testing.assert_allclose(actual.eps, plain.eps, rtol=0, atol=1e-12)


def test_guidance_then_threshold(x64):
    """The clip acts on the guided x."""
    z, cond, level = noise(), condition(), level_at(1.0)
    actual = guidance.clip_x(guided([5.0]))(z, level, cond)
    expected = np.clip(guided([5.0])(z, level, cond).x, -1, 1)
    np.testing.assert_allclose(actual.x, expected, rtol=0, atol=1e-12)


# Guidance scales of the steps.


def test_interval_scales_are_on_between_two_levels():
    logsnr = schedules.noise_level(schedules.Cosine(), np.linspace(1, 0.1, 10)).logsnr
    scales = guidance.interval(logsnr, 3.0, low=-4.0, high=logsnr[6])
    on = (logsnr >= -4.0) & (logsnr <= logsnr[6])
    assert on.any() and not on.all()
    np.testing.assert_array_equal(scales, np.where(on, 3.0, 1.0))


@pytest.mark.parametrize("n, high_first", [(20, 2), (11, 2), (4, 1), (1, 1)])
def test_oscillating_scales_are_high_first_then_alternate(n, high_first):
    scales = guidance.oscillating(n, 15.0, 1.0)
    after = np.resize([1.0, 15.0], n - high_first)
    np.testing.assert_array_equal(scales, [15.0] * high_first + list(after))


def test_oscillating_scales_with_another_first_fraction():
    scales = guidance.oscillating(6, 15.0, 1.0, first_fraction=0.5)
    np.testing.assert_array_equal(scales, [15.0, 15.0, 15.0, 1.0, 15.0, 1.0])


def test_scales_that_increase_over_the_frames(x64):
    scales = np.tile(np.linspace(1.0, 2.5, SHAPE[1]), (6, 1, 1))
    z, cond, level = noise(), condition(), level_at(0.5, step_index=2)
    c, u = (denoise(z, level, k).x for k in (cond, unconditional(cond)))
    actual = guided(scales)(z, level, cond).x
    for frame, s in enumerate([1.0, 2.5]):
        expected = u[:, frame] + s * (c[:, frame] - u[:, frame])
        np.testing.assert_allclose(actual[:, frame], expected, rtol=0, atol=1e-12)


# Modes of classifier-free guidance.


def two_predictions(level, dtype=np.float64):
    """Return z and two independent predictions with alpha x + sigma eps = z."""
    z, cond, uncond = (
        jnp.asarray(np.random.default_rng(i).standard_normal(SHAPE), dtype)
        for i in range(3)
    )
    cond = 0.3 + 0.5 * cond
    return z, process.from_x(cond, z, level), process.from_x(uncond, z, level)


def along_videos(x):
    return np.asarray(x).reshape(B, -1)


@pytest.mark.parametrize("logsnr", LEVELS)
@pytest.mark.parametrize("w", [0.0, 0.3, 1.0, 7.5, 15.0])
@pytest.mark.parametrize("dtype, tolerance", [("f4", 1e-6), ("f8", 1e-12)])
def test_the_scale_is_one_more_than_the_weight_of_vdm(w, logsnr, dtype, tolerance, x64):
    """u + s (c - u) is (1 + w) c - w u of the paper, in another order of the sums."""
    level = level_at(logsnr, dtype=dtype)
    _, cond, uncond = two_predictions(level, dtype)
    actual = guidance.linear(jnp.asarray(w + 1))(level, cond, uncond)
    for new, c, u in zip(actual, cond, uncond, strict=True):
        paper = (1 + w) * c - w * u
        assert new.dtype == paper.dtype == dtype
        np.testing.assert_allclose(
            new, paper, rtol=0, atol=tolerance * np.abs(paper).max()
        )


@pytest.mark.parametrize("name", list(guidance.CFG_MODES))
@pytest.mark.parametrize("logsnr", LEVELS)
def test_every_cfg_mode_is_consistent_with_z_and_off_at_one(name, logsnr, x64):
    level = level_at(logsnr, step_index=1)
    z, cond, uncond = two_predictions(level)
    scales = jnp.asarray([1.0, 5.0])
    actual = guidance.CFG_MODES[name](scales)(level, cond, uncond)
    z_again = level.alpha * actual.x + level.sigma * actual.eps
    np.testing.assert_allclose(z_again, z, rtol=0, atol=1e-9)
    assert np.abs(actual.x - cond.x).max() > 0.1
    if name == "rescaled":  # its default phi keeps part of the standard deviation
        return
    off = guidance.CFG_MODES[name](scales)(level._replace(step_index=0), cond, uncond)
    np.testing.assert_allclose(off.x, cond.x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(off.eps, cond.eps, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescaled_restores_the_standard_deviation_of_a_video(phi, x64):
    """phi std(c) / std(cfg) + 1 - phi, times the x of plain guidance."""
    level, scale = level_at(-1.0), jnp.asarray(5.0)
    _, cond, uncond = two_predictions(level)
    actual = guidance.rescaled(scale, phi)(level, cond, uncond)
    plain = guidance.linear(scale)(level, cond, uncond).x
    target, wide = along_videos(cond.x).std(1), along_videos(plain).std(1)
    assert (wide > 1.5 * target).all()
    ratio = along_videos(actual.x) / along_videos(plain)
    expected = phi * target / wide + 1 - phi
    np.testing.assert_allclose(ratio, np.tile(expected[:, None], 32), rtol=1e-9)
    if phi == 1:
        np.testing.assert_allclose(along_videos(actual.x).std(1), target, rtol=1e-9)


def test_a_scale_of_one_is_no_rescaling(x64):
    level = level_at(-1.0)
    _, cond, uncond = two_predictions(level)
    actual = guidance.rescaled(jnp.asarray(1.0))(level, cond, uncond)
    np.testing.assert_allclose(actual.x, cond.x, rtol=0, atol=1e-12)


def test_projected_guidance_removes_the_part_along_x(x64):
    level, scale = level_at(-1.0), jnp.asarray(5.0)
    _, cond, uncond = two_predictions(level)
    plain = guidance.linear(scale)(level, cond, uncond)
    whole = guidance.projected(scale, eta=1.0)(level, cond, uncond)
    np.testing.assert_allclose(whole.x, plain.x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(whole.eps, plain.eps, rtol=0, atol=1e-12)
    across = along_videos(guidance.projected(scale)(level, cond, uncond).x - cond.x)
    x, change = along_videos(cond.x), along_videos(plain.x - cond.x)
    np.testing.assert_allclose((across * x).sum(1), 0, atol=1e-9)
    # The removed part is along x; eta 0.5 keeps half of it.
    along = change - across
    fraction = (change * x).sum(1, keepdims=True) / (x**2).sum(1, keepdims=True)
    np.testing.assert_allclose(along, fraction * x, rtol=0, atol=1e-12)
    half = guidance.projected(scale, eta=0.5)(level, cond, uncond).x - cond.x
    np.testing.assert_allclose(along_videos(half), across + along / 2, atol=1e-12)


# Dynamic thresholding.

RAW = np.array([-3, -1, 0.5, 0.2, 2, 0.1, 0, 1.5, -0.5, 0.9])
THRESHOLDED = [-1, -0.476190, 0.238095, 0.095238, 0.952381]
THRESHOLDED += [0.047619, 0, 0.714286, -0.238095, 0.428571]  # by s = 2.1


def fixed(x):
    return lambda z, level, cond: process.from_x(x, z, level)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_dynamic_threshold_vector(frames, x64):
    """One s for all frames of a video, its own for each video, never below 1."""
    shape = (2, frames, 10 // frames, 1, 1)
    x = jnp.asarray(np.stack([RAW, RAW / 4])).reshape(shape)
    z, level = 2 * noise(shape=shape), level_at(0.7)
    actual = guidance.dynamic_threshold(fixed(x), percentile=90)(z, level, None)
    first, second = np.asarray(actual.x).reshape(2, 10)
    np.testing.assert_allclose(first, THRESHOLDED, rtol=0, atol=5e-7)
    np.testing.assert_allclose(first, np.clip(RAW, -2.1, 2.1) / 2.1, atol=1e-12)
    np.testing.assert_array_equal(second, RAW / 4)
    z_again = level.alpha * actual.x + level.sigma * actual.eps
    np.testing.assert_allclose(z_again, z, rtol=0, atol=1e-12)


@pytest.mark.parametrize("percentile", [1, 37.5, 60, 99.5, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dynamic_threshold_is_by_the_quantile(percentile, dtype, x64):
    """Also among equal values, zeros and values of very different size."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 2, 5, 5, 1)) * np.array([1, 1e-30, 1e30]).reshape(
        3, 1, 1, 1, 1
    )
    x[0, 0] = 0
    x[1, :, 0] = x[1, 0, 0, 0]
    x = (2 * x).astype(dtype)
    z, level = jnp.zeros_like(x), level_at(0.0, dtype=dtype)
    actual = guidance.dynamic_threshold(fixed(jnp.asarray(x)), percentile)(
        z, level, None
    ).x
    sizes = np.abs(x.astype(np.float64)).reshape(3, -1)
    s = np.maximum(np.quantile(sizes, percentile / 100, axis=1), 1)
    s = s.reshape(3, 1, 1, 1, 1)
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual, np.clip(x, -s, s) / s, rtol=1e-6)


def test_dynamic_threshold_stays_in_range_by_default():
    x = 3 * noise(np.float32)
    actual = guidance.dynamic_threshold(fixed(x))(
        x, level_at(0.0, dtype=np.float32), None
    )
    assert actual.x.dtype == jnp.float32 and np.abs(actual.x).max() == 1
