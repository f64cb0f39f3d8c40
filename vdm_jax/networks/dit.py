"""The diffusion transformer DiT (arXiv:2212.09748) over the patches of a video.

Tokens are patches of one frame, and a video of any size that they divide has them in
order [b, f, h, w]. `DiTSpec.attend` says which tokens a token attends to: all of them,
or in turn those of its frame and of its place (Latte, arXiv:2401.03048, section 3.1).
An independent image behind the video's frames attends to itself alone, and so does each
video of a packed buffer, whose tokens are frames of one patch (packing.py). What mixes
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
from vdm_jax.networks.dit_blocks import (
    ATTEND,
    Block,
    DiTSpec,
    adaptive_norm,
    split,
)
from vdm_jax.networks.inputs import Inputs, Packing
from vdm_jax.networks.layers import (
    conv,
    dense,
    depth_to_space,
    param_dtype,
    space_to_depth,
    zeros_init,
)
from vdm_jax.networks.parts import REMAT_POLICIES
from vdm_jax.networks.positions import (
    rope_angles,
    rope_splits,
    sincos_1d,
    sincos_2d,
    token_angles,
)
from vdm_jax.networks.spec import transformer_spec
from vdm_jax.partition import constrain


class Head(nn.Module):
    """The last modulation and the product whose output is 0 at initialisation."""

    spec: DiTSpec

    @nn.compact
    def __call__(
        self, x: jax.Array, vector: jax.Array, packing: Packing | None = None
    ) -> jax.Array:
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
        shift, scale = split(rows, 2, packing)
        channels = spec.out_channels * (1 + spec.learn_sigma)
        y = adaptive_norm(x, shift, scale)
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
        a vector for each frame [b, f, d], frames may have different noise levels. With
        inputs.packing z is [b, n, 1, 1, p p c].
        """
        spec = self.spec
        if inputs is None or inputs.vector is None:
            raise ValueError("a network of kind 'dit' reads inputs.vector, it is None")
        dtype = param_dtype(z)
        vector = inputs.vector.astype(dtype)
        compute = jnp.bfloat16 if spec.dtype == "bfloat16" else dtype
        packing, parts = inputs.packing, [z]
        if inputs.concat is not None:
            parts.append(inputs.concat.astype(z.dtype))
        if packing is not None:
            parts = [depth_to_space(part, spec.patch_size) for part in parts]
        z = jnp.concatenate(parts, axis=-1)
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
        output = Head(spec, name="head")(x, vector, packing).astype(dtype)
        return output if packing is None else space_to_depth(output, spec.patch_size)

    def blocks(self, x: jax.Array, inputs: Inputs, modulation: jax.Array) -> jax.Array:
        """Return tokens [b, f, h, w, c] with positions after all blocks."""
        spec, angles = self.spec, None
        f, h, w = x.shape[1:4]
        splits = rope_splits(spec.width // spec.num_heads)
        if inputs.packing is not None:
            if spec.positions != "rope":
                raise UserError("network.positions=sincos: rope for a packed buffer")
            angles = token_angles(inputs.packing.positions, splits)[:, :, None]
        elif spec.positions == "rope":
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
    spec = transformer_spec(DiTSpec, section, "dit", channels, sizes)
    check_multiple("network.width", spec.width, spec.num_heads, "num_heads")
    if spec.positions == "rope":
        pairs = 2 * spec.num_heads
        check_multiple("network.width", spec.width, pairs, "2 * num_heads with rope")
    else:
        check_multiple("network.width", spec.width, 4, "4 with positions=sincos")
    return DiT(spec)
