"""Small ControlNets in the dialect of Stable Diffusion, with weights drawn by name."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.networks import small_sd
from tests.parity.drawn import weight
from vdm_jax.conditions.timestep import TimestepEmbedding
from vdm_jax.networks import NETWORKS
from vdm_jax.networks.control import ControlNet, control_net
from vdm_jax.networks.inputs import Inputs
from vdm_jax.pretrained import controlnet
from vdm_jax.pretrained.name_maps import KERNEL
from vdm_jax.trees import named_leaves


def build(config: dict, **changes) -> ControlNet:
    """Return the ControlNet of a config of diffusers; changes: of the section."""
    fields = controlnet.fields(config)
    unet = NETWORKS["sd"](fields["network"] | changes, fields["channels"], [])
    dim = fields["conditioning"]["cond_dim"]
    return control_net(unet, fields["hint_channels"], dim)


def noise_level(config: dict, timesteps) -> jax.Array:
    """Return the features [b, d] of timesteps that the ControlNet reads."""
    dim = controlnet.fields(config)["conditioning"]["cond_dim"]
    logsnr = jnp.asarray(small_sd.logsnr_of(timesteps), jnp.result_type(float))
    return TimestepEmbedding(small_sd.SCHEDULE)(logsnr, dim)


def abstract_params(config: dict) -> dict:
    """Return the shapes of all parameters for a config of diffusers."""
    fields, control = controlnet.fields(config), build(config)
    stride = 2 ** (len(fields["hint_channels"]) - 1)
    text, channels = fields["conditioning"]["text_dim"], fields["channels"]

    def init(key):
        inputs = Inputs(
            noise_level=noise_level(config, [1]), tokens=jnp.zeros((1, 2, text))
        )
        hint = jnp.zeros((1, 1, 8 * stride, 8 * stride, fields["hint_inputs"]))
        z = jnp.zeros((1, 1, 8, 8, channels))
        return control.init(key, z, inputs, hint)["params"]

    return jax.eval_shape(init, jax.random.key(0))


def torch_weights(name: str, config: dict) -> dict[str, np.ndarray]:
    """Return the drawn weights by diffusers' names, in torch's layout."""
    like, weights = named_leaves(abstract_params(config)), {}
    for theirs, target in names(config).items():
        shape = like[target.removeprefix(KERNEL)].shape
        if target.startswith(KERNEL):
            shape = (shape[-1], shape[-2], *shape[:-2])
        weights[theirs] = weight(name, theirs, shape)
    return weights


def names(config: dict) -> dict[str, str]:
    """Return the table of names of a config of diffusers."""
    fields = controlnet.fields(config)
    return controlnet.names(fields["network"], fields["hint_channels"])


def drawn_params(name: str, config: dict) -> dict:
    """Return the drawn weights of a network as our parameters, float32."""
    like, weights = abstract_params(config), torch_weights(name, config)
    leaves = {
        target.removeprefix(KERNEL): (
            np.moveaxis(weights[theirs], (0, 1), (-1, -2))
            if target.startswith(KERNEL)
            else weights[theirs]
        )
        for theirs, target in names(config).items()
    }
    ordered = [leaves[path] for path in named_leaves(like)]
    return jax.tree.unflatten(jax.tree.structure(like), ordered)
