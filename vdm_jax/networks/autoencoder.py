"""The autoencoder of latent diffusion (Rombach et al. 2022, arXiv:2112.10752).

It is the KL-regularised one of Stable Diffusion, diffusers' AutoencoderKL, and encodes
every frame by itself. Padding and epsilons are those of its published weights.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from vdm_jax.errors import UserError, check_multiple
from vdm_jax.networks.attention import chunked_attention
from vdm_jax.networks.layers import GroupNorm, conv, dense, param_dtype
from vdm_jax.networks.spec import check_section
from vdm_jax.partition import constrain
from vdm_jax.settings.declaration import setting

EPSILON = 1e-6  # of all norms


@dataclasses.dataclass(frozen=True)
class AutoencoderSpec:
    """Sizes of an autoencoder; the defaults are those of Stable Diffusion.

    They are the settings of a network section of kind "autoencoder", but for the
    channels of a frame. Every level but the first has half the height and width of the
    one before it.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = setting(4, "channels of the latents", 1, 1024)
    channels: tuple[int, ...] = setting(
        (128, 256, 512, 512), "of each level, from the full resolution down", 1, 2**16
    )
    blocks: int = setting(
        2, "residual blocks of a level of the encoder; the decoder has one more", 1, 20
    )
    num_groups: int = setting(32, "of the norms; it divides all channels", 1, 2**16)
    mid_attention: bool = setting(
        True, "attention between the two blocks of the lowest resolution"
    )
    quant_conv: bool = setting(True, "a product after the encoder")
    post_quant_conv: bool = setting(True, "a product before the decoder")

    @property
    def factor(self) -> int:
        """Pixels per latent, along the height and along the width."""
        return 2 ** (len(self.channels) - 1)


def check(spec: AutoencoderSpec, height: int, width: int) -> None:
    """Raise UserError, with the nearest size, for frames that it cannot encode."""
    factor = spec.factor
    near = [max(factor, round(n / factor) * factor) for n in (height, width)]
    if near != [height, width]:
        raise UserError(
            f"frames of {height}x{width}: height and width must be multiples of "
            f"{factor} for this autoencoder, as {near[0]}x{near[1]}"
        )


def norm(x: jax.Array, spec: AutoencoderSpec, name: str) -> jax.Array:
    """Apply a group norm of each frame, with statistics in float32 or wider."""
    return GroupNorm(EPSILON, spec.num_groups, name=name)(x)


class ResBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))).

    Where widths differ, x passes a product.
    """

    spec: AutoencoderSpec
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, f, h, w, c] -> [b, f, h, w, channels]."""
        y = conv(nn.swish(norm(x, self.spec, "norm_0")), self.channels, "conv_0")
        y = conv(nn.swish(norm(y, self.spec, "norm_1")), self.channels, "conv_1")
        if x.shape[-1] != self.channels:
            x = conv(x, self.channels, "shortcut", size=1)
        return constrain(x + y)


class Attention(nn.Module):
    """x + attention(norm(x)) over the pixels of a frame, with one head."""

    spec: AutoencoderSpec

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, f, h, w, c] -> the same shape."""
        channels = x.shape[-1]
        y = rearrange(norm(x, self.spec, "norm"), "b f h w c -> b f (h w) 1 c")
        q, k, v = (dense(y, channels, name) for name in "qkv")
        y = dense(chunked_attention(q, k, v), channels, "out")
        return x + y.reshape(x.shape)


class Middle(nn.Module):
    """Two residual blocks at the lowest resolution, with attention between them."""

    spec: AutoencoderSpec

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, f, h, w, c] -> the same shape."""
        x = ResBlock(self.spec, x.shape[-1], name="block_0")(x)
        if self.spec.mid_attention:
            x = Attention(self.spec, name="attention")(x)
        return ResBlock(self.spec, x.shape[-1], name="block_1")(x)


