"""Layers and pure functions that every network shares.

Precision: an activation has the compute dtype (float32, bfloat16, float64 in tests),
and a layer takes it from its input. Parameters, norms, softmax and embeddings have that
dtype promoted with float32 (`param_dtype`), so they are never bfloat16 and float64 is
never lost.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from vdm_jax.networks.linear import Conv, Dense

zeros_init = nn.initializers.zeros_init()


def param_dtype(x: jax.Array) -> Any:
    """Return the dtype of parameters and statistics for x: float32 or wider."""
    return jnp.promote_types(x.dtype, jnp.float32)


def dense(x: jax.Array, features: int, name: str, **kwargs) -> jax.Array:
    """Linear map of the last axis, in x's dtype; parameters are float32 or wider."""
    dtypes = {"dtype": x.dtype, "param_dtype": param_dtype(x)}
    return Dense(features, name=name, **dtypes, **kwargs)(x)


def embed(
    index: jax.Array, num_embeddings: int, width: int, name: str, dtype: Any
) -> jax.Array:
    """Look up a learned table [num_embeddings, width]: int [...] -> [..., width]."""
    dtypes = {"dtype": dtype, "param_dtype": jnp.promote_types(dtype, jnp.float32)}
    return nn.Embed(num_embeddings, width, name=name, **dtypes)(index)


def conv(x: jax.Array, features: int, name: str, size: int = 3, **kwargs) -> jax.Array:
    """Convolution of each frame, 3x3 or `size`: [b, f, h, w, c] -> [..., features].

    Frames are folded into the batch, so this is a 2-D NHWC convolution. The result
    equals that of the 1x3x3 kernel of Video Diffusion Models (arXiv:2204.03458, section
    3), and every backend has tuned 2-D convolutions.
    """
    dtypes = {"dtype": x.dtype, "param_dtype": param_dtype(x)}
    layer = Conv(features, (size, size), name=name, **dtypes, **kwargs)
    y = layer(rearrange(x, "b f h w c -> (b f) h w c"))
    return rearrange(y, "(b f) h w c -> b f h w c", f=x.shape[1])


def conv_3d(
    x: jax.Array, features: int, name: str, window: tuple[int, int, int], **kwargs
) -> jax.Array:
    """Convolution over frames, rows and columns: [b, f, h, w, c] -> [..., features]."""
    dtypes = {"dtype": x.dtype, "param_dtype": param_dtype(x)}
    return Conv(features, window, name=name, **dtypes, **kwargs)(x)


