"""Published models of flow matching: their levels, timesteps, samplers and state."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity import wan_cases
from vdm_jax.diffusion import process, samplers, schedules, unipc
from vdm_jax.diffusion.flow_timesteps import FlowTimesteps

RECORDED = np.load(wan_cases.ARRAYS)
each_run = pytest.mark.parametrize("name", wan_cases.RUNS)


def schedule_of(name):
    kind, shift, _ = wan_cases.RUNS[name]
    is_unipc = kind == "UniPCMultistepScheduler"
    return FlowTimesteps(
        -30.0, 30.0, -2 * math.log(shift), whole_timesteps=is_unipc, skip_last=is_unipc
    )


def denoiser(schedule, dtype):
    """Return that of the stand-in, which reads flow's state and the timestep."""

    def denoise(z, level, cond):
        state = z / (level.alpha + level.sigma)
        timestep = schedule.timestep(jnp.asarray(level.logsnr, dtype))
        v = wan_cases.stand_in(state, timestep, lambda z: jnp.roll(z, 1, -1))
        return process.from_flow(v, z, level)

    return denoise


def sampled(name, dtype, rows=None):
    """Return what the sampler of a run makes; rows: of two runs that continue."""
    schedule, steps = schedule_of(name), wan_cases.RUNS[name][2]
    sampler = samplers.SAMPLERS["unipc" if name.startswith("unipc") else "ddim"]()
    table = sampler.table(schedule, steps)
    carry = sampler.init(jnp.asarray(wan_cases.latents(wan_cases.FEW), dtype))
    loop = jax.jit(
        lambda carry, start, stop: samplers.sample_loop(
            sampler, denoiser(schedule, dtype), carry, table, start, stop,
            lambda i, d: jnp.zeros(()), None,
        )
    )  # fmt: skip
    for start, stop in rows or [(0, steps)]:
        carry = loop(carry, start, stop)
    return np.asarray(carry[0])


@each_run
def test_timesteps_equal_diffusers(name):
    """UniPC's are whole, and the network of a float32 reads the same ones."""
    schedule, steps = schedule_of(name), wan_cases.RUNS[name][2]
    start, _ = samplers.grid(schedule, steps)
    expected = RECORDED[f"samplers/{name}/timesteps"]
    found = schedule.timestep(jnp.asarray(start.logsnr, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    if schedule.whole_timesteps:
        np.testing.assert_array_equal(found, expected)


@each_run
def test_samplers_equal_diffusers(name):
    expected = RECORDED[f"samplers/{name}"]
    error = np.abs(sampled(name, jnp.float32) - expected).max() / expected.std()
    print(name, error)
    assert error < 2e-5


def test_a_run_is_continued_bit_for_bit():
    name = "unipc_3_20"
    parts = sampled(name, jnp.float32, [(0, 7), (7, 8), (8, 20)])
    np.testing.assert_array_equal(parts, sampled(name, jnp.float32))


def test_the_shift_is_used_once():
    """Shift 3 moves a half to 3/4; twice it would be .9. So it is in training.

    And so it is for every sampler.
    """
    schedule = FlowTimesteps(logsnr_shift=-2 * math.log(3), whole_timesteps=False)
    for name, sampler in samplers.SAMPLERS.items():
        table = sampler().table(schedule, 2)
        tau = table["sigma"] / (table["alpha"] + table["sigma"])
        assert tau[1] == pytest.approx(0.75, abs=1e-6), name
    for levels in (
        samplers.grid(schedule, 2)[0],
        schedules.noise_level(schedule, np.array([1, 0.5])),
    ):
        tau = process.flow_time(levels)[1]
        assert tau == pytest.approx(0.75, abs=1e-6)
        assert schedule.timestep(levels.logsnr)[1] == pytest.approx(750, abs=1e-3)
    unipc_levels = samplers.grid(dataclasses.replace(schedule, skip_last=True), 2)[0]
    t = 1 - 0.999 / 2
    expected = 3 * t / (1 + 2 * t)
    assert process.flow_time(unipc_levels)[1] == pytest.approx(expected, abs=1e-9)


def test_the_steps_of_distillation_are_those_of_the_grid():
    schedule = FlowTimesteps(logsnr_shift=-2 * math.log(3))
    k = np.arange(8, -1, -1)
    np.testing.assert_allclose(schedule.grid(8), schedule.step_angle(k, 8), atol=1e-9)


@pytest.mark.parametrize("row", [0, 1, 5, 6, 7])
def test_a_run_of_unipc_that_starts_later_is_one_of_fewer_steps(row):
    """As SDEdit's: without predictions before it, on the levels that are left."""
    t, s = samplers.grid(schedule_of("unipc_5_8"), 8)
    rest = (schedules.NoiseLevel(*(c[row:] for c in level[:4])) for level in (t, s))
    expected = unipc.columns(*rest)
    table = unipc.first_row(unipc.columns(t, s), row)
    for name, column in table.items():
        np.testing.assert_allclose(column[row:], expected[name], atol=1e-12)
