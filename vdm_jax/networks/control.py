"""ControlNets: spatial control of a frozen U-Net (Zhang et al. 2023, arXiv:2302.05543).

A ControlNet is a second Down and Middle of unet3d.py, which also read a hint: a video
in pixels that says where something is. Convolutions of one pixel that start at 0 make
residuals of its skips and of its middle, which are added to those of the U-Net.
"""

import dataclasses
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.errors import UserError
from vdm_jax.networks.inputs import Inputs
from vdm_jax.networks.layers import conv, dense, param_dtype, zeros_init
from vdm_jax.networks.parts import Parts
from vdm_jax.networks.spec import UNetSpec
from vdm_jax.networks.unet3d import Down, Middle

MIDDLE = "zero_middle"  # its zero convolution; those of the skips are zero_0, ...


def hint_stride(channels: tuple[int, ...]) -> int:
    """Return the pixels of a hint to a pixel of the U-Net, along an axis."""
    return 2 ** (len(channels) - 1)


class HintEncoder(nn.Module):
    """Convolutions from a hint to the size and width of the U-Net's first level.

    The first has channels[0] features. Each further entry stands for two: one of the
    former width, and one of its own width and stride 2. So four entries are for an
    autoencoder of factor 8, three for factor 4. The last convolution starts at 0.
    """

    channels: tuple[int, ...]
    features: int

    @nn.compact
    def __call__(self, hint: jax.Array) -> jax.Array:
        """[b, f, h', w', c] -> [b, f, h' / stride, w' / stride, features]."""
        x = nn.swish(conv(hint, self.channels[0], "conv_in"))
        for i, (narrow, wide) in enumerate(itertools.pairwise(self.channels)):
            x = nn.swish(conv(x, narrow, f"conv_{2 * i}"))
            wider = conv(x, wide, f"conv_{2 * i + 1}", strides=2, padding=1)
            x = nn.swish(wider)
        return conv(x, self.features, "conv_out", kernel_init=zeros_init)


class ControlNet(nn.Module):
    """The residuals that a hint adds to a U-Net; all 0 at initialisation.

    spec, parts: as of the U-Net that it is a copy of. What frames read of each other in
      it is its spec's own.
    hint_channels: of `HintEncoder`.
    vector_dim, vector_layers: width and number of layers after the first of the MLP of
      the noise level's features. It makes the vector in place of the U-Net's.
    """

    spec: UNetSpec
    parts: Parts
    hint_channels: tuple[int, ...]
    vector_dim: int
    vector_layers: int = 1

    @nn.compact
    def __call__(
        self, z: jax.Array, inputs: Inputs, hint: jax.Array, train: bool = False
    ) -> tuple[jax.Array, ...]:
        """Return a residual for each skip, and one for the middle's output.

        z [b, f, h, w, c]; hint [b, f, h', w', c] in [0, 1].
        """
        spec, parts = self.spec, self.parts
        z = z.astype(jnp.bfloat16 if spec.dtype == "bfloat16" else param_dtype(z))
        width = spec.levels[0].channels
        added = HintEncoder(self.hint_channels, width, name="hint")(
            hint.astype(z.dtype)
        )
        inputs = dataclasses.replace(inputs, vector=self._vector(inputs))
        x, skips = Down(spec, parts, name="down")(z, inputs, train, added)
        x = Middle(spec, parts, name="middle")(x, inputs, train)
        names = [*(f"zero_{i}" for i in range(len(skips))), MIDDLE]
        return tuple(
            conv(y, y.shape[-1], name, size=1, kernel_init=zeros_init)
            for y, name in zip([*skips, x], names, strict=True)
        )

    def _vector(self, inputs: Inputs) -> jax.Array:
        """Return the conditioning vector of the noise level alone."""
        if inputs.noise_level is None:
            raise ValueError("a ControlNet reads inputs.noise_level, which is None")
        vector = dense(inputs.noise_level, self.vector_dim, "noise_level")
        for i in range(self.vector_layers):
            vector = dense(nn.swish(vector), self.vector_dim, f"mlp_{i}")
        return vector


class Controlled(nn.Module):
    """A U-Net with ControlNets, whose residuals add up.

    Parameter paths are those of the U-Net, and below control_0, ... those of the
    ControlNets.

    unet: a network that adds inputs.residuals.
    controls: one ControlNet for each of inputs.hints.
    """

    unet: nn.Module
    controls: tuple[ControlNet, ...]

    def setup(self):
        """Share the paths of the U-Net; name the ControlNets, which may be equal."""
        nn.share_scope(self, self.unet)
        self.control = [each.clone(parent=None, name=None) for each in self.controls]

    def __call__(self, z: jax.Array, inputs: Inputs, train: bool = False) -> jax.Array:
        """z [b, f, h, w, c] -> the U-Net's output, like z."""
        if len(inputs.hints) != len(self.controls):
            raise ValueError(
                f"hints: {len(inputs.hints)} for {len(self.controls)} ControlNets"
            )
        residuals = inputs.residuals
        for i, control in enumerate(self.control):
            own = control(z, inputs, inputs.hints[i], train)
            if inputs.control_scales is not None:
                scale = inputs.control_scales[..., i].reshape(-1, 1, 1, 1, 1)
                own = tuple(y * scale.astype(y.dtype) for y in own)
            residuals = (
                own if residuals is None else tuple(map(jnp.add, residuals, own))
            )
        inputs = dataclasses.replace(inputs, residuals=residuals)
        return self.unet(z, inputs, train)


def control_net(
    network: nn.Module, hint_channels: tuple[int, ...], vector_dim: int, layers: int = 1
) -> ControlNet:
    """Return the ControlNet that is a copy of a U-Net's first half.

    network: a UNet3D, or one with a LoRA. layers: `ControlNet.vector_layers`.
    """
    unet: Any = getattr(network, "network", network)
    return ControlNet(unet.spec, unet.parts, tuple(hint_channels), vector_dim, layers)


def check_hint(
    control: ControlNet, video: tuple[int, int], z: tuple[int, int], name: str
) -> None:
    """Raise UserError unless a hint of the video's size becomes the U-Net's.

    video, z: height and width of the videos and of z. name: of hint_channels.
    """
    stride = hint_stride(control.hint_channels)
    wanted = [side // control.spec.patch_size for side in z]
    if [side / stride for side in video] == wanted:
        return
    need = video[0] // max(wanted[0], 1)
    raise UserError(
        f"{name}={control.hint_channels}: hints of {video[0]}x{video[1]} become "
        f"1/{stride} of that, the first level of the U-Net is {wanted[0]}x{wanted[1]}: "
        f"{need.bit_length()} of them are for 1/{need}"
    )
