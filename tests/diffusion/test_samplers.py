"""Laws of the samplers, each of the real loop: T-SAMP.

For Gaussian data the exact denoiser is linear, so a whole sampling run is affine in
its start and its noises. Its output variance is then read from its Jacobian: no
Monte Carlo, and no second copy of the recursion.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion import process, samplers, schedules

COSINE = schedules.Cosine()
SHIFTS = [0.0, -3.0]
ROWS = 256  # padded length of a table
SAMPLERS = {"ddim": samplers.ddim()} | {
    f"ancestral({g})": samplers.ancestral(g) for g in (0.0, 0.1, 0.3, 1.0)
}
DDIM = SAMPLERS["ddim"]
FEW = {name: SAMPLERS[name] for name in ("ddim", "ancestral(0.3)")}
each_sampler = pytest.mark.parametrize("sampler", list(FEW.values()), ids=list(FEW))

# Final std / true std for data N(0, s^2) by (s, N): DDIM, gamma = 0, .1, .3, 1;
# an independent float64 recursion, to the digits shown.
STD_RATIO = {
    (1.0, 16): [0.9257, 0.8798, 0.8898, 0.9106, 0.9952],
    (1.0, 256): [0.9952, 0.9907, 0.9916, 0.9934, 1.0000],
    (0.5, 64): [0.9762, 0.9479, 0.9538, 0.9661, 1.0134],
    (0.5, 256): [0.9940, 0.9854, 0.9871, 0.9907, 1.0035],
    (0.1, 256): [0.9759, 0.9423, 0.9495, 0.9643, 1.0223],
}


def padded(table, rows=ROWS):
    """Rows after the last, never run; made of NaN, so that running one shows."""
    return {
        key: np.concatenate([value, np.full(rows - len(value), np.nan)])
        for key, value in table.items()
    }


def loop(sampler, denoise, z, table, start, stop, noise, cond):
    """The z at the end of samplers.loop, from a z alone."""
    carry = sampler.init(z)
    return samplers.loop(sampler, denoise, carry, table, start, stop, noise, cond)[0]


def gaussian(mean, spread):
    """The exact denoiser of N(mean, spread^2); both broadcast against z."""

    def denoise(z, step, cond):
        variance = step.alpha**2 * spread**2 + step.sigma**2
        centred = z - step.alpha * mean
        x = mean + step.alpha * spread**2 * centred / variance
        return process.Prediction(x, step.sigma * centred / variance)

    return denoise


@functools.partial(jax.jit, static_argnums=0)
def affine(sampler, spread, table, stop):
    """d out / d start [s] and d out / d noise [s, rows] of runs on N(0, spread^2)."""
    spread = spread.reshape(-1, 1, 1, 1, 1)

    def run(start, noises):
        def noise(index, draw):
            return jnp.broadcast_to(noises[index], spread.shape)

        z = jnp.broadcast_to(start, spread.shape)
        denoise = gaussian(0.0, spread)
        return loop(sampler, denoise, z, table, 0, stop, noise, None).ravel()

    zeros = jnp.zeros(len(table["logsnr"]), spread.dtype)
    return jax.jacfwd(run, (0, 1))(zeros[0], zeros)


def std(sampler, schedule, n, spread, stop=None, start=1.0, rows=ROWS):
    """Standard deviation of the real sampler's output, start ~ N(0, start^2)."""
    table = padded(sampler.table(schedule, n), rows)
    spread = jnp.asarray(spread, float)
    of_start, of_noise = affine(sampler, spread, table, n if stop is None else stop)
    return np.sqrt((of_start * start) ** 2 + np.sum(np.square(of_noise), axis=1))


@pytest.mark.parametrize("column, name", list(enumerate(SAMPLERS)))
def test_variance_of_gaussian_samples(column, name, x64):
    for n in (16, 64, 256):
        rows = {s: r[column] for (s, k), r in STD_RATIO.items() if k == n}
        spread = np.array(list(rows))
        ratio = std(SAMPLERS[name], COSINE, n, spread) / spread
        np.testing.assert_allclose(ratio, list(rows.values()), rtol=0, atol=1e-3)
        # The reference has four digits; 1e-3 is asked, rounding is what is seen.
        np.testing.assert_allclose(ratio, list(rows.values()), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["ddim", "ancestral(0.3)"])
def test_variance_in_float32(name):
    column = list(SAMPLERS).index(name)
    ratio = std(SAMPLERS[name], COSINE, 64, [0.5])[0] / 0.5
    np.testing.assert_allclose(ratio, STD_RATIO[0.5, 64][column], rtol=0, atol=1e-3)


