"""The space-time U-Net of Video Diffusion Models (arXiv:2204.03458, section 3).

Down, Middle and Up are separate modules, so that another network can contain them (a
ControlNet is a second Down and Middle). Their modules are `parts.Parts`.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.errors import UserError, check_multiple
from vdm_jax.networks.inputs import Inputs
from vdm_jax.networks.layers import param_dtype
from vdm_jax.networks.parts import VDM_PARTS, Parts, block_type
from vdm_jax.networks.spec import LevelSpec, UNetSpec
from vdm_jax.partition import constrain


class Down(nn.Module):
    """The first convolution and the blocks and downsamplings of all levels."""

    spec: UNetSpec
    parts: Parts = VDM_PARTS

    @nn.compact
    def __call__(
        self,
        z: jax.Array,
        inputs: Inputs,
        train: bool = False,
        added: jax.Array | None = None,
    ):
        """z [b, f, h, w, c] -> x [b, f, h', w', c'], skips in order of execution.

        added: like the output of the first convolution, which it is added to.
        """
        spec = self.spec
        make = block_type(self.spec, self.parts)
        if inputs.concat is not None:
            z = jnp.concatenate([z, inputs.concat.astype(z.dtype)], axis=-1)
        x = self.parts.stem(z, spec.levels[0].channels, spec, "conv_in")
        x = constrain(x if added is None else x + added)
        skips = [x] if spec.skip_downsamples else []
        for i, level in enumerate(spec.levels):
            if i:
                x = self.parts.downsample(x, x.shape[-1], spec, f"downsample_{i}")
                x = constrain(x)
                skips += [x] if spec.skip_downsamples else []
            for j in range(level.blocks):
                name = f"level_{i}_block_{j}"
                layers = level.layers_after(j, level.blocks)
                x = make(level.channels, layers, name=name)(x, inputs, train)
                skips.append(x)
        return x, skips


class Middle(nn.Module):
    """A residual block, spec.mid_layers, and another residual block."""

    spec: UNetSpec
    parts: Parts = VDM_PARTS

    @nn.compact
    def __call__(self, x: jax.Array, inputs: Inputs, train: bool = False) -> jax.Array:
        """[b, f, h, w, c] -> [b, f, h, w, c]."""
        make = block_type(self.spec, self.parts)
        c = x.shape[-1]
        x = make(c, self.spec.mid_layers, name="block_0")(x, inputs, train)
        return make(c, (), name="block_1")(x, inputs, train)


class Up(nn.Module):
    """Blocks and upsamplings of all levels; each block reads the last unused skip."""

    spec: UNetSpec
    parts: Parts = VDM_PARTS

    @nn.compact
    def __call__(
        self, x: jax.Array, skips: list, inputs: Inputs, train: bool = False
    ) -> jax.Array:
        """[b, f, h, w, c] -> x at the first level's width and resolution."""
        spec = self.spec
        make = block_type(self.spec, self.parts)
        unused = list(skips)
        for i, level in reversed(list(enumerate(spec.levels))):
            blocks = level.blocks + spec.skip_downsamples
            for j in range(blocks):
                x = jnp.concatenate([x, unused.pop()], axis=-1)
                name = f"level_{i}_block_{j}"
                layers = level.layers_after(j, blocks)
                x = make(level.channels, layers, name=name)(x, inputs, train)
            if i:
                width = spec.levels[i - 1].channels
                x = constrain(self.parts.upsample(x, width, spec, f"upsample_{i}"))
        return x


class UNet3D(nn.Module):
    """U-Net whose output is exactly 0 at initialisation."""

    spec: UNetSpec
    parts: Parts = VDM_PARTS

    @nn.compact
    def __call__(
        self, z: jax.Array, inputs: Inputs | None = None, train: bool = False
    ) -> jax.Array:
        """z [b, f, h, w, c] -> [b, f, h, w, spec.out_channels] in float32 or wider.

        Height and width must be multiples of patch_size 2^(levels - 1): see `check`.
        With train, dropout draws from the rng "dropout".
        """
        spec, parts = self.spec, self.parts
        inputs = Inputs() if inputs is None else inputs
        out_dtype = param_dtype(z)
        z = z.astype(jnp.bfloat16 if spec.dtype == "bfloat16" else out_dtype)

        x, skips = Down(spec, parts, name="down")(z, inputs, train)
        x = Middle(spec, parts, name="middle")(x, inputs, train)
        if inputs.residuals is not None:
            *skips, x = add_residuals([*skips, x], inputs.residuals)
        x = Up(spec, parts, name="up")(x, skips, inputs, train)
        return parts.head(x, inputs, spec).astype(out_dtype)


def add_residuals(xs: list, residuals: tuple) -> list:
    """Add a residual to each array, in the array's dtype."""
    if len(xs) != len(residuals):
        raise ValueError(
            f"residuals: {len(residuals)} arrays for {len(xs)} skips and middle"
        )
    return [x + r.astype(x.dtype) for x, r in zip(xs, residuals, strict=True)]


def from_config(
    section: dict[str, Any], channels: int, sizes: Sequence[tuple[int, int]]
) -> UNet3D:
    """Return the U-Net of a config's network section, see `networks.NETWORKS`."""
    levels = tuple(
        LevelSpec(**{**level, "layers": tuple(level.get("layers", ()))})
        for level in section["levels"]
    )
    fields = section | {"levels": levels, "mid_layers": tuple(section["mid_layers"])}
    spec = UNetSpec(**fields, out_channels=channels)
    for height, width in sizes:
        check(spec, height, width)
    return UNet3D(spec)


def check(spec: UNetSpec, height: int, width: int, parts: Parts = VDM_PARTS) -> None:
    """Raise UserError if fields of `spec` do not fit each other or videos of this size.

    The message names the field, its value, the rule and the nearest valid value. Group
    counts need no rule: layers.num_groups finds one for any width.
    """
    if not spec.levels:
        raise UserError("network.levels is empty: it must hold one level or more")
    for i, level in enumerate(spec.levels):
        _check_layers(f"levels[{i}].layers", level.layers, i, spec, parts.layers)
    _check_layers(
        "mid_layers", spec.mid_layers, len(spec.levels) - 1, spec, parts.layers
    )

    multiple = spec.patch_size * 2 ** (len(spec.levels) - 1)
    for field, size in (("height", height), ("width", width)):
        check_multiple(f"video.{field}", size, multiple, "patch_size * 2^(levels - 1)")


def _check_layers(field, layers, i, spec, layer_types):
    for name in layers:
        if layers.count(name) > 1:
            raise UserError(f"network.{field} names {name} twice: name each once")
        if name not in layer_types:
            raise UserError(f"network.{field}={name}: one of {', '.join(layer_types)}")
        if getattr(layer_types[name], "splits_heads", False):
            where = f"network.levels[{i}].channels"
            channels = spec.levels[i].channels
            check_multiple(where, channels, spec.head_dim, "head_dim")
