"""T5's encoder (Raffel et al. 2020, arXiv:1910.10683) of any size, token by token.

Norms come before each part and take no mean away; positions are a bias by distance,
one table for all layers. Version 1.0 has a ReLU, 1.1 a gated GELU (arXiv:2002.05202).
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.networks.attention import BiasPosition, attention
from vdm_jax.networks.layers import dense, embed, wide


@dataclasses.dataclass(frozen=True)
class T5Spec:
    """Sizes; those of v1.1 XXL. gated: 1.1; heads times head_dim need not be width."""

    vocabulary: int = 32128
    width: int = 4096
    head_dim: int = 64
    heads: int = 64
    hidden: int = 10240
    layers: int = 24
    gated: bool = True
    buckets: int = 32
    reach: int = 128
    epsilon: float = 1e-6


def norm(x: jax.Array, spec: T5Spec, name: str) -> jax.Array:
    """x / rms(x), scaled; in float32 or wider."""
    layer = nn.RMSNorm(spec.epsilon, dtype=x.dtype, param_dtype=wide(x), name=name)
    return layer(x)


class T5Layer(nn.Module):
    """x + attention(norm(x)), then the same with dense layers; none has a bias."""

    spec: T5Spec

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, position: dict) -> jax.Array:
        """x [n, l, width], mask bool [n, l], the bias of positions -> [n, l, width]."""
        spec, plain = self.spec, {"use_bias": False}
        y = norm(x, spec, "attention_norm")
        inner, split = spec.heads * spec.head_dim, (*x.shape[:-1], spec.heads, -1)
        q, k, v = (dense(y, inner, name, **plain).reshape(split) for name in "qkv")
        # Scores of T5 are not scaled: this undoes what attention does.
        q = q * math.sqrt(spec.head_dim)
        y = attention(q, k, v, mask=mask[:, None], **position)
        x = x + dense(y.reshape(*x.shape[:-1], inner), spec.width, "out", **plain)
        y = norm(x, spec, "norm")
        h = dense(y, spec.hidden, "expand", **plain)
        if spec.gated:
            h = nn.gelu(dense(y, spec.hidden, "gate", **plain), approximate=True) * h
        else:
            h = nn.relu(h)
        return x + dense(h, spec.width, "project", **plain)


class T5(nn.Module):
    """Every token reads all tokens of its text.

    dtype: of the activations, a name; parameters may have another.
    """

    spec: T5Spec = T5Spec()
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Tokens int [n, l], mask bool [n, l] (True: a token) -> [n, l, width]."""
        spec, dtype = self.spec, jnp.dtype(self.dtype)
        x = embed(tokens, spec.vocabulary, spec.width, "token", dtype)
        # All that is asked of a query here is its shape and its type.
        query = jnp.zeros((tokens.shape[1], spec.heads, spec.head_dim), dtype)
        position = BiasPosition(spec.buckets, spec.reach, name="position")(query)
        for i in range(spec.layers):
            x = T5Layer(spec, name=f"layer_{i}")(x, mask, position)
        return norm(x, spec, "norm")
