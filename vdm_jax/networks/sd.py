"""Stable Diffusion's U-Net, versions 1 and 2 (Rombach et al. 2022, arXiv:2112.10752).

The skeleton is that of unet3d.py, with these parts in its slots. By default every part
works on each frame alone, so a video [b, f, h, w, c] is f images. Self-attention can
read other frames (`frame_reads`) and norms can have statistics over all of them
(`joint_norms`): no parameter is added. Layers that mix frames and have parameters are
those of blocks.py, named in a level behind "spatial_transformer".
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from vdm_jax.errors import UserError, check_multiple
from vdm_jax.networks import backends, unet3d
from vdm_jax.networks.attention import FRAME_READS
from vdm_jax.networks.blocks import LAYERS
from vdm_jax.networks.inputs import Inputs
from vdm_jax.networks.layers import (
    GroupNorm,
    conv,
    dense,
    depth_to_space,
    dropout,
    layer_norm,
    param_dtype,
    zeros_init,
)
from vdm_jax.networks.lora import WithLora
from vdm_jax.networks.parts import Parts
from vdm_jax.networks.spec import UNetSpec, check_section
from vdm_jax.settings.declaration import setting
from vdm_jax.settings.sections import Level


@dataclasses.dataclass(frozen=True)
class SDLevel(Level):
    """One resolution; "spatial_transformer" is a layer type as well."""

    layers: tuple[str, ...] = setting(
        (), "layers after each block", choices="networks.sd.SD_LAYERS"
    )


@dataclasses.dataclass(frozen=True)
class SDSpec(UNetSpec):
    """A U-Net with the settings of a network section of kind "sd".

    head_dim and relative_position are those of layers that mix frames.
    """

    levels: tuple[SDLevel, ...] = setting((), "resolutions, from the full one down")
    mid_layers: tuple[str, ...] = setting(
        ("spatial_transformer",),
        "layers between the two residual blocks of the lowest resolution",
        choices="networks.sd.SD_LAYERS",
    )
    num_heads: tuple[int, ...] = setting(
        (), "heads of the spatial transformers, one number per level", 1, 2**16
    )
    norm_groups: int = setting(32, "groups of all group norms", 1, 2**16)
    linear_projection: bool = setting(
        False, "transformers project by a matrix (2.x), not a 1x1 convolution (1.x)"
    )

    frame_reads: str = setting(
        "own",
        "frames that a frame's self-attention reads",
        choices="networks.attention.FRAME_READS",
    )
    joint_norms: bool = setting(
        False, "norms outside of transformers have statistics over all frames"
    )
    temporal: str = setting(
        "none",
        "how time is put in, by paper",
        choices="networks.temporal.BUNDLES",
    )
    lora_rank: int = setting(0, "of a LoRA, which alone trains; 0 is none", 0, 2**16)
    lora_modules: str = setting(
        r".*/(self|cross)_attention/(q|k|v|out)",
        "pattern of the whole paths of the modules that the LoRA changes",
    )

    def heads(self, channels: int) -> int:
        """Return the number of attention heads at the levels of this width."""
        widths = [level.channels for level in self.levels]
        return self.num_heads[widths.index(channels)]

    def norm(self, epsilon: float, name: str) -> GroupNorm:
        """Return a group norm of each frame with the network's number of groups."""
        return GroupNorm(epsilon, self.norm_groups, name=name)


def video_norm(x: jax.Array, spec: SDSpec, name: str) -> jax.Array:
    """Apply the group norm of resnets and of the head to [b, f, h, w, c].

    With joint_norms a video is one tall image, as where a published network was made
    of 2-D layers on video tensors.
    """
    if not spec.joint_norms:
        return spec.norm(1e-5, name)(x)
    b, f, h, w, c = x.shape
    return spec.norm(1e-5, name)(x.reshape(b, 1, f * h, w, c)).reshape(x.shape)


