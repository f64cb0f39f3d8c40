"""From raw conditions and keep masks to the conditioning inputs of a network."""

import functools
from collections.abc import Callable

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

    noise_embedding: (logsnr, dim) -> features of the noise level, of any width.
    mlp_of_noise_alone: the MLP comes before the sum, as in DiT (arXiv:2212.09748).
    """

    dim: int
    mlp_layers: int
    conditions: tuple[tuple[str, Condition], ...] = ()
    noise_embedding: Callable[[jax.Array, int], jax.Array] = noise_level_embedding
    mlp_of_noise_alone: bool = False

    @nn.compact
    def __call__(self, logsnr: jax.Array, frames: int, cond: Cond) -> Inputs:
        """logsnr: [b] or [b, f]. -> Inputs with vector [b, dim] or [b, f, dim].

        Of a packed buffer logsnr is [b, s] or [b, s, f], `frames` is s, and so is the
        vector.
        """
        features = self.noise_embedding(logsnr, self.dim)
        vector = dense(features, self.dim, "noise_level")
        entries = [
            condition.embed(name, cond, frames, self.dim)
            for name, condition in self.conditions
        ]
        added = [entry.features for entry in entries if entry.features is not None]
        if not self.mlp_of_noise_alone:
            vector = functools.reduce(add_features, added, vector)
        for i in range(self.mlp_layers):
            vector = dense(nn.swish(vector), self.dim, f"mlp_{i}")
        if self.mlp_of_noise_alone:
            vector = functools.reduce(add_features, added, vector)
        return Inputs(
            vector=vector,
            noise_level=features,
            tokens=_joined([entry.tokens for entry in entries], axis=-2),
            token_mask=_joined([entry.token_mask for entry in entries], axis=-1),
            concat=_joined([entry.concat for entry in entries], axis=-1),
            frame_mask=cond.get("frame_mask"),
            hints=tuple(entry.hint for entry in entries if entry.hint is not None),
            packing=cond.get("packing"),
            control_scales=cond.get("control_scales"),
        )


def _joined(arrays: list[jax.Array | None], axis: int) -> jax.Array | None:
    """Return the arrays that are not None one after the other; None if all are."""
    given = [array for array in arrays if array is not None]
    return jnp.concatenate(given, axis) if given else None
