"""The residual block, and the layers that mix pixels and frames after it.

Such a layer is a Linen module that is constructed as layer(spec, name=...) and called
as layer(x [b, f, h, w, c], inputs) -> the same shape. It adds to x through a
zero-initialised projection, so a newly initialised layer is the identity.
"""

import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from vdm_jax.networks import backends
from vdm_jax.networks.attention import RELATIVE_POSITIONS, frame_attention_mask
from vdm_jax.networks.inputs import Inputs
from vdm_jax.networks.layers import (
    GroupNorm,
    conv,
    dense,
    dropout,
    norm_dense,
    param_dtype,
    zeros_init,
)
from vdm_jax.networks.spec import UNetSpec


class ResBlock(nn.Module):
    """x + conv(dropout(swish(norm(conv(swish(norm(x))))))), after arXiv:2105.05233.

    The second norm is scaled and shifted by inputs.vector.
    """

    spec: UNetSpec
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, inputs: Inputs, train: bool = False) -> jax.Array:
        """[b, f, h, w, c] -> [b, f, h, w, channels]."""
        h = conv(nn.swish(GroupNorm(name="norm_0")(x)), self.channels, "conv_0")
        h = nn.swish(GroupNorm(name="norm_1")(h, inputs.vector))
        if train and self.spec.dropout:
            h = dropout(h, self.spec.dropout, self.make_rng("dropout"))
        h = conv(h, self.channels, "conv_1", kernel_init=zeros_init)
        if x.shape[-1] != self.channels:
            x = dense(x, self.channels, "skip")
        return x + h


class SelfAttention(nn.Module):
    """x + out(mix(q, k, v)) of the normalised x; `mix` decides which pixels attend.

    reads_vector: whether the norm is scaled and shifted by inputs.vector.
    """

    splits_heads = True
    reads_vector = False
    spec: UNetSpec

    @nn.compact
    def __call__(self, x: jax.Array, inputs: Inputs) -> jax.Array:
        """[b, f, h, w, c] -> [b, f, h, w, c]."""
        b, f, h, w, c = x.shape
        vector = inputs.vector if self.reads_vector else None
        q, k, v = split_heads(norm_dense(x, vector, 3 * c, "qkv"), self.spec, 3)
        y = self.mix(q, k, v, inputs)
        return x + dense(y.reshape(x.shape), c, "out", kernel_init=zeros_init)

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array, inputs: Inputs):
        """[b, f, h w, heads, d] -> the same shape."""
        raise NotImplementedError


class SpatialAttention(SelfAttention):
    """Attention of every pixel to the pixels of its own frame: [(b f), h w, c]."""

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array, inputs: Inputs):
        """Over the pixels."""
        return backends.over_pixels(q, k, v, backend=self.spec.attention_backend)


class LinearAttention(SelfAttention):
    """Attention within a frame whose cost is linear in the number of pixels.

    softmax_d(q) (softmax_n(k)' v) / sqrt(d) for each head (Shen et al. 2021,
    arXiv:1812.01243, section 3.2), for sizes at which SpatialAttention costs too much.
    """

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array, inputs: Inputs):
        """Over the pixels, by sums."""
        q, k = q.astype(param_dtype(q)), k.astype(param_dtype(k))
        q = (nn.softmax(q, axis=-1) / math.sqrt(self.spec.head_dim)).astype(v.dtype)
        k = nn.softmax(k, axis=2).astype(v.dtype)  # over the pixels
        context = jnp.einsum("bfnhd,bfnhe->bfhde", k, v)
        return jnp.einsum("bfnhd,bfhde->bfnhe", q, context)


class TemporalAttention(SelfAttention):
    """Attention of every pixel to the same pixel of all frames: [(b h w), f, c].

    Positions are relative (spec.relative_position), so the network knows no absolute
    time unless the vector has a frame index.
    """

    reads_vector = True

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array, inputs: Inputs):
        """Over the frames."""
        mask = None
        if inputs.frame_mask is not None:
            mask = frame_attention_mask(inputs.frame_mask)
        by_pixel = jnp.swapaxes(q, 1, 2)  # [b, hw, f, heads, d]
        kind = RELATIVE_POSITIONS[self.spec.relative_position]
        position = kind(name="position")(by_pixel)
        backend = self.spec.attention_backend
        return backends.over_frames(q, k, v, mask=mask, **position, backend=backend)