@pytest.mark.parametrize("n, about", [(8, 0.85625), (64, 0.98091), (256, 0.99519)])
def test_ddim_on_unit_gaussians_is_a_product_of_cosines(n, about, x64):
    """v^ = 0, so a step multiplies z by the cosine of its angle; the last goes to 0."""
    found = std(DDIM, COSINE, n, [1.0])[0]
    b = np.arctan(np.exp(-10.0))
    a = np.pi / 2 - 2 * b
    exact = np.cos(a / n) ** (n - 1) * np.cos(a / n + b)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found, about, rtol=0, atol=5e-5)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_upper_variance_is_exact_on_unit_gaussians(n, shift, x64):
    """gamma = 1, s = 1: every step keeps variance 1, the last leaves alpha_{1/n}."""
    schedule, sampler = schedules.Cosine(shift=shift), SAMPLERS["ancestral(1.0)"]
    before = std(sampler, schedule, n, [1.0], stop=n - 1, rows=16)[0]
    np.testing.assert_allclose(before, 1, rtol=0, atol=1e-12)
    alpha = schedules.step_at(schedule, np.float64(1 / n)).alpha
    after = std(sampler, schedule, n, [1.0], rows=16)[0]
    np.testing.assert_allclose(after, alpha, rtol=1e-12, atol=1e-12)


