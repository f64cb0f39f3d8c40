"""An image and a text tower with one space of embeddings.

CLIP (Radford et al. 2021, arXiv:2103.00020, section 2.4) with small towers: a residual
network for images, and for texts one projection of a frozen encoder's embedding.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.networks import unet3d
from vdm_jax.networks.inputs import Inputs
from vdm_jax.networks.layers import GroupNorm, dense, param_dtype
from vdm_jax.networks.spec import LevelSpec, UNetSpec, check_section
from vdm_jax.settings.declaration import setting

START_SCALE, MAX_SCALE = 1 / 0.07, 100.0  # of the logits (section 2.5)


@dataclasses.dataclass(frozen=True)
class ImageTextSpec(UNetSpec):
    """The way down of a U-Net, as the image tower, and the width of the embeddings."""

    embed_dim: int = setting(256, "width of the embeddings", 1, 2**16)


class ImageText(nn.Module):
    """Both towers, and the scale of their cosines in the loss.

    Embeddings have length 1 and are float32 or wider.
    """

    spec: ImageTextSpec

    def setup(self):
        """Name the towers and the scale, which is trained as its logarithm."""
        self.image = ImageTower(self.spec)
        self.text = TextTower(self.spec.embed_dim)
        start = nn.initializers.constant(math.log(START_SCALE))
        self.log_scale = self.param("log_scale", start, ())

    def __call__(
        self, video: jax.Array, tokens: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return embeddings [b, embed_dim] of videos and of texts, and the scale []."""
        scale = jnp.exp(jnp.minimum(self.log_scale, math.log(MAX_SCALE)))
        return self.image(video), self.text(tokens, mask), scale

    def embed_video(self, video: jax.Array) -> jax.Array:
        """Video [b, f, h, w, c] in [-1, 1] -> [b, embed_dim]."""
        return self.image(video)

    def embed_text(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Tokens [b, l, d] of a text encoder, mask bool [b, l] -> [b, embed_dim]."""
        return self.text(tokens, mask)


class ImageTower(nn.Module):
    """The mean over pixels and frames of what a residual network makes of frames."""

    spec: ImageTextSpec

    @nn.compact
    def __call__(self, video: jax.Array) -> jax.Array:
        """Video [b, f, h, w, c] in [-1, 1] -> [b, embed_dim]."""
        wide = param_dtype(video)
        x = video.astype(jnp.bfloat16 if self.spec.dtype == "bfloat16" else wide)
        x, _ = unet3d.Down(self.spec, name="down")(x, Inputs())
        x = nn.swish(GroupNorm(name="norm_out")(x)).astype(wide).mean((1, 2, 3))
        return unit(dense(x, self.spec.embed_dim, "projection", use_bias=False))


class TextTower(nn.Module):
    """A projection of a sentence's embedding, the mean over its tokens."""

    embed_dim: int

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Tokens [b, l, d], mask bool [b, l] -> [b, embed_dim]."""
        weight = mask[..., None] / jnp.maximum(mask.sum(-1), 1)[..., None, None]
        sentence = unit((tokens * weight.astype(tokens.dtype)).sum(-2))
        return unit(dense(sentence, self.embed_dim, "projection", use_bias=False))


def unit(x: jax.Array) -> jax.Array:
    """Return x [..., d] at length 1."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


def from_config(
    section: dict[str, Any], channels: int, sizes: Sequence[tuple[int, int]]
) -> ImageText:
    """Return the towers of a config's network section, see `networks.NETWORKS`."""
    check_section(ImageTextSpec, section, "image_text")
    levels = tuple(
        LevelSpec(**{**level, "layers": tuple(level.get("layers", ()))})
        for level in section["levels"]
    )
    fields = {**section, "levels": levels, "mid_layers": (), "out_channels": channels}
    spec = ImageTextSpec(**fields)
    for height, width in sizes:
        unet3d.check(spec, height, width)
    return ImageText(spec)
