"""Laws of the samplers, tested through the real loop.

For Gaussian data the exact denoiser is linear, so a whole sampling run is affine in
its start and its noise. Its output variance then follows from its Jacobian, without
Monte Carlo and without a second copy of the recursion.
"""

import dataclasses
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
SAMPLERS["corrected"] = samplers.with_langevin_corrector(
    samplers.ancestral(0.0), delta=0.1
)
DDIM, DPM, HEUN = SAMPLERS["ddim"], samplers.dpm(), samplers.heun()
CHURNED = samplers.heun(s_churn=10.0, s_noise=1.003)
OTHERS = {
    "dpm": DPM,
    "heun": HEUN,
    "churned": CHURNED,
    "restart_ddim": samplers.restart_ddim(),
    "corrected dpm": samplers.with_langevin_corrector(DPM),
}
EVERY = SAMPLERS | OTHERS
FEW = {name: SAMPLERS[name] for name in ("ddim", "ancestral(0.3)")}
MORE = FEW | OTHERS


def each(some):
    return pytest.mark.parametrize("sampler", list(some.values()), ids=list(some))


each_sampler = each(MORE)

# Final std / true std for data N(0, s^2) by (s, N): DDIM, gamma = 0, .1, .3, 1, and
# gamma = 0 with the corrector; an independent float64 recursion, to the digits shown.
STD_RATIO = {
    (1.0, 16): [0.9257, 0.8798, 0.8898, 0.9106, 0.9952, 0.8918],
    (1.0, 256): [0.9952, 0.9907, 0.9916, 0.9934, 1.0000, 0.9968],
    (0.5, 64): [0.9762, 0.9479, 0.9538, 0.9661, 1.0134, 0.9570],
    (0.5, 256): [0.9940, 0.9854, 0.9871, 0.9907, 1.0035, 0.9918],
    (0.1, 256): [0.9759, 0.9423, 0.9495, 0.9643, 1.0223, 0.9507],
}


def padded(table, rows=ROWS):
    """Append rows of NaN, which a test would notice if they ran."""
    return {
        key: np.concatenate([value, np.full(rows - len(value), np.nan)])
        for key, value in table.items()
    }


def loop(sampler, denoise, z, table, start, stop, noise, cond):
    """Return the final z of samplers.sample_loop."""
    carry = sampler.init(z)
    return samplers.sample_loop(
        sampler, denoise, carry, table, start, stop, noise, cond
    )[0]


def gaussian(mean, spread):
    """Return the exact denoiser of N(mean, spread^2); both broadcast against z."""

    def denoise(z, level, cond):
        variance = level.alpha**2 * spread**2 + level.sigma**2
        centred = z - level.alpha * mean
        x = mean + level.alpha * spread**2 * centred / variance
        return process.Prediction(x, level.sigma * centred / variance)

    return denoise


def centred(spread, table):
    return gaussian(0.0, spread)


@functools.partial(jax.jit, static_argnums=(0, 4))
def affine(sampler, spread, table, stop, denoiser=centred):
    """Return d out / d start [s] and d out / d noise [s, draws] on N(0, spread^2)."""
    spread = spread.reshape(-1, 1, 1, 1, 1)

    def run(start, noises):
        def noise(index, draw):
            return jnp.broadcast_to(noises[index, draw], spread.shape)

        z = jnp.broadcast_to(start, spread.shape)
        denoise = denoiser(spread, table)
        return loop(sampler, denoise, z, table, 0, stop, noise, None).ravel()

    zeros = jnp.zeros((len(table["logsnr"]), 2), spread.dtype)
    of_start, of_noise = jax.jacfwd(run, (0, 1))(zeros[0, 0], zeros)
    return of_start, of_noise.reshape(len(of_start), -1)


def spread_of(of_start, of_noise, start):
    """Return the standard deviation of a run's output, its start ~ N(0, start^2)."""
    return np.sqrt((of_start * start) ** 2 + np.sum(np.square(of_noise), axis=1))


