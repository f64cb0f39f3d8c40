"""Laws of all samplers, tested through the real loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.analytic import final_z
from tests.diffusion.sampler_cases import (
    CHURNED,
    COSINE,
    DDIM,
    EVERY,
    FEW,
    HEUN,
    OTHERS,
    ROWS,
    SAMPLERS,
    SHIFTS,
    each,
    each_sampler,
    padded,
    tanh_denoiser,
)
from vdm_jax.diffusion import (
    process,
    samplers,
    schedules,
)


def run_videos(
    sampler, n, start=0, stop=None, table=None, carry=None, dtype=np.float32
):
    """Return the carry of a run of a nonlinear denoiser on [b, f, h, w, c]."""
    rng = np.random.default_rng(6)
    shape = (2, 3, 4, 4, 1)
    first = jnp.asarray(rng.standard_normal(shape), dtype)
    draws = jnp.asarray(rng.standard_normal((ROWS, *shape)), dtype)
    table = padded(sampler.table(COSINE, n)) if table is None else table
    carry = sampler.init(first) if carry is None else carry
    return _run(sampler, carry, table, start, n if stop is None else stop, draws)


@functools.partial(jax.jit, static_argnums=0)
def _run(sampler, carry, table, start, stop, draws):
    noise = lambda i, draw: jnp.roll(draws[i], draw)  # noqa: E731
    return samplers.sample_loop(
        sampler, tanh_denoiser, carry, table, start, stop, noise, None
    )


@each_sampler
@pytest.mark.parametrize("shift", SHIFTS)
def test_one_step_returns_the_denoised_start(sampler, shift, x64):
    schedule = schedules.Cosine(logsnr_shift=shift)
    z = jnp.asarray(np.random.default_rng(7).standard_normal((2, 3, 4, 4, 1)))
    table = sampler.table(schedule, 1)
    # The noise of the last step has no effect, however large.
    noise = lambda index, draw: jnp.full(z.shape, 1e6)  # noqa: E731
    actual = final_z(sampler, tanh_denoiser, z, table, 0, 1, noise, None)
    level = schedules.noise_level(schedule, np.float64(1.0))
    expected = tanh_denoiser(z, level, None).x
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@each(EVERY)
@pytest.mark.parametrize("n", [2, 7])
def test_the_last_step_returns_x(sampler, n, x64):
    z = jnp.asarray(np.random.default_rng(8).standard_normal((2, 3, 4, 4, 1)))
    x = jnp.asarray(np.random.default_rng(9).standard_normal(z.shape))
    noise = lambda index, draw: jnp.full(z.shape, 1e6)  # noqa: E731
    actual = final_z(
        sampler,
        lambda z, level, cond: process.from_x(x, z, level),
        z,
        sampler.table(COSINE, n),
        n - 1,
        n,
        noise,
        None,
    )
    np.testing.assert_array_equal(actual, x)


@functools.partial(jax.jit, static_argnums=0)
def one_step(sampler, row):
    """d z_s / d (z_t, x^, noise) of one row of a four-step run."""
    table = sampler.table(COSINE, 4)

    def run(z, x, eps):
        full = [jnp.broadcast_to(a, (1, 1, 1, 1, 1)) for a in (z, x, eps)]
        denoise = lambda z, level, cond: process.from_x(full[1], z, level)  # noqa: E731
        noise = lambda index, draw: full[2]  # noqa: E731
        return final_z(
            sampler, denoise, full[0], table, row, row + 1, noise, None
        ).ravel()[0]

    return jax.jacfwd(run, (0, 1, 2))(0.3, 0.2, 0.1)


# Row of a four-step run -> coefficients of z_t and x^, and the std by gamma;
# t = .5 to .25 is row 2, t = 1 to .75 is row 0.
ANCESTRAL_VECTORS = {
    (2, 0.0): [0.22419744, 0.76533931, np.sqrt(1.21330414e-1)],
    (2, 1.0): [0.22419744, 0.76533931, np.sqrt(4.14202546e-1)],
    (2, 0.1): [0.22419744, 0.76533931, 0.37037955],
    (2, 0.3): [0.22419744, 0.76533931, 0.41876589],
    (0, 0.0): [0.00010125, 0.38270440, np.sqrt(8.53537329e-1)],
    (0, 1.0): [0.00010125, 0.38270440, np.sqrt(9.99999986e-1)],
    (0, 0.1): [0.00010125, 0.38270440, 0.93121537],
    (0, 0.3): [0.00010125, 0.38270440, 0.94608004],
}


@pytest.mark.parametrize("row, gamma", list(ANCESTRAL_VECTORS))
def test_ancestral_step_vectors(row, gamma, x64):
    actual = one_step(SAMPLERS[f"ancestral({gamma})"], row)
    expected = ANCESTRAL_VECTORS[row, gamma]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=6e-9)


@pytest.mark.parametrize(
    "row, expected", [(2, [0.54122576, 0.54116644]), (0, [0.92387085, 0.38266246])]
)
def test_ddim_step_vectors(row, expected, x64):
    *actual, of_noise = one_step(DDIM, row)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=6e-9)
    assert of_noise == 0


@pytest.mark.parametrize("shift", SHIFTS)
def test_ddim_is_a_rotation(shift, x64):
    """z_s = cos(d) z - sin(d) v^, d the difference of the angles."""
    n, schedule, sampler = 6, schedules.Cosine(logsnr_shift=shift), DDIM
    z = jnp.asarray(np.random.default_rng(8).standard_normal((2, 3, 4, 4, 1)))
    angle = np.append(schedule.angle(1 - np.arange(n) / n), 0.0)
    table = sampler.table(schedule, n)
    for i in range(n):
        actual = final_z(sampler, tanh_denoiser, z, table, i, i + 1, None, None)
        level = schedules.noise_level(schedule, np.float64(1 - i / n))
        v = process.velocity(tanh_denoiser(z, level, None), level)
        d = angle[i] - angle[i + 1]
        np.testing.assert_allclose(actual, np.cos(d) * z - np.sin(d) * v, atol=1e-12)


@pytest.mark.parametrize("shift", SHIFTS)
@each(FEW | {name: OTHERS[name] for name in ("dpm", "restart_ddim")})
def test_the_network_is_called_at_every_grid_point_but_the_clean_one(sampler, shift):
    n, schedule, calls = 5, schedules.Cosine(logsnr_shift=shift), []

    def denoise(z, level, cond):
        calls.append([float(a) for a in level] + [cond])
        return tanh_denoiser(z, level, cond)

    z = jnp.ones((1, 2, 2, 2, 1))
    table = padded(sampler.table(schedule, n), 8)
    with jax.disable_jit():
        final_z(
            sampler, denoise, z, table, 0, n, lambda i, d: jnp.zeros(z.shape), "cond"
        )
    index, logsnr, alpha, sigma, call, cond = zip(*calls, strict=True)
    assert index == (0, 1, 2, 3, 4) and set(cond) == {"cond"} and set(call) == {0}
    level = schedules.noise_level(schedule, 1 - np.arange(n) / n)
    np.testing.assert_allclose(logsnr, level.logsnr, atol=1e-5)
    np.testing.assert_allclose(alpha, level.alpha, atol=1e-6)
    np.testing.assert_allclose(sigma, level.sigma, atol=1e-6)


@each(EVERY | {"inversion": samplers.ddim_inversion()})
@pytest.mark.parametrize("name", list(schedules.SCHEDULES))
@pytest.mark.parametrize("n", [1, 2, 64, 1024])
def test_tables_are_finite_float64_on_the_host(sampler, name, n):
    n = min(n, 999) if name == "discrete" else n
    table = sampler.table(schedules.SCHEDULES[name](), n)
    for key, value in table.items():
        assert isinstance(value, np.ndarray), key
        assert value.shape == (n,) and value.dtype == np.float64, key
        assert np.isfinite(value).all(), key


@each({name: sampler for name, sampler in EVERY.items() if name != "churned"})
@pytest.mark.parametrize("n", [1, 2, 64, 1024])
def test_tables_hold_the_levels_of_a_uniform_grid(sampler, n):
    table = sampler.table(COSINE, n)
    level = schedules.noise_level(COSINE, 1 - np.arange(n) / n)
    np.testing.assert_allclose(table["logsnr"], level.logsnr, atol=1e-9)
    np.testing.assert_allclose(table["alpha"], level.alpha, atol=1e-12)
    np.testing.assert_allclose(table["sigma"], level.sigma, atol=1e-12)


def test_ancestral_draws_once_a_row():
    drawn = []

    def noise(index, draw):
        drawn.append((int(index), draw))
        return jnp.zeros(z.shape)

    z, sampler = jnp.ones((1, 1, 1, 1, 1)), SAMPLERS["ancestral(0.3)"]
    with jax.disable_jit():
        table = sampler.table(COSINE, 6)
        final_z(sampler, tanh_denoiser, z, table, 2, 5, noise, None)
    assert drawn == [(2, 0), (3, 0), (4, 0)]


def test_ddim_draws_nothing():
    z = jnp.ones((1, 1, 1, 1, 1))
    table = DDIM.table(COSINE, 3)
    final_z(DDIM, tanh_denoiser, z, table, 0, 3, None, None)


def test_the_table_has_these_samplers():
    names = {"ddim", "ancestral", "dpm", "unipc", "heun", "stochastic"}
    assert names <= set(samplers.SAMPLERS)


@each_sampler
@pytest.mark.parametrize("k", [0, 1, 4, 9])
def test_chunks_are_the_whole(sampler, k):
    """Rows 0 to k, then k to n, equal rows 0 to n, bit for bit."""
    whole = run_videos(sampler, 9)
    part = run_videos(sampler, 9, stop=k)
    assert k in (0, 9) or not np.array_equal(part[0], whole[0])
    again = run_videos(sampler, 9, start=k, carry=part)
    jax.tree.map(np.testing.assert_array_equal, again, whole)


@each_sampler
def test_padding_changes_nothing(sampler):
    bare, _ = run_videos(sampler, 9, table=sampler.table(COSINE, 9))
    actual, _ = run_videos(sampler, 9)
    np.testing.assert_allclose(actual, bare, rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [1, 7, samplers.MAX_STEPS])
def test_padded_tables_have_one_shape_and_the_same_rows(n):
    table = SAMPLERS["ancestral(0.3)"].table(COSINE, n)
    for key, value in samplers.pad_table(table, np.float32).items():
        assert value.shape == (samplers.MAX_STEPS,) and value.dtype == np.float32
        np.testing.assert_array_equal(value[:n], table[key].astype(np.float32))


@each_sampler
def test_one_program_serves_every_number_of_steps(sampler):
    traces = []

    @jax.jit
    def run(z, table, start, stop):
        def denoise(z, level, cond):
            traces.append(1)
            return tanh_denoiser(z, level, cond)

        noise = lambda index, draw: jnp.zeros(z.shape)  # noqa: E731
        return final_z(sampler, denoise, z, table, start, stop, noise, None)

    z = jnp.ones((1, 2, 2, 2, 1))
    run(z, samplers.pad_table(sampler.table(COSINE, 1), z.dtype), 0, 1)
    once = len(traces)
    for start, n in [(0, 2), (3, 7), (0, 256), (10, 100)]:
        out = run(z, samplers.pad_table(sampler.table(COSINE, n), z.dtype), start, n)
        assert np.isfinite(out).all()
    # XLA's loop may be traced more than once for its one compilation, not per n.
    assert len(traces) == once and run._cache_size() == 1


@each_sampler
def test_videos_of_a_batch_do_not_mix(sampler, x64):
    """No step mixes the examples of a batch."""
    n, shape = 5, (2, 3, 4, 4, 1)
    rng = np.random.default_rng(10)
    z, draws = rng.standard_normal(shape), rng.standard_normal((n, *shape))
    table = sampler.table(COSINE, n)

    def run(part):
        noise = lambda index, draw: jnp.asarray(draws[:, part])[index]  # noqa: E731
        return final_z(
            sampler, tanh_denoiser, jnp.asarray(z[part]), table, 0, n, noise, None
        )

    halves = np.concatenate([run(slice(0, 1)), run(slice(1, 2))])
    np.testing.assert_allclose(run(slice(0, 2)), halves, rtol=0, atol=1e-12)


@each_sampler
def test_float32_follows_float64(sampler, x64):
    double, _ = run_videos(sampler, 16, dtype=np.float64)
    single, _ = run_videos(sampler, 16, dtype=np.float32)
    assert double.dtype == jnp.float64 and single.dtype == jnp.float32
    atol = 4e-5 if sampler is CHURNED else 1e-5
    np.testing.assert_allclose(single, double, rtol=0, atol=atol)


@each({"heun": HEUN, "churned": CHURNED, "corrected": SAMPLERS["corrected"]})
def test_calls_of_a_row_differ_in_number_and_are_at_its_two_ends(sampler):
    calls, n = [], 4

    def denoise(z, level, cond):
        calls.append([float(a) for a in level])
        return tanh_denoiser(z, level, cond)

    z = jnp.ones((1, 1, 1, 1, 1))
    table = sampler.table(COSINE, n)
    with jax.disable_jit():
        final_z(sampler, denoise, z, table, 0, n, lambda i, d: jnp.zeros(z.shape), None)
    index, logsnr, alpha, sigma, call = (
        np.array(calls).reshape(n, 2, 5).transpose(2, 0, 1)
    )
    np.testing.assert_array_equal(index, np.repeat(np.arange(n)[:, None], 2, 1))
    assert set(call[:, 0]) == {0} and len(set(call[:, 1]) | {0}) == 2
    # The last row's second call has no effect; it is at the clipped end.
    there = schedules.noise_level(COSINE, np.array([0.75, 0.5, 0.25, 0.0]))
    np.testing.assert_allclose(logsnr[:, 1], there.logsnr, atol=1e-5)
    np.testing.assert_allclose(alpha[:, 1], there.alpha, atol=1e-6)
    np.testing.assert_allclose(sigma[:, 1], there.sigma, atol=1e-6)


def test_a_corrector_adds_a_third_call():
    calls, z = [], jnp.ones((1, 1, 1, 1, 1))

    def denoise(z, level, cond):
        calls.append(level.call)
        return tanh_denoiser(z, level, cond)

    sampler = samplers.with_langevin_corrector(CHURNED)
    drawn = []

    def noise(index, draw):
        drawn.append(draw)
        return jnp.zeros(z.shape)

    table = sampler.table(COSINE, 2)
    jax.eval_shape(lambda z: final_z(sampler, denoise, z, table, 0, 1, noise, None), z)
    assert sorted(set(calls)) == [0, 1, 2] and sorted(set(drawn)) == [0, 1]
