"""CLIP's text encoder (Radford et al. 2021, arXiv:2103.00020), one vector per token.

A token attends to itself and to the tokens before it. Positions are learned. Layers are
pre-norm. OpenAI's networks (Stable Diffusion 1) have a quick GELU, x sigmoid(1.702 x),
and OpenCLIP's (Stable Diffusion 2) the exact one.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.networks.attention import attention
from vdm_jax.networks.layers import dense, embed, layer_norm

ACTIVATIONS = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "gelu": functools.partial(nn.gelu, approximate=False),
}


@dataclasses.dataclass(frozen=True)
class ClipTextSpec:
    """Sizes of a text encoder; the defaults are those of CLIP ViT-L/14.

    activation: a key of ACTIVATIONS.
    """

    vocab_size: int = 49408
    max_positions: int = 77
    width: int = 768
    mlp_width: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    activation: str = "quick_gelu"
    epsilon: float = 1e-5


class ClipLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    spec: ClipTextSpec

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """x [n, l, width], mask bool [n, l, l] -> [n, l, width]."""
        spec, width = self.spec, self.spec.width
        y = layer_norm(x, "attention_norm", spec.epsilon)
        split = (*x.shape[:-1], spec.num_heads, width // spec.num_heads)
        q, k, v = (dense(y, width, name).reshape(split) for name in "qkv")
        y = attention(q, k, v, mask=mask).reshape(x.shape)
        x = x + dense(y, width, "out")
        y = layer_norm(x, "norm", spec.epsilon)
        y = dense(y, spec.mlp_width, "mlp_in")
        return x + dense(ACTIVATIONS[spec.activation](y), width, "mlp_out")


class ClipText(nn.Module):
    """Encoder in which a token attends to those before it and to itself.

    dtype: name of the activations' dtype; parameters may have another.
    clip_skip: number of the last layers whose output is not used. The last norm is
      applied to the output of the layer before them.
    """

    spec: ClipTextSpec = ClipTextSpec()
    dtype: str = "float32"
    clip_skip: int = 0

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Tokens int [n, l], mask bool [n, l] (True: is read) -> [n, l, width].

        Stable Diffusion's texts are padded to 77 tokens, and all of them are read.
        """
        spec, dtype = self.spec, jnp.dtype(self.dtype)
        length = tokens.shape[1]
        positions = jnp.arange(length)[None]
        x = embed(tokens, spec.vocab_size, spec.width, "token", dtype)
        x += embed(positions, spec.max_positions, spec.width, "position", dtype)
        causal = jnp.tril(jnp.ones((length, length), bool))
        mask = mask[:, None] & causal[None]
        outputs = []
        # Skipped layers run too, so that parameters do not depend on clip_skip; a
        # compiled program leaves them out.
        for i in range(spec.num_layers):
            x = ClipLayer(spec, name=f"layer_{i}")(x, mask)
            outputs.append(x)
        return layer_norm(outputs[-1 - self.clip_skip], "norm", spec.epsilon)
