"""Laws of the noise schedules, and of the times of a training batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.analytic import final_z, gaussian
from vdm_jax.diffusion import process, samplers, schedules
from vdm_jax.training.step import make_loss

# t, logsnr, alpha, sigma of the cosine schedule clipped at +-20, computed
# independently of this package.
VECTORS = np.array(
    [
        [0, 20.000000, 1.00000000, 0.00004540],
        [1 / 256, 10.172535, 0.99998090, 0.00618093],
        [0.10, 3.684990, 0.98768266, 0.15647034],
        [0.25, 1.762619, 0.92387085, 0.38270440],
        [0.50, 0, 0.70710678, 0.70710678],
        [0.75, -1.762619, 0.38270440, 0.92387085],
        [1, -20, 0.00004540, 1.00000000],
    ]
)
SHIFTS = [0.0, -3.0, 1.5]
GRID = np.linspace(0, 1, 2001)


def test_cosine_vectors_in_float64():
    t, logsnr, alpha, sigma = VECTORS.T
    level = schedules.noise_level(schedules.Cosine(), t)
    np.testing.assert_allclose(level.logsnr, logsnr, atol=5e-7)
    np.testing.assert_allclose(level.alpha, alpha, atol=5e-9)
    np.testing.assert_allclose(level.sigma, sigma, atol=5e-9)


def test_cosine_vectors_in_float32():
    """Near t=1 tan() costs float32 about 1e-3 of logsnr; alpha and sigma keep 1e-6."""
    t, logsnr, alpha, sigma = VECTORS.T
    level = schedules.noise_level(schedules.Cosine(), jnp.asarray(t, jnp.float32))
    assert level.logsnr.dtype == level.alpha.dtype == level.sigma.dtype == jnp.float32
    np.testing.assert_allclose(level.logsnr[:-1], logsnr[:-1], atol=1e-4)
    np.testing.assert_allclose(level.logsnr[-1], logsnr[-1], atol=5e-3)
    np.testing.assert_allclose(level.alpha, alpha, atol=1e-6)
    np.testing.assert_allclose(level.sigma, sigma, atol=1e-6)


@pytest.mark.parametrize("shift", SHIFTS)
def test_logsnr_decreases_strictly_between_its_ends(shift):
    logsnr = schedules.Cosine(logsnr_min=-12, logsnr_max=9, logsnr_shift=shift).logsnr(
        GRID
    )
    assert (np.diff(logsnr) < 0).all()
    np.testing.assert_allclose(logsnr[[0, -1]], [9, -12], rtol=0, atol=1e-9)


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_noise_level_is_consistent(shift):
    """alpha^2 + sigma^2 = 1, and logsnr and angle agree with alpha and sigma."""
    schedule = schedules.Cosine(logsnr_shift=shift)
    level = schedules.noise_level(schedule, GRID)
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, atol=1e-12)
    ratio = 2 * np.log(level.alpha / level.sigma)
    np.testing.assert_allclose(level.logsnr, ratio, atol=1e-9)
    angle = np.arctan2(level.sigma, level.alpha)
    np.testing.assert_allclose(schedule.angle(GRID), angle, atol=1e-12)


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_noise_level_is_consistent_in_float32(shift):
    t = jnp.linspace(0, 1, 2001)
    level = schedules.noise_level(schedules.Cosine(logsnr_shift=shift), t)
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, atol=1e-6)
    assert (np.asarray(level.alpha) > 0).all() and (np.asarray(level.sigma) > 0).all()
    ratio = 2 * np.log(np.float64(level.alpha) / np.float64(level.sigma))
    np.testing.assert_allclose(level.logsnr, ratio, atol=1e-2)


def test_angle_is_linear_in_time():
    """phi = a t + b: equal steps of t are equal rotations."""
    angle = schedules.Cosine().angle(GRID)
    b = np.arctan(np.exp(-10.0))
    np.testing.assert_allclose(angle, b + (np.pi / 2 - 2 * b) * GRID, atol=1e-12)


def test_logsnr_is_the_angle_that_the_network_embeds():
    """atan(exp(-logsnr/2)) is the angle again, hence t."""
    schedule = schedules.Cosine()
    angle = np.arctan(np.exp(-schedule.logsnr(GRID) / 2))
    first, last = schedule.angle(np.array([0.0, 1.0]))
    np.testing.assert_allclose((angle - first) / (last - first), GRID, atol=1e-12)


@pytest.mark.parametrize("shift", [-3.0, 1.5])
def test_shift_scales_the_signal_to_noise_ratio(shift):
    """alpha/sigma = e^{shift/2} times that of the cosine over the shifted range."""
    shifted = schedules.noise_level(schedules.Cosine(logsnr_shift=shift), GRID)
    plain = schedules.Cosine(logsnr_min=-20 - shift, logsnr_max=20 - shift)
    plain = schedules.noise_level(plain, GRID)
    np.testing.assert_allclose(
        shifted.alpha / shifted.sigma,
        np.exp(shift / 2) * plain.alpha / plain.sigma,
        rtol=1e-9,
    )
    # Away from the clipped ends the range does not matter.
    same_range = schedules.Cosine().logsnr(GRID)
    inner = slice(200, 1801)
    np.testing.assert_allclose(
        shifted.logsnr[inner], same_range[inner] + shift, atol=5e-3
    )


def test_zero_shift_is_the_unshifted_schedule():
    shifted, plain = schedules.Cosine(logsnr_shift=0.0), schedules.Cosine()
    np.testing.assert_array_equal(shifted.logsnr(GRID), plain.logsnr(GRID))
    np.testing.assert_array_equal(shifted.angle(GRID), plain.angle(GRID))


@pytest.mark.parametrize("shift", SHIFTS)
def test_numpy_and_jax_agree_in_float64(shift, x64):
    schedule = schedules.Cosine(logsnr_shift=shift)
    host = schedules.noise_level(schedule, GRID)
    device = jax.jit(lambda t: schedules.noise_level(schedule, t))(jnp.asarray(GRID))
    assert isinstance(host.alpha, np.ndarray) and host.alpha.dtype == np.float64
    assert device.alpha.dtype == jnp.float64
    np.testing.assert_allclose(device.alpha, host.alpha, rtol=0, atol=1e-12)
    np.testing.assert_allclose(device.sigma, host.sigma, rtol=0, atol=1e-12)
    np.testing.assert_allclose(device.logsnr, host.logsnr, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(), (3,), (3, 4)])
def test_a_noise_level_has_the_shape_of_its_times(shape):
    level = schedules.noise_level(
        schedules.Cosine(), jnp.full(shape, 0.3), step_index=7
    )
    assert level.logsnr.shape == level.alpha.shape == level.sigma.shape == shape
    assert int(level.step_index) == 7


def test_examples_alternate_between_schedules():
    """Example i has the level of schedule i mod n at its own time."""
    plain, noisy = schedules.Cosine(), schedules.Cosine(logsnr_shift=-3.0)
    alternating = schedules.AlternatingSchedules((plain, noisy))
    t = np.linspace(0.1, 0.9, 5)
    angle = alternating.angle(t)
    np.testing.assert_array_equal(angle[0::2], plain.angle(t[0::2]))
    np.testing.assert_array_equal(angle[1::2], noisy.angle(t[1::2]))
    np.testing.assert_allclose(alternating.angle(jnp.asarray(t)), angle, atol=1e-6)


# Laws of every schedule, and the ends of its logsnr.

_ALPHAS = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
DISCRETE_END = np.log(_ALPHAS[-1] / (1 - _ALPHAS[-1]))
RANGES = {
    "cosine": (20.0, -20.0),
    "interpolated": (20.0, -20.0),
    "linear": (20.0, -np.log(np.expm1(10.05))),  # it ends before -20
    "flow": (20.0, -20.0),
    "karras": (-2 * np.log(0.002), -2 * np.log(80.0)),
    # The first beta is 1 - alpha^2 at timestep 0.
    "discrete": (np.log(1 / 0.00085 - 1), DISCRETE_END),
}
EVERY = [(schedules.SCHEDULES[name](), *ends) for name, ends in RANGES.items()]
EVERY += [
    (schedules.Cosine(-9.0, 7.0, logsnr_shift=-3.0), 7.0, -9.0),
    (schedules.Interpolated(-9.0, 7.0, 1.0, -3.0), 7.0, -9.0),
    (schedules.Linear(-9.0, 7.0), 7.0, -9.0),
    (schedules.Flow(-9.0, 7.0, logsnr_shift=1.5), 7.0, -9.0),
]
each_schedule = pytest.mark.parametrize("schedule, first, last", EVERY)


def test_every_schedule_is_tested():
    assert set(RANGES) == set(schedules.SCHEDULES)


@each_schedule
def test_noise_grows_with_time_between_the_ends(schedule, first, last):
    """logsnr decreases strictly inside the range, and is constant only at its ends."""
    level = schedules.noise_level(schedule, GRID)
    np.testing.assert_allclose(level.logsnr[[0, -1]], [first, last], rtol=0, atol=1e-9)
    inside = (level.logsnr < first - 1e-6) & (level.logsnr > last + 1e-6)
    assert inside.sum() > len(GRID) / 2
    assert (np.diff(level.logsnr[inside]) < 0).all()
    assert (np.diff(level.logsnr) <= 1e-12).all()
    assert (np.diff(schedule.angle(GRID)) >= 0).all()
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, rtol=0, atol=1e-12)
    ratio = 2 * np.log(level.alpha / level.sigma)
    np.testing.assert_allclose(level.logsnr, ratio, rtol=0, atol=1e-9)


@each_schedule
def test_host_and_device_agree(schedule, first, last, x64):
    host = schedules.noise_level(schedule, GRID)
    device = jax.jit(lambda t: schedules.noise_level(schedule, t))(jnp.asarray(GRID))
    for name, atol in {"alpha": 1e-12, "sigma": 1e-12, "logsnr": 1e-8}.items():
        a, b = getattr(host, name), getattr(device, name)
        assert isinstance(a, np.ndarray) and a.dtype == b.dtype == np.float64
        np.testing.assert_allclose(b, a, rtol=0, atol=atol)


@each_schedule
def test_float32_keeps_alpha_and_sigma(schedule, first, last):
    level = schedules.noise_level(schedule, jnp.asarray(GRID, jnp.float32))
    host = schedules.noise_level(schedule, np.float64(np.float32(GRID)))
    assert level.alpha.dtype == level.sigma.dtype == level.logsnr.dtype == jnp.float32
    assert (np.asarray(level.alpha) > 0).all() and (np.asarray(level.sigma) > 0).all()
    np.testing.assert_allclose(level.alpha, host.alpha, rtol=0, atol=2e-6)
    np.testing.assert_allclose(level.sigma, host.sigma, rtol=0, atol=2e-6)
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, rtol=0, atol=1e-6)


@each_schedule
@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_grid_runs_from_noise_to_the_clean_video(schedule, first, last, n):
    """Every step starts where the previous one ends; the last ends at phi = 0."""
    if isinstance(schedule, schedules.Discrete):  # its own grid: test_discrete.py
        schedule = schedules.Discrete(
            timestep_spacing="trailing", set_alpha_to_one=True
        )
    start, stop = samplers.grid(schedule, n)
    assert start.step_index.tolist() == list(range(n))
    np.testing.assert_allclose(start.logsnr[0], last, rtol=0, atol=1e-9)
    for name in ("logsnr", "alpha", "sigma"):
        here, there = getattr(start, name), getattr(stop, name)
        np.testing.assert_array_equal(here[1:], there[:-1])
    assert stop.alpha[-1] == 1 and stop.sigma[-1] == 0 and stop.logsnr[-1] == np.inf
    if not isinstance(schedule, schedules.Karras | schedules.Discrete):
        expected = schedules.noise_level(schedule, 1 - np.arange(n) / n)
        np.testing.assert_allclose(start.logsnr, expected.logsnr, atol=1e-9)


def test_linear_is_the_schedule_of_ddpm():
    """The product of a thousand 1 - beta from 1e-4 to .02; continuous time is close.

    The integral of beta starts half a beta away from their sum (logsnr .1 off at the
    first step) and leaves out log(1 - beta) + beta (.07 at the last one).
    """
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    level = schedules.noise_level(schedules.Linear(), np.arange(1, 1001) / 1000)
    np.testing.assert_allclose(level.alpha, np.sqrt(alpha_bar), rtol=0, atol=2e-3)
    np.testing.assert_allclose(level.sigma, np.sqrt(1 - alpha_bar), rtol=0, atol=2e-3)
    logsnr = np.log(alpha_bar / (1 - alpha_bar))
    np.testing.assert_allclose(level.logsnr, logsnr, rtol=0, atol=0.1)


def shifted_cosine(t, shift, low=-20.0, high=20.0):
    """-2 log tan(a t + b) on the shifted range, plus the shift."""
    b = np.arctan(np.exp(-(high - shift) / 2))
    a = np.arctan(np.exp(-(low - shift) / 2)) - b
    return -2 * np.log(np.tan(a * t + b)) + shift


def test_interpolated_changes_from_one_shift_to_the_other():
    schedule = schedules.Interpolated(logsnr_shift=1.0, noise_logsnr_shift=-3.0)
    t = GRID[1:-1]
    expected = (1 - t) * shifted_cosine(t, 1.0) + t * shifted_cosine(t, -3.0)
    actual = schedules.noise_level(schedule, t).logsnr
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-8)
    same = schedules.Interpolated(logsnr_shift=-2.0, noise_logsnr_shift=-2.0)
    cosine = schedules.Cosine(logsnr_shift=-2.0)
    np.testing.assert_allclose(same.angle(GRID), cosine.angle(GRID), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shift", [0.0, -3.0, 1.5])
def test_flow_is_the_straight_path_in_shifted_time(shift):
    """sigma / alpha = tau' / (1 - tau'), tau' = s tau / (1 + (s - 1) tau)."""
    tau, s = GRID[1:-1], np.exp(-shift / 2)
    moved = s * tau / (1 + (s - 1) * tau)
    level = schedules.noise_level(schedules.Flow(logsnr_shift=shift), tau)
    np.testing.assert_allclose(
        level.sigma / level.alpha, moved / (1 - moved), rtol=1e-9
    )
    plain = schedules.noise_level(schedules.Flow(), tau)
    np.testing.assert_allclose(level.logsnr, plain.logsnr + shift, rtol=0, atol=1e-8)


