"""From raw conditions and keep masks to the conditioning inputs of a network."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.conditions.base import Cond, Condition, add_features
from vdm_jax.networks.inputs import Inputs
from vdm_jax.networks.layers import dense, noise_level_embedding


class ConditioningEncoder(nn.Module):
    """Encoder of the noise level and all conditions into `Inputs`.

    Their features, of width dim, are summed and pass an MLP of mlp_layers layers.
    Tokens of several conditions follow each other, and so do channels next to z.
    """

    dim: int
    mlp_layers: int
    conditions: tuple[tuple[str, Condition], ...] = ()

    @nn.compact
    def __call__(self, logsnr: jax.Array, frames: int, cond: Cond) -> Inputs:
        """logsnr: [b] or [b, f]. -> Inputs with vector [b, dim] or [b, f, dim]."""
        vector = dense(noise_level_embedding(logsnr, self.dim), self.dim, "noise_level")
        tokens, token_masks, channels = [], [], []
        for name, condition in self.conditions:
            entry = condition.embed(name, cond, frames, self.dim)
            if entry.features is not None:
                vector = add_features(vector, entry.features)
            if entry.tokens is not None:
                tokens.append(entry.tokens)
                token_masks.append(entry.token_mask)
            if entry.concat is not None:
                channels.append(entry.concat)
        for i in range(self.mlp_layers):
            vector = dense(nn.swish(vector), self.dim, f"mlp_{i}")
        return Inputs(
            vector=vector,
            tokens=_joined(tokens, axis=-2),
            token_mask=_joined(token_masks, axis=-1),
            concat=_joined(channels, axis=-1),
            frame_mask=cond.get("frame_mask"),
        )


def _joined(arrays: list[jax.Array], axis: int) -> jax.Array | None:
    if len(arrays) < 2:
        return arrays[0] if arrays else None
    return jnp.concatenate(arrays, axis)
