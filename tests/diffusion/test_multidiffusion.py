"""Laws of overlapping windows: coverage, averages, gradients, a program of one size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion import guidance, process, samplers, schedules
from vdm_jax.diffusion.multidiffusion import average_windows, axis_starts, window_starts

WHOLE, WINDOW, OVERLAP = (7, 8, 5), (4, 4, 3), (2, 1, 1)
SHAPE = (2, *WHOLE, 3)
WHERE = window_starts(WHOLE, WINDOW, OVERLAP)
STEP = schedules.noise_level(schedules.Cosine(), np.float64(0.4), step_step_index=2)


def video(seed=0, shape=SHAPE):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def pointwise(z, step, cond):
    """A denoiser that knows no place."""
    return process.from_x(jnp.tanh(z + cond), z, step)


def mixing(z, step, cond):
    """A denoiser for which the window matters: its mean, and places in it."""
    place = jnp.arange(z[0].size, dtype=z.dtype).reshape(1, *z.shape[1:]) / z[0].size
    x = jnp.tanh(z + z.mean((1, 2, 3, 4), keepdims=True) + place)
    return process.from_x(x, z, step)


def told_where(z, step, cond):
    """A denoiser that reads at every place what it is told there."""
    return process.from_x(jnp.tanh(z + cond["low"]), z, step)


def test_every_window_is_told_its_own_part():
    z, low = video(), video(1)

    def cut(cond, place):
        size = (len(z), *WINDOW, 3)
        return {"low": jax.lax.dynamic_slice(cond["low"], place, size)}

    whole = told_where(z, STEP, {"low": low})
    parts = average_windows(told_where, WINDOW, WHERE, cut)(z, STEP, {"low": low})
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def one_after_the_other(denoise, z, step, cond):
    """The average over windows, written out."""
    total, count = [jnp.zeros_like(z) for _ in "xe"], np.zeros(SHAPE)
    for place in WHERE:
        part = (slice(None), *(slice(a, a + n) for a, n in zip(place, WINDOW)))  # noqa: B905
        seen = denoise(z[part], step, cond)
        total = [t.at[part].add(s) for t, s in zip(total, seen, strict=True)]
        count[part] += 1
    return process.Prediction(*(t / count for t in total))


@pytest.mark.parametrize("length", [1, 4, 5, 8, 16, 17, 33])
@pytest.mark.parametrize("window, overlap", [(4, 0), (4, 1), (4, 2), (4, 3), (16, 8)])
def test_starts_cover_the_whole_with_the_overlap_asked_for(length, window, overlap):
    found = axis_starts(length, window, overlap)
    if length <= window:
        assert found == [0]
        return
    assert found[0] == 0 and found[-1] + window == length
    steps = np.diff(found)
    assert (steps > 0).all() and (steps <= window - overlap).all()
    # No window could be spared: all but the last are as far apart as they may be.
    assert (steps[:-1] == window - overlap).all()


def test_places_are_every_combination():
    expected = [
        (f, y, x)
        for f in axis_starts(7, 4, 2)
        for y in axis_starts(8, 4, 1)
        for x in axis_starts(5, 3, 1)
    ]
    assert WHERE.shape == (len(expected), 3)
    assert sorted(map(tuple, WHERE.tolist())) == sorted(expected)


def test_one_window_is_the_plain_denoiser():
    """Bit for bit."""
    z = video()
    where = window_starts(WHOLE, WHOLE, (3, 4, 2))
    assert where.tolist() == [[0, 0, 0]]
    found, plain = (
        jax.jit(fn, static_argnums=2)(z, STEP, None)
        for fn in (average_windows(mixing, WHOLE, where), mixing)
    )
    jax.tree.map(np.testing.assert_array_equal, found, plain)


@pytest.mark.parametrize("overlap", [OVERLAP, (0, 0, 0), (3, 3, 2)])
def test_windows_of_a_pointwise_denoiser_are_the_denoiser(overlap, x64):
    z, where = video(), window_starts(WHOLE, WINDOW, overlap)
    found = average_windows(pointwise, WINDOW, where)(z, STEP, 0.3)
    plain = pointwise(z, STEP, 0.3)
    np.testing.assert_allclose(found.x, plain.x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.eps, plain.eps, rtol=0, atol=1e-12)


def test_predictions_are_averaged_where_windows_overlap(x64):
    z = video()
    found = average_windows(mixing, WINDOW, WHERE)(z, STEP, None)
    expected = one_after_the_other(mixing, z, STEP, None)
    np.testing.assert_allclose(found.x, expected.x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.eps, expected.eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_the_average_still_explains_z(t, x64):
    z, step = video(), schedules.noise_level(schedules.Cosine(), np.float64(t))
    found = average_windows(mixing, WINDOW, WHERE)(z, step, None)
    explained = step.alpha * found.x + step.sigma * found.eps
    np.testing.assert_allclose(explained, z, rtol=0, atol=1e-10)


def test_a_level_for_each_video(x64):
    z = video()
    t = jnp.asarray([0.2, 0.7])
    both = average_windows(mixing, WINDOW, WHERE)(
        z, schedules.noise_level(schedules.Cosine(), t), None
    )
    for i in range(2):
        step = schedules.noise_level(schedules.Cosine(), t[i : i + 1])
        alone = average_windows(mixing, WINDOW, WHERE)(z[i : i + 1], step, None)
        np.testing.assert_allclose(both.x[i : i + 1], alone.x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("denoise", [pointwise, mixing])
def test_reconstruction_goes_through_the_windows(denoise, x64):
    """Its gradient is that of the average written out, or the pointwise one's own."""
    z, known = video(), video(1)
    mask = jnp.asarray(np.random.default_rng(2).random(SHAPE) < 0.5)

    def guided(fn):
        residual = lambda x: jnp.where(mask, known - x, 0)  # noqa: E731
        return guidance.reconstruction_guidance(fn, residual, 2.0)(z, STEP, 0.3)

    found = guided(average_windows(denoise, WINDOW, WHERE))
    expected = guided(lambda *args: one_after_the_other(denoise, *args))
    np.testing.assert_allclose(found.x, expected.x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.eps, expected.eps, rtol=0, atol=1e-12)
    plain = guided(denoise)
    unguided = denoise(z, STEP, 0.3)
    assert np.isfinite(found.x).all() and np.abs(plain.x - unguided.x).max() > 0.1
    if denoise is pointwise:
        np.testing.assert_allclose(found.x, plain.x, rtol=0, atol=1e-12)


