"""The blocks of the diffusion transformer, and its settings."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.networks import backends
from vdm_jax.networks.attention import frame_attention_mask
from vdm_jax.networks.inputs import Inputs, Packing
from vdm_jax.networks.layers import dense, param_dtype, zeros_init
from vdm_jax.networks.positions import apply_rope
from vdm_jax.networks.sd import frame_tokens
from vdm_jax.partition import constrain
from vdm_jax.settings.declaration import setting

# Name -> the blocks of one step in depth: (name, what its attentions are over).
ATTEND = {
    "full": (("block", ("video",)),),
    "v1": (("block", ("pixels",)), ("time_block", ("frames",))),
    "v3": (("block", ("pixels", "frames")),),
}
POSITIONS = ("sincos", "rope")
MLP_RATIO = 4


@dataclasses.dataclass(frozen=True)
class DiTSpec:
    """A diffusion transformer with the settings of a network section of kind "dit".

    out_channels: channels of the output.
    """

    kind: str = setting("dit", "this network", choices="networks.NETWORKS")
    width: int = setting(384, "channels of a token", 4, 2**16)
    depth: int = setting(12, "blocks; with attend=v1 pairs of blocks", 1, 1024)
    num_heads: int = setting(6, "attention heads", 1, 2**10)
    patch_size: int = setting(2, "height and width of a token's pixels", 1, 64)
    attend: str = setting(
        "full",
        "to all tokens; v1: blocks of a frame's and of a pixel's tokens in turn; v3: "
        "both in each block",
        choices="networks.dit_blocks.ATTEND",
    )
    positions: str = setting(
        "sincos",
        "of tokens: added, or rotations",
        choices="networks.dit_blocks.POSITIONS",
    )
    cross_attention: bool = setting(False, "blocks read the tokens of a text")
    adaln_single: bool = setting(
        False, "all blocks share one modulation, each adds a table (PixArt)"
    )
    learn_sigma: bool = setting(False, "further outputs, of a variance, are not read")
    attention_backend: str = setting(
        "auto",
        "who computes attention; auto chooses by device and shape",
        choices="networks.backends.BACKENDS",
    )
    remat: str = setting(
        "none",
        "recompute activations to save memory; dots keeps products",
        choices="networks.parts.REMAT_POLICIES",
    )
    dtype: str = setting("float32", "of products", choices=("float32", "bfloat16"))
    out_channels: int = 3


def adaptive_norm(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Return norm(x) (1 + scale) + shift, with a layer norm without parameters.

    x [b, f, h, w, c]; shift, scale [b, 1 or f, 1, 1, c] in float32 or wider.
    """
    y = x.astype(param_dtype(x))
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-6)
    return (y * (1 + scale) + shift).astype(x.dtype)


def split(rows: jax.Array, count: int, packing: Packing | None) -> list[jax.Array]:
    """Split [b, count c] or [b, f, count c] into arrays [b, 1 or f, 1, 1, c].

    Those of a packing are [b, s, count c] or [b, s, f, count c], for each of its s
    videos, and of a token that of its video.
    """
    if packing is not None:
        rows = packing.to_tokens(rows, per_frame=rows.ndim == 4)
    elif rows.ndim == 2:
        rows = rows[:, None]
    return jnp.split(rows[:, :, None, None], count, axis=-1)


def attention_ids(packing: Packing, over: str) -> jax.Array:
    """Return a number [b, n] of each token that those have which it attends to.

    over: as of `SelfAttention`. A buffer has at most 127 videos, of at most 4096
    frames, rows and columns.
    """
    frame, row, column = jnp.moveaxis(packing.positions, -1, 0)
    own = {"video": 0, "pixels": frame, "frames": (row << 12) + column}[over]
    return (packing.segments << 24) + own