@pytest.mark.parametrize("n", [2, 5, 18])
def test_karras_levels(n):
    """(s_max^(1/7) + i / (N - 1) (s_min^(1/7) - s_max^(1/7)))^7, then 0."""
    high, low = 80.0 ** (1 / 7), 0.002 ** (1 / 7)
    expected = (high + np.arange(n) / (n - 1) * (low - high)) ** 7
    start, stop = samplers.grid(schedules.Karras(), n)
    np.testing.assert_allclose(start.sigma / start.alpha, expected, rtol=1e-9)
    actual = stop.sigma / stop.alpha
    np.testing.assert_allclose(actual, np.append(expected[1:], 0), rtol=1e-9)


def test_karras_with_other_parameters():
    schedule = schedules.Karras(sigma_min=0.1, sigma_max=10.0, rho=3.0)
    sigma = process.edm_sigma(samplers.grid(schedule, 3)[0])
    middle = ((0.1 ** (1 / 3) + 10.0 ** (1 / 3)) / 2) ** 3
    np.testing.assert_allclose(sigma, [10.0, middle, 0.1], rtol=1e-9)


@pytest.mark.parametrize("size, base", [(128, 64), (32, 64), (64, 32)])
def test_resolution_shift_scales_by_the_sizes(size, base):
    """alpha / sigma is base / size times the unshifted one."""
    shift = 2 * np.log(base / size)
    t = np.linspace(0.1, 0.9, 9)
    wide = {"logsnr_min": -60.0, "logsnr_max": 60.0}  # practically unclipped
    shifted, plain = (
        schedules.noise_level(schedules.Cosine(**wide, logsnr_shift=s), t)
        for s in (shift, 0.0)
    )
    ratio = (shifted.alpha / shifted.sigma) / (plain.alpha / plain.sigma)
    np.testing.assert_allclose(ratio, base / size, rtol=1e-9)