def test_upper_variance_is_exact_in_float32():
    found = std(SAMPLERS["ancestral(1.0)"], COSINE, 16, [1.0], stop=15, rows=16)[0]
    np.testing.assert_allclose(found, 1, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("n", [2, 5, 16])
def test_lower_variance_is_exact_on_a_point(n, shift, x64):
    """gamma = 0, s = 0: z_{1/n} has the standard deviation sigma_{1/n}, the end 0."""
    schedule, sampler = schedules.Cosine(shift=shift), SAMPLERS["ancestral(0.0)"]
    first, last = schedules.step_at(schedule, np.array([1.0, 1 / n])).sigma
    before = std(sampler, schedule, n, [0.0], n - 1, start=first, rows=16)[0]
    np.testing.assert_allclose(before, last, rtol=0, atol=1e-12)
    assert std(sampler, schedule, n, [0.0], start=first, rows=16)[0] < 1e-12


@pytest.mark.parametrize("spread", [0.1, 0.5, 2.0])
def test_ddim_converges_to_the_probability_flow(spread, x64):
    """First order: the error of the map z_1 -> x halves when the steps double."""
    counts = [32, 64, 128, 256]
    end = schedules.step_at(COSINE, np.float64(1.0))
    exact = spread / np.sqrt(end.alpha**2 * spread**2 + end.sigma**2)
    table = [padded(DDIM.table(COSINE, n)) for n in counts]
    found = [
        affine(DDIM, jnp.asarray([spread]), rows, n)[0][0]
        for rows, n in zip(table, counts, strict=True)
    ]
    error = np.abs(np.array(found) - exact)
    ratio = error[:-1] / error[1:]
    assert error[-1] < 0.03 * spread
    assert (ratio > 1.8).all() and (ratio < 2.2).all(), ratio


def test_ddim_maps_the_mean_to_the_mean(x64):
    """The flow through alpha_t mu: start there and every step stays on it."""
    n, mean = 16, jnp.asarray(0.7)
    table = DDIM.table(COSINE, n)
    z = jnp.full((1, 1, 2, 2, 1), table["alpha"][0] * 0.7)
    for i in range(n):
        z = loop(DDIM, gaussian(mean, 0.4), z, table, i, i + 1, None, None)
        alpha = table["alpha"][i + 1] if i + 1 < n else 1.0
        np.testing.assert_allclose(z, alpha * 0.7, rtol=0, atol=1e-12)


def run_videos(sampler, n, start=0, stop=None, table=None, z=None, dtype=np.float32):
    """A run of a nonlinear denoiser on [b, f, h, w, c] with numbered noises."""
    rng = np.random.default_rng(6)
    shape = (2, 3, 4, 4, 1)
    first = jnp.asarray(rng.standard_normal(shape), dtype)
    draws = jnp.asarray(rng.standard_normal((ROWS, *shape)), dtype)
    table = padded(sampler.table(COSINE, n)) if table is None else table
    z = first if z is None else z
    return _run(sampler, z, table, start, n if stop is None else stop, draws)


def tanh_denoiser(z, step, cond):
    return process.with_x(jnp.tanh(z * (1 + step.alpha)) * 0.9, z, step)


def _run_untraced(sampler, z, table, start, stop, draws):
    return loop(
        sampler, tanh_denoiser, z, table, start, stop, lambda i, draw: draws[i], None
    )


_run = jax.jit(_run_untraced, static_argnums=0)


@each_sampler
@pytest.mark.parametrize("shift", SHIFTS)
def test_one_step_returns_the_denoised_start(sampler, shift, x64):
    schedule = schedules.Cosine(shift=shift)
    z = jnp.asarray(np.random.default_rng(7).standard_normal((2, 3, 4, 4, 1)))
    table = sampler.table(schedule, 1)
    # Noise of the last step must not arrive, however large.
    noise = lambda index, draw: jnp.full(z.shape, 1e6)  # noqa: E731
    found = loop(sampler, tanh_denoiser, z, table, 0, 1, noise, None)
    step = schedules.step_at(schedule, np.float64(1.0))
    expected = tanh_denoiser(z, step, None).x
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler", list(SAMPLERS.values()), ids=list(SAMPLERS))
@pytest.mark.parametrize("n", [2, 7])
def test_the_last_step_returns_x(sampler, n, x64):
    z = jnp.asarray(np.random.default_rng(8).standard_normal((2, 3, 4, 4, 1)))
    x = jnp.asarray(np.random.default_rng(9).standard_normal(z.shape))
    noise = lambda index, draw: jnp.full(z.shape, 1e6)  # noqa: E731
    found = loop(
        sampler,
        lambda z, step, cond: process.with_x(x, z, step),
        z,
        sampler.table(COSINE, n),
        n - 1,
        n,
        noise,
        None,
    )
    np.testing.assert_allclose(found, x, rtol=0, atol=1e-12)


@functools.partial(jax.jit, static_argnums=0)
def one_step(sampler, row):
    """d z_s / d (z_t, x^, noise) of one row of a four-step run."""
    table = sampler.table(COSINE, 4)

    def run(z, x, eps):
        full = [jnp.broadcast_to(a, (1, 1, 1, 1, 1)) for a in (z, x, eps)]
        denoise = lambda z, step, cond: process.with_x(full[1], z, step)  # noqa: E731
        noise = lambda index, draw: full[2]  # noqa: E731
        return loop(
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
    found = one_step(SAMPLERS[f"ancestral({gamma})"], row)
    expected = ANCESTRAL_VECTORS[row, gamma]
    np.testing.assert_allclose(found, expected, rtol=0, atol=6e-9)


@pytest.mark.parametrize(
    "row, expected", [(2, [0.54122576, 0.54116644]), (0, [0.92387085, 0.38266246])]
)
def test_ddim_step_vectors(row, expected, x64):
    *found, of_noise = one_step(DDIM, row)
    np.testing.assert_allclose(found, expected, rtol=0, atol=6e-9)
    assert of_noise == 0


@pytest.mark.parametrize("shift", SHIFTS)
def test_ddim_is_a_rotation(shift, x64):
    """z_s = cos(d) z - sin(d) v^, d the difference of the angles."""
    n, schedule, sampler = 6, schedules.Cosine(shift=shift), DDIM
    z = jnp.asarray(np.random.default_rng(8).standard_normal((2, 3, 4, 4, 1)))
    angle = np.append(schedule.angle(1 - np.arange(n) / n), 0.0)
    table = sampler.table(schedule, n)
    for i in range(n):
        found = loop(sampler, tanh_denoiser, z, table, i, i + 1, None, None)
        step = schedules.step_at(schedule, np.float64(1 - i / n))
        v = process.velocity(tanh_denoiser(z, step, None), step)
        d = angle[i] - angle[i + 1]
        np.testing.assert_allclose(found, np.cos(d) * z - np.sin(d) * v, atol=1e-12)


@pytest.mark.parametrize("shift", SHIFTS)
@each_sampler
def test_the_network_is_asked_at_every_grid_point_but_the_clean_one(sampler, shift):
    n, schedule, asked = 5, schedules.Cosine(shift=shift), []

    def denoise(z, step, cond):
        asked.append([float(a) for a in step] + [cond])
        return tanh_denoiser(z, step, cond)

    z = jnp.ones((1, 2, 2, 2, 1))
    table = padded(sampler.table(schedule, n), 8)
    with jax.disable_jit():
        loop(sampler, denoise, z, table, 0, n, lambda i, d: jnp.zeros(z.shape), "cond")
    index, logsnr, alpha, sigma, cond = zip(*asked, strict=True)
    assert index == (0, 1, 2, 3, 4) and set(cond) == {"cond"}
    step = schedules.step_at(schedule, 1 - np.arange(n) / n)
    np.testing.assert_allclose(logsnr, step.logsnr, atol=1e-5)
    np.testing.assert_allclose(alpha, step.alpha, atol=1e-6)
    np.testing.assert_allclose(sigma, step.sigma, atol=1e-6)


@pytest.mark.parametrize("sampler", list(SAMPLERS.values()), ids=list(SAMPLERS))
@pytest.mark.parametrize("n", [1, 2, 64, 1024])
def test_tables_are_finite_float64_on_the_host(sampler, n):
    table = sampler.table(COSINE, n)
    for key, value in table.items():
        assert isinstance(value, np.ndarray), key
        assert value.shape == (n,) and value.dtype == np.float64, key
        assert np.isfinite(value).all(), key
    step = schedules.step_at(COSINE, 1 - np.arange(n) / n)
    np.testing.assert_allclose(table["logsnr"], step.logsnr, atol=1e-9)
    np.testing.assert_allclose(table["alpha"], step.alpha, atol=1e-12)
    np.testing.assert_allclose(table["sigma"], step.sigma, atol=1e-12)


def test_ancestral_draws_once_a_row():
    drawn = []

    def noise(index, draw):
        drawn.append((int(index), draw))
        return jnp.zeros(z.shape)

    z, sampler = jnp.ones((1, 1, 1, 1, 1)), SAMPLERS["ancestral(0.3)"]
    with jax.disable_jit():
        table = sampler.table(COSINE, 6)
        loop(sampler, tanh_denoiser, z, table, 2, 5, noise, None)
    assert drawn == [(2, 0), (3, 0), (4, 0)]


def test_ddim_draws_nothing():
    z = jnp.ones((1, 1, 1, 1, 1))
    table = DDIM.table(COSINE, 3)
    loop(DDIM, tanh_denoiser, z, table, 0, 3, None, None)


def test_the_names_of_the_samplers():
    assert {"ddim", "ancestral"} <= set(samplers.SAMPLERS)


@each_sampler
@pytest.mark.parametrize("k", [0, 1, 4, 9])
def test_chunks_are_the_whole(sampler, k):
    """loop(0, n) = loop(0, k), then loop(k, n): bit for bit."""
    whole = run_videos(sampler, 9)
    part = run_videos(sampler, 9, stop=k)
    assert k in (0, 9) or not np.array_equal(part, whole)
    np.testing.assert_array_equal(run_videos(sampler, 9, start=k, z=part), whole)


@each_sampler
def test_padding_changes_nothing(sampler):
    bare = run_videos(sampler, 9, table=sampler.table(COSINE, 9))
    np.testing.assert_allclose(run_videos(sampler, 9), bare, rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [1, 7, samplers.MAX_STEPS])
def test_padded_tables_have_one_shape_and_the_same_rows(n):
    table = SAMPLERS["ancestral(0.3)"].table(COSINE, n)
    for key, value in samplers.padded(table, np.float32).items():
        assert value.shape == (samplers.MAX_STEPS,) and value.dtype == np.float32
        np.testing.assert_array_equal(value[:n], table[key].astype(np.float32))


@each_sampler
def test_one_program_serves_every_number_of_steps(sampler):
    traces = []

    @jax.jit
    def run(z, table, start, stop):
        def denoise(z, step, cond):
            traces.append(1)
            return tanh_denoiser(z, step, cond)

        noise = lambda index, draw: jnp.zeros(z.shape)  # noqa: E731
        return loop(sampler, denoise, z, table, start, stop, noise, None)

    z = jnp.ones((1, 2, 2, 2, 1))
    run(z, samplers.padded(sampler.table(COSINE, 1), z.dtype), 0, 1)
    once = len(traces)
    for start, n in [(0, 2), (3, 7), (0, 256), (10, 100)]:
        out = run(z, samplers.padded(sampler.table(COSINE, n), z.dtype), start, n)
        assert np.isfinite(out).all()
    # XLA's loop may be traced more than once for its one compilation, not per n.
    assert len(traces) == once and run._cache_size() == 1


@each_sampler
def test_videos_of_a_batch_do_not_mix(sampler, x64):
    """A batch is its examples side by side: no step mixes them."""
    n, shape = 5, (2, 3, 4, 4, 1)
    rng = np.random.default_rng(10)
    z, draws = rng.standard_normal(shape), rng.standard_normal((n, *shape))
    table = sampler.table(COSINE, n)

    def run(part):
        noise = lambda index, draw: jnp.asarray(draws[:, part])[index]  # noqa: E731
        return loop(
            sampler, tanh_denoiser, jnp.asarray(z[part]), table, 0, n, noise, None
        )

    halves = np.concatenate([run(slice(0, 1)), run(slice(1, 2))])
    np.testing.assert_allclose(run(slice(0, 2)), halves, rtol=0, atol=1e-12)


@each_sampler
def test_float32_follows_float64(sampler, x64):
    double = run_videos(sampler, 16, dtype=np.float64)
    single = run_videos(sampler, 16, dtype=np.float32)
    assert double.dtype == jnp.float64 and single.dtype == jnp.float32
    np.testing.assert_allclose(single, double, rtol=0, atol=1e-5)


# Noise: keyed by everything that names a draw, and by nothing else.


def numbers(seed, stage, block, videos, step, draw, shape=(8,)):
    keys = samplers.video_keys(seed, stage, block, jnp.asarray(videos))
    return np.asarray(samplers.normal(keys, step, draw, shape))


def test_no_two_draws_give_the_same_numbers():
    """All of (seed, stage, block, video, step, draw), swapped places included."""
    draw = jax.jit(samplers.normal, static_argnums=3)
    seen = []
    for seed, stage, block in itertools.product(range(3), range(3), range(3)):
        keys = samplers.video_keys(seed, stage, block, jnp.arange(3))
        for step, number in itertools.product([0, 1, 2, 1023], range(3)):
            seen.append(np.asarray(draw(keys, step, number, (8,))))
    rows = np.concatenate(seen)
    assert rows.shape == (27 * 12 * 3, 8)
    assert len(np.unique(rows, axis=0)) == len(rows)
    # Not even in part: single float32 normals coincide by chance a few times only.
    assert len(np.unique(rows)) > rows.size - 40


def test_a_draw_is_the_same_for_every_batch_split():
    whole = numbers(5, 1, 2, np.arange(8), 3, 0, (2, 4))
    parts = [np.arange(4), np.arange(4, 8)], [np.arange(1), np.arange(1, 8)]
    for split in parts:
        joined = [numbers(5, 1, 2, videos, 3, 0, (2, 4)) for videos in split]
        np.testing.assert_array_equal(np.concatenate(joined), whole)
    order = np.array([6, 0, 3])
    np.testing.assert_array_equal(numbers(5, 1, 2, order, 3, 0, (2, 4)), whole[order])


def test_a_draw_is_the_same_traced_or_not():
    @jax.jit
    def traced(seed, stage, block, videos, step, draw):
        keys = samplers.video_keys(seed, stage, block, videos)
        return samplers.normal(keys, step, draw, (8,))

    args = 5, 1, 2, np.arange(4), 3, 1
    np.testing.assert_array_equal(traced(*args), numbers(*args))


def test_draws_are_standard_normal():
    values = numbers(0, 0, 0, np.arange(64), 0, 0, (4, 16, 16)).astype(np.float64)
    assert values.shape == (64, 4, 16, 16)
    count = values.size
    assert abs(values.mean()) < 5 / np.sqrt(count)
    assert abs(np.mean(values**2) - 1) < 5 * np.sqrt(2 / count)
    assert abs(np.mean(values**4) - 3) < 5 * np.sqrt(96 / count)
    between = np.corrcoef(values.reshape(64, -1)) - np.eye(64)
    assert np.abs(between).max() < 6 / np.sqrt(count / 64)


@each_sampler
def test_a_run_with_keyed_noise_is_the_same_for_every_batch_split(sampler):
    n, table = 4, sampler.table(COSINE, 4)

    def run(videos):
        keys = samplers.video_keys(0, 0, 0, jnp.asarray(videos))
        shape = (3, 4, 4, 1)

        def noise(index, draw):
            return samplers.normal(keys, index + 1, draw, shape)

        z = samplers.normal(keys, 0, 0, shape)
        return loop(sampler, tanh_denoiser, z, table, 0, n, noise, None)

    whole = run(range(4))
    halves = np.concatenate([run([0, 1]), run([2, 3])])
    assert np.abs(whole[:1] - whole[1:]).max() > 0.1
    np.testing.assert_allclose(halves, whole, rtol=0, atol=1e-6)