class SelfAttention(nn.Module):
    """Multi-head attention of tokens to those of the video, their frame or place.

    over: "video", "pixels" (of each frame) or "frames" (of each pixel).
    """

    spec: DiTSpec
    over: str

    @nn.compact
    def __call__(
        self, x: jax.Array, inputs: Inputs, angles: jax.Array | None
    ) -> jax.Array:
        """x [b, f, h, w, c], angles [f, h w, d / 2] or one more axis b -> like x."""
        b, f, h, w, c = x.shape
        heads = self.spec.num_heads
        q, k, v = (
            dense(x, c, name).reshape(b, f, h * w, heads, c // heads) for name in "qkv"
        )
        if angles is not None:
            q, k = apply_rope(q, angles), apply_rope(k, angles)
        y = self.mix(q, k, v, inputs).reshape(x.shape)
        return dense(y, c, "out")

    def mix(self, q, k, v, inputs: Inputs) -> jax.Array:
        """[b, f, h w, heads, d] -> the same shape."""
        backend, frame_mask = self.spec.attention_backend, inputs.frame_mask
        if inputs.packing is not None:
            ids = attention_ids(inputs.packing, self.over)
            q, k, v = q[:, :, 0], k[:, :, 0], v[:, :, 0]
            return backends.over_segments(q, k, v, ids, ids, backend=backend)
        if self.over == "frames":
            mask = None if frame_mask is None else frame_attention_mask(frame_mask)
            return backends.over_frames(q, k, v, mask=mask, backend=backend)
        if self.over == "pixels" or q.shape[1] == 1:
            return backends.over_pixels(q, k, v, backend=backend)
        b, f, n = q.shape[:3]
        one = [y.reshape(b, 1, f * n, *y.shape[3:]) for y in (q, k, v)]
        if frame_mask is None:
            return backends.over_pixels(*one, backend=backend).reshape(q.shape)
        # The tokens of the video, then those of each image alone.
        keys = jnp.repeat(frame_mask, n, axis=1)[:, None, None]
        video = backends.over_pixels(*one, mask=keys, backend=backend).reshape(q.shape)
        alone = backends.over_pixels(q, k, v, backend=backend)
        return jnp.where(frame_mask[:, :, None, None, None], video, alone)


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to those of a text.

    Where no token may be read, only the bias of the output is added. The output's
    kernel starts at 0.
    """

    spec: DiTSpec

    @nn.compact
    def __call__(self, x: jax.Array, inputs: Inputs) -> jax.Array:
        """[b, f, h, w, c] -> the same shape. inputs.tokens have c channels."""
        b, f, h, w, c = x.shape
        packing, tokens, mask = inputs.packing, inputs.tokens, inputs.token_mask
        if packing is None:
            tokens, mask = frame_tokens(inputs, f)
        assert tokens is not None
        heads = self.spec.num_heads
        q, k, v = (
            dense(y, c, name).reshape(b, y.shape[1], -1, heads, c // heads)
            for name, y in (("q", x), ("k", tokens), ("v", tokens))
        )
        backend = self.spec.attention_backend
        if packing is not None:
            s, length = tokens.shape[1:3]
            keys = jnp.broadcast_to(jnp.arange(1, s + 1)[None, :, None], (b, s, length))
            keys = keys if mask is None else jnp.where(mask, keys, -1)
            k, v = (a.reshape(b, s * length, heads, -1) for a in (k, v))
            y = backends.over_segments(
                q[:, :, 0], k, v, packing.segments, keys.reshape(b, -1), backend=backend
            )
            return dense(y.reshape(x.shape), c, "out", kernel_init=zeros_init)
        y = backends.over_pixels(q, k, v, mask=mask, backend=backend)
        if mask is not None:  # the softmax of masked scores alone would read them all
            y = jnp.where(mask.any(-1)[..., None, None], y, 0)
        return dense(y.reshape(x.shape), c, "out", kernel_init=zeros_init)


class Block(nn.Module):
    """Self-attention, cross-attention and an MLP, modulated by adaLN-Zero.

    over: what the self-attentions are over, see `SelfAttention`. Each image behind the
      video passes those over frames unchanged, and so the MLP if there is no other.
    """

    spec: DiTSpec
    over: tuple[str, ...]

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        inputs: Inputs,
        modulation: jax.Array,
        angles: jax.Array | None = None,
    ) -> jax.Array:
        """[b, f, h, w, c] -> the same shape.

        modulation: swish(vector), [b, d] or [b, f, d]; with adaln_single the shared
          projection of it to 6 c.
        """
        spec, given, c = self.spec, x, x.shape[-1]
        is_video = None
        if inputs.frame_mask is not None:
            is_video = inputs.frame_mask[:, :, None, None, None]
        packing = inputs.packing
        rows = self.rows("modulation", 6, modulation, c)
        shift, scale, gate, *mlp = split(rows, 6, packing)
        for i, over in enumerate(self.over):
            if i:
                rows = self.rows("time_modulation", 3, modulation, c)
                shift, scale, gate = split(rows, 3, packing)
            name = "time_attention" if i else "attention"
            attend = SelfAttention(spec, over, name=name)
            y = attend(adaptive_norm(x, shift, scale), inputs, angles)
            y = x + gate.astype(x.dtype) * y
            if i and is_video is not None:
                y = jnp.where(is_video, y, x)
            x = constrain(y)
        if spec.cross_attention and self.over != ("frames",):
            x = x + CrossAttention(spec, name="cross_attention")(x, inputs)
        shift, scale, gate = mlp
        y = dense(adaptive_norm(x, shift, scale), MLP_RATIO * c, "mlp_in")
        y = dense(nn.gelu(y, approximate=True), c, "mlp_out")
        x = x + gate.astype(x.dtype) * y
        if self.over == ("frames",) and is_video is not None:
            x = jnp.where(is_video, x, given)
        return constrain(x)

    def rows(
        self, name: str, count: int, modulation: jax.Array, width: int
    ) -> jax.Array:
        """Return [..., count width], 0 at initialisation.

        They are shift, scale and gate of the attention, then those of the MLP: a
        projection, or with adaln_single a table that is added to the shared one.
        """
        if not self.spec.adaln_single:
            return dense(modulation, count * width, name, kernel_init=zeros_init)
        shape, shared = (count, width), modulation[..., : count * width]
        table = self.param(f"{name}_table", zeros_init, shape, shared.dtype)
        return shared + table.reshape((1,) * (shared.ndim - 1) + (-1,))
