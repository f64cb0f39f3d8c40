"""diffusers' ControlNetModel: its folders, names, options and outputs."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks import small_control, small_sd
from tests.parity import recorded
from tests.parity.control_cases import CONTROLS, NAMES, SCALES, hints
from tests.parity.sd_cases import TIMESTEPS
from vdm_jax.errors import UserError
from vdm_jax.networks.control import Controlled
from vdm_jax.pretrained import controlnet, safetensors_io
from vdm_jax.pretrained.name_maps import KERNEL
from vdm_jax.trees import named_leaves

CONFIG = {"_class_name": "ControlNetModel", "_diffusers_version": "0.42.1"}


def test_names_and_shapes_of_the_published_network():
    """Both ways without rest: no name of theirs and no path of ours is left."""
    listed = recorded.real_network("sd15_controlnet")
    ours = named_leaves(small_control.abstract_params(listed["config"]))
    names = small_control.names(listed["config"])
    assert names.keys() == listed["shapes"].keys()
    paths = [target.removeprefix(KERNEL) for target in names.values()]
    assert sorted(paths) == sorted(ours)
    for theirs, target in names.items():
        shape = ours[target.removeprefix(KERNEL)].shape
        if target.startswith(KERNEL):  # [*window, in, out] -> [out, in, *window]
            shape = (shape[-1], shape[-2], *shape[:-2])
        assert list(shape) == listed["shapes"][theirs], theirs
    assert sum(math.prod(leaf.shape) for leaf in ours.values()) == listed["parameters"]


@pytest.mark.parametrize("name", [pytest.param("sd1", marks=pytest.mark.slow), "sd2"])
def test_two_controls_with_scales_equal_diffusers(name):
    network, encoder = small_sd.build(small_sd.UNETS[name])
    params = small_sd.drawn_params(name)
    net = small_control.build(CONTROLS[name])
    controls = {
        f"control_{i}": small_control.drawn_params(f"{name}/{which}", CONTROLS[name])
        for i, which in enumerate(NAMES)
    }
    z, logsnr, tokens = small_sd.recorded_inputs(name, np.float32)
    vector = encoder.apply({"params": params["conditioning_encoder"]}, logsnr, 1, {})
    inputs = vector.replace(
        tokens=tokens,
        noise_level=small_control.noise_level(CONTROLS[name], TIMESTEPS),
        hints=tuple(jnp.moveaxis(hint, 1, -1)[:, None] for hint in hints(name)),
        control_scales=jnp.array(SCALES),
    )
    variables = {"params": {**params["network"], **controls}}
    apply = jax.jit(Controlled(network, (net, net)).apply)
    found = apply(variables, z, inputs)
    arrays = recorded.load("controlnet")
    expected = np.moveaxis(arrays[f"{name}/output"], 1, -1)[:, None]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    swapped = apply(variables, z, inputs.replace(hints=inputs.hints[::-1]))
    assert np.abs(swapped - expected).max() > 0.01
    np.testing.assert_array_equal(  # what the encoder itself passes on
        vector.noise_level, inputs.noise_level
    )


def write_folder(folder, **changes):
    """Write a folder of sd1's ControlNet as diffusers does; return the weights."""
    folder.mkdir(exist_ok=True)
    config = CONFIG | CONTROLS["sd1"] | changes
    (folder / "config.json").write_text(json.dumps(config))
    weights = {
        name: np.ascontiguousarray(array)
        for name, array in small_control.torch_weights("one", CONTROLS["sd1"]).items()
    }
    recorded.write_weights(folder, weights, safetensors_io.DIFFUSERS)
    return weights


def test_a_folder_is_read_and_written_back_bit_for_bit(tmp_path):
    weights = write_folder(tmp_path)
    config = controlnet.read_config(tmp_path)
    names, like = small_control.names(config), small_control.abstract_params(config)
    paths = safetensors_io.tensor_files(tmp_path, safetensors_io.DIFFUSERS)
    params = safetensors_io.read_by_names(paths, like, names, jnp.float32)
    written = safetensors_io.to_names(params, names)
    assert written.keys() == weights.keys()
    for key, array in weights.items():
        np.testing.assert_array_equal(written[key], array)


@pytest.mark.parametrize("name", CONTROLS)
def test_a_config_is_written_as_it_is_read(name):
    net = small_control.build(CONTROLS[name])
    width = CONTROLS[name]["cross_attention_dim"]
    written = controlnet.config_fields(net, width, 4, 3, ("luma", "edges"))
    expected = controlnet.fields(CONTROLS[name])
    assert controlnet.fields(json.loads(json.dumps(written))) == expected | {
        "kinds": ("luma", "edges")
    }


def test_every_option_of_diffusers_is_known():
    full = json.loads(str(recorded.load("controlnet")["config"]))
    assert len(full) > 25
    assert controlnet.fields(full) == controlnet.fields(CONTROLS["sd1"])


OTHER_NETWORKS = {
    "global_pool_conditions=True: only False": {"global_pool_conditions": True},
    "channel_order='bgr': only 'rgb'": {"controlnet_conditioning_channel_order": "bgr"},
    "addition_embed_type='text_time': only None": {"addition_embed_type": "text_time"},
    "ControlNetModel with guess_mode=True: not a known": {"guess_mode": True},
    "'AttnDownBlock2D': CrossAttnDownBlock2D or": {
        "down_block_types": ["AttnDownBlock2D"] * 4
    },
    "out_channels='16': give a list": {"conditioning_embedding_out_channels": "16"},
    "out_channels=(): widths": {"conditioning_embedding_out_channels": []},
    "_control_kinds='luma': a list": {"_control_kinds": "luma"},
}


@pytest.mark.parametrize("message", OTHER_NETWORKS)
def test_another_network_is_refused_by_its_option(message):
    with pytest.raises(UserError) as refusal:
        controlnet.fields(CONFIG | OTHER_NETWORKS[message])
    assert message in str(refusal.value)


def test_a_folder_of_another_class_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json: .* ControlNetModel"):
        controlnet.read_config(tmp_path)
    write_folder(tmp_path, _class_name="UNet2DConditionModel")
    with pytest.raises(UserError, match="give a folder of ControlNetModel"):
        controlnet.read_config(tmp_path)
