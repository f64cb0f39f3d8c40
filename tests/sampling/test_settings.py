"""Settings of sampling, and what is refused before anything compiles."""

import dataclasses
import functools

import numpy as np
import pytest

from configs.base import base
from vdm_jax import sampling
from vdm_jax.diffusion import schedules
from vdm_jax.errors import UserError
from vdm_jax.sampling import settings as setting

LOGSNR = np.array([-8.0, -2.0, 0.0, 2.0, 8.0])


def scales(schedule, scale=5.0, frames=3):
    settings = sampling.Settings(guidance_scale=scale, guidance_schedule=schedule)
    return setting.guidance_scales(settings, LOGSNR, frames)


def test_the_config_has_every_setting_and_the_defaults_are_fields():
    names = {field.name for field in dataclasses.fields(sampling.Settings)}
    assert set(base().sample) == names | {"num", "label"}
    read = sampling.Settings.from_config({"steps": 7, "num": 3, "label": ""})
    assert read == sampling.Settings(steps=7)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [5, 5, 5, 5, 5]),
        ("interval:-2:2", [1, 5, 5, 5, 1]),
        ("oscillating:1", [5, 1, 5, 1, 5]),
        ("oscillating:1:0.5", [5, 5, 5, 1, 5]),
        ("oscillating:1:0", [1, 5, 1, 5, 1]),
    ],
)
def test_scales_by_the_step(schedule, expected):
    found = scales(schedule)
    np.testing.assert_array_equal(found, np.array(expected)[:, None, None])


def test_the_low_scale_may_be_above_one():
    np.testing.assert_array_equal(scales("oscillating:2")[:, 0, 0], [5, 2, 5, 2, 5])


def test_scales_by_the_frame():
    np.testing.assert_allclose(scales("frames:1")[2, 0], [1, 3, 5])


def test_reconstruction_weights():
    settings = sampling.Settings(reconstruction_weight=2.0)
    assert setting.reconstruction_base_slope(settings, 0.25) == (2.0, 0.0)
    exact = dataclasses.replace(settings, reconstruction_schedule="exact")
    assert setting.reconstruction_base_slope(exact, 0.25) == (2.0, 8.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance_schedule": "frames:2"}, "goes with a guidance_scale above 1"),
        ({"guidance_schedule": "sine"}, "constant, interval"),
        ({"guidance_schedule": "constant:1"}, "constant, interval"),
        ({"guidance_schedule": "interval:2:-2"}, "LOW below HIGH"),
        ({"guidance_schedule": "interval:a:b"}, "constant, interval"),
        ({"guidance_schedule": "interval:nan:2"}, "constant, interval"),
        ({"guidance_schedule": "oscillating:0"}, "scale, 1 or more"),
        ({"guidance_schedule": "oscillating:1:2"}, "the fraction of steps"),
        ({"guidance_schedule": "frames:0.9"}, "scale, 1 or more"),
        ({"guidance_schedule": "frames:1e99"}, "scale, 1 or more"),
        ({"guidance_schedule": "oscillating:1e99"}, "scale, 1 or more"),
        ({"steps": 10**400}, "from 1 to 1024"),
        ({"batch_size": 10**20}, "from 1 to"),
        ({"steps": 1001, "sampling_schedule": "discrete"}, "0 to 999; use fewer"),
        ({"augmentation_snr": np.nan}, "augmentation_snr=nan"),
        ({"augmentation_snr": -1.0}, "augmentation_snr=-1.0"),
        ({"sampling_schedule": "sigmoid"}, "one of '', cosine"),
        ({"cfg_mode": "sum"}, "one of linear, rescaled, projected"),
        ({"reconstruction_weight": -1.0}, "0 is replacement"),
        ({"reconstruction_schedule": "linear"}, "one of constant, exact"),
        ({"langevin_delta": 2.0}, "Langevin corrector"),
        ({"s_churn": -1.0}, "s_churn=-1.0"),
        ({"dynamic_threshold": 101.0}, "percentile of |x|"),
    ],
)
def test_settings_out_of_range_are_one_line(trained, change, message):
    with pytest.raises(UserError) as refusal:
        sampling.check_settings(trained[0], 1, 0, sampling.Settings(**change))
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_an_eps_output_needs_a_bound_where_no_signal_is_left(trained):
    model = dataclasses.replace(trained[0], prediction_type="eps")
    unbound = sampling.Settings(clip_x=0.0)
    with pytest.raises(UserError, match="eps output that starts at logsnr=-20"):
        sampling.check_settings(model, 1, 0, unbound)
    for allowed in (
        sampling.Settings(),
        dataclasses.replace(unbound, dynamic_threshold=99.5),
        dataclasses.replace(unbound, sampling_schedule="karras"),
    ):
        sampling.check_settings(model, 1, 0, allowed)
    sampling.check_settings(trained[0], 1, 0, unbound)  # v says all of it


@pytest.mark.parametrize("sampler", ["dpm", "heun"])
def test_second_order_steps_are_on_karras_levels_by_default(trained, sampler):
    model = trained[0]
    settings = sampling.Settings(sampler=sampler)
    schedule, last = setting.make_schedule(model, settings), np.zeros(1)
    assert schedule.grid(2)[1] == schedule.angle(last)[0]
    own = dataclasses.replace(settings, sampling_schedule="cosine")
    schedule = setting.make_schedule(model, own)
    assert schedule.grid(2)[1] == schedule.angle(last + 0.5)[0]
    assert setting.make_schedule(model, sampling.Settings()) is model.schedule


@pytest.mark.parametrize("name", sorted(schedules.SCHEDULES.keys() - {"discrete"}))
def test_a_named_schedule_keeps_to_the_model_s_range_and_shift(trained, name):
    narrow = schedules.Cosine(-6.0, 7.0, logsnr_shift=-1.0)
    model = dataclasses.replace(trained[0], schedule=narrow)
    made = setting.make_schedule(model, sampling.Settings(sampling_schedule=name))
    low, high = schedules.logsnr_range(made)
    assert -6.001 < low < high < 7.001
    assert getattr(made, "logsnr_shift", -1.0) == -1.0
    if name == "cosine":
        t = np.linspace(0, 1, 9)
        np.testing.assert_allclose(made.angle(t), narrow.angle(t), rtol=1e-9)


def test_a_discrete_model_keeps_its_table_where_that_is_named(trained):
    own = schedules.Discrete(timestep_spacing="trailing")
    model = dataclasses.replace(trained[0], schedule=own)
    table = functools.partial(sampling.Settings, sampling_schedule="discrete")
    for name in ("ddim", "heun"):
        assert setting.make_schedule(model, table(sampler=name)) is own
    made = setting.make_schedule(model, table(sampler="dpm"))
    ends = {"set_alpha_to_one": True, "skip_last": True}
    assert made == dataclasses.replace(own, **ends)
    karras = setting.make_schedule(model, sampling.Settings(sampler="dpm"))
    low, high = schedules.logsnr_range(own)
    np.testing.assert_allclose(schedules.logsnr_range(karras), (low, high), rtol=1e-9)


@pytest.mark.parametrize("value", ["8", None, [8], {"a": 1}, 8.5])
def test_a_config_whose_values_are_of_another_type_is_refused(value):
    with pytest.raises(UserError, match=r"sample\.steps"):
        setting.Settings.from_config({"steps": value})
    fields = {"guidance_scale": 2, "reconstruction_weight": None}
    assert setting.Settings.from_config(fields).guidance_scale == 2