def num_groups(channels: int) -> int:
    """Return the largest divisor of `channels` up to min(32, channels / 4).

    This is 32 for the usual widths from 128 on, as in the reference U-Nets. Below that,
    groups have four channels or more: a group of one would lose the channel's scale.
    """
    upper = max(1, min(32, channels // 4))
    return next(g for g in range(upper, 0, -1) if channels % g == 0)


class GroupNorm(nn.Module):
    """Group norm (arXiv:1803.08494) of each frame alone, then scale and shift.

    Statistics are over (h, w, channels of the group) of one frame. Over (f, h, w) they
    would mix frames, and independent images would leak into the video in the same
    example. With a vector, y = norm(x) (1 + scale) + shift, where scale and shift are
    Dense(swish(vector)): adaptive group normalization (arXiv:2105.05233, section 3).

    groups: their number, which divides c; 0 is `num_groups` of c.
    """

    epsilon: float = 1e-6
    groups: int = 0

    @nn.compact
    def __call__(
        self, x: jax.Array, vector: jax.Array | None = None, apply: bool = True
    ) -> Any:
        """x [b, f, h, w, c], vector [b, d] or [b, f, d] -> [b, f, h, w, c].

        apply: False is for what computes the result x scale + shift itself, as a part
          of a product: scale and shift, [b, f, 1, c] in float32 or wider, are returned.
        """
        b, f, h, w, c = x.shape
        g = self.groups or num_groups(c)
        dtype = param_dtype(x)
        scale = self.param("scale", nn.initializers.ones_init(), (c,), dtype)
        shift = self.param("bias", zeros_init, (c,), dtype)
        scale, shift = (p.reshape(1, 1, 1, c) for p in (scale, shift))

        # The mean of a group, repeated for each of its channels, as two small products:
        # reshaping to [groups, channels / groups] and repeating costs more.
        member = jnp.repeat(jnp.eye(g, dtype=dtype), c // g, axis=0)  # [c, g]
        product = functools.partial(jnp.matmul, precision="highest")

        def mean(y):  # [b, f, n, c] -> [b, f, 1, c]
            m = product(y.mean(axis=2, keepdims=True), member * (g / c))
            return product(m, member.T)

        y = x.astype(dtype).reshape(b, f, h * w, c)
        first = mean(y)
        if x.dtype == dtype:
            variance = mean(jnp.square(y - first))
        else:
            # Both moments in one read of x. Their difference loses digits where the
            # mean is large, yet fewer than x lost when it was rounded to bfloat16.
            variance = jnp.maximum(mean(jnp.square(y)) - jnp.square(first), 0)
        scale = scale * jax.lax.rsqrt(variance + self.epsilon)
        if vector is not None:
            m = dense(nn.swish(vector.astype(dtype)), 2 * c, "vector")
            m = m[:, None] if m.ndim == 2 else m  # [b, 1 or f, 2 c]
            ada_scale, ada_shift = jnp.split(m[:, :, None], 2, axis=-1)
            scale, shift = scale * (1 + ada_scale), shift * (1 + ada_scale) + ada_shift
        if not apply:
            return scale, shift - first * scale
        return ((y - first) * scale + shift).astype(x.dtype).reshape(x.shape)


def norm_dense(
    x: jax.Array, vector: jax.Array | None, features: int, name: str
) -> jax.Array:
    """Group norm, called "norm", of x [b, f, h, w, c], then a linear map without bias.

    vector: of the norm. Returns [b, f, h w, features].
    """
    b, f, h, w, c = x.shape
    norm, pixels = GroupNorm(name="norm"), x.reshape(b, f, h * w, c)
    if x.dtype != jnp.bfloat16 or h * w < c:
        y = norm(x, vector).reshape(pixels.shape)
        return dense(y, features, name, use_bias=False)
    scale, shift = norm(x, vector, apply=False)
    dtypes = {"dtype": x.dtype, "param_dtype": param_dtype(x)}
    return Dense(features, use_bias=False, name=name, **dtypes)(pixels, scale, shift)


def dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Set a fraction `rate` of x [b, f, ...] to 0 and divide the rest by 1 - rate.

    The mask is a function of the key and of each number's position, so it is the same
    on every mesh. Two words for each frame are drawn from the key. Their hash with the
    position is murmur3's mixing of 32 bits with other constants (those of Wellons'
    lowbias32): XLA repeats it inside of each convolution that reads the result, where
    threefry, JAX's default, would take a fifth of the time.
    """
    if rate == 0:
        return x
    frame, inside = x.shape[:2], x.shape[2:]
    words = jax.random.bits(key, (2, *frame), jnp.uint32)
    first, second = words.reshape(2, *frame, *(1 for _ in inside))
    strides = np.cumprod([1, *inside[:0:-1]], dtype=np.uint32)[::-1]
    h = sum(
        jax.lax.broadcasted_iota(jnp.uint32, (1, 1, *inside), axis + 2) * stride
        for axis, stride in enumerate(strides)
    )
    for word, multiplier, shift in (
        (first, 0x9E3779B1, 16), (second, 0x7FEB352D, 15), (first, 0x846CA68B, 16)
    ):  # fmt: skip
        h = (h ^ word) * jnp.uint32(multiplier)
        h = h ^ (h >> shift)
    kept = h >= jnp.uint32(round(rate * 2**32))
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def layer_norm(x: jax.Array, name: str, epsilon: float = 1e-5) -> jax.Array:
    """Apply a layer norm with statistics in float32 or wider."""
    dtypes = {"dtype": x.dtype, "param_dtype": param_dtype(x)}
    # A fast variance is a difference of large numbers.
    return nn.LayerNorm(epsilon, use_fast_variance=False, name=name, **dtypes)(x)


def noise_level_embedding(logsnr: jax.Array, dim: int) -> jax.Array:
    """Sinusoidal features of the noise level: [b] or [b, f] -> [..., dim].

    u = atan(exp(-logsnr / 2)) / (pi / 2), the angle of the noise level as a fraction of
    a quarter turn, with logsnr clipped to +-20. Then sin and cos of 1000 u at dim / 2
    frequencies from 1 to 1e-4 (the 'inv_cos' embedding in the code of Progressive
    Distillation, arXiv:2202.00512). Computed in float32 or wider, since 1000 u in
    bfloat16 has steps of 4.
    """
    if dim % 2:
        raise ValueError(f"noise_level_embedding: dim={dim} must be even")
    x = logsnr.astype(param_dtype(logsnr))
    u = jnp.arctan(jnp.exp(-0.5 * jnp.clip(x, -20, 20))) / (math.pi / 2)
    half = dim // 2
    rate = -math.log(1e4) / max(half - 1, 1)
    frequencies = jnp.exp(rate * jnp.arange(half, dtype=x.dtype))
    angle = 1000 * u[..., None] * frequencies.reshape((1,) * x.ndim + (half,))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def timestep_embedding(timestep: jax.Array, dim: int) -> jax.Array:
    """Sinusoidal features of a discrete timestep: [b] or [b, f] -> [..., dim].

    cos, then sin, of timestep 10^(-4 i / (dim / 2)), i = 0 .. dim / 2 - 1: that of
    Stable Diffusion, after ADM's code (arXiv:2105.05233). Computed in float32 or wider.
    """
    t = timestep.astype(param_dtype(timestep))
    # On the host in float64: an error of a frequency is multiplied by up to 999.
    frequencies = np.exp(-math.log(1e4) * np.arange(dim // 2) / (dim // 2))
    angle = t[..., None] * frequencies.astype(t.dtype).reshape((1,) * t.ndim + (-1,))
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def space_to_depth(x: jax.Array, patch_size: int) -> jax.Array:
    """Fold p x p pixels into channels: [..., h, w, c] -> [..., h/p, w/p, p p c]."""
    sizes = {"p": patch_size, "q": patch_size}
    return rearrange(x, "... (h p) (w q) c -> ... h w (p q c)", **sizes)


def depth_to_space(x: jax.Array, patch_size: int) -> jax.Array:
    """Invert space_to_depth: [..., h, w, p p c] -> [..., h p, w p, c]."""
    sizes = {"p": patch_size, "q": patch_size}
    return rearrange(x, "... h w (p q c) -> ... (h p) (w q) c", **sizes)
