"""Small U-Nets in the dialect of Stable Diffusion, with weights drawn by name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.drawn import weight
from tests.parity.sd_cases import TIMESTEPS, UNETS, unet_inputs
from vdm_jax.conditions.encoder import ConditioningEncoder
from vdm_jax.conditions.timestep import TimestepEmbedding
from vdm_jax.diffusion import schedules
from vdm_jax.networks import NETWORKS, unet3d
from vdm_jax.networks.inputs import Inputs
from vdm_jax.pretrained import sd_unet
from vdm_jax.pretrained.name_maps import KERNEL
from vdm_jax.trees import named_leaves

SCHEDULE = schedules.Discrete()


def build(config: dict, **changes) -> tuple[unet3d.UNet3D, ConditioningEncoder]:
    """Return network and encoder of a config of diffusers; changes: of the section."""
    fields = sd_unet.unet_fields(config)
    _, *size, channels = fields["z_shape"]
    section = fields["network"] | changes
    network = NETWORKS["sd"](section, channels, [tuple(size)])
    conditioning = fields["conditioning"]
    encoder = ConditioningEncoder(
        conditioning["cond_dim"],
        conditioning["cond_mlp_layers"],
        noise_embedding=TimestepEmbedding(SCHEDULE),
    )
    return network, encoder


def names(config: dict) -> dict[str, str]:
    """Return the table of names for a config of diffusers."""
    return sd_unet.unet_names(sd_unet.unet_fields(config)["network"])


def abstract_params(config: dict, **changes) -> dict:
    """Return the shapes of all parameters; the arguments are those of `build`."""
    fields = sd_unet.unet_fields(config)
    network, encoder = build(config, **changes)
    width = fields["conditioning"]["text_dim"]

    def init(key):
        inputs, encoded = encoder.init_with_output(key, jnp.zeros(1), 1, {})
        inputs = inputs.replace(tokens=jnp.zeros((1, 2, width)))
        z = jnp.zeros((1, *fields["z_shape"]))
        params = network.init(key, z, inputs)["params"]
        return {"conditioning_encoder": encoded["params"], "network": params}

    return jax.eval_shape(init, jax.random.key(0))


def torch_weights(name: str, config: dict | None = None) -> dict[str, np.ndarray]:
    """Return the drawn weights by diffusers' names, in torch's layout.

    config: of diffusers, for a network that is not in UNETS.
    """
    config = config or UNETS[name]
    like = named_leaves(abstract_params(config))
    weights = {}
    for theirs, target in names(config).items():
        shape = like[target.removeprefix(KERNEL)].shape
        if target.startswith(KERNEL):
            shape = (shape[-1], shape[-2], *shape[:-2])
        weights[theirs] = weight(name, theirs, shape)
    return weights


@functools.cache
def drawn_params(name: str) -> dict:
    """Return the weights of a network of UNETS as our parameters, float32."""
    return params_of(UNETS[name], torch_weights(name))


def params_of(config: dict, weights: dict[str, np.ndarray]) -> dict:
    """Return weights by diffusers' names as our parameters, float32."""
    like = abstract_params(config)
    targets = names(config)
    leaves = {
        target.removeprefix(KERNEL): (
            np.moveaxis(weights[theirs], (0, 1), (-1, -2))
            if target.startswith(KERNEL)
            else weights[theirs]
        )
        for theirs, target in targets.items()
    }
    ordered = [leaves[path] for path in named_leaves(like)]
    return jax.tree.unflatten(jax.tree.structure(like), ordered)


def logsnr_of(timesteps) -> np.ndarray:
    """Return the log SNR of timesteps in float64."""
    t = np.asarray(timesteps) / (SCHEDULE.train_steps - 1)
    return schedules.noise_level(SCHEDULE, t).logsnr


def recorded_inputs(name: str, dtype) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return z [2, 1, 8, 8, 4], logsnr [2] and tokens [2, 5, d] of a recording."""
    sample, text = unet_inputs(name)
    z = np.moveaxis(sample, 1, -1)[:, None]
    logsnr = logsnr_of(TIMESTEPS)
    return jnp.asarray(z, dtype), jnp.asarray(logsnr, dtype), jnp.asarray(text, dtype)


def run(model, params, z, logsnr, **inputs) -> jax.Array:
    """Return the network's output; inputs: fields of `Inputs` but the vector."""
    network, encoder = model

    def apply(params, z, logsnr, inputs):
        encoded = encoder.apply(
            {"params": params["conditioning_encoder"]}, logsnr, z.shape[1], {}
        )
        inputs = Inputs(vector=encoded.vector, **inputs)
        return network.apply({"params": params["network"]}, z, inputs)

    return jax.jit(apply)(params, z, logsnr, inputs)
