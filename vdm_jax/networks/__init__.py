"""Flax networks; they know no diffusion. A kind of network is a row of NETWORKS.

A network is a module, called as network(z, inputs, train=False) -> like z, with z
[b, f, h, w, c] and inputs.Inputs.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn

from vdm_jax.networks import autoencoder, dit, image_text, temporal, unet3d, wan

# Kind -> from_config(section, channels, sizes), of the config's network section, the
# channels of z, and the (height, width) of all z that it must accept. It raises
# UserError for fields that do not fit each other or the sizes.
NETWORKS: dict[str, Callable[[dict, int, Sequence[tuple[int, int]]], nn.Module]] = {
    "unet": unet3d.from_config,
    "sd": temporal.from_config,
    "dit": dit.from_config,
    "wan": wan.from_config,
    "autoencoder": autoencoder.from_config,  # of config.task="autoencoder" alone
    "image_text": image_text.from_config,  # of config.task="contrastive" alone
}
