"""T5's encoder (Raffel et al. 2020, arXiv:1910.10683), one vector per token.

Layers are pre-norm with RMS norms. Positions are a bias by distance, with one table for
all layers, or in UMT5 (Chung et al. 2023, arXiv:2304.09151) one for each layer. Version
1.0 has a ReLU, version 1.1 and UMT5 have a gated GELU (arXiv:2002.05202).

The residual stream and the last product of each MLP are float32 or wider, whatever the
dtype of the activations: their numbers reach beyond float16.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.networks.attention import BiasPosition, attention
from vdm_jax.networks.layers import dense, embed, param_dtype


@dataclasses.dataclass(frozen=True)
class T5Spec:
    """Sizes of a T5 encoder; the defaults are those of version 1.1 XXL.

    gated: the MLP of version 1.1. num_heads times head_dim may differ from width.
    position_in_layers: each layer has a table of distances, as in UMT5.
    """

    vocab_size: int = 32128
    width: int = 4096
    head_dim: int = 64
    num_heads: int = 64
    mlp_width: int = 10240
    num_layers: int = 24
    gated: bool = True
    num_buckets: int = 32
    max_distance: int = 128
    epsilon: float = 1e-6
    position_in_layers: bool = False


def norm(x: jax.Array, spec: T5Spec, name: str) -> jax.Array:
    """Apply an RMS norm, x / rms(x) times a scale, in float32 or wider."""
    dtypes = {"dtype": x.dtype, "param_dtype": param_dtype(x)}
    return nn.RMSNorm(spec.epsilon, name=name, **dtypes)(x)


class T5Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); no dense layer has a bias."""

    spec: T5Spec
    dtype: str

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, position: dict | None
    ) -> jax.Array:
        """x [n, l, width] in float32 or wider, mask bool [n, l] -> like x.

        position: the bias of all layers, or None for that of this one.
        """
        spec, dtype = self.spec, jnp.dtype(self.dtype)
        no_bias = {"use_bias": False}
        if position is None:
            position = position_bias(spec, x.shape[1], dtype)
        y = norm(x, spec, "attention_norm").astype(dtype)
        inner = spec.num_heads * spec.head_dim
        split = (*x.shape[:-1], spec.num_heads, spec.head_dim)
        q, k, v = (dense(y, inner, name, **no_bias).reshape(split) for name in "qkv")
        # T5 does not scale its scores: this undoes the scaling in `attention`.
        q = q * math.sqrt(spec.head_dim)
        y = attention(q, k, v, mask=mask[:, None], **position)
        x = x + dense(y.reshape(*x.shape[:-1], inner), spec.width, "out", **no_bias)
        y = norm(x, spec, "norm").astype(dtype)
        h = dense(y, spec.mlp_width, "mlp_in", **no_bias)
        if spec.gated:
            gate = dense(y, spec.mlp_width, "mlp_gate", **no_bias)
            h = nn.gelu(gate, approximate=True) * h
        else:
            h = nn.relu(h)
        return x + dense(h.astype(x.dtype), spec.width, "mlp_out", **no_bias)


def position_bias(spec: T5Spec, length: int, dtype: Any) -> dict:
    """Return the bias of distances, [heads, length, length], in a compact method."""
    # Only the shape and dtype of this query are used.
    query = jnp.zeros((length, spec.num_heads, spec.head_dim), dtype)
    return BiasPosition(spec.num_buckets, spec.max_distance, name="position")(query)


class T5(nn.Module):
    """Encoder in which every token attends to all tokens of its text.

    dtype: name of the activations' dtype; parameters may have another.
    """

    spec: T5Spec = T5Spec()
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Tokens int [n, l], mask bool [n, l] (True: a token) -> [n, l, width]."""
        spec = self.spec
        dtype = jnp.dtype(self.dtype)
        wide = jnp.promote_types(dtype, jnp.float32)
        x = embed(tokens, spec.vocab_size, spec.width, "token", dtype).astype(wide)
        position = None
        if not spec.position_in_layers:
            position = position_bias(spec, tokens.shape[1], dtype)
        for i in range(spec.num_layers):
            x = T5Layer(spec, self.dtype, name=f"layer_{i}")(x, mask, position)
        return norm(x, spec, "norm").astype(dtype)