def test_a_whole_run_through_windows_is_the_plain_one(x64):
    sampler, z = samplers.dpm(), video()
    table = sampler.table(schedules.Cosine(), 4)
    found, plain = (
        samplers.sample_loop(sampler, fn, sampler.init(z), table, 0, 4, None, 0.3)[0]
        for fn in (average_windows(pointwise, WINDOW, WHERE), pointwise)
    )
    np.testing.assert_allclose(found, plain, rtol=0, atol=1e-10)


def test_the_program_does_not_grow_with_the_windows():
    """Calls traced, and memory of the gradient, of few windows and of many."""
    z, known = video(), video(1)

    def wide(z, step, cond):
        calls.append(z.shape)
        inner = jnp.tanh(jnp.einsum("bfhwc,cd->bfhwd", z, jnp.ones((3, 128))))
        return process.from_x(jnp.tanh(inner).sum(-1, keepdims=True) + z, z, step)

    traced, memory = [], []
    for overlap in [(0, 0, 0), (3, 3, 2)]:
        calls, where = [], window_starts(WHOLE, WINDOW, overlap)
        fn = average_windows(wide, WINDOW, where)
        fn = guidance.reconstruction_guidance(fn, lambda x: known - x, 1.0)
        program = jax.jit(lambda z, fn=fn: fn(z, STEP, None)).lower(z).compile()
        traced.append((len(calls), set(calls)))
        memory.append(program.memory_analysis().temp_size_in_bytes)
    few, many = traced
    assert few == many and many[1] == {(2, *WINDOW, 3)}
    assert len(window_starts(WHOLE, WINDOW, (0, 0, 0))) * 4 < len(where)
    assert memory[1] < 1.1 * memory[0], memory
