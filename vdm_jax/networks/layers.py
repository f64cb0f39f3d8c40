"""Layers and pure functions that every network shares.

Precision: an activation carries the compute dtype (float32, bfloat16, float64 in
tests), and a layer takes it from its input. Parameters, norms, softmax and embeddings
live in that dtype promoted with float32 (`wide`), so bfloat16 never reaches them and
float64 is never lost.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.linen.spmd import with_logical_constraint

zeros = nn.initializers.zeros_init()
AXES = ("batch", "frames", "height", "width", "channel")


def wide(x: jax.Array) -> Any:
    """The dtype of parameters and statistics beside x: at least float32."""
    return jnp.promote_types(x.dtype, jnp.float32)


def dense(x: jax.Array, features: int, name: str, **kwargs) -> jax.Array:
    """Linear map of the last axis, in x's dtype with wide parameters."""
    dtypes = {"dtype": x.dtype, "param_dtype": wide(x)}
    return nn.Dense(features, name=name, **dtypes, **kwargs)(x)


def embed(index: jax.Array, rows: int, width: int, name: str, dtype: Any) -> jax.Array:
    """Rows of a learned table [rows, width], in dtype: int [...] -> [..., width]."""
    table = nn.Embed(
        rows,
        width,
        dtype=dtype,
        param_dtype=jnp.promote_types(dtype, jnp.float32),
        name=name,
    )
    return table(index)


def conv(x: jax.Array, features: int, name: str, **kwargs) -> jax.Array:
    """3x3 convolution of each frame: [b, f, h, w, c] -> [b, f, h, w, features].

    Frames join the batch, so this is a plain 2-D NHWC convolution: the 1x3x3 kernel of
    Video Diffusion Models (arXiv:2204.03458, section 3) with the same result, on the
    path that every backend has tuned.
    """
    dtypes = {"dtype": x.dtype, "param_dtype": wide(x)}
    layer = nn.Conv(features, (3, 3), name=name, **dtypes, **kwargs)
    y = layer(rearrange(x, "b f h w c -> (b f) h w c"))
    return rearrange(y, "(b f) h w c -> b f h w c", f=x.shape[1])


def constrain(x: jax.Array) -> jax.Array:
    """Pin [b, f, h, w, c] to the logical axes; nothing where no rules are set."""
    return with_logical_constraint(x, AXES)


def groups(channels: int) -> int:
    """Group count: the largest divisor of `channels` up to min(32, channels / 4).

    32 for the usual widths from 128 on, as in the reference U-Nets; below that, groups
    of four channels or more, since a group of one would lose the channel's own scale.
    """
    most = max(1, min(32, channels // 4))
    return next(g for g in range(most, 0, -1) if channels % g == 0)


class GroupNorm(nn.Module):
    """Group norm (arXiv:1803.08494) of each frame alone, then scale and shift.

    Statistics over (h, w, channels of the group) of one frame: over (f, h, w) they
    would mix frames, and independent images would leak into the video beside them.
    With a vector y = norm(x) (1 + scale) + shift, scale and shift being
    Dense(swish(vector)): adaptive group normalization (arXiv:2105.05233, section 3).
    """

    @nn.compact
    def __call__(self, x: jax.Array, vector: jax.Array | None = None) -> jax.Array:
        """x [b, f, h, w, c], vector [b, d] or [b, f, d] -> [b, f, h, w, c]."""
        b, f, h, w, c = x.shape
        g, dtype = groups(c), wide(x)
        scale = self.param("scale", nn.initializers.ones_init(), (c,), dtype)
        shift = self.param("bias", zeros, (c,), dtype)
        scale, shift = (p.reshape(1, 1, 1, c) for p in (scale, shift))

        # The mean of a group, brought to each of its channels, as two small products:
        # what is split into [groups, channels / groups] and repeated costs more.
        member = jnp.repeat(jnp.eye(g, dtype=dtype), c // g, axis=0)  # [c, g]
        product = functools.partial(jnp.matmul, precision="highest")

        def mean(y):  # [b, f, n, c] -> [b, f, 1, c]
            m = product(y.mean(axis=2, keepdims=True), member * (g / c))
            return product(m, member.T)

        y = x.astype(dtype).reshape(b, f, h * w, c)
        y = y - mean(y)
        scale = scale * jax.lax.rsqrt(mean(jnp.square(y)) + 1e-6)
        if vector is not None:
            m = dense(nn.swish(vector.astype(dtype)), 2 * c, "vector")
            m = m[:, None] if m.ndim == 2 else m  # [b, 1 or f, 2 c]
            more, add = jnp.split(m[:, :, None], 2, axis=-1)
            scale, shift = scale * (1 + more), shift * (1 + more) + add
        return (y * scale + shift).astype(x.dtype).reshape(x.shape)


def noise_features(logsnr: jax.Array, dim: int) -> jax.Array:
    """Sinusoidal features of the noise level: [b] or [b, f] -> [..., dim].

    u = atan(exp(-logsnr / 2)) / (pi / 2), the angle of the noise level as a share of a
    quarter turn, logsnr clipped to +-20; then sin and cos of 1000 u at dim / 2
    frequencies from 1 to 1e-4 (the 'inv_cos' embedding of Progressive Distillation's
    code, arXiv:2202.00512). In at least float32: 1000 u in bfloat16 has steps of 4.
    """
    if dim % 2:
        raise ValueError(f"noise_features: dim={dim} must be even")
    x = logsnr.astype(wide(logsnr))
    u = jnp.arctan(jnp.exp(-0.5 * jnp.clip(x, -20, 20))) / (math.pi / 2)
    half = dim // 2
    rates = jnp.exp(-math.log(1e4) / max(half - 1, 1) * jnp.arange(half, dtype=x.dtype))
    angle = 1000 * u[..., None] * rates.reshape((1,) * x.ndim + (half,))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def space_to_depth(x: jax.Array, patch: int) -> jax.Array:
    """[..., h, w, c] -> [..., h/p, w/p, p p c]: the pixels of a patch as channels."""
    return rearrange(x, "... (h p) (w q) c -> ... h w (p q c)", p=patch, q=patch)


def depth_to_space(x: jax.Array, patch: int) -> jax.Array:
    """The inverse of space_to_depth."""
    return rearrange(x, "... h w (p q c) -> ... (h p) (w q) c", p=patch, q=patch)
