"""The diffusion transformer DiT (arXiv:2212.09748) over the patches of a video.

Tokens are patches of one frame, and a video of any size that they divide has them in
order [b, f, h, w]. `DiTSpec.attend` says which tokens a token attends to: all of them,
or in turn those of its frame and of its place (Latte, arXiv:2401.03048, section 3.1).
An independent image behind the video's frames attends to itself alone. What mixes
frames starts as the identity and has paths with "time_" where an image network has no
such module, so that one trained on images can be extended.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.errors import UserError, check_multiple
from vdm_jax.networks import backends
from vdm_jax.networks.attention import frame_attention_mask
from vdm_jax.networks.inputs import Inputs
from vdm_jax.networks.layers import (
    conv,
    dense,
    depth_to_space,
    param_dtype,
    zeros_init,
)
from vdm_jax.networks.parts import REMAT_POLICIES
from vdm_jax.networks.positions import (
    apply_rope,
    rope_angles,
    rope_splits,
    sincos_1d,
    sincos_2d,
)
from vdm_jax.networks.sd import frame_tokens
from vdm_jax.partition import constrain
from vdm_jax.settings import check as check_settings
from vdm_jax.settings import settings_of
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
        choices="networks.dit.ATTEND",
    )
    positions: str = setting(
        "sincos", "of tokens: added, or rotations", choices="networks.dit.POSITIONS"
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


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Return norm(x) (1 + scale) + shift, with a layer norm without parameters.

    x [b, f, h, w, c]; shift, scale [b, 1 or f, 1, 1, c] in float32 or wider.
    """
    y = x.astype(param_dtype(x))
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-6)
    return (y * (1 + scale) + shift).astype(x.dtype)


def split(modulation: jax.Array, count: int) -> list[jax.Array]:
    """Split [b, count c] or [b, f, count c] into arrays [b, 1 or f, 1, 1, c]."""
    if modulation.ndim == 2:
        modulation = modulation[:, None]
    return jnp.split(modulation[:, :, None, None], count, axis=-1)