def test_angle_and_logsnr_are_inverses(x64):
    logsnr = np.linspace(-20, 20, 401)
    for as_array in (np.asarray, jnp.asarray):
        angle = schedules.angle_from_logsnr(as_array(logsnr))
        np.testing.assert_allclose(
            schedules.logsnr_from_angle(angle), logsnr, rtol=0, atol=1e-6
        )
        level = schedules.noise_level_from_angle(angle, step_index=3)
        assert type(level.alpha) is type(angle) and level.step_index == 3
        np.testing.assert_allclose(np.arctan2(level.sigma, level.alpha), angle)
        np.testing.assert_allclose(level.alpha**2, 1 / (1 + np.exp(-logsnr)))
        np.testing.assert_allclose(level.sigma**2, 1 / (1 + np.exp(logsnr)))


# A schedule of its own levels, in sampling and in training, is one class.


@dataclasses.dataclass(frozen=True)
class FourLevels(schedules.Schedule):
    """Four noise levels by number; a run ends at the lowest of them, above phi = 0."""

    angles: tuple[float, ...] = (0.1, 0.5, 0.9, 1.4)

    def angle(self, t):
        levels = jnp.asarray if isinstance(t, jax.Array) else np.asarray
        return levels(self.angles)[(t * 4).astype(int).clip(0, 3)]

    def grid(self, n):
        return np.asarray(self.angles)[::-1][np.linspace(0, 3, n + 1).astype(int)]

    def training_times(self, key, n, dtype=None):
        return jax.random.randint(key, (n,), 0, 4).astype(dtype or float) / 4


