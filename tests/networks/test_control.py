"""ControlNets: against the published program, and their laws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks import small_control, small_sd
from tests.networks.test_frame_reads import description
from tests.parity import recorded
from tests.parity.drawn import normal
from vdm_jax.networks import lora
from vdm_jax.networks.control import Controlled, HintEncoder
from vdm_jax.networks.inputs import Inputs
from vdm_jax.trees import named_leaves

SCALE, TIMESTEPS = 0.75, (501, 21)


def two_dimensional(file, network):
    """Return a recorded config with the names of the layers of images."""
    config = description(file)["config"]
    config = config.get(network, config)
    return config | {
        name: [kind.replace("3D", "2D") for kind in config[name]]
        for name in ("down_block_types", "up_block_types")
        if name in config
    }


@pytest.fixture(scope="module")
def published():
    """Return ControlVideo's networks, their parameters, and z, inputs of two clips."""
    unet = two_dimensional("controlvideo_unet", "unet")
    control = two_dimensional("controlvideo_controlnet", "")
    network, encoder = small_sd.build(unet, frame_reads="every", joint_norms=True)
    params = small_sd.params_of(unet, small_sd.torch_weights("cv/unet", unet))
    net = small_control.build(control, joint_norms=True)
    own = small_control.drawn_params("cv/controlnet", control)
    z, hint, text = (
        jnp.asarray(normal(f"cv/input/{name}", shape))
        for name, shape in (
            ("sample", (2, 4, 4, 8, 8)), ("hint", (2, 3, 4, 64, 64)),
            ("text", (2, 5, 24)),
        )
    )  # fmt: skip
    logsnr = jnp.asarray(small_sd.logsnr_of(TIMESTEPS), jnp.float32)
    vector = encoder.apply(
        {"params": params["conditioning_encoder"]}, logsnr, 4, {}
    ).vector
    inputs = Inputs(
        vector=vector,
        noise_level=small_control.noise_level(control, TIMESTEPS),
        tokens=text,
        hints=(jnp.moveaxis(hint, 1, -1),),
        control_scales=jnp.array([SCALE]),
    )
    z = jnp.moveaxis(z, 1, -1)
    return network, params["network"], net, own, z, inputs


def test_the_hint_encoder_equals_the_published_program(published):
    _, _, net, own, _, inputs = published
    encoder = HintEncoder(net.hint_channels, 32)
    found = encoder.apply({"params": own["hint"]}, inputs.hints[0][:1])
    expected = recorded.load("controlvideo_controlnet")["hint_embedding"]
    np.testing.assert_allclose(np.moveaxis(found, -1, 1), expected, atol=1e-4)


def test_the_residuals_equal_the_published_program(published):
    """Norms of resnets are joint over the frames, attention is each frame's own."""
    _, _, net, own, z, inputs = published
    expected = recorded.load("controlvideo_controlnet")

    def residuals(net):
        apply = jax.jit(lambda p: net.apply({"params": p}, z, inputs, inputs.hints[0]))
        return [np.moveaxis(SCALE * y[:1], -1, 1) for y in apply(own)]

    found = residuals(net)
    names = [*(f"residual_{i}" for i in range(6)), "middle"]
    for name, array in zip(names, found, strict=True):
        np.testing.assert_allclose(array, expected[name], atol=1e-4, err_msg=name)
    each = residuals(
        dataclasses.replace(net, spec=dataclasses.replace(net.spec, joint_norms=False))
    )
    assert np.abs(each[-1] - expected["middle"]).max() > 0.05


@pytest.mark.parametrize(("array", "reads"), [("full", "every"), ("pair", "ends")])
def test_the_controlled_unet_equals_the_published_program(published, array, reads):
    """The middle reads the last skip without its residual."""
    network, params, net, own, z, inputs = published
    network = network.clone(spec=dataclasses.replace(network.spec, frame_reads=reads))
    controlled = Controlled(network, (net,))
    variables = {"params": {**params, "control_0": own}}
    found = jax.jit(controlled.apply)(variables, z, inputs)
    arrays = recorded.load("controlvideo_unet")
    expected = arrays[f"{array}_with_controlnet_middle_unchanged"]
    np.testing.assert_allclose(np.moveaxis(found, -1, 1), expected, atol=1e-4)
    assert np.abs(arrays[f"{array}_with_controlnet"] - expected).max() > 0.1


