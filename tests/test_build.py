"""From a config to a model: schedules by name, values that do not fit."""

import math

import jax
import pytest

from tests import small_model
from tests.seams import transformer
from tests.small_model import smoke_config
from vdm_jax import build, networks
from vdm_jax.diffusion import schedules
from vdm_jax.errors import UserError


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", schedules.Cosine(logsnr_shift=-1.0)),
        ("interpolated", schedules.Interpolated(logsnr_shift=-1.0)),
        ("flow", schedules.Flow(logsnr_shift=-1.0)),
    ],
)
def test_a_schedule_is_built_by_its_name(schedule, expected):
    config = smoke_config()
    config.diffusion.update(schedule=schedule, train_logsnr_shifts=())
    assert build.build_model(config).schedule == expected
    config.diffusion.update(schedule="linear", logsnr_shift=0.0)
    assert build.build_model(config).schedule == schedules.Linear()


def test_a_network_of_stable_diffusion_on_its_schedule():
    """Kind "sd" with a discrete schedule is conditioned on the timestep."""
    config = smoke_config().unlock()
    config.network = {
        "kind": "sd", "levels": ({"channels": 16, "blocks": 1},), "mid_layers": (),
        "num_heads": (2,), "norm_groups": 4,
    }  # fmt: skip
    config.diffusion.update(
        schedule="discrete", logsnr_shift=0.0, train_logsnr_shifts=()
    )
    model = build.build_model(config)
    assert model.schedule == model.training_schedule == schedules.Discrete()
    params = jax.eval_shape(model.init_params, jax.random.key(0))
    kernel = params["conditioning_encoder"]["noise_level"]["kernel"]
    width = config.conditioning.cond_dim
    assert kernel.shape == (width // 4, width)
    vector = params["network"]["down"]["level_0_block_0"]["resnet"]["vector"]
    assert vector["kernel"].shape == (width, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diffusion": {"schedule": "linear"}}, "shift=-1.0: schedule 'linear' has"),
        ({"diffusion": {"schedule": "interpolated"}}, "train_logsnr_shifts moves"),
        (
            {
                "diffusion": {
                    "prediction_type": "eps",
                    "logsnr_min": -25.0,
                    "precondition": False,
                }
            },
            "logsnr_min=-25.0 with diffusion.prediction_type='eps'",
        ),
        ({"diffusion": {"prediction_type": "eps"}}, "precondition"),
        ({"video": {"height": 18}}, "height"),
        ({"network": {"head_dim": 7}}, "head_dim"),
    ],
)
def test_values_that_do_not_fit_are_refused(changes, message):
    config = smoke_config()
    for section, fields in changes.items():
        config[section].update(fields)
    with pytest.raises(UserError, match=message):
        build.build_model(config)


def test_a_size_that_latents_cannot_halve_is_in_pixels():
    """72x64 pixels are 36x32 latents, for four levels."""
    config = small_model.sd_config()
    config.codec.kind = "patch"
    config.network["levels"] *= 4
    config.network["num_heads"] *= 4
    config.video.update(height=72, width=64)
    message = r"video.height=72 must be a multiple of 16 \(.*: nearest 64 or 80"
    with pytest.raises(UserError, match=message):
        build.build_model(config)
    config.video.height = 80
    build.build_model(config)


def test_a_model_of_another_size_has_its_shift():
    """Twice the sides, so twice the shift of flow's time; the config is unchanged."""
    config = smoke_config()
    config.diffusion.update(
        schedule="flow", logsnr_shift=0.0, train_logsnr_shifts=(), resolution_base=64
    )
    small = build.build_model(config)
    large = build.build_model(build.at_size(config, (32, 32)))
    assert large.video_shape == (8, 32, 32, 3) and config.video.height == 16
    shifts = [model.schedule.logsnr_shift for model in (small, large)]
    assert shifts[0] - shifts[1] == pytest.approx(2 * math.log(2))


def test_a_size_that_the_network_does_not_take_is_refused(monkeypatch):
    config = smoke_config()
    with pytest.raises(UserError, match="size 18x16: video.height=18 must be a multi"):
        build.at_size(config, (18, 16))
    monkeypatch.setitem(networks.NETWORKS, "transformer", transformer.from_config)
    config.unlock().network = {"kind": "transformer", "width": 8}
    assert build.at_size(config, (16, 16)) == config
    with pytest.raises(UserError, match="are for videos of 16x16 alone"):
        build.at_size(config, (16, 32))


@pytest.mark.parametrize(
    ("network", "changes", "message"),
    [
        ({"kind": "dit", "cross_attention": True}, {}, "conditioning.text_dim=0"),
        ({"kind": "wan"}, {}, "conditioning.text_dim=0"),
        ({"kind": "wan"}, {"text_dim": 8}, "data.joint_image_frames=2: 0 with"),
        (
            {"kind": "wan", "num_heads": 5, "head_dim": 8},
            {"text_dim": 8, "images": 0},
            r"conditioning.cond_dim=\d+: num_heads \* head_dim=40",
        ),
    ],
)
def test_what_a_transformer_cannot_read_is_refused(network, changes, message):
    config = smoke_config().unlock()
    config.network = network
    config.data.joint_image_frames = changes.pop("images", 2)
    config.conditioning.update(changes)
    with pytest.raises(UserError, match=message):
        build.build_model(config)