class SelfAttention(nn.Module):
    """Multi-head attention of tokens to those of the video, their frame or place.

    over: "video", "pixels" (of each frame) or "frames" (of each pixel).
    """

    spec: DiTSpec
    over: str

    @nn.compact
    def __call__(
        self, x: jax.Array, frame_mask: jax.Array | None, angles: jax.Array | None
    ) -> jax.Array:
        """x [b, f, h, w, c], frame_mask bool [b, f], angles [f, h w, d/2] -> like x."""
        b, f, h, w, c = x.shape
        heads = self.spec.num_heads
        q, k, v = (
            dense(x, c, name).reshape(b, f, h * w, heads, c // heads) for name in "qkv"
        )
        if angles is not None:
            q, k = apply_rope(q, angles), apply_rope(k, angles)
        y = self.mix(q, k, v, frame_mask).reshape(x.shape)
        return dense(y, c, "out")

    def mix(self, q, k, v, frame_mask: jax.Array | None) -> jax.Array:
        """[b, f, h w, heads, d] -> the same shape."""
        backend = self.spec.attention_backend
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
        tokens, mask = frame_tokens(inputs, f)
        heads = self.spec.num_heads
        q, k, v = (
            dense(y, c, name).reshape(b, y.shape[1], -1, heads, c // heads)
            for name, y in (("q", x), ("k", tokens), ("v", tokens))
        )
        backend = self.spec.attention_backend
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
        shift, scale, gate, *mlp = self.rows("modulation", 6, modulation, c)
        for i, over in enumerate(self.over):
            if i:
                shift, scale, gate = self.rows("time_modulation", 3, modulation, c)
            name = "time_attention" if i else "attention"
            attend = SelfAttention(spec, over, name=name)
            y = attend(modulate(x, shift, scale), inputs.frame_mask, angles)
            y = x + gate.astype(x.dtype) * y
            if i and is_video is not None:
                y = jnp.where(is_video, y, x)
            x = constrain(y)
        if spec.cross_attention and self.over != ("frames",):
            x = x + CrossAttention(spec, name="cross_attention")(x, inputs)
        shift, scale, gate = mlp
        y = dense(modulate(x, shift, scale), MLP_RATIO * c, "mlp_in")
        y = dense(nn.gelu(y, approximate=True), c, "mlp_out")
        x = x + gate.astype(x.dtype) * y
        if self.over == ("frames",) and is_video is not None:
            x = jnp.where(is_video, x, given)
        return constrain(x)

    def rows(
        self, name: str, count: int, modulation: jax.Array, width: int
    ) -> list[jax.Array]:
        """Return `count` arrays [b, 1 or f, 1, 1, width], 0 at initialisation.

        They are shift, scale and gate of the attention, then those of the MLP: a
        projection, or with adaln_single a table that is added to the shared one.
        """
        if not self.spec.adaln_single:
            rows = dense(modulation, count * width, name, kernel_init=zeros_init)
            return split(rows, count)
        shape, shared = (count, width), modulation[..., : count * width]
        table = self.param(f"{name}_table", zeros_init, shape, shared.dtype)
        return split(shared + table.reshape((1,) * (shared.ndim - 1) + (-1,)), count)


class Head(nn.Module):
    """The last modulation and the product whose output is 0 at initialisation."""

    spec: DiTSpec

    @nn.compact
    def __call__(self, x: jax.Array, vector: jax.Array) -> jax.Array:
        """x [b, f, h, w, c] -> [b, f, h p, w p, out_channels]."""
        spec, start = self.spec, {"kernel_init": zeros_init}
        if spec.adaln_single:
            if vector.shape[-1] != spec.width:
                raise UserError(
                    f"conditioning.cond_dim={vector.shape[-1]}: network.width="
                    f"{spec.width} with network.adaln_single"
                )
            table = self.param("table", zeros_init, (2, spec.width), vector.dtype)
            rows = table.reshape((1,) * (vector.ndim - 1) + (-1,))
            rows = rows + jnp.concatenate([vector, vector], axis=-1)
        else:
            rows = dense(nn.swish(vector), 2 * spec.width, "modulation", **start)
        shift, scale = split(rows, 2)
        channels = spec.out_channels * (1 + spec.learn_sigma)
        y = modulate(x, shift, scale)
        y = dense(y, spec.patch_size**2 * channels, "out", **start)
        return depth_to_space(y, spec.patch_size)[..., : spec.out_channels]


class DiT(nn.Module):
    """Diffusion transformer whose output is exactly 0 at initialisation."""

    spec: DiTSpec

    @nn.compact
    def __call__(
        self, z: jax.Array, inputs: Inputs | None = None, train: bool = False
    ) -> jax.Array:
        """z [b, f, h, w, c] -> [b, f, h, w, spec.out_channels] in float32 or wider.

        Height and width must be multiples of patch_size. inputs.vector is needed: with
        a vector for each frame [b, f, d], frames may have different noise levels.
        """
        spec = self.spec
        if inputs is None or inputs.vector is None:
            raise ValueError("a network of kind 'dit' reads inputs.vector, it is None")
        dtype = param_dtype(z)
        vector = inputs.vector.astype(dtype)
        compute = jnp.bfloat16 if spec.dtype == "bfloat16" else dtype
        if inputs.concat is not None:
            z = jnp.concatenate([z, inputs.concat.astype(z.dtype)], axis=-1)
        patch = {"size": spec.patch_size, "strides": spec.patch_size}
        x = conv(z.astype(compute), spec.width, "patch_in", padding="VALID", **patch)
        if spec.cross_attention:
            tokens = self.project_tokens(inputs.tokens, x.dtype)
            inputs = dataclasses.replace(inputs, tokens=tokens)
        modulation = nn.swish(vector)
        if spec.adaln_single:
            start = {"kernel_init": zeros_init}
            modulation = dense(modulation, 6 * spec.width, "modulation", **start)
        x = self.blocks(constrain(x), inputs, modulation)
        return Head(spec, name="head")(x, vector).astype(dtype)

    def blocks(self, x: jax.Array, inputs: Inputs, modulation: jax.Array) -> jax.Array:
        """Return tokens [b, f, h, w, c] with positions after all blocks."""
        spec, angles = self.spec, None
        f, h, w = x.shape[1:4]
        if spec.positions == "rope":
            splits = rope_splits(spec.width // spec.num_heads)
            angles = rope_angles((f, h, w), splits).reshape(f, h * w, -1)
        else:
            x = x + jnp.asarray(sincos_2d(h, w, spec.width), x.dtype)[None, None]
        make = Block
        if spec.remat != "none":
            make = nn.remat(Block, policy=REMAT_POLICIES[spec.remat])
        needs_time = spec.positions == "sincos" and f > 1
        for i in range(spec.depth):
            for name, over in ATTEND[spec.attend]:
                if needs_time and over != ("pixels",):  # the first that mixes frames
                    x, needs_time = add_frame_positions(x, inputs.frame_mask), False
                block = make(spec, over, name=f"{name}_{i}")
                x = block(x, inputs, modulation, angles)
        return x

    def project_tokens(self, tokens: jax.Array | None, dtype: Any) -> jax.Array:
        """Return a text's tokens [..., l, d] as [..., l, c], by an MLP."""
        if tokens is None:
            raise ValueError("network.cross_attention reads inputs.tokens, it is None")
        width = self.spec.width
        y = nn.gelu(dense(tokens.astype(dtype), width, "token_in"), approximate=True)
        return dense(y, width, "token_out")


def add_frame_positions(x: jax.Array, frame_mask: jax.Array | None) -> jax.Array:
    """Add sines and cosines of the frame's index to tokens [b, f, h, w, c].

    Independent images have no index.
    """
    f, c = x.shape[1], x.shape[-1]
    added = jnp.asarray(sincos_1d(np.arange(f), c), x.dtype)[None, :, None, None]
    if frame_mask is not None:
        added = jnp.where(frame_mask[:, :, None, None, None], added, 0)
    return x + added


def from_config(
    section: dict[str, Any], channels: int, sizes: Sequence[tuple[int, int]]
) -> DiT:
    """Return the transformer of a config's section, see `networks.NETWORKS`."""
    settings = settings_of(DiTSpec)
    if unknown := section.keys() - settings.keys():
        raise UserError(
            f"config.network.{min(unknown)}: kind 'dit' has no such setting"
        )
    check_settings(settings, section, "config.network.")
    spec = DiTSpec(**section, out_channels=channels)
    check(spec, sizes)
    return DiT(spec)


def check(spec: DiTSpec, sizes: Sequence[tuple[int, int]] = ()) -> None:
    """Raise UserError if fields of `spec` do not fit each other or z of these sizes.

    The message names the field, its value, the rule and the nearest valid value.
    """
    check_multiple("network.width", spec.width, spec.num_heads, "num_heads")
    if spec.positions == "rope":
        pairs = 2 * spec.num_heads
        check_multiple("network.width", spec.width, pairs, "2 * num_heads with rope")
    else:
        check_multiple("network.width", spec.width, 4, "4 with positions=sincos")
    for size in sizes:
        for field, pixels in zip(("height", "width"), size, strict=True):
            check_multiple(f"video.{field}", pixels, spec.patch_size, "patch_size")
