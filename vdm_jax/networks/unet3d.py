"""The space-time U-Net of Video Diffusion Models (arXiv:2204.03458, section 3).

Down, middle and up are modules of their own, so that another network can hold one of
them (a ControlNet is a second Down and Middle).
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.errors import UserError
from vdm_jax.networks.attention import POSITIONS
from vdm_jax.networks.blocks import PARTS, REMAT, block
from vdm_jax.networks.inputs import Inputs
from vdm_jax.networks.layers import (
    GroupNorm,
    constrain,
    conv,
    dense,
    depth_to_space,
    space_to_depth,
    wide,
    zeros,
)
from vdm_jax.networks.spec import LevelSpec, UNetSpec

DTYPES = ("float32", "bfloat16")

__all__ = ["LevelSpec", "UNet3D", "UNetSpec", "check"]


def nearest_init(key, shape, dtype=None):
    """A kernel whose four sub-pixels start equal, so that `grow` starts as nearest
    neighbour upsampling and without a checkerboard (arXiv:1707.02937).
    """
    kernel = nn.initializers.lecun_normal()(key, (shape[0], shape[1] // 4), dtype)
    return jnp.tile(kernel, (1, 4))


class Down(nn.Module):
    """The stem and the way down; also returns what the way up will read."""

    spec: UNetSpec
    parts: Mapping[str, Callable] = PARTS

    @nn.compact
    def __call__(self, z: jax.Array, inputs: Inputs, train: bool = False):
        """[b, f, h, w, c] -> x [b, f, h', w', c'], skips in the order they are made."""
        spec, make = self.spec, block(self.spec, self.parts)
        if inputs.concat is not None:
            z = jnp.concatenate([z, inputs.concat.astype(z.dtype)], axis=-1)
        x = conv(space_to_depth(z, spec.patch), spec.levels[0].channels, "stem")
        x = constrain(x)
        skips = [x] if spec.extra_up_block else []
        for i, level in enumerate(spec.levels):
            if i:
                x = dense(space_to_depth(x, 2), x.shape[-1], f"shrink_{i}")
                x = constrain(x)
                skips += [x] if spec.extra_up_block else []
            for j in range(level.blocks):
                name = f"level_{i}_block_{j}"
                mixing = level.after(j, level.blocks)
                x = make(level.channels, mixing, name=name)(x, inputs, train)
                skips.append(x)
        return x, skips


class Middle(nn.Module):
    """Residual block, the middle's parts, residual block."""

    spec: UNetSpec
    parts: Mapping[str, Callable] = PARTS

    @nn.compact
    def __call__(self, x: jax.Array, inputs: Inputs, train: bool = False) -> jax.Array:
        """[b, f, h, w, c] -> [b, f, h, w, c]."""
        make, c = block(self.spec, self.parts), x.shape[-1]
        x = make(c, self.spec.middle, name="block_0")(x, inputs, train)
        return make(c, (), name="block_1")(x, inputs, train)


class Up(nn.Module):
    """The way up: each block reads the newest skip that is left."""

    spec: UNetSpec
    parts: Mapping[str, Callable] = PARTS

    @nn.compact
    def __call__(
        self, x: jax.Array, skips: list, inputs: Inputs, train: bool = False
    ) -> jax.Array:
        """[b, f, h, w, c] -> x at the first level's width and resolution."""
        spec, make = self.spec, block(self.spec, self.parts)
        left = list(skips)
        for i, level in reversed(list(enumerate(spec.levels))):
            blocks = level.blocks + spec.extra_up_block
            for j in range(blocks):
                x = jnp.concatenate([x, left.pop()], axis=-1)
                name, mixing = f"level_{i}_block_{j}", level.after(j, blocks)
                x = make(level.channels, mixing, name=name)(x, inputs, train)
            if i:
                width = 4 * spec.levels[i - 1].channels
                x = dense(x, width, f"grow_{i}", kernel_init=nearest_init)
                x = constrain(depth_to_space(x, 2))
        return x


class UNet3D(nn.Module):
    """z and Inputs to an array of z's frames and size, exactly 0 at initialisation."""

    spec: UNetSpec
    parts: Mapping[str, Callable] = PARTS

    @nn.compact
    def __call__(
        self, z: jax.Array, inputs: Inputs | None = None, train: bool = False
    ) -> jax.Array:
        """z [b, f, h, w, c] -> [b, f, h, w, spec.out_channels] in float32 or wider.

        Height and width must divide by patch 2^(levels - 1): see `check`. With train,
        dropout draws from the rng "dropout".
        """
        spec, parts = self.spec, self.parts
        inputs = Inputs() if inputs is None else inputs
        out_dtype = wide(z)
        z = z.astype(jnp.bfloat16 if spec.dtype == "bfloat16" else out_dtype)

        x, skips = Down(spec, parts, name="down")(z, inputs, train)
        x = Middle(spec, parts, name="middle")(x, inputs, train)
        if inputs.residuals is not None:
            *skips, x = add([*skips, x], inputs.residuals)
        x = Up(spec, parts, name="up")(x, skips, inputs, train)

        x = nn.swish(GroupNorm(name="norm")(x, inputs.vector))
        x = conv(x, spec.out_channels * spec.patch**2, "out", kernel_init=zeros)
        return depth_to_space(x, spec.patch).astype(out_dtype)


def add(xs: list, residuals: tuple) -> list:
    """Each array plus its residual, in the array's dtype."""
    if len(xs) != len(residuals):
        raise ValueError(f"residuals: {len(residuals)} arrays for {len(xs)} places")
    return [x + r.astype(x.dtype) for x, r in zip(xs, residuals, strict=True)]


def check(
    spec: UNetSpec, height: int, width: int, parts: Mapping[str, Callable] = PARTS
) -> None:
    """Raise UserError if `spec` cannot be built, or not for videos of this size.

    The message names field, value, rule and the nearest legal value. Group counts need
    no rule: layers.groups finds one that divides any width.
    """
    names = {
        "relative_position": POSITIONS,
        "remat": ("none", *REMAT),
        "dtype": DTYPES,
    }
    for field, known in names.items():
        _one_of(field, getattr(spec, field), known)
    if not spec.levels:
        raise UserError("network.levels is empty: it must hold one level or more")
    for field in ("head_dim", "patch", "out_channels"):
        _at_least(field, getattr(spec, field), 1)
    if not 0 <= spec.dropout < 1:
        raise UserError(f"network.dropout={spec.dropout} must be in [0, 1)")

    for i, level in enumerate(spec.levels):
        _at_least(f"levels[{i}].channels", level.channels, 1)
        _at_least(f"levels[{i}].blocks", level.blocks, 1)
        _check_parts(f"levels[{i}].mixing", level.mixing, i, spec, parts)
    _check_parts("middle", spec.middle, len(spec.levels) - 1, spec, parts)

    unit = spec.patch * 2 ** (len(spec.levels) - 1)
    for field, size in (("height", height), ("width", width)):
        _divides(f"video.{field}", size, unit, "patch * 2^(levels - 1)")


def _check_parts(field, mixing, i, spec, parts):
    for name in mixing:
        _one_of(field, name, parts)
        if mixing.count(name) > 1:
            raise UserError(f"network.{field} names {name} twice: once is the rule")
        if getattr(parts[name], "splits_heads", False):
            where, channels = f"network.levels[{i}].channels", spec.levels[i].channels
            _divides(where, channels, spec.head_dim, "head_dim")


def _one_of(field, value, known):
    if value not in known:
        raise UserError(f"network.{field}={value!r} must be one of {', '.join(known)}")


def _at_least(field, value, least):
    if value < least:
        raise UserError(f"network.{field}={value} must be {least} or more")


def _divides(field, value, unit, why):
    if value % unit:
        below, above = value // unit * unit, (value // unit + 1) * unit
        nearest = [str(n) for n in (below, above) if n > 0]
        raise UserError(
            f"{field}={value} must be a multiple of {unit} ({why}): "
            f"nearest {' or '.join(nearest)}"
        )