@pytest.fixture(scope="module")
def small():
    """Return the U-Net sd1 and a ControlNet of it, z, inputs and parameters."""
    config = small_sd.UNETS["sd1"]
    network, _ = small_sd.build(config)
    own = {
        k: v for k, v in config.items() if k not in ("up_block_types", "sample_size")
    }
    own["conditioning_embedding_out_channels"] = (4, 6, 8)
    net = small_control.build(own)
    keys = jax.random.split(jax.random.key(0), 5)
    inputs = Inputs(
        vector=jax.random.normal(keys[0], (2, 128)),
        noise_level=jax.random.normal(keys[1], (2, 32)),
        tokens=jax.random.normal(keys[2], (2, 5, 24)),
        hints=tuple(jax.random.uniform(k, (2, 3, 32, 32, 3)) for k in keys[3:]),
    )
    z = jax.random.normal(keys[4], (2, 3, 8, 8, 4))
    params = small_sd.drawn_params("sd1")["network"]
    controls = [small_control.drawn_params(name, own) for name in ("one", "two")]
    return network, params, net, controls, z, inputs


def test_at_the_start_it_is_the_image_model_bit_for_bit():
    """Paths of the U-Net are kept; those of the ControlNets are below control_0, ...

    Operation by operation: XLA may round a fused sum with 0 in another way.
    """
    config = dict(
        down_block_types=["CrossAttnDownBlock2D"], block_out_channels=[8],
        layers_per_block=1, norm_num_groups=4, cross_attention_dim=6,
        attention_head_dim=2,
    )  # fmt: skip
    unet = config | {"up_block_types": ["CrossAttnUpBlock2D"], "sample_size": 4}
    network, _ = small_sd.build(unet)
    weights = small_sd.torch_weights("tiny", unet)
    params = small_sd.params_of(unet, weights)["network"]
    net = small_control.build(config | {"conditioning_embedding_out_channels": (4, 4)})
    keys = jax.random.split(jax.random.key(0), 4)
    z, vector, tokens, hint = map(
        jax.random.normal, keys, ((1, 1, 4, 4, 4), (1, 32), (1, 3, 6), (1, 1, 8, 8, 3))
    )
    inputs = Inputs(vector, vector[:, :8], tokens, hints=(hint, hint))
    controlled = Controlled(network, (net, net))
    fresh = controlled.init(jax.random.key(1), z, inputs)["params"]
    controls = {name: fresh.pop(name) for name in ("control_0", "control_1")}
    assert named_leaves(fresh).keys() == named_leaves(params).keys()
    kernels = {
        name: leaf
        for name, leaf in named_leaves(controls["control_0"]).items()
        if name.endswith("kernel")
    }
    assert {"hint/conv_out/kernel", "zero_0/kernel", "zero_middle/kernel"} <= {
        name for name, leaf in kernels.items() if not leaf.any()
    }
    found = controlled.apply({"params": {**params, **controls}}, z, inputs)
    np.testing.assert_array_equal(found, network.apply({"params": params}, z, inputs))
    tuned = Controlled(lora.WithLora(network), (net, net))
    again = tuned.apply({"params": {**params, **controls}}, z, inputs)
    np.testing.assert_array_equal(again, found)
    controls["control_1"]["zero_0"]["kernel"] += 0.1
    other = controlled.apply({"params": {**params, **controls}}, z, inputs)
    assert np.abs(other - found).max() > 1e-3


def test_several_controls_add_up_with_their_scales(small):
    """Against the U-Net, given the sum of residuals; scales may be of each video."""
    network, params, net, controls, z, inputs = small
    scales = np.array([[0.3, 1.5], [1.0, 0.0]], np.float32)
    apply = jax.jit(lambda p, hint: net.apply({"params": p}, z, inputs, hint))
    each = [apply(p, hint) for p, hint in zip(controls, inputs.hints, strict=True)]
    total = [
        sum(s.reshape(2, 1, 1, 1, 1) * y for s, y in zip(scales.T, both, strict=True))
        for both in zip(*each, strict=True)
    ]
    summed = inputs.replace(residuals=tuple(total))
    expected = jax.jit(network.apply)({"params": params}, z, summed)
    controlled = Controlled(network, (net, net))
    both = {f"control_{i}": own for i, own in enumerate(controls)}
    found = jax.jit(controlled.apply)(
        {"params": {**params, **both}}, z, inputs.replace(control_scales=scales)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    plain = jax.jit(network.apply)({"params": params}, z, inputs)
    assert np.abs(found - plain).max() > 0.1


def test_frames_of_a_controlnet_are_independent(small):
    """Another last frame leaves the others as they are; equal frames stay equal."""
    network, params, net, controls, z, inputs = small
    controlled = jax.jit(Controlled(network, (net,)).apply)
    variables = {"params": {**params, "control_0": controls[0]}}
    hint = inputs.hints[0]

    def output(order):
        order = np.array(order)
        return controlled(
            variables, z[:, order], inputs.replace(hints=(hint[:, order],))
        )

    found, other = output([0, 1, 2]), output([0, 1, 1])
    np.testing.assert_allclose(other[:, :2], found[:, :2], atol=1e-6)
    np.testing.assert_allclose(other[:, 2], found[:, 1], atol=1e-5)
    assert np.abs(found[:, 2] - found[:, 1]).max() > 0.1