def std(sampler, schedule, n, spread, stop=None, start=1.0, rows=ROWS):
    """Return the standard deviation of the real sampler's output."""
    table = padded(sampler.table(schedule, n), rows)
    spread = jnp.asarray(spread, float)
    parts = affine(sampler, spread, table, n if stop is None else stop)
    return spread_of(*parts, start)


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
        z = loop(DDIM, gaussian(mean, 0.4), z, table, i, i + 1, None, None)
        alpha = table["alpha"][i + 1] if i + 1 < n else 1.0
        np.testing.assert_allclose(z, alpha * 0.7, rtol=0, atol=1e-12)


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


def tanh_denoiser(z, level, cond):
    return process.from_x(jnp.tanh(z * (1 + level.alpha)) * 0.9, z, level)


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
    actual = loop(sampler, tanh_denoiser, z, table, 0, 1, noise, None)
    level = schedules.noise_level(schedule, np.float64(1.0))
    expected = tanh_denoiser(z, level, None).x
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@each(EVERY)
@pytest.mark.parametrize("n", [2, 7])
def test_the_last_step_returns_x(sampler, n, x64):
    z = jnp.asarray(np.random.default_rng(8).standard_normal((2, 3, 4, 4, 1)))
    x = jnp.asarray(np.random.default_rng(9).standard_normal(z.shape))
    noise = lambda index, draw: jnp.full(z.shape, 1e6)  # noqa: E731
    actual = loop(
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
        actual = loop(sampler, tanh_denoiser, z, table, i, i + 1, None, None)
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
        loop(sampler, denoise, z, table, 0, n, lambda i, d: jnp.zeros(z.shape), "cond")
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
        loop(sampler, tanh_denoiser, z, table, 2, 5, noise, None)
    assert drawn == [(2, 0), (3, 0), (4, 0)]


def test_ddim_draws_nothing():
    z = jnp.ones((1, 1, 1, 1, 1))
    table = DDIM.table(COSINE, 3)
    loop(DDIM, tanh_denoiser, z, table, 0, 3, None, None)


def test_the_table_has_these_samplers():
    names = {"ddim", "ancestral", "dpm", "heun", "stochastic"}
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
        return loop(sampler, denoise, z, table, start, stop, noise, None)

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
        return loop(
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
    return loop(sampler, gaussian(0.0, 0.5), z, table, 0, n, quiet, None).ravel()[0]


@pytest.mark.parametrize(
    "sampler, order, within", [(DDIM, 1, 0.05), (DPM, 2, 0.15), (HEUN, 2, 0.15)]
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


@each({"heun": HEUN, "churned": CHURNED, "corrected": SAMPLERS["corrected"]})
def test_calls_of_a_row_differ_in_number_and_are_at_its_two_ends(sampler):
    calls, n = [], 4

    def denoise(z, level, cond):
        calls.append([float(a) for a in level])
        return tanh_denoiser(z, level, cond)

    z = jnp.ones((1, 1, 1, 1, 1))
    table = sampler.table(COSINE, n)
    with jax.disable_jit():
        loop(sampler, denoise, z, table, 0, n, lambda i, d: jnp.zeros(z.shape), None)
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
    jax.eval_shape(lambda z: loop(sampler, denoise, z, table, 0, 1, noise, None), z)
    assert sorted(set(calls)) == [0, 1, 2] and sorted(set(drawn)) == [0, 1]


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
        return loop(
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


def mixture(weights, means, spreads):
    """Return the exact denoiser of a mixture of Gaussians."""

    def denoise(z, level, cond):
        parts = []
        for weight, mean, spread in zip(weights, means, spreads, strict=True):
            variance = level.alpha**2 * spread**2 + level.sigma**2
            off = z - level.alpha * mean
            log_weight = (
                jnp.log(weight) - jnp.log(variance) / 2 - off**2 / (2 * variance)
            )
            parts.append((log_weight, mean + level.alpha * spread**2 * off / variance))
        log_weights, x = (jnp.stack(part) for part in zip(*parts, strict=True))
        return process.from_x(jnp.sum(jax.nn.softmax(log_weights, 0) * x, 0), z, level)

    return denoise


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
        z = loop(samplers.ddim_inversion(), denoise, x, there, 0, n, None, None)
        return z, loop(DDIM, denoise, z, here, 0, n, None, None)

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


def test_heun_without_churn_ignores_noise(x64):
    n, z = 4, jnp.ones((1, 1, 2, 2, 1))
    table = HEUN.table(KARRAS, n)
    actual, quiet = (
        loop(HEUN, tanh_denoiser, z, table, 0, n, lambda i, d, a=a: a * z, None)
        for a in (1e6, 0.0)
    )
    np.testing.assert_array_equal(actual, quiet)
    np.testing.assert_array_equal(table["scale"], 1)
    np.testing.assert_array_equal(table["churn_std"], 0)


def test_s_noise_scales_the_noise_of_churn_alone():
    plain, scaled = (
        samplers.heun(s_churn=5.0, s_noise=s).table(KARRAS, 8) for s in (1.0, 1.5)
    )
    assert (plain["churn_std"][1:] > 0).all()
    np.testing.assert_allclose(scaled["churn_std"], 1.5 * plain["churn_std"])
    for name in plain.keys() - {"churn_std"}:
        np.testing.assert_array_equal(scaled[name], plain[name])


@pytest.mark.parametrize("churn", [0.0, 5.0, 40.0])
def test_heun_with_churn_keeps_the_variance(churn, x64):
    """The data is N(0, s^2), the start N(0, 1) at EDM's sigma 80."""
    sampler, spread = samplers.heun(s_churn=churn), np.array([0.1, 0.5, 1.0])
    coarse, fine = (std(sampler, KARRAS, n, spread) / spread - 1 for n in (64, 256))
    assert (np.abs(fine) < 3e-3).all() and (np.abs(coarse) < 3e-2).all()
    assert (np.abs(fine) < np.abs(coarse) / 8).all()  # nearly second order


@pytest.mark.parametrize("schedule", [COSINE, KARRAS], ids=["cosine", "karras"])
@pytest.mark.parametrize("n", [3, 16, 256])
def test_churn_raises_the_noise_by_its_factor_within_range(schedule, n, x64):
    """sigma^ = (1 + min(S_churn / N, sqrt 2 - 1)) sigma in [S_tmin, S_tmax]."""
    low, high, churn = 0.05, 50.0, 80.0
    sampler = samplers.heun(s_churn=churn, s_tmin=low, s_tmax=high, s_noise=1.0)
    table, plain = sampler.table(schedule, n), HEUN.table(schedule, n)
    sigma = plain["sigma"] / plain["alpha"]
    factor = 1 + min(churn / n, np.sqrt(2) - 1) * ((sigma >= low) & (sigma <= high))
    most = np.exp(-schedules.noise_level(schedule, np.ones(1)).logsnr / 2)
    expected = np.minimum(factor * sigma, most)
    assert (factor > 1).any() and (table["logsnr"] >= -2 * np.log(most) - 1e-9).all()
    np.testing.assert_allclose(table["sigma"] / table["alpha"], expected, rtol=1e-9)
    # With the added noise z is a draw of the raised level: alpha^ x, variance sigma^^2.
    np.testing.assert_allclose(table["scale"] * plain["alpha"], table["alpha"])
    variance = (table["scale"] * plain["sigma"]) ** 2 + table["churn_std"] ** 2
    np.testing.assert_allclose(variance, table["sigma"] ** 2, rtol=1e-9)


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
        return loop(sampler, mixture(*BUMPS), z, table, 0, n, noise, None)

    actual = np.sort(np.ravel(run(jax.random.key(0), sampler.table(schedule, n))))
    x = np.linspace(-2, 2, 40_001)
    density = sum(
        w / s * np.exp(-(((x - m) / s) ** 2) / 2)
        for w, m, s in zip(*BUMPS, strict=True)
    )
    below = np.cumsum(density) / np.sum(density)
    quantiles = np.interp((np.arange(len(actual)) + 0.5) / len(actual), below, x)
    assert np.mean(np.abs(actual - quantiles)) < 0.03


# Noise: its key holds everything that identifies a draw, and nothing else.


def numbers(seed, stage, block, videos, step, draw, shape=(8,)):
    keys = samplers.video_keys(seed, stage, block, jnp.asarray(videos))
    return np.asarray(samplers.normal(keys, step, draw, shape))


def test_no_two_draws_give_the_same_numbers():
    """All of (seed, stage, block, video, step, draw), swapped values included."""
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
