"""Tune-A-Video's attention over frames (Wu et al. 2023, arXiv:2212.11565, section 3.2).

Every transformer block of Stable Diffusion's U-Net ends with one more self-attention:
of each pixel over the frames, without positions. It starts as the identity. The paper's
sparse-causal attention and its norms over all frames have no parameters: they are
network.frame_reads="previous" and network.joint_norms=True.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from vdm_jax.networks.inputs import Inputs
from vdm_jax.networks.layers import layer_norm
from vdm_jax.networks.parts import Parts
from vdm_jax.networks.sd import Attention, SpatialTransformer, TransformerBlock


class TimedTransformerBlock(TransformerBlock):
    """A transformer block, then attention over frames.

    The authors' code starts only the kernel of the output at 0 and draws its bias, so
    that its start changes a still clip; here both are 0.
    """

    @nn.compact
    def __call__(self, x: jax.Array, inputs: Inputs) -> jax.Array:
        """[b, f, h w, c] -> the same shape."""
        x = super().__call__(x, inputs)
        y = layer_norm(x, "time_norm").swapaxes(1, 2)  # [b, h w, f, c]
        heads = self.spec.heads(x.shape[-1])
        attend = Attention(heads, zero_output=True, name="time_attention")
        if inputs.frame_mask is None:
            return x + attend(y, y).swapaxes(1, 2)
        y = attend(y, y, inputs.frame_mask[:, None, None]).swapaxes(1, 2)
        return jnp.where(inputs.frame_mask[:, :, None, None], x + y, x)


TRANSFORMER = functools.partial(SpatialTransformer, block=TimedTransformerBlock)


def add_time(parts: Parts) -> Parts:
    """Return the parts with attention over frames in every spatial transformer."""
    layers = FrozenDict({**parts.layers, "spatial_transformer": TRANSFORMER})
    return dataclasses.replace(parts, layers=layers)
