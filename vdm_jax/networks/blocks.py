"""The residual block, and the parts that mix space and time after it.

A part is a Linen module made as part(spec, name=...) and called as
part(x [b, f, h, w, c], inputs) -> the same shape. It adds to x through a
zero-initialised projection, so a fresh part is the identity.
"""

import functools
import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from vdm_jax.networks.attention import POSITIONS, attention, frame_attention_mask
from vdm_jax.networks.inputs import Inputs
from vdm_jax.networks.layers import GroupNorm, constrain, conv, dense, wide, zeros
from vdm_jax.networks.spec import UNetSpec


class ResBlock(nn.Module):
    """GN, swish, conv; GN scaled and shifted by the vector, swish, dropout, conv."""

    spec: UNetSpec
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, inputs: Inputs, train: bool = False) -> jax.Array:
        """[b, f, h, w, c] -> [b, f, h, w, channels]."""
        h = conv(nn.swish(GroupNorm(name="norm_0")(x)), self.channels, "conv_0")
        h = nn.swish(GroupNorm(name="norm_1")(h, inputs.vector))
        h = nn.Dropout(self.spec.dropout, deterministic=not train)(h)
        h = conv(h, self.channels, "conv_1", kernel_init=zeros)
        if x.shape[-1] != self.channels:
            x = dense(x, self.channels, "skip")
        return x + h


class SpatialAttention(nn.Module):
    """Every pixel reads the pixels of its own frame: [(b f), h w, c]."""

    splits_heads = True
    spec: UNetSpec

    @nn.compact
    def __call__(self, x: jax.Array, inputs: Inputs) -> jax.Array:
        """[b, f, h, w, c] -> [b, f, h, w, c]."""
        b, f, h, w, c = x.shape
        y = GroupNorm(name="norm")(x).reshape(b, f, h * w, c)
        q, k, v = split_heads(dense(y, 3 * c, "qkv", use_bias=False), self.spec, 3)
        y = attention(q, k, v)
        return x + dense(y.reshape(x.shape), c, "out", kernel_init=zeros)


class LinearAttention(nn.Module):
    """Every pixel reads a few sums over its own frame, at a cost linear in the pixels.

    softmax_d(q) (softmax_n(k)' v) / sqrt(d) for each head (Shen et al. 2021,
    arXiv:1812.01243, section 3.2): for sizes at which SpatialAttention costs too much.
    """

    splits_heads = True
    spec: UNetSpec

    @nn.compact
    def __call__(self, x: jax.Array, inputs: Inputs) -> jax.Array:
        """[b, f, h, w, c] -> [b, f, h, w, c]."""
        b, f, h, w, c = x.shape
        y = GroupNorm(name="norm")(x).reshape(b, f, h * w, c)
        q, k, v = split_heads(dense(y, 3 * c, "qkv", use_bias=False), self.spec, 3)
        q, k = q.astype(wide(x)), k.astype(wide(x))
        q = (nn.softmax(q, axis=-1) / math.sqrt(self.spec.head_dim)).astype(v.dtype)
        k = nn.softmax(k, axis=2).astype(v.dtype)  # over the pixels
        sums = jnp.einsum("bfnhd,bfnhe->bfhde", k, v)
        y = jnp.einsum("bfnhd,bfhde->bfnhe", q, sums)
        return x + dense(y.reshape(x.shape), c, "out", kernel_init=zeros)


class CrossAttention(nn.Module):
    """Every pixel of every frame reads its tokens, before them a learned null.

    They are inputs.tokens, those of the video or an independent image's own.

    The null is never masked: where all else is (no text, or text dropped for guidance)
    there is still one token to read. Its place in the order is 0. Tokens, which come
    from a frozen encoder, are normalised first (Saharia et al. 2022, section 2.4).
    """

    splits_heads = True
    spec: UNetSpec

    @nn.compact
    def __call__(self, x: jax.Array, inputs: Inputs) -> jax.Array:
        """[b, f, h, w, c] -> [b, f, h, w, c]."""
        if inputs.tokens is None:
            raise ValueError("cross_attention reads inputs.tokens, which is None")
        b, f, h, w, c = x.shape
        norm = nn.LayerNorm(param_dtype=wide(x), name="token_norm")
        tokens, mask = norm(inputs.tokens).astype(x.dtype), inputs.token_mask
        shape = (1, 1, tokens.shape[-1])
        null = self.param("null", nn.initializers.normal(1.0), shape, wide(x))
        null = null.astype(x.dtype).reshape((1,) * (tokens.ndim - 1) + (-1,))
        null = jnp.broadcast_to(null, (*tokens.shape[:-2], 1, tokens.shape[-1]))
        if mask is not None:
            before = ((0, 0),) * (mask.ndim - 1) + ((1, 0),)
            mask = jnp.pad(mask, before, constant_values=True)[..., None, :]
        y = GroupNorm(name="norm")(x).reshape(b, f * h * w, c)
        tokens = jnp.concatenate([null, tokens], axis=-2)
        (q,) = split_heads(dense(y, c, "q", use_bias=False), self.spec, 1)
        k, v = split_heads(dense(tokens, 2 * c, "kv", use_bias=False), self.spec, 2)
        if tokens.ndim == 3:
            y = attention(q, k, v, mask=mask)
        else:  # of the video, then of each image
            images = tokens.shape[1] - 1
            start = (f - images) * h * w
            first, rest = (None, None) if mask is None else (mask[:, 0], mask[:, 1:])
            video = attention(q[:, :start], k[:, 0], v[:, 0], mask=first)
            q = q[:, start:].reshape(b, images, h * w, *q.shape[2:])
            y = attention(q, k[:, 1:], v[:, 1:], mask=rest)
            y = y.reshape(b, images * h * w, *video.shape[2:])
            y = jnp.concatenate([video, y], axis=1)
        return x + dense(y.reshape(x.shape), c, "out", kernel_init=zeros)


