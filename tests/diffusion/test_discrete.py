"""The discrete schedule: levels, timesteps, samplers against diffusers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.analytic import final_z
from tests.parity import sd_cases
from vdm_jax.diffusion import distillation, process, samplers, schedules
from vdm_jax.errors import UserError

SD = schedules.Discrete()
TRAILING = schedules.Discrete(timestep_spacing="trailing", set_alpha_to_one=True)
RECORDED = np.load(sd_cases.FOLDER / "sd_samplers.npz")
# diffusers' class -> our sampler and the schedule's fields for it.
SAMPLERS = {
    "DDIMScheduler": (samplers.ddim(), {}),
    "EulerDiscreteScheduler": (
        samplers.ddim(),
        {"timestep_spacing": "fractional", "set_alpha_to_one": True},
    ),
    "DPMSolverMultistepScheduler": (
        samplers.dpm(),
        {"timestep_spacing": "linspace", "set_alpha_to_one": True, "skip_last": True},
    ),
}
each_run = pytest.mark.parametrize("name", sd_cases.RUNS)
each_prediction = pytest.mark.parametrize("prediction", sd_cases.PREDICTION_TYPES)


def sampled(name, prediction, dtype):
    """Return the result of a recorded run by our sampler, in torch's order."""
    kind, steps, settings = sd_cases.RUNS[name]
    sampler, fields = SAMPLERS[kind]
    schedule = dataclasses.replace(SD, **fields | settings)

    def denoise(z, level, cond):
        timestep = schedule.timestep(level.logsnr)
        output = sd_cases.stand_in(z, timestep, lambda x: jnp.roll(x, 1, -1))
        return process.PREDICTION_TYPES[prediction](output, z, level)

    z = jnp.asarray(sd_cases.noise(), dtype)
    table = samplers.pad_table(sampler.table(schedule, steps), dtype)
    arguments = 0, steps, lambda i, draw: None, None
    run = jax.jit(lambda z, table: final_z(sampler, denoise, z, table, *arguments))
    return np.asarray(run(z, table))


@each_prediction
@each_run
def test_samplers_equal_diffusers(name, prediction):
    expected = RECORDED[f"{name}_{prediction}"]
    error = np.abs(sampled(name, prediction, jnp.float32) - expected).max()
    print(name, prediction, error)
    assert error < 2e-5 * np.abs(expected).max()


@each_prediction
@each_run
def test_samplers_equal_diffusers_in_float64(name, prediction, x64):
    """Its Euler and DPM-Solver round z to float32 in each step."""
    expected = RECORDED[f"{name}_{prediction}"]
    error = np.abs(sampled(name, prediction, jnp.float64) - expected).max()
    print(name, prediction, error)
    limit = 1e-11 if name.startswith("ddim") else 2e-6
    assert error < limit * np.abs(expected).max()


def test_levels_are_products_of_one_minus_beta():
    """The first and last alpha_bar of Stable Diffusion, by a plain loop."""
    product, alphas = 1.0, []
    for i in range(1000):
        root = 0.00085**0.5 + i / 999 * (0.012**0.5 - 0.00085**0.5)
        product *= 1 - root**2
        alphas.append(product)
    level = schedules.noise_level(SD, np.arange(1000) / 999)
    np.testing.assert_allclose(level.alpha**2, alphas, rtol=1e-10)
    np.testing.assert_allclose(alphas[::999], [0.99915, 0.00466], rtol=2e-3)


def test_a_step_ends_at_the_next_timestep_of_the_list():
    """1000 timesteps in 13 steps: the partner of 999 is 922, not 999 - 1000 // 13."""
    schedule = dataclasses.replace(SD, timestep_spacing="trailing")
    listed = [999, 922, 845, 768, 691, 614, 537, 461, 384, 307, 230, 153, 76]
    assert schedule.timesteps(13).tolist() == listed
    start, stop = samplers.grid(schedule, 13)
    np.testing.assert_allclose(schedule.timestep(start.logsnr), listed, atol=1e-9)
    ends = [*listed[1:], 0]
    np.testing.assert_allclose(schedule.timestep(stop.logsnr), ends, atol=1e-9)


