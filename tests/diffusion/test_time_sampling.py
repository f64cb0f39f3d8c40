"""Log-normal times of training, and the shift of flow's time, once in all places."""

import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity import recorded
from tests.small_model import smoke_config
from vdm_jax import build, sampling
from vdm_jax.diffusion import process, samplers, schedules, time_sampling
from vdm_jax.errors import UserError
from vdm_jax.sampling.settings import make_schedule

SHIFT_3 = -2 * math.log(3)


def flow_time(schedule, t):
    return process.flow_time(schedules.noise_level(schedule, t))


def test_training_times_are_logit_normal(x64):
    """The quantiles of the logit of flow's time are those of N(mean, std^2)."""
    t = np.linspace(0.01, 0.99, 99)
    expected = [statistics.NormalDist(-0.3, 1.4).inv_cdf(p) for p in t]
    for array in (t, jnp.asarray(t)):
        tau = flow_time(time_sampling.LogNormal(-0.3, 1.4), array)
        logit = np.log(tau / (1 - tau))
        np.testing.assert_allclose(logit, expected, rtol=0, atol=1e-9)


def test_the_training_times_of_a_batch_are_stratified():
    schedule = time_sampling.LogNormal()
    t = schedule.training_times(jax.random.key(0), 1000)
    tau = np.asarray(flow_time(schedule, t))
    logit = np.log(tau / (1 - tau))
    assert abs(logit.mean()) < 0.01 and abs(logit.std() - 1) < 0.01


def test_the_ends_of_the_times_are_clipped():
    for t in (np.array([0.0, 1.0]), jnp.array([0.0, 1.0])):
        logsnr = schedules.noise_level(time_sampling.LogNormal(), t).logsnr
        np.testing.assert_allclose(logsnr, [20, -20], atol=5e-3)


def test_a_shift_of_three_moves_a_half_to_three_quarters(x64):
    """In training and in every sampler's table; twice would be .9."""
    flow = schedules.Flow(logsnr_shift=SHIFT_3)
    np.testing.assert_allclose(flow_time(flow, np.array(0.5)), 0.75)
    training = time_sampling.LogNormal(logsnr_shift=SHIFT_3)
    np.testing.assert_allclose(flow_time(training, np.array(0.5)), 0.75)
    for name, sampler in samplers.SAMPLERS.items():
        table = sampler().table(flow, 2)
        tau = table["sigma"] / (table["alpha"] + table["sigma"])
        np.testing.assert_allclose(tau[1], 0.75, err_msg=name)


def test_a_config_shifts_training_and_sampling_once():
    """Six frames of 16x16 at base 8: r = 2 sqrt(8) for both, for every sampler."""
    config = smoke_config()
    config.diffusion.update(
        schedule="flow", prediction_type="flow", precondition=False, logsnr_shift=0.0,
        train_logsnr_shifts=(), train_lognormal=(0.0, 1.0), resolution_base=8,
    )  # fmt: skip
    model = build.build_model(config)
    r = 2 * math.sqrt(8)
    shifted = r * 0.5 / (1 + (r - 1) * 0.5)
    half = np.array(0.5)
    np.testing.assert_allclose(flow_time(model.schedule, half), shifted)
    np.testing.assert_allclose(flow_time(model.training_schedule, half), shifted)
    for name in ("", "flow"):
        settings = sampling.Settings(sampler="ddim", sampling_schedule=name)
        own = make_schedule(model, settings)
        np.testing.assert_allclose(flow_time(own, half), shifted)
    config.diffusion.train_logsnr_shifts = (0.0, SHIFT_3)
    both = build.build_model(config).training_schedule
    tau = flow_time(both, np.array([0.5, 0.5]))
    np.testing.assert_allclose(tau / (1 - tau), [r, 3 * r])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_lognormal": (0.0, 0.0)}, r"train_lognormal=\(0.0, 0.0\): a mean"),
        ({"schedule": "discrete", "train_lognormal": (0.0, 1.0)}, "which is a table"),
        ({"schedule": "karras", "resolution_base": 64}, "schedule 'karras' has none"),
    ],
)
def test_training_times_that_do_not_fit_are_refused(changes, message):
    config = smoke_config()
    config.diffusion.update(logsnr_shift=0.0, train_logsnr_shifts=(), **changes)
    with pytest.raises(UserError, match=message):
        build.build_model(config)


def test_recorded_shifts_of_open_sora(x64):
    """Rows: height, width and frames, then the shifted times of five times.

    17 frames are five latents, of whole parts only, which leaves a clip of 16 frames
    none: its recorded shift is 0. Ours counts z's own frames and is never 0.
    """
    times = np.array([1000, 900, 500, 100, 1]) / 1000
    *rows, short = recorded.load("open_sora_flow")["transform_rows"]
    for height, width, frames, *shifted in rows:
        latents = 1 if frames == 1 else frames // 17 * 5
        r = time_sampling.resolution_shift(height, width, latents, 512)
        schedule = schedules.Flow(-30, 30, -2 * math.log(r))
        actual = 1000 * flow_time(schedule, times)
        np.testing.assert_allclose(actual, shifted, rtol=1e-6)
    assert short[2] == 16 and not np.any(short[4:])
    assert time_sampling.resolution_shift(256, 256, 4, 512) == 1