class TemporalAttention(nn.Module):
    """Every pixel reads the same pixel of the other frames: [(b h w), f, c].

    Positions are relative (spec.relative_position), so a clip has no absolute time
    unless the vector brings one.
    """

    splits_heads = True
    spec: UNetSpec

    @nn.compact
    def __call__(self, x: jax.Array, inputs: Inputs) -> jax.Array:
        """[b, f, h, w, c] -> [b, f, h, w, c]."""
        b, f, h, w, c = x.shape
        spec = self.spec
        mask = None
        if inputs.frame_mask is not None:
            mask = frame_attention_mask(inputs.frame_mask)[:, None]
        y = GroupNorm(name="norm")(x, inputs.vector).reshape(b, f, h * w, c)
        qkv = split_heads(dense(y, 3 * c, "qkv", use_bias=False), spec, 3)
        q, k, v = (jnp.swapaxes(y, 1, 2) for y in qkv)  # [b, hw, f, heads, d]
        position = POSITIONS[spec.relative_position](name="position")(q)
        y = attention(q, k, v, mask=mask, **position)
        y = jnp.swapaxes(y, 1, 2).reshape(x.shape)
        return x + dense(y, c, "out", kernel_init=zeros)


class TemporalConv(nn.Module):
    """GN scaled and shifted by the vector, swish, convolution over three frames.

    Not causal; frames beyond the ends are 0. Independent images read as 0 and receive
    nothing. Written as one product of three shifted copies: on a CPU a third of the
    time of the convolution that it equals, backward included.
    """

    spec: UNetSpec

    @nn.compact
    def __call__(self, x: jax.Array, inputs: Inputs) -> jax.Array:
        """[b, f, h, w, c] -> [b, f, h, w, c]."""
        y = nn.swish(GroupNorm(name="norm")(x, inputs.vector))
        if inputs.frame_mask is None:
            return x + self.convolve(y)
        of_video = inputs.frame_mask[:, :, None, None, None].astype(x.dtype)
        return x + self.convolve(y * of_video) * of_video

    def convolve(self, y: jax.Array) -> jax.Array:
        """y_-1 W_-1 + y_0 W_0 + y_+1 W_+1 + b."""
        none = jnp.zeros_like(y[:, :1])
        before = jnp.concatenate([none, y[:, :-1]], axis=1)
        after = jnp.concatenate([y[:, 1:], none], axis=1)
        y = jnp.concatenate([before, y, after], axis=-1)
        return dense(y, none.shape[-1], "conv", kernel_init=zeros)


def split_heads(x: jax.Array, spec: UNetSpec, copies: int) -> list[jax.Array]:
    """[..., copies c] -> copies of [..., c / head_dim, head_dim]."""
    x = x.reshape(*x.shape[:-1], -1, spec.head_dim)
    return jnp.split(x, copies, axis=-2)


PARTS: Mapping[str, Callable] = FrozenDict(
    spatial_attention=SpatialAttention,
    linear_attention=LinearAttention,
    cross_attention=CrossAttention,
    temporal_attention=TemporalAttention,
    temporal_conv=TemporalConv,
)


class Block(nn.Module):
    """A residual block and the parts after it, each named as in the table."""

    spec: UNetSpec
    parts: Mapping[str, Callable]
    channels: int
    mixing: tuple[str, ...]

    @nn.compact
    def __call__(self, x: jax.Array, inputs: Inputs, train: bool = False) -> jax.Array:
        """[b, f, h, w, c] -> [b, f, h, w, channels]."""
        x = ResBlock(self.spec, self.channels, name="resnet")(x, inputs, train)
        for name in self.mixing:
            x = self.parts[name](self.spec, name=name)(constrain(x), inputs)
        return constrain(x)


def products(primitive, *args, **params) -> bool:
    """Keep convolutions and unbatched matrix products; recompute norms and attention.

    The scores of attention are batched products: cheap to make, large to keep.
    """
    unbatched = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    convolution = primitive is jax.lax.conv_general_dilated_p
    return convolution or unbatched(primitive, *args, **params)


REMAT = {"full": jax.checkpoint_policies.nothing_saveable, "dots": products}


def block(spec: UNetSpec, parts: Mapping[str, Callable]) -> Callable:
    """-> make(channels, mixing, name=...): a Block, recomputed as spec.remat says."""
    cls = Block
    if spec.remat != "none":
        cls = nn.remat(Block, policy=REMAT[spec.remat], static_argnums=(3,))
    return functools.partial(cls, spec, parts)