class Encoder(nn.Module):
    """Frames to the moments of their latents."""

    spec: AutoencoderSpec

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, f, h, w, c] -> [b, f, h / factor, w / factor, 2 k].

        The first k channels are means, the others log variances.
        """
        spec = self.spec
        x = conv(x, spec.channels[0], "conv_in")
        for i, channels in enumerate(spec.channels):
            for j in range(spec.blocks):
                x = ResBlock(spec, channels, name=f"level_{i}_block_{j}")(x)
            if i < len(spec.channels) - 1:
                # Padded at the bottom and right only: an output is at the upper left
                # one of its two by two pixels.
                padding = ((0, 1), (0, 1))
                name = f"downsample_{i}"
                x = conv(x, channels, name, strides=(2, 2), padding=padding)
        x = Middle(spec, name="middle")(x)
        x = nn.swish(norm(x, spec, "norm_out"))
        x = conv(x, 2 * spec.latent_channels, "conv_out")
        return conv(x, x.shape[-1], "quant_conv", size=1) if spec.quant_conv else x


class Decoder(nn.Module):
    """Latents to frames. Level 0 is the lowest resolution, the first that runs."""

    spec: AutoencoderSpec

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """[b, f, h, w, k] -> [b, f, h * factor, w * factor, c]."""
        spec = self.spec
        if spec.post_quant_conv:
            z = conv(z, z.shape[-1], "post_quant_conv", size=1)
        x = conv(z, spec.channels[-1], "conv_in")
        x = Middle(spec, name="middle")(x)
        for i, channels in enumerate(reversed(spec.channels)):
            for j in range(spec.blocks + 1):
                x = ResBlock(spec, channels, name=f"level_{i}_block_{j}")(x)
            if i < len(spec.channels) - 1:
                x = x.repeat(2, axis=2).repeat(2, axis=3)
                x = conv(x, channels, f"upsample_{i}")
        x = nn.swish(norm(x, spec, "norm_out"))
        return conv(x, spec.out_channels, "conv_out")


class Posterior(NamedTuple):
    """Normal distribution of latents given a video, q(z | x); independent values.

    mean, log_variance: [b, f, h, w, k], not scaled.
    """

    mean: jax.Array
    log_variance: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw latents [b, f, h, w, k]."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(0.5 * self.log_variance) * noise

    def kl(self) -> jax.Array:
        """Return the KL divergence from N(0, 1) of each frame, in nats: [b, f]."""
        variance = jnp.exp(self.log_variance)
        terms = self.mean**2 + variance - 1 - self.log_variance
        return 0.5 * terms.sum(axis=(2, 3, 4))


class AutoencoderKL(nn.Module):
    """Videos to latents and back, frame by frame.

    Activations have the dtype of the input. Parameters, norms, softmax and outputs are
    float32 or wider.
    """

    spec: AutoencoderSpec = AutoencoderSpec()

    def setup(self):
        """Make the two networks."""
        self.encoder = Encoder(self.spec)
        self.decoder = Decoder(self.spec)

    def encode(self, video: jax.Array) -> Posterior:
        """Video [b, f, h, w, c] in [-1, 1] -> latents [b, f, h', w', k]."""
        moments = self.encoder(video).astype(param_dtype(video))
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return Posterior(mean, jnp.clip(log_variance, -30, 20))

    def decode(self, z: jax.Array) -> jax.Array:
        """Latents [b, f, h', w', k] -> video [b, f, h, w, c], around [-1, 1]."""
        return self.decoder(z).astype(param_dtype(z))

    def __call__(self, video: jax.Array) -> jax.Array:
        """Return the video of the mean latents."""
        return self.decode(self.encode(video).mean)


def from_config(
    section: dict[str, Any], channels: int, sizes: Sequence[tuple[int, int]]
) -> AutoencoderKL:
    """Return the autoencoder of a config's network section, see `networks.NETWORKS`.

    channels, sizes: of its frames.
    """
    section = {name: value for name, value in section.items() if name != "kind"}
    check_section(AutoencoderSpec, section, "autoencoder")
    spec = AutoencoderSpec(channels, channels, **section)
    spec = dataclasses.replace(spec, channels=tuple(spec.channels))
    for width in spec.channels:
        check_multiple("config.network.channels", width, spec.num_groups, "num_groups")
    for height, width in sizes:
        check(spec, height, width)
    return AutoencoderKL(spec)
