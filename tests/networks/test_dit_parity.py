"""DiT and Latte equal the arrays that their published programs made."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks import small_dit
from tests.parity.drawn import normal
from tests.parity.recorded import load
from vdm_jax.networks.dit import Head
from vdm_jax.networks.dit_blocks import Block
from vdm_jax.networks.inputs import Inputs
from vdm_jax.networks.layers import depth_to_space, timestep_embedding

TIMESTEPS, LABELS, NONE = (501, 21), (3, 10), small_dit.CLASSES
GUIDED = (501, 501), (3, NONE)


def close(ours, recorded, atol=1e-4):
    np.testing.assert_allclose(np.asarray(ours), recorded, atol=atol)


def channels_first(ours) -> np.ndarray:
    return np.moveaxis(np.asarray(ours), -1, -3)


def guide(output: np.ndarray, scale: float, channels: int) -> np.ndarray:
    """Return rows (cond, uncond) [2, ...], some channels guided in both."""
    cond, uncond = output[..., :channels]
    guided = uncond + scale * (cond - uncond)
    rest = output[..., channels:]
    return np.concatenate([np.stack([guided, guided]), rest], axis=-1)


def test_dit():
    z = small_dit.drawn("dit/input/sample", (2, 4, 8, 8), 1)[:, None]
    recorded = load("dit")
    ours = small_dit.run("dit", z, TIMESTEPS, LABELS)
    close(channels_first(ours[:, 0]), recorded["forward"])
    twice = np.concatenate([z[:1], z[:1]])
    ours = small_dit.run("dit", twice, *GUIDED)
    close(channels_first(guide(ours, 4, 3)[:, 0]), recorded["cfg_4"])


def test_parts_of_dit():
    recorded, params = load("dit"), small_dit.params("dit")
    tokens = jnp.asarray(normal("dit/input/tokens", (2, 16, 48)))
    vector = jnp.asarray(normal("dit/input/c", (2, 48)))
    x = tokens.reshape(2, 1, 4, 4, 48)
    block = Block(small_dit.spec("dit"), ("video",))
    variables = {"params": params["network"]["block_0"]}
    ours: Any = block.apply(variables, x, Inputs(), nn.swish(vector))
    close(ours.reshape(2, 16, 48), recorded["block_0"], 1e-5)

    variables = {"params": params["network"]["head"]}
    head = Head(small_dit.spec("dit")).apply(variables, x, vector)
    layout = recorded["final_layer"].reshape(2, 1, 4, 4, 32)
    close(head, depth_to_space(jnp.asarray(layout), 2), 1e-5)

    patches = jnp.asarray(normal("dit/input/unpatchify", (2, 16, 32)))
    pixels = depth_to_space(patches.reshape(2, 1, 4, 4, 32), 2)[:, 0]
    close(channels_first(pixels), recorded["unpatchified"], 0)
    features = timestep_embedding(jnp.array([0.0, 1, 21, 501, 999]), 256)
    # Angles up to 999 have float32 roundings of 3e-5, there and here.
    close(features, recorded["sinusoid_256"], 7e-5)


def test_time_embedding():
    _, encoder = small_dit.model("dit")
    params = small_dit.params("dit")["conditioning_encoder"]
    encoder = encoder.clone(conditions=())
    own = {name: leaves for name, leaves in params.items() if name != "label"}
    t = np.array(TIMESTEPS) / (small_dit.SCHEDULE.train_steps - 1)
    logsnr = small_dit.schedules.noise_level(small_dit.SCHEDULE, t).logsnr
    logsnr = jnp.asarray(logsnr, jnp.float32)
    inputs: Any = encoder.apply({"params": own}, logsnr, 1, {})
    close(inputs.vector, load("dit")["time_embedding"], 2e-5)


def test_latte_with_labels():
    z = small_dit.drawn("latte/input/video", (2, 3, 4, 8, 8), 2)
    recorded = load("latte")
    ours = small_dit.run("latte/v1_label", z, TIMESTEPS, LABELS)
    close(channels_first(ours), recorded["v1_label"])
    twice = np.concatenate([z[:1], z[:1]])
    ours = small_dit.run("latte/v1_label", twice, *GUIDED)
    close(channels_first(guide(ours, 7, 4)), recorded["v1_label_cfg_7"])


def test_latte_without_labels():
    z = small_dit.drawn("latte/input/video", (2, 3, 4, 8, 8), 2)
    ours = small_dit.run("latte/v1_unconditional", z, TIMESTEPS, None)
    close(channels_first(ours), load("latte")["v1_unconditional"])


def test_latte_with_images_behind_the_frames():
    z = small_dit.drawn("latte/input/video_and_images", (2, 5, 4, 8, 8), 2)
    labels = [[3, 1, 2], [5, 8, 9]]
    is_video = np.tile([True] * 3 + [False] * 2, (2, 1))
    ours = small_dit.run("latte/joint_images", z, TIMESTEPS, labels, is_video)
    close(channels_first(ours), load("latte")["joint_images"])


@pytest.mark.parametrize("block", range(4))
def test_features_behind_the_blocks_of_latte(block):
    """Of one token of video 0: in space of frame 1, token 2; in time of token 1."""
    name = "latte/v1_label"
    network, encoder = small_dit.model(name)
    params = small_dit.params(name)
    z = small_dit.drawn("latte/input/video", (2, 3, 4, 8, 8), 2)
    t = np.array(TIMESTEPS) / (small_dit.SCHEDULE.train_steps - 1)
    logsnr = small_dit.schedules.noise_level(small_dit.SCHEDULE, t).logsnr
    cond = small_dit.conditions(name, np.array(LABELS))
    inputs = encoder.apply(
        {"params": params["conditioning_encoder"]},
        jnp.asarray(logsnr, jnp.float32), 3, cond,
    )  # fmt: skip
    own = small_dit.block_name(name, block)
    _, state = network.apply(
        {"params": params["network"]}, jnp.asarray(z), inputs,
        capture_intermediates=lambda module, method: (module.name, method)
        == (own, "__call__"),
    )  # fmt: skip
    captured: Any = state
    (x,) = captured["intermediates"][own]["__call__"]
    frame, token = ((1, 2), (2, 1))[block % 2]
    tap = load("latte")[f"tap/blocks.{block}"]
    close(x[0, frame].reshape(16, 48)[token], tap, 2e-5)