class SDResBlock(nn.Module):
    """x + conv(dropout(swish(norm(conv(swish(norm(x))) + dense(swish(vector)))))).

    The vector is added between the convolutions; it scales nothing.
    """

    spec: SDSpec
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, inputs: Inputs, train: bool = False) -> jax.Array:
        """[b, f, h, w, c] -> [b, f, h, w, channels]."""
        spec, channels = self.spec, self.channels
        h = conv(nn.swish(video_norm(x, spec, "norm_0")), channels, "conv_0")
        if inputs.vector is not None:
            vector = nn.swish(inputs.vector.astype(param_dtype(x)))
            vector = dense(vector, channels, "vector").astype(x.dtype)
            vector = vector[:, None] if vector.ndim == 2 else vector  # [b, 1 or f, c]
            h = h + vector[:, :, None, None]
        h = nn.swish(video_norm(h, spec, "norm_1"))
        if train and spec.dropout:
            h = dropout(h, spec.dropout, self.make_rng("dropout"))
        h = conv(h, channels, "conv_1", kernel_init=zeros_init)
        if x.shape[-1] != channels:
            x = conv(x, channels, "skip", size=1)
        return x + h


class Attention(nn.Module):
    """Multi-head attention of pixels to tokens; only the output has a bias."""

    num_heads: int
    zero_output: bool = False  # the output starts at 0
    backend: str = "auto"  # of backends.BACKENDS

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        tokens: jax.Array,
        mask: jax.Array | None = None,
        reads: np.ndarray | None = None,
    ) -> jax.Array:
        """x [b, f, n, c], tokens [b, 1 or f, l, d], mask bool like [b, f, 1, l] -> x's.

        Where no token may be read, the attention contributes 0.

        reads: int [f, m], whose tokens each frame reads; None for its own. It excludes
          a mask.
        """
        c = x.shape[-1]

        def heads(y: jax.Array, name: str) -> jax.Array:
            y = dense(y, c, name, use_bias=False)
            return y.reshape(*y.shape[:-1], self.num_heads, c // self.num_heads)

        q, k, v = heads(x, "q"), heads(tokens, "k"), heads(tokens, "v")
        y = backends.over_pixels(
            q, k, v, mask=mask, reads=reads, backend=self.backend
        ).reshape(x.shape)
        if mask is not None:  # the softmax of masked scores alone would read them all
            y = jnp.where(mask.any(-1, keepdims=True), y, 0)
        start = {"kernel_init": zeros_init} if self.zero_output else {}
        return dense(y, c, "out", **start)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to inputs.tokens, and a gated MLP, all pre-norm.

    The MLP's gate is the exact GELU (GEGLU, arXiv:2002.05202).
    """

    spec: SDSpec

    @nn.compact
    def __call__(self, x: jax.Array, inputs: Inputs) -> jax.Array:
        """[b, f, h w, c] -> the same shape."""
        spec, frames, c = self.spec, x.shape[1], x.shape[-1]
        num_heads = spec.heads(c)
        tokens, mask = frame_tokens(inputs, frames)
        own = spec.frame_reads == "own"
        reads = None if own else FRAME_READS[spec.frame_reads](frames)
        y = layer_norm(x, "self_norm")
        make = functools.partial(Attention, num_heads, backend=spec.attention_backend)
        x = x + make(name="self_attention")(y, y, reads=reads)
        y = layer_norm(x, "cross_norm")
        attend = make(name="cross_attention")
        x = x + attend(y, tokens.astype(x.dtype), mask)
        y = dense(layer_norm(x, "mlp_norm"), 8 * c, "mlp_in")
        h, gate = jnp.split(y, 2, axis=-1)
        return x + dense(h * nn.gelu(gate, approximate=False), c, "mlp_out")


def frame_tokens(inputs: Inputs, frames: int) -> tuple[jax.Array, jax.Array | None]:
    """Return the tokens that each frame reads, [b, 1 or f, l, d], and their mask.

    mask: bool [b, 1 or f, 1, l]. A frame of the video reads the video's tokens, each
    of the k independent images behind it its own.
    """
    tokens, mask = inputs.tokens, inputs.token_mask
    if tokens is None:
        raise ValueError("spatial_transformer reads inputs.tokens, which is None")
    if tokens.ndim == 3:
        return tokens[:, None], None if mask is None else mask[:, None, None]
    video_frames = frames - (tokens.shape[1] - 1)
    text = np.maximum(np.arange(frames) - video_frames + 1, 0)
    return tokens[:, text], None if mask is None else mask[:, text, None]


class SpatialTransformer(nn.Module):
    """x + out(transformer block(in(norm(x)))) over the pixels of each frame."""

    spec: SDSpec
    block: Callable[..., nn.Module] = TransformerBlock

    @nn.compact
    def __call__(self, x: jax.Array, inputs: Inputs) -> jax.Array:
        """[b, f, h, w, c] -> [b, f, h, w, c]."""
        b, f, h, w, c = x.shape
        linear = self.spec.linear_projection
        project = dense if linear else functools.partial(conv, size=1)
        y = project(self.spec.norm(1e-6, "norm")(x), c, "proj_in")
        block: Any = self.block(self.spec, name="block")
        y = block(y.reshape(b, f, h * w, c), inputs).reshape(x.shape)
        return x + project(y, c, "proj_out", kernel_init=zeros_init)


def strided_conv(x: jax.Array, features: int, spec: SDSpec, name: str) -> jax.Array:
    """Halve height and width by a 3x3 convolution of stride 2, one pixel of padding."""
    return conv(x, features, name, strides=2, padding=1)


def nearest_conv(x: jax.Array, features: int, spec: SDSpec, name: str) -> jax.Array:
    """Double height and width by repeating pixels, then a 3x3 convolution of x's width.

    It keeps the width of its level, as the original does; the next block changes it.
    """
    x = x.repeat(2, axis=2).repeat(2, axis=3)
    return conv(x, x.shape[-1], name)


def zero_head(x: jax.Array, inputs: Inputs, spec: SDSpec) -> jax.Array:
    """Norm, swish and a convolution that starts at 0; the vector is not read."""
    x = nn.swish(video_norm(x, spec, "norm_out"))
    features = spec.out_channels * spec.patch_size**2
    x = conv(x, features, "conv_out", kernel_init=zeros_init)
    return depth_to_space(x, spec.patch_size)


SD_LAYERS = FrozenDict({**LAYERS, "spatial_transformer": SpatialTransformer})
SD_PARTS = Parts(
    downsample=strided_conv,
    upsample=nearest_conv,
    head=zero_head,
    resnet=SDResBlock,
    layers=SD_LAYERS,
)


def from_config(
    section: dict[str, Any],
    channels: int,
    sizes: Sequence[tuple[int, int]],
    parts: Parts = SD_PARTS,
) -> nn.Module:
    """Return the U-Net of a config's network section, see `networks.NETWORKS`."""
    check_section(SDSpec, section, "sd")
    fields: dict[str, Any] = {**section, "out_channels": channels}
    for name in section.keys() & {"mid_layers", "num_heads"}:
        fields[name] = tuple(section[name])
    fields["levels"] = tuple(
        SDLevel(**{**level, "layers": tuple(level.get("layers", ()))})
        for level in section["levels"]
    )
    spec = SDSpec(**fields)
    for height, width in sizes:
        check(spec, height, width)
    network = unet3d.UNet3D(spec, parts)
    if not spec.lora_rank:
        return network
    return WithLora(network, spec.lora_rank, spec.lora_modules)


def check(spec: SDSpec, height: int, width: int) -> None:
    """Raise UserError if fields of `spec` do not fit each other or videos of this size.

    The message names the field, its value, the rule and the nearest valid value.
    """
    unet3d.check(spec, height, width, SD_PARTS)
    try:
        re.compile(spec.lora_modules)
    except re.error as error:
        raise UserError(
            f"network.lora_modules={spec.lora_modules!r} ({error}): a pattern of paths"
        ) from error
    if len(spec.num_heads) != len(spec.levels):
        raise UserError(
            f"network.num_heads={spec.num_heads}: one number for each of the "
            f"{len(spec.levels)} levels"
        )
    for i, (level, heads) in enumerate(zip(spec.levels, spec.num_heads, strict=True)):
        where = f"network.levels[{i}].channels"
        check_multiple(where, level.channels, spec.norm_groups, "norm_groups")
        check_multiple(where, level.channels, heads, f"num_heads[{i}]")
        if heads != spec.heads(level.channels):
            raise UserError(
                f"network.num_heads={spec.num_heads}: levels of {level.channels} "
                "channels need the same number of heads"
            )