def test_the_ends_of_a_run():
    """SD's offset of 1 and its end at timestep 0; others end at the clean image."""
    assert SD.timesteps(50).tolist() == list(range(981, 0, -20))
    assert SD.timesteps(1).tolist() == [1]
    assert SD.grid(50)[-1] == SD.angle(np.zeros(1))[0] > 0.02
    assert dataclasses.replace(SD, set_alpha_to_one=True).grid(50)[-1] == 0
    linspace = dataclasses.replace(SD, timestep_spacing="linspace")
    assert linspace.timesteps(4).tolist() == [999, 666, 333, 0]
    skipped = dataclasses.replace(linspace, skip_last=True)
    assert skipped.timesteps(3).tolist() == [999, 666, 333]


@pytest.mark.parametrize("n", [0, 1000, 1001])
def test_more_steps_than_timesteps_are_refused(n):
    """1000 steps with an offset of 1 would begin at timestep 1000."""
    with pytest.raises(UserError, match=f"{n} steps of a sampler on a discrete"):
        SD.grid(n)
    every = dataclasses.replace(SD, steps_offset=0)
    for schedule, most in (
        (SD, 999), (every, 1000), (dataclasses.replace(every, skip_last=True), 999)
    ):  # fmt: skip
        assert (np.diff(schedule.grid(most)[:-1]) < 0).all()


def test_a_float32_level_gives_its_timestep_exactly():
    """What is between two timesteps is as exact as float32 has numbers near 1000."""
    t = np.arange(1000) / 999
    level = schedules.noise_level(SD, jnp.asarray(t, jnp.float32))
    np.testing.assert_array_equal(SD.timestep(level.logsnr), np.arange(1000))
    host = schedules.noise_level(SD, t).logsnr.astype(np.float32)
    np.testing.assert_array_equal(SD.timestep(jnp.asarray(host)), np.arange(1000))
    between = schedules.noise_level(SD, jnp.asarray(t[:-1] + 0.5 / 999, jnp.float32))
    error = np.asarray(SD.timestep(between.logsnr)) - np.arange(999) - 0.5
    assert np.abs(error).max() < 3e-4


def test_the_level_of_data_is_timestep_0():
    """logsnr is infinite there, as of a frame that is given."""
    assert SD.timestep(np.array(np.inf)) == SD.timestep(jnp.inf * jnp.ones(())) == 0


def test_training_draws_whole_timesteps_evenly():
    """In 100 batches of 1000 each timestep comes once a batch, up to rounding."""
    draw = jax.jit(SD.training_times, static_argnums=1)
    keys = jax.random.split(jax.random.key(0), 100)
    times = np.stack([draw(key, 1000) for key in keys])
    timesteps = times * 999
    np.testing.assert_allclose(timesteps, timesteps.round(), atol=1e-3)
    counts = np.bincount(timesteps.round().astype(int).ravel(), minlength=1000)
    assert len(counts) == 1000 and counts.min() > 80 and counts.max() < 120
    level = schedules.noise_level(SD, jnp.asarray(times[0]))
    timestep = np.asarray(SD.timestep(level.logsnr))
    np.testing.assert_array_equal(timestep, timesteps[0].round())


@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_trailing_steps_halve(n, x64):
    """A student's step is two of a sampler of twice its steps; others do not halve."""
    coarse, fine = TRAILING.grid(n), TRAILING.grid(2 * n)
    np.testing.assert_array_equal(fine[::2], coarse)
    i = np.arange(n, 0, -1)
    step = distillation.student_step(TRAILING, jnp.asarray(i), n)
    for actual, expected in zip(
        step, (coarse[:-1], fine[1::2], coarse[1:]), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)
    assert abs(SD.grid(2 * n)[0] - SD.grid(n)[0]) > 0.01 or n > 8
