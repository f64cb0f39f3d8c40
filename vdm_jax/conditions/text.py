"""Text: embeddings of a caption's tokens by a frozen encoder."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.conditions.base import Cond, Condition, Contribution, per_frame
from vdm_jax.networks.layers import dense


@dataclasses.dataclass(frozen=True)
class Text(Condition):
    """Token embeddings text [n, l, dim], and text_mask bool [n, l] of those that exist.

    They are pooled into the vector (VDM, section 4.3) and passed to cross-attention
    (Saharia et al. 2022, "Imagen", section 2.4).
    """

    dim: int
    dropout: float = 0.0

    @classmethod
    def from_config(cls, config: Any) -> "Text | None":
        """Return the condition of a config, None for a width of 0."""
        conditioning = config.conditioning
        if not conditioning.text_dim:
            return None
        return cls(conditioning.text_dim, conditioning.text_dropout)

    def null(self, n: tuple[int, ...]) -> dict[str, Any]:
        """No text: one token, which is masked."""
        return {
            "text": np.zeros((*n, 1, self.dim), jnp.result_type(float)),
            "text_mask": np.zeros((*n, 1), bool),
        }

    def embed(self, name: str, cond: Cond, frames: int, dim: int) -> Contribution:
        """The pooled tokens, and the tokens; all of a dropped text are masked."""
        keep = cond["keep"][name]
        pool = TextPooling(dim, name=name)
        pooled = pool(cond["text"], cond["text_mask"], keep)
        return Contribution(
            features=per_frame(pooled, frames),
            tokens=cond["text"],
            token_mask=cond["text_mask"] & keep[..., None],
        )


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