SAMPLERS = {
    "ddim": samplers.ddim(),
    "ancestral": samplers.ancestral(),
    "dpm": samplers.dpm(),
    "unipc": samplers.unipc(),
    "heun": samplers.heun(),
    "stochastic": samplers.restart_ddim(),
    "corrector": samplers.with_langevin_corrector(samplers.ddim()),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_calls_a_new_schedule_at_its_own_levels(name, x64):
    """Of data that is one point: the run ends at q(z | x) of the grid's last level."""
    schedule, sampler, point, calls = FourLevels(), SAMPLERS[name], 0.3, []
    z = jnp.asarray(np.random.default_rng(0).standard_normal((2, 1, 2, 2, 1)))
    exact = gaussian(point, 0.0)

    def recorded(z, level, cond):
        jax.debug.callback(
            lambda phi: calls.append(float(phi)), jnp.arctan2(*level[3:1:-1])
        )
        return exact(z, level, cond)

    table = sampler.table(schedule, 3)
    no_noise = lambda step, draw: jnp.zeros_like(z)  # noqa: E731
    made = final_z(sampler, recorded, z, table, 0, 3, no_noise, None)
    jax.effects_barrier()
    assert {round(phi, 9) for phi in calls} <= set(schedule.angles)
    assert {1.4, 0.9, 0.5} <= {round(phi, 9) for phi in calls}
    assert (0.1 in {round(phi, 9) for phi in calls}) == (name in ("heun", "corrector"))
    if name in ("ddim", "dpm", "unipc"):
        eps = exact(z, schedules.noise_level_from_angle(np.float64(1.4)), None).eps
        expected = np.cos(0.1) * point + np.sin(0.1) * eps
        np.testing.assert_allclose(made, expected, rtol=0, atol=1e-12)
    assert np.isfinite(made).all()


def test_the_loss_of_a_model_draws_the_times_of_its_training_schedule():
    """Each example has one of the four levels, and two alternate over the batch."""
    seen = []

    class Model:
        training_schedule = schedules.AlternatingSchedules(
            (FourLevels(), FourLevels((0.2, 0.6, 1.0, 1.5)))
        )

        def prepare_batch(self, batch, key, codec_params):
            return batch["video"], {}

        def denoiser(self, params, key):
            def denoise(z, level, cond):
                seen.append(level)
                return process.from_x(jnp.zeros_like(z), z, level)

            return denoise

    loss = make_loss(Model(), "snr_plus_one")  # type: ignore[arg-type]
    batch = {"video": jnp.ones((64, 1, 2, 2, 1))}
    loss(None, {}, batch, jax.random.key(0))
    phi = np.round(np.arctan2(seen[0].sigma, seen[0].alpha), 4)
    assert set(phi[0::2].tolist()) == set(
        np.float32(FourLevels().angles).round(4).tolist()
    )
    assert set(phi[1::2].tolist()) == set(
        np.float32((0.2, 0.6, 1.0, 1.5)).round(4).tolist()
    )


@pytest.mark.parametrize("n", [1, 5, 16])
def test_stratified_times_put_one_time_in_each_stratum(n):
    draw = jax.jit(schedules.stratified_times, static_argnums=1)
    for seed in range(20):
        t = np.asarray(draw(jax.random.key(seed), n))
        assert t.shape == (n,) and (t >= 0).all() and (t <= 1).all()
        gaps = np.sort(t)
        # Rounding may move a time across an edge, hence the tolerance.
        assert (gaps >= np.arange(n) / n - 1e-6).all()
        assert (gaps <= (np.arange(n) + 1) / n + 1e-6).all()


def test_stratified_times_are_uniform():
    """Uniform on [0, 1) over keys, also within a stratum; keys give different times."""
    n = 8
    keys = jax.random.split(jax.random.key(0), 2000)
    t = np.asarray(jax.vmap(lambda key: schedules.stratified_times(key, n))(keys))
    for values in (t.ravel(), (t * n % 1).ravel()):
        values = np.sort(values)
        distance = np.abs(values - (np.arange(values.size) + 0.5) / values.size).max()
        # Fewer independent numbers than values if a batch shares one offset.
        assert distance < 1.95 / np.sqrt(len(keys))
    assert len(np.unique(t[:, 0])) > 1990
