"""The critic of an autoencoder: PatchGAN, one decision for each patch of a frame.

It is the discriminator of Isola et al. 2017 (arXiv:1611.07004, section 3.2) as VQGAN
(arXiv:2012.09841) and latent diffusion (arXiv:2112.10752) use it. Their batch norm is
a group norm here: a decision depends on its own frame alone, so it is the same for any
batch size, number of devices and accumulated parts.
"""

import functools

import flax.linen as nn
import jax

from vdm_jax.networks.layers import GroupNorm, conv

MAX_WIDENING = 8  # of the first layer's channels
SLOPE = 0.2  # of leaky_relu
KERNEL_STD = 0.02  # of new kernels


class PatchCritic(nn.Module):
    """Frames to logits: high is real.

    Strided convolutions of 4x4 halve the size; their channels double. With 3 of them a
    logit sees 70x70 pixels.

    channels: of the first layer.
    layers: number of strided ones.
    """

    channels: int = 64
    layers: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Video [b, f, h, w, c] -> logits [b, f, h / 2^layers - 2, w / ..., 1]."""
        init = nn.initializers.normal(KERNEL_STD)
        padding = ((1, 1), (1, 1))
        layer = functools.partial(conv, size=4, kernel_init=init, padding=padding)
        for i in range(self.layers + 1):
            width = self.channels * min(2**i, MAX_WIDENING)
            stride = 2 if i < self.layers else 1
            x = layer(x, width, f"conv_{i}", strides=(stride, stride))
            if i:
                x = GroupNorm(name=f"norm_{i}")(x)
            x = nn.leaky_relu(x, SLOPE)
        return layer(x, 1, "conv_out")
