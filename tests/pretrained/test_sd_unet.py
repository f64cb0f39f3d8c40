"""Stable Diffusion's U-Net in diffusers' folders: names, files, options."""

import gzip
import json
import math
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from tests.networks import small_sd
from tests.parity.recorded import write_weights
from tests.parity.sd_cases import FOLDER, UNETS
from vdm_jax.conditions.encoder import ConditioningEncoder
from vdm_jax.conditions.timestep import TimestepEmbedding
from vdm_jax.diffusion import schedules
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel
from vdm_jax.pretrained import safetensors_io, sd_scheduler, sd_unet
from vdm_jax.pretrained.config_json import ConfigFile
from vdm_jax.pretrained.name_maps import KERNEL
from vdm_jax.trees import named_leaves

REAL_SIZE = json.loads(
    gzip.decompress((FOLDER / "sd_unet_shapes.json.gz").read_bytes())
)
CONFIG = {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.42.1"}


@pytest.mark.parametrize("name", REAL_SIZE)
def test_names_and_shapes_of_the_published_networks(name):
    """Both ways without rest: no name of theirs and no path of ours is left."""
    listed = REAL_SIZE[name]
    ours = named_leaves(small_sd.abstract_params(listed["config"]))
    fields = sd_unet.unet_fields(listed["config"])
    names = sd_unet.unet_names(fields["network"])
    assert names.keys() == listed["shapes"].keys()
    paths = [target.removeprefix(KERNEL) for target in names.values()]
    assert sorted(paths) == sorted(ours)
    for theirs, target in names.items():
        shape = ours[target.removeprefix(KERNEL)].shape
        if target.startswith(KERNEL):  # [*window, in, out] -> [out, in, *window]
            shape = (shape[-1], shape[-2], *shape[:-2])
        assert list(shape) == listed["shapes"][theirs], theirs
    assert sum(math.prod(leaf.shape) for leaf in ours.values()) == listed["parameters"]
    heads = {"sd15_unet": (8,) * 4, "sd21_unet": (5, 10, 20, 20)}
    assert fields["network"]["num_heads"] == heads[name]


def write_folder(folder, name, shards=1, variant="", dtype="float32"):
    """Write unet/ as diffusers does; return the drawn weights by their names."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | UNETS[name]))
    weights = {k: w.astype(dtype) for k, w in small_sd.torch_weights(name).items()}
    weights = {k: np.ascontiguousarray(w) for k, w in weights.items()}
    write_weights(folder, weights, safetensors_io.DIFFUSERS, variant, shards)
    return weights


def read_folder(folder, variant=""):
    config = sd_unet.read_config(folder)
    names = sd_unet.unet_names(sd_unet.unet_fields(config)["network"])
    paths = safetensors_io.tensor_files(folder, safetensors_io.DIFFUSERS, variant)
    like = small_sd.abstract_params(config)
    params = safetensors_io.read_by_names(paths, like, names, jnp.float32)
    return params, names, paths


@pytest.mark.parametrize("name", UNETS)
def test_a_folder_is_read_and_written_back_bit_for_bit(tmp_path, name):
    weights = write_folder(tmp_path / "plain", name)
    params, names, _ = read_folder(tmp_path / "plain")
    jax.tree.map(np.testing.assert_array_equal, params, small_sd.drawn_params(name))
    written = safetensors_io.to_names(params, names)
    assert written.keys() == weights.keys()
    for key, array in weights.items():
        np.testing.assert_array_equal(written[key], array)
    write_folder(tmp_path / "shards", name, shards=3, variant="fp16", dtype="float16")
    half, _, paths = read_folder(tmp_path / "shards")
    assert len(paths) == 3
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, np.float16(b)), half, params
    )


def test_the_variant_is_read_where_it_is_and_the_plain_file_elsewhere(tmp_path):
    write_folder(tmp_path, "sd1")
    for variant, file in {
        "": "diffusion_pytorch_model.safetensors",
        "non_ema": "diffusion_pytorch_model.safetensors",
    }.items():
        (path,) = safetensors_io.tensor_files(
            tmp_path, safetensors_io.DIFFUSERS, variant
        )
        assert path.name == file
    write_folder(tmp_path, "sd1", variant="non_ema")
    (path,) = safetensors_io.tensor_files(tmp_path, safetensors_io.DIFFUSERS, "non_ema")
    assert path.name == "diffusion_pytorch_model.non_ema.safetensors"


@pytest.mark.parametrize("shards", [1, 2])
def test_the_only_variant_is_read_and_of_several_none_is_guessed(
    tmp_path, capsys, shards
):
    write_folder(tmp_path, "sd1", variant="bf16", shards=shards)
    paths = safetensors_io.tensor_files(tmp_path, safetensors_io.DIFFUSERS)
    assert len(paths) == shards and "bf16" in paths[0].name
    assert "bf16" in capsys.readouterr().err
    write_folder(tmp_path, "sd1", variant="non_ema", shards=shards)
    with pytest.raises(UserError, match="variants bf16, non_ema and no other files"):
        safetensors_io.tensor_files(tmp_path, safetensors_io.DIFFUSERS)


def test_a_missing_shard_and_pickled_weights_are_named(tmp_path):
    write_folder(tmp_path, "sd1", shards=2, variant="fp16")
    missing = "diffusion_pytorch_model.fp16-00002-of-00002.safetensors"
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=missing):
        read_folder(tmp_path)
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "diffusion_pytorch_model.bin").touch()
    with pytest.raises(UserError, match=r"\.bin, \.ckpt\) are not read: convert"):
        safetensors_io.tensor_files(folder, safetensors_io.DIFFUSERS)


def test_a_name_that_is_unknown_or_missing_is_named(tmp_path):
    weights = write_folder(tmp_path, "sd1")
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(weights | {"label_emb.weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(UserError, match=r"does not have: label_emb\.weight$"):
        read_folder(tmp_path)
    del weights["conv_in.bias"]
    save_file(weights, path)
    with pytest.raises(UserError, match=r"lacks conv_in\.bias$"):
        read_folder(tmp_path)
    assert load_file(path).keys() == weights.keys()


def test_parameters_without_a_name_are_not_written_in_silence():
    params = small_sd.drawn_params("sd1")
    names = sd_unet.unet_names(sd_unet.unet_fields(UNETS["sd1"])["network"])
    names.pop("conv_in.bias")
    with pytest.raises(KeyError, match="network/down/conv_in/bias"):
        safetensors_io.to_names(params, names)


OTHER_NETWORKS = {
    "in_channels=9 and out_channels=4: inpainting": {"in_channels": 9},
    "addition_embed_type='text_time': only None": {"addition_embed_type": "text_time"},
    "class_embed_type='projection': only None": {"class_embed_type": "projection"},
    "transformer_layers_per_block=[1, 2, 10]: only 1": {
        "transformer_layers_per_block": [1, 2, 10]
    },
    "with turbo=True: not a known option": {"turbo": True},
    "'AttnDownBlock2D': CrossAttnDownBlock2D or DownBlock2D": {
        "down_block_types": ["AttnDownBlock2D"] * 4
    },
    "do not mirror": {"up_block_types": ["UpBlock2D"] * 4},
    "layers_per_block=[2, 2]: give a whole number, as 2": {"layers_per_block": [2, 2]},
    "sample_size=(64,): one size, or (height, width)": {"sample_size": [64]},
    "sample_size=None: give a whole number, as 64": {"sample_size": None},
    "norm_num_groups=True: give a whole number, as 32": {"norm_num_groups": True},
    "attention_head_dim=[8, None]: give a whole number": {
        "attention_head_dim": [8, None]
    },
    "block_out_channels='320': give a list, as (320, 640": {
        "block_out_channels": "320"
    },
    "block_out_channels=(): one width or more": {
        "block_out_channels": [],
        "down_block_types": [],
        "up_block_types": [],
    },
}


@pytest.mark.parametrize("message", OTHER_NETWORKS)
def test_another_network_is_refused_by_its_option(message):
    with pytest.raises(UserError) as refusal:
        sd_unet.unet_fields(CONFIG | OTHER_NETWORKS[message])
    assert message in str(refusal.value)


def test_every_option_of_diffusers_is_known():
    """A config that diffusers 0.42.1 writes has all options, with their defaults."""
    full = json.loads((FOLDER / "sd_unet_config.json").read_text())
    assert len(full) > 40
    assert sd_unet.unet_fields(full) == sd_unet.unet_fields(
        REAL_SIZE["sd21_unet"]["config"]
    )


@pytest.mark.parametrize(
    "content", ["", "[]", '{"_class_name": "SD3Transformer2DModel"}']
)
def test_a_folder_of_another_class_is_refused(tmp_path, content):
    with pytest.raises(UserError, match=r"has no config\.json"):
        sd_unet.read_config(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(
        UserError, match=r"is not JSON|give a folder of UNet2DConditionModel"
    ):
        sd_unet.read_config(tmp_path)


# --- scheduler/ ----------------------------------------------------------------------

PUBLISHED = {  # of version 1.5, as it is published
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0",
    "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
    "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip


def read_scheduler(values):
    file = ConfigFile(Path("scheduler_config.json"), values)
    return sd_scheduler.schedule_fields(file)


def schedule_of(**changes):
    fields = read_scheduler(PUBLISHED | changes)
    return schedules.Discrete(**fields["schedule"]), fields["prediction_type"]


def test_the_published_schedulers_are_the_defaults():
    assert schedule_of() == (small_sd.SCHEDULE, "eps")
    ddim = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
    assert schedule_of(**ddim) == (small_sd.SCHEDULE, "v")
    # Its set_alpha_to_one=False is an option of others.
    schedule, _ = schedule_of(_class_name="EulerDiscreteScheduler")
    assert schedule.timestep_spacing == "fractional" and schedule.grid(3)[-1] == 0
    assert schedule.timesteps(3).tolist() == [999, 499.5, 0] and not schedule.skip_last


@pytest.mark.parametrize(
    ("sampler", "fields", "kind"),
    [
        ("ddim", {}, "DDIM"),
        ("ddim", {"timestep_spacing": "trailing"}, "DDIM"),
        ("dpm", {"set_alpha_to_one": True, "skip_last": True}, "DPMSolverMultistep"),
        (
            "ddim",
            {"timestep_spacing": "fractional", "set_alpha_to_one": True},
            "EulerDiscrete",
        ),
    ],
)
def test_a_written_scheduler_is_read_as_it_was(sampler, fields, kind):
    schedule = schedules.Discrete(**fields)
    sample = ConfigDict({"sampler": sampler, "sampling_schedule": "discrete"})
    written = sd_scheduler.config_fields(schedule, "v", sample)
    assert written["_class_name"] == f"{kind}Scheduler"
    read = read_scheduler(written)
    assert schedules.Discrete(**read["schedule"]) == schedule
    assert read["prediction_type"] == "v"
    assert read["sample"]["sampler"] == sampler


class Constant(nn.Module):
    """A network that returns .3 everywhere."""

    @nn.compact
    def __call__(self, z, inputs, train=False):
        return jnp.full_like(z, 0.3)


@pytest.mark.parametrize("theirs", ["epsilon", "v_prediction"])
def test_the_scheduler_decides_what_the_network_predicts(theirs, x64):
    """x0 by hand: (z - sigma c) / alpha, or alpha z - sigma c."""
    schedule, ours = schedule_of(prediction_type=theirs)
    encoder = ConditioningEncoder(8, 1, noise_embedding=TimestepEmbedding(schedule))
    model = DiffusionModel(
        Constant(), encoder, schedule, schedule, (1, 2, 2, 4), prediction_type=ours
    )
    params = encoder.init(jax.random.key(0), jnp.zeros(1), 1, {})["params"]
    params = {"conditioning_encoder": params, "network": {}}
    level = schedules.noise_level(schedule, jnp.array([500.0]) / 999)
    z = jnp.full((1, 1, 2, 2, 4), 0.7)
    x = model.denoiser(params)(z, level, {"keep": {}}).x
    product = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[500]
    alpha, sigma = product**0.5, (1 - product) ** 0.5
    by_hand = (0.7 - 0.3 * sigma) / alpha, alpha * 0.7 - sigma * 0.3
    assert abs(by_hand[0] - by_hand[1]) > 0.5
    np.testing.assert_allclose(x, by_hand[theirs == "v_prediction"], rtol=1e-9)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, ": DDIMScheduler or DD"),
        ({"_class_name": ["x"]}, r"_class_name=\['x'\]: DDIMScheduler or"),
        ({"num_train_timesteps": "1000"}, "='1000': a number from 2 to 1000000"),
        ({"beta_start": "a"}, "beta_start='a': a number from 0.0 to 0.999"),
        ({"beta_end": float("nan")}, "beta_end=nan: a number from 0.0 to 0.999"),
        ({"steps_offset": 1000.0}, "steps_offset=1000.0: a number from 0 to"),
        ({"set_alpha_to_one": "yes"}, "set_alpha_to_one='yes': False or True"),
        ({"timestep_spacing": ["leading"]}, "'leading'.: leading or trailing or lin"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True: False"),
        ({"trained_betas": [0.1]}, r"trained_betas=\[0\.1\]: None"),
        ({"beta_schedule": "squaredcos_cap_v2"}, ": linear or scaled_linear"),
        ({"prediction_type": "flow"}, "prediction_type='flow': epsilon or"),
    ],
)
def test_other_schedules_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        schedule_of(**change)
