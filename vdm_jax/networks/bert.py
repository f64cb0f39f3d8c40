"""BERT's encoder (Devlin et al. 2019, arXiv:1810.04805), token by token.

Learned positions, layers of attention and GELU, each normed after it is added.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.networks.attention import attention
from vdm_jax.networks.layers import dense, embed, wide


@dataclasses.dataclass(frozen=True)
class BertSpec:
    """Sizes; those of all-MiniLM-L6-v2."""

    vocabulary: int = 30522
    positions: int = 512
    segments: int = 2
    width: int = 384
    hidden: int = 1536
    layers: int = 6
    heads: int = 12
    epsilon: float = 1e-12


class BertLayer(nn.Module):
    """norm(x + attention(x)), then the same with two dense layers."""

    spec: BertSpec

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """x [n, l, width], mask bool [n, l] -> [n, l, width]."""
        width = self.spec.width
        split = (*x.shape[:-1], self.spec.heads, width // self.spec.heads)
        q, k, v = (dense(x, width, name).reshape(split) for name in "qkv")
        y = attention(q, k, v, mask=mask[:, None]).reshape(x.shape)
        x = norm(x + dense(y, width, "out"), self.spec, "attention_norm")
        y = nn.gelu(dense(x, self.spec.hidden, "expand"), approximate=False)
        return norm(x + dense(y, width, "project"), self.spec, "norm")


def norm(x: jax.Array, spec: BertSpec, name: str) -> jax.Array:
    """Layer norm with its statistics in float32 or wider."""
    layer = nn.LayerNorm(
        spec.epsilon,
        dtype=x.dtype,
        param_dtype=wide(x),
        use_fast_variance=False,  # that is a difference of large numbers
        name=name,
    )
    return layer(x)


class Bert(nn.Module):
    """Every token reads all tokens of its text.

    dtype: of the activations, a name; parameters may have another.
    """

    spec: BertSpec = BertSpec()
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Tokens int [n, l], mask bool [n, l] (True: a token) -> [n, l, width]."""
        spec, dtype = self.spec, jnp.dtype(self.dtype)
        places = jnp.arange(tokens.shape[1])[None]
        x = embed(tokens, spec.vocabulary, spec.width, "token", dtype)
        x += embed(places, spec.positions, spec.width, "place", dtype)
        # One text is one segment, the first.
        x += embed(
            jnp.zeros_like(places[:, :1]), spec.segments, spec.width, "segment", dtype
        )
        x = norm(x, spec, "norm")
        for i in range(spec.layers):
            x = BertLayer(spec, name=f"layer_{i}")(x, mask)
        return x
