"""Text: embeddings of a caption's tokens by a frozen encoder."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.conditions.base import Cond, Condition, Contribution, per_frame
from vdm_jax.networks.layers import dense

NULL_TEXT = "null_text", "null_text_mask"  # arrays of the tokens of ""


@dataclasses.dataclass(frozen=True)
class Text(Condition):
    """Token embeddings text [n, l, dim], and text_mask bool [n, l] of those that exist.

    They are passed to cross-attention (Saharia et al. 2022, "Imagen", section 2.4).

    pooling: they are pooled into the vector, too (VDM, section 4.3), and a dropped text
      has no token. Without it a dropped text is the empty one (Rombach et al. 2022):
      null_text [n, k, dim] and null_text_mask [n, k] are the tokens of "" by the same
      encoder.
    """

    dim: int
    dropout: float = 0.0
    pooling: bool = True

    @classmethod
    def from_config(cls, config: Any) -> "Text | None":
        """Return the condition of a config, None for a width of 0."""
        conditioning = config.conditioning
        if not conditioning.text_dim:
            return None
        return cls(
            conditioning.text_dim, conditioning.text_dropout, conditioning.text_pooling
        )

    @property
    def required(self) -> tuple[str, ...]:
        """The tokens of "", which a dropped text needs without pooling."""
        return () if self.pooling else NULL_TEXT

    def null(self, n: tuple[int, ...]) -> dict[str, Any]:
        """No text: one token, which is masked."""
        token = np.zeros((*n, 1, self.dim), jnp.result_type(float))
        mask = np.zeros((*n, 1), bool)
        return {"text": token, "text_mask": mask} | dict(
            zip(self.required, (token, mask), strict=False)
        )

    def embed(self, name: str, cond: Cond, frames: int, dim: int) -> Contribution:
        """The tokens, those of "" for a dropped text; with pooling the vector, too."""
        keep = cond["keep"][name][..., None]
        tokens, mask = cond["text"], cond["text_mask"]
        if not self.pooling:
            null, null_mask = (cond[array] for array in NULL_TEXT)
            length = max(mask.shape[-1], null_mask.shape[-1])
            tokens, null = (_padded(a, length, -2) for a in (tokens, null))
            mask, null_mask = (_padded(a, length, -1) for a in (mask, null_mask))
            return Contribution(
                tokens=jnp.where(keep[..., None], tokens, null),
                token_mask=jnp.where(keep, mask, null_mask),
            )
        pooled = TextPooling(dim, name=name)(tokens, mask, keep[..., 0])
        return Contribution(
            features=per_frame(pooled, frames),
            tokens=tokens,
            token_mask=mask & keep,
        )


def _padded(array: jax.Array, length: int, axis: int) -> jax.Array:
    """Return an array with zeros behind its axis, up to a length."""
    padding = [(0, 0)] * array.ndim
    padding[axis] = (0, length - array.shape[axis])
    return jnp.pad(array, padding)


class TextPooling(nn.Module):
    """Attention pooling of token embeddings into one vector (VDM, section 4.3).

    tokens: [..., l, d]; mask: bool [..., l]; keep: bool [...]. -> [..., dim], 0 if
    dropped
    """

    dim: int

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array, keep: jax.Array):
        tokens = nn.LayerNorm(param_dtype=tokens.dtype, name="norm")(tokens)
        score = dense(tokens, 1, "score")[..., 0]
        # An empty text has no token: its weights are 0, not NaN.
        weight = nn.softmax(jnp.where(mask, score, jnp.finfo(score.dtype).min)) * mask
        value = dense(tokens, self.dim, "value")
        pooled = jnp.einsum("...l,...ld->...d", weight, value)
        return jnp.where(keep[..., None], pooled, 0)
