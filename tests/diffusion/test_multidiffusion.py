"""Laws of overlapping windows: coverage, averages, gradients, a program of one size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion import guidance, process, samplers, schedules
from vdm_jax.diffusion.multidiffusion import average_windows, axis_starts, window_starts

WHOLE, WINDOW = (7, 8, 5), (4, 4, 3)
SHAPE = (2, *WHOLE, 3)
STARTS = window_starts(WHOLE, WINDOW)
LEVEL = schedules.noise_level(schedules.Cosine(), np.float64(0.4), step_index=2)


def video(seed=0, shape=SHAPE):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def pointwise(z, level, cond):
    """Predict each pixel from itself alone."""
    return process.from_x(jnp.tanh(z + cond), z, level)


def mixing(z, level, cond):
    """Predict from the mean of the window and the position in it."""
    position = jnp.arange(z[0].size, dtype=z.dtype).reshape(1, *z.shape[1:]) / z[0].size
    x = jnp.tanh(z + z.mean((1, 2, 3, 4), keepdims=True) + position)
    return process.from_x(x, z, level)


def conditioned(z, level, cond):
    """Predict each pixel from itself and the condition at its position."""
    return process.from_x(jnp.tanh(z + cond["low"]), z, level)


def test_every_window_gets_its_own_part_of_the_condition():
    z, low = video(), video(1)

    def crop(cond, start):
        size = (len(z), *WINDOW, 3)
        return {"low": jax.lax.dynamic_slice(cond["low"], start, size)}

    whole = conditioned(z, LEVEL, {"low": low})
    parts = average_windows(conditioned, WINDOW, STARTS, crop)(z, LEVEL, {"low": low})
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def windows_one_by_one(denoise, z, level, cond):
    """Compute the average over windows one by one."""
    total, count = [jnp.zeros_like(z) for _ in "xe"], np.zeros(SHAPE)
    for start in STARTS:
        part = (slice(None), *(slice(a, a + n) for a, n in zip(start, WINDOW)))  # noqa: B905
        prediction = denoise(z[part], level, cond)
        total = [t.at[part].add(s) for t, s in zip(total, prediction, strict=True)]
        count[part] += 1
    return process.Prediction(*(t / count for t in total))


@pytest.mark.parametrize("length", [1, 4, 5, 8, 16, 17, 33])
@pytest.mark.parametrize("window, overlap", [(4, 0), (4, 1), (4, 2), (4, 3), (16, 8)])
def test_starts_cover_the_length_with_at_least_the_overlap(length, window, overlap):
    actual = axis_starts(length, window, overlap)
    if length <= window:
        assert actual == [0]
        return
    assert actual[0] == 0 and actual[-1] + window == length
    steps = np.diff(actual)
    assert (steps > 0).all() and (steps <= window - overlap).all()
    # There is no redundant window: all but the last have the largest stride.
    assert (steps[:-1] == window - overlap).all()


def test_window_starts_are_the_product_of_the_axes():
    expected = [
        (f, y, x)
        for f in axis_starts(7, 4, 2)
        for y in axis_starts(8, 4, 2)
        for x in axis_starts(5, 3, 1)
    ]
    assert STARTS.shape == (len(expected), 3)
    assert sorted(map(tuple, STARTS.tolist())) == sorted(expected)


def test_one_window_is_the_plain_denoiser():
    """They are equal bit for bit."""
    z = video()
    starts = window_starts(WHOLE, WHOLE)
    assert starts.tolist() == [[0, 0, 0]]
    actual, plain = (
        jax.jit(fn, static_argnums=2)(z, LEVEL, None)
        for fn in (average_windows(mixing, WHOLE, starts), mixing)
    )
    jax.tree.map(np.testing.assert_array_equal, actual, plain)


@pytest.mark.parametrize("window", [WINDOW, (7, 1, 2), (5, 7, 5)])
def test_windows_of_a_pointwise_denoiser_are_the_denoiser(window, x64):
    z, starts = video(), window_starts(WHOLE, window)
    actual = average_windows(pointwise, window, starts)(z, LEVEL, 0.3)
    plain = pointwise(z, LEVEL, 0.3)
    np.testing.assert_allclose(actual.x, plain.x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(actual.eps, plain.eps, rtol=0, atol=1e-12)


def test_predictions_are_averaged_where_windows_overlap(x64):
    z = video()
    actual = average_windows(mixing, WINDOW, STARTS)(z, LEVEL, None)
    expected = windows_one_by_one(mixing, z, LEVEL, None)
    np.testing.assert_allclose(actual.x, expected.x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(actual.eps, expected.eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_the_average_is_consistent_with_z(t, x64):
    z, level = video(), schedules.noise_level(schedules.Cosine(), np.float64(t))
    actual = average_windows(mixing, WINDOW, STARTS)(z, level, None)
    z_again = level.alpha * actual.x + level.sigma * actual.eps
    np.testing.assert_allclose(z_again, z, rtol=0, atol=1e-10)


def test_one_level_per_video(x64):
    z = video()
    t = jnp.asarray([0.2, 0.7])
    both = average_windows(mixing, WINDOW, STARTS)(
        z, schedules.noise_level(schedules.Cosine(), t), None
    )
    for i in range(2):
        level = schedules.noise_level(schedules.Cosine(), t[i : i + 1])
        alone = average_windows(mixing, WINDOW, STARTS)(z[i : i + 1], level, None)
        np.testing.assert_allclose(both.x[i : i + 1], alone.x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("denoise", [pointwise, mixing])
def test_reconstruction_guidance_differentiates_through_the_windows(denoise, x64):
    """Its gradient equals that of the explicit average."""
    z, known = video(), video(1)
    mask = jnp.asarray(np.random.default_rng(2).random(SHAPE) < 0.5)

    def guided(fn):
        residual = lambda x: jnp.where(mask, known - x, 0)  # noqa: E731
        return guidance.reconstruction_guidance(fn, residual, 2.0)(z, LEVEL, 0.3)

    actual = guided(average_windows(denoise, WINDOW, STARTS))
    expected = guided(lambda *args: windows_one_by_one(denoise, *args))
    np.testing.assert_allclose(actual.x, expected.x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(actual.eps, expected.eps, rtol=0, atol=1e-12)
    plain = guided(denoise)
    unguided = denoise(z, LEVEL, 0.3)
    assert np.isfinite(actual.x).all() and np.abs(plain.x - unguided.x).max() > 0.1
    if denoise is pointwise:
        np.testing.assert_allclose(actual.x, plain.x, rtol=0, atol=1e-12)


def test_a_whole_run_through_windows_is_the_plain_one(x64):
    sampler, z = samplers.dpm(), video()
    table = sampler.table(schedules.Cosine(), 4)
    actual, plain = (
        samplers.sample_loop(sampler, fn, sampler.init(z), table, 0, 4, None, 0.3)[0]
        for fn in (average_windows(pointwise, WINDOW, STARTS), pointwise)
    )
    np.testing.assert_allclose(actual, plain, rtol=0, atol=1e-10)


def test_the_program_does_not_grow_with_the_windows():
    """Traced calls and memory of the gradient are equal for few windows and many."""
    z, known = video(), video(1)

    def wide(z, level, cond):
        calls.append(z.shape)
        inner = jnp.tanh(jnp.einsum("bfhwc,cd->bfhwd", z, jnp.ones((3, 128))))
        return process.from_x(jnp.tanh(inner).sum(-1, keepdims=True) + z, z, level)

    traced, memory = [], []
    for starts in (STARTS, np.tile(STARTS, (5, 1))):
        calls = []
        fn = average_windows(wide, WINDOW, starts)
        fn = guidance.reconstruction_guidance(fn, lambda x: known - x, 1.0)
        program = jax.jit(lambda z, fn=fn: fn(z, LEVEL, None)).lower(z).compile()
        traced.append((len(calls), set(calls)))
        memory.append(program.memory_analysis().temp_size_in_bytes)
    few, many = traced
    assert few == many and many[1] == {(2, *WINDOW, 3)}
    assert memory[1] < 1.1 * memory[0], memory
