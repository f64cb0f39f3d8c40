"""BERT's encoder (Devlin et al. 2019, arXiv:1810.04805), one vector per token.

Positions are learned. Layers are post-norm: attention, then an MLP with GELU.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.networks.attention import attention
from vdm_jax.networks.layers import dense, embed, layer_norm


@dataclasses.dataclass(frozen=True)
class BertSpec:
    """Sizes of a BERT encoder; the defaults are those of all-MiniLM-L6-v2."""

    vocab_size: int = 30522
    max_positions: int = 512
    num_segments: int = 2
    width: int = 384
    mlp_width: int = 1536
    num_layers: int = 6
    num_heads: int = 12
    epsilon: float = 1e-12


class BertLayer(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    spec: BertSpec

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """x [n, l, width], mask bool [n, l] -> [n, l, width]."""
        width, epsilon = self.spec.width, self.spec.epsilon
        split = (*x.shape[:-1], self.spec.num_heads, width // self.spec.num_heads)
        q, k, v = (dense(x, width, name).reshape(split) for name in "qkv")
        y = attention(q, k, v, mask=mask[:, None]).reshape(x.shape)
        x = layer_norm(x + dense(y, width, "out"), "attention_norm", epsilon)
        y = nn.gelu(dense(x, self.spec.mlp_width, "mlp_in"), approximate=False)
        return layer_norm(x + dense(y, width, "mlp_out"), "norm", epsilon)


class Bert(nn.Module):
    """Encoder in which every token attends to all tokens of its text.

    dtype: name of the activations' dtype; parameters may have another.
    """

    spec: BertSpec = BertSpec()
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Tokens int [n, l], mask bool [n, l] (True: a token) -> [n, l, width]."""
        spec = self.spec
        dtype = jnp.dtype(self.dtype)
        positions = jnp.arange(tokens.shape[1])[None]
        x = embed(tokens, spec.vocab_size, spec.width, "token", dtype)
        x += embed(positions, spec.max_positions, spec.width, "position", dtype)
        # A single text is segment 0.
        zero = jnp.zeros_like(positions[:, :1])
        x += embed(zero, spec.num_segments, spec.width, "segment", dtype)
        x = layer_norm(x, "norm", spec.epsilon)
        for i in range(spec.num_layers):
            x = BertLayer(spec, name=f"layer_{i}")(x, mask)
        return x
