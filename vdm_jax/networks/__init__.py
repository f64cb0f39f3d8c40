"""Flax networks; they know no diffusion. A kind of network is a row of NETWORKS.

A network is a module, called as network(z, inputs, train=False) -> like z, with z
[b, f, h, w, c] and inputs.Inputs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn

from vdm_jax.errors import UserError
from vdm_jax.networks import unet3d

# Kind -> from_config(section, channels, sizes), of the config's network section without
# `kind`, the channels of z, and the (height, width) of all z that it must accept.
NETWORKS: dict[str, Callable[[dict, int, Sequence[tuple[int, int]]], nn.Module]] = {
    "unet": unet3d.from_config,
}


def from_config(
    config: Any, channels: int, sizes: Sequence[tuple[int, int]]
) -> nn.Module:
    """Return the network of a config's network section.

    Raises:
      UserError: an unknown kind, or fields that do not fit each other or the sizes.
    """
    section = config.network.to_dict()
    kind = section.pop("kind", "unet")
    if kind not in NETWORKS:
        raise UserError(f"network.kind={kind!r}: one of {', '.join(NETWORKS)}")
    return NETWORKS[kind](section, channels, sizes)
