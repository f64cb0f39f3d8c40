"""A kind of network: two transformer layers over space-time patches of 4 x 4 pixels."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.networks.inputs import Inputs
from vdm_jax.networks.layers import depth_to_space, space_to_depth

PATCH = 4


class Transformer(nn.Module):
    """Pre-norm layers; the conditioning vector is added to every token."""

    channels: int
    width: int
    layers: int = 2

    @nn.compact
    def __call__(self, z: jax.Array, inputs: Inputs, train: bool = False) -> jax.Array:
        """z [b, f, h, w, c] -> the same shape."""
        if inputs.concat is not None:
            z = jnp.concatenate([z, inputs.concat], axis=-1)
        x = space_to_depth(z, PATCH)
        b, f, h, w, _ = x.shape
        x = nn.Dense(self.width)(x).reshape(b, f * h * w, self.width)
        x = x + self.param("place", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        vector = nn.Dense(self.width)(inputs.vector)
        if vector.ndim == 2:
            vector = vector[:, None]
        vector = jnp.broadcast_to(vector, (b, f, self.width))
        x += jnp.repeat(vector, h * w, axis=1)
        for _ in range(self.layers):
            x += nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
            hidden = nn.Dense(4 * self.width)(nn.LayerNorm()(x))
            x += nn.Dense(self.width)(nn.gelu(hidden))
        out = nn.Dense(PATCH**2 * self.channels, kernel_init=nn.initializers.zeros)
        return depth_to_space(out(nn.LayerNorm()(x)).reshape(b, f, h, w, -1), PATCH)


def from_config(
    section: dict[str, Any], channels: int, sizes: Sequence[tuple[int, int]]
) -> Transformer:
    """Return the network of a config's section."""
    return Transformer(channels, section["width"])
