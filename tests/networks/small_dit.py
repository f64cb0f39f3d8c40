"""The recorded DiT and Latte networks as ours, with weights drawn by name."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.drawn import normal
from tests.parity.recorded import FOLDER, drawn_weights
from vdm_jax.conditions.encoder import ConditioningEncoder
from vdm_jax.conditions.label import Label
from vdm_jax.conditions.timestep import TimestepEmbedding
from vdm_jax.diffusion import schedules
from vdm_jax.networks.dit import DiT
from vdm_jax.networks.dit_blocks import DiTSpec
from vdm_jax.trees import named_leaves

SCHEDULE = schedules.Discrete()
CLASSES = 10
# Module of the published programs -> ours; {} is the number of a block.
MODULES = {
    "x_embedder.proj": "network/patch_in",
    "t_embedder.mlp.0": "conditioning_encoder/noise_level",
    "t_embedder.mlp.2": "conditioning_encoder/mlp_0",
    "blocks.{}.attn.proj": "network/{}/attention/out",
    "blocks.{}.mlp.fc1": "network/{}/mlp_in",
    "blocks.{}.mlp.fc2": "network/{}/mlp_out",
    "blocks.{}.adaLN_modulation.1": "network/{}/modulation",
    "final_layer.linear": "network/head/out",
    "final_layer.adaLN_modulation.1": "network/head/modulation",
}


def spec(name: str) -> DiTSpec:
    """Return the spec of a recorded network; all of its outputs are read."""
    attend, depth = ("full", 2) if name == "dit" else ("v1", 2)
    return DiTSpec(width=48, depth=depth, num_heads=4, attend=attend, out_channels=8)


def model(name: str) -> tuple[DiT, ConditioningEncoder]:
    """Return the network and the encoder of a recorded network."""
    label = Label((tuple(map(str, range(CLASSES))),), null_embedding=True)
    conditions = () if name.endswith("unconditional") else (("label", label),)
    embedding = TimestepEmbedding(SCHEDULE, 256)
    encoder = ConditioningEncoder(48, 1, conditions, embedding, True)
    return DiT(spec(name)), encoder


@functools.cache
def params(name: str) -> dict:
    """Return a recorded network's weights as our parameters, float32."""
    file = "dit" if name == "dit" else "latte"
    networks = json.loads((FOLDER / f"{file}.json").read_text())["networks"]
    leaves = {}
    for theirs, array in drawn_weights(name, networks[name]).items():
        module, _, kind = theirs.rpartition(".")
        if module == "y_embedder":
            continue
        if module == "y_embedder.embedding_table":
            if len(array) == CLASSES:  # without a row for no label
                array = np.concatenate([array, np.zeros_like(array[:1])])
            leaves["conditioning_encoder/label/attribute_0/embedding"] = array
            continue
        own = block = ""
        if module.startswith("blocks."):
            _, number, rest = module.split(".", 2)
            module = f"blocks.{{}}.{rest}"
            block = block_name(name, int(number))
        if kind == "weight":
            kind, array = "kernel", np.moveaxis(array, (0, 1), (-1, -2))
        if module.endswith("attn.qkv"):
            for part, each in zip("qkv", np.split(array, 3, axis=-1), strict=True):
                leaves[f"network/{block}/attention/{part}/{kind}"] = each
            continue
        own = MODULES[module].format(block)
        leaves[f"{own}/{kind}"] = array
    like = abstract_params(name)
    paths = named_leaves(like)
    assert paths.keys() == leaves.keys(), paths.keys() ^ leaves.keys()
    return jax.tree.unflatten(
        jax.tree.structure(like), [jnp.asarray(leaves[p]) for p in paths]
    )


def block_name(name: str, number: int) -> str:
    """Return our name of a block; Latte's are in space and in time in turn."""
    if name == "dit":
        return f"block_{number}"
    return f"{('block', 'time_block')[number % 2]}_{number // 2}"


def abstract_params(name: str) -> dict:
    """Return the shapes of a recorded network's parameters."""
    network, encoder = model(name)
    frames = 1 if name == "dit" else 3

    def init(key):
        inputs, encoded = encoder.init_with_output(
            key, jnp.zeros(1), frames, conditions(name, np.zeros(1, int))
        )
        z = jnp.zeros((1, frames, 8, 8, 4))
        variables = network.init(key, z, inputs)
        return {
            "conditioning_encoder": encoded["params"],
            "network": variables["params"],
        }

    return jax.eval_shape(init, jax.random.key(0))


def conditions(name: str, labels, frame_mask=None) -> dict:
    """Return raw conditions; labels [b], or [b, 1 + k]; CLASSES is none."""
    if name.endswith("unconditional"):
        return {"keep": {}}
    labels = jnp.asarray(labels)[..., None]
    keep = labels[..., 0] != CLASSES
    cond = {"label": labels, "keep": {"label": keep}}
    return (
        cond if frame_mask is None else cond | {"frame_mask": jnp.asarray(frame_mask)}
    )


def run(name: str, z, timesteps, labels, frame_mask=None) -> np.ndarray:
    """Return the output of a recorded network [b, f, h, w, 8]."""
    network, encoder = model(name)
    own = params(name)
    t = np.asarray(timesteps) / (SCHEDULE.train_steps - 1)
    logsnr = jnp.asarray(schedules.noise_level(SCHEDULE, t).logsnr, jnp.float32)
    cond = conditions(name, labels, frame_mask)

    def apply(own, z, logsnr, cond):
        inputs = encoder.apply(
            {"params": own["conditioning_encoder"]}, logsnr, z.shape[1], cond
        )
        return network.apply({"params": own["network"]}, z, inputs)

    return np.asarray(jax.jit(apply)(own, jnp.asarray(z), logsnr, cond))


def drawn(name: str, shape: tuple[int, ...], channel_axis: int) -> np.ndarray:
    """Return a drawn input with channels last."""
    return np.moveaxis(normal(name, shape), channel_axis, -1)
