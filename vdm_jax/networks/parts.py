"""The parts of a U-Net that can be replaced, and the block that is made of them.

The skeleton of unet3d.py has one slot for each. Another network passes other parts and
has the same skips and parameter paths elsewhere.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.networks.blocks import LAYERS, ResBlock
from vdm_jax.networks.inputs import Inputs
from vdm_jax.networks.layers import (
    GroupNorm,
    conv,
    dense,
    depth_to_space,
    space_to_depth,
    zeros_init,
)
from vdm_jax.networks.spec import UNetSpec
from vdm_jax.partition import constrain


def nearest_upsample_init(key, shape, dtype=None):
    """Initialise a kernel whose four sub-pixels are equal (ICNR, arXiv:1707.02937).

    `upsample_i` then starts as nearest neighbour upsampling, without a checkerboard.
    """
    kernel = nn.initializers.lecun_normal()(key, (shape[0], shape[1] // 4), dtype)
    return jnp.tile(kernel, (1, 4))


def conv_stem(x: jax.Array, features: int, spec: UNetSpec, name: str) -> jax.Array:
    """Space-to-depth by spec.patch_size and a 3x3 convolution."""
    return conv(space_to_depth(x, spec.patch_size), features, name)


def strided_downsample(
    x: jax.Array, features: int, spec: UNetSpec, name: str
) -> jax.Array:
    """Halve height and width by a 2x2 convolution of stride 2."""
    return dense(space_to_depth(x, 2), features, name)


def subpixel_upsample(
    x: jax.Array, features: int, spec: UNetSpec, name: str
) -> jax.Array:
    """Double height and width by a product and depth-to-space."""
    x = dense(x, 4 * features, name, kernel_init=nearest_upsample_init)
    return depth_to_space(x, 2)


def zero_head(x: jax.Array, inputs: Inputs, spec: UNetSpec) -> jax.Array:
    """Norm, swish and a convolution that starts at 0: the output in patches' pixels."""
    x = nn.swish(GroupNorm(name="norm_out")(x, inputs.vector))
    features = spec.out_channels * spec.patch_size**2
    x = conv(x, features, "conv_out", kernel_init=zeros_init)
    return depth_to_space(x, spec.patch_size)


@dataclasses.dataclass(frozen=True)
class Parts:
    """Modules of a U-Net; hashable, so it can be a Linen field.

    The functions run inside of a compact method: a module that they make there needs
    the name that they get, or one of its own. x is [b, f, h, w, c] throughout.

    stem          (x, features, spec, name) -> x of the first level
    downsample    (x, features, spec, name) -> x of half the height and width
    upsample      (x, features, spec, name) -> x of twice the height and width
    head          (x, inputs, spec) -> output [b, f, h, w, spec.out_channels]
    resnet        module resnet(spec, channels, name=...), called as (x, inputs, train)
    layers        name in LevelSpec.layers -> module layer(spec, name=...), called as
                  (x, inputs)
    after_resnet  (name, layer) that follow every residual block, before its layers
    """

    stem: Callable[..., jax.Array] = conv_stem
    downsample: Callable[..., jax.Array] = strided_downsample
    upsample: Callable[..., jax.Array] = subpixel_upsample
    head: Callable[..., jax.Array] = zero_head
    resnet: Callable[..., nn.Module] = ResBlock
    layers: Mapping[str, Callable] = LAYERS
    after_resnet: tuple[tuple[str, Callable], ...] = ()


VDM_PARTS = Parts()


class Block(nn.Module):
    """A residual block, parts.after_resnet and the layers that are named, in order."""

    spec: UNetSpec
    parts: Parts
    channels: int
    layers: tuple[str, ...]

    @nn.compact
    def __call__(self, x: jax.Array, inputs: Inputs, train: bool = False) -> jax.Array:
        """[b, f, h, w, c] -> [b, f, h, w, channels]."""
        spec, parts = self.spec, self.parts
        x = parts.resnet(spec, self.channels, name="resnet")(x, inputs, train)
        named = [(name, parts.layers[name]) for name in self.layers]
        for name, layer in (*parts.after_resnet, *named):
            x = layer(spec, name=name)(constrain(x), inputs)
        return constrain(x)


def save_products(primitive, *args, **params) -> bool:
    """Remat policy: save convolutions and unbatched products, recompute the rest.

    Attention scores are batched products: cheap to compute and large to save.
    """
    unbatched = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    convolution = primitive is jax.lax.conv_general_dilated_p
    return convolution or unbatched(primitive, *args, **params)


REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": save_products,
}


def block_type(spec: UNetSpec, parts: Parts) -> Callable:
    """Return a constructor of Blocks: (channels, layers, name=...) -> Block."""
    cls = Block
    if spec.remat != "none":
        cls = nn.remat(Block, policy=REMAT_POLICIES[spec.remat], static_argnums=(3,))
    return functools.partial(cls, spec, parts)