class CrossAttention(nn.Module):
    """Attention of every pixel to a learned null token and inputs.tokens.

    A frame of the video reads the video's tokens, an independent image its own.

    The null token comes first and is never masked: where all tokens are masked (no
    text, or text dropped for guidance) it is the one that is read. Tokens come from a
    frozen encoder and are normalised first (Saharia et al. 2022, section 2.4).
    """

    splits_heads = True
    spec: UNetSpec

    @nn.compact
    def __call__(self, x: jax.Array, inputs: Inputs) -> jax.Array:
        """[b, f, h, w, c] -> [b, f, h, w, c]."""
        if inputs.tokens is None:
            raise ValueError("cross_attention reads inputs.tokens, which is None")
        b, f, h, w, c = x.shape
        norm = nn.LayerNorm(param_dtype=param_dtype(x), name="token_norm")
        tokens = norm(inputs.tokens).astype(x.dtype)
        mask = inputs.token_mask
        shape = (1, 1, tokens.shape[-1])
        null = self.param("null", nn.initializers.normal(1.0), shape, param_dtype(x))
        shape = (*tokens.shape[:-2], 1, tokens.shape[-1])
        null = jnp.broadcast_to(null.astype(x.dtype), shape)
        if mask is not None:
            null_first = ((0, 0),) * (mask.ndim - 1) + ((1, 0),)
            mask = jnp.pad(mask, null_first, constant_values=True)
            mask = mask.reshape(b, -1, 1, mask.shape[-1])
        tokens = jnp.concatenate([null, tokens], axis=-2)
        tokens = tokens.reshape(b, -1, *tokens.shape[-2:])
        (q,) = split_heads(norm_dense(x, None, c, "q"), self.spec, 1)
        k, v = split_heads(dense(tokens, 2 * c, "kv", use_bias=False), self.spec, 2)
        # Tokens of the video, then of each independent image, if they have their own.
        start = f - (tokens.shape[1] - 1)
        y = []
        for frames, own in (
            (slice(start), slice(1)),
            (slice(start, f), slice(1, None)),
        ):
            if frames.start != frames.stop:
                own_mask = None if mask is None else mask[:, own]
                y.append(
                    backends.over_pixels(
                        q[:, frames],
                        k[:, own],
                        v[:, own],
                        mask=own_mask,
                        backend=self.spec.attention_backend,
                    )  # fmt: skip
                )
        y = jnp.concatenate(y, axis=1)
        return x + dense(y.reshape(x.shape), c, "out", kernel_init=zeros_init)


class TemporalConv(nn.Module):
    """x + convolution over three frames of swish(norm(x)).

    The norm is scaled and shifted by inputs.vector. The convolution is not causal, and
    frames beyond the ends are 0. Independent images are read as 0 and are returned as
    they are. It is written as one product with three shifted copies, which on a CPU
    takes a third of the time of the equal convolution, backward pass included.
    """

    spec: UNetSpec

    @nn.compact
    def __call__(self, x: jax.Array, inputs: Inputs) -> jax.Array:
        """[b, f, h, w, c] -> [b, f, h, w, c]."""
        y = nn.swish(GroupNorm(name="norm")(x, inputs.vector))
        if inputs.frame_mask is None:
            return x + self.convolve(y)
        is_video = inputs.frame_mask[:, :, None, None, None].astype(x.dtype)
        return x + self.convolve(y * is_video) * is_video

    def convolve(self, y: jax.Array) -> jax.Array:
        """Return y_-1 W_-1 + y_0 W_0 + y_+1 W_+1 + b."""
        zero = jnp.zeros_like(y[:, :1])
        previous = jnp.concatenate([zero, y[:, :-1]], axis=1)
        following = jnp.concatenate([y[:, 1:], zero], axis=1)
        y = jnp.concatenate([previous, y, following], axis=-1)
        return dense(y, zero.shape[-1], "conv", kernel_init=zeros_init)


def split_heads(x: jax.Array, spec: UNetSpec, copies: int) -> list[jax.Array]:
    """Split [..., copies c] into `copies` arrays [..., c / head_dim, head_dim]."""
    return [
        part.reshape(*x.shape[:-1], -1, spec.head_dim)
        for part in jnp.split(x, copies, axis=-1)
    ]


LAYERS: Mapping[str, Callable] = FrozenDict(
    spatial_attention=SpatialAttention,
    linear_attention=LinearAttention,
    cross_attention=CrossAttention,
    temporal_attention=TemporalAttention,
    temporal_conv=TemporalConv,
)
