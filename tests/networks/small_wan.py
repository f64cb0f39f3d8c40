"""Small networks of Wan with weights drawn by name."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.drawn import weight
from tests.parity.recorded import write_weights
from tests.parity.wan_cases import ARRAYS
from vdm_jax.conditions.encoder import ConditioningEncoder
from vdm_jax.networks import NETWORKS
from vdm_jax.networks.inputs import Inputs
from vdm_jax.networks.layers import timestep_embedding
from vdm_jax.pretrained import safetensors_io, wan_transformer, wan_vae
from vdm_jax.pretrained.name_maps import KERNEL
from vdm_jax.trees import named_leaves

RECORDED = np.load(ARRAYS)


def described(part: str) -> tuple[dict, dict]:
    """Return the config and the shapes of a recorded network."""
    return tuple(json.loads(str(RECORDED[f"{part}/{n}"])) for n in ("config", "shapes"))


def to_ours(video) -> np.ndarray:
    """[b, c, f, h, w] -> [b, f, h, w, c]."""
    return np.moveaxis(np.asarray(video), 1, -1)


def model(config: dict, **changes) -> tuple:
    """Return network and encoder of a config of diffusers; changes: of the section."""
    fields = wan_transformer.fields(config)
    section = fields["network"] | changes
    network = NETWORKS["wan"](section, fields["channels"], [])
    encoder = ConditioningEncoder(
        fields["conditioning"]["cond_dim"],
        1,
        noise_embedding=lambda t, _: timestep_embedding(t, fields["timestep_dim"]),
    )
    return network, encoder


def abstract_params(config: dict) -> dict:
    """Return the shapes of all parameters."""
    fields = wan_transformer.fields(config)
    network, encoder = model(config)

    def init(key):
        inputs, encoded = encoder.init_with_output(key, jnp.zeros(1), 1, {})
        text = jnp.zeros((1, 2, fields["conditioning"]["text_dim"]))
        z = jnp.zeros((1, 1, 2, 2, fields["channels"]))
        params = network.init(key, z, inputs.replace(tokens=text))["params"]
        return {"conditioning_encoder": encoded["params"], "network": params}

    return jax.eval_shape(init, jax.random.key(0))


def torch_weights(net: str, shapes: dict) -> dict[str, np.ndarray]:
    """Return drawn weights by diffusers' names."""
    return {name: weight(net, name, tuple(shape)) for name, shape in shapes.items()}


@functools.cache
def drawn_params() -> dict:
    """Return the weights of the recorded transformer as our parameters."""
    config, shapes = described("transformer")
    weights = torch_weights("wan/transformer", shapes)
    names = wan_transformer.names(wan_transformer.fields(config)["network"])
    leaves = {}
    for theirs, target in names.items():
        array = weights[theirs]
        if target.startswith(KERNEL):
            array = np.moveaxis(array, (0, 1), (-1, -2))
        leaves[target.removeprefix(KERNEL)] = array
    like = abstract_params(config)
    ordered = [leaves[path] for path in named_leaves(like)]
    return jax.tree.unflatten(jax.tree.structure(like), ordered)


def run(model, params, z, timesteps, **inputs) -> jax.Array:
    """Return the network's output; inputs: fields of `Inputs` but the vector."""
    network, encoder = model

    def apply(params, z, timesteps, inputs):
        own = {"params": params["conditioning_encoder"]}
        vector = encoder.apply(own, timesteps, z.shape[1], {}).vector
        own = {"params": params["network"]}
        return network.apply(own, z, Inputs(vector=vector, **inputs))

    return jax.jit(apply)(params, z, timesteps, inputs)


def write_vae(folder: Path, **changes) -> Path:
    """Write vae/ as diffusers does. changes: of its config.json."""
    config, shapes = described("vae")
    write_weights(folder, torch_weights("wan/vae", shapes), safetensors_io.DIFFUSERS)
    config = {"_class_name": wan_vae.CLASS, **config, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
