"""The causal video autoencoder of Wan 2.1 (arXiv:2503.20314, section 4.1).

1 + 4 n frames are 1 + n latents of an eighth of the height and width. No layer reads
later frames, so that a video is encoded and decoded in chunks: what the next chunk
reads of this one is in the collection "cache". The first frame is an image by itself.
Parameters have the shapes of diffusers' AutoencoderKLWan.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from vdm_jax.errors import UserError, check_multiple
from vdm_jax.networks.attention import chunked_attention
from vdm_jax.networks.autoencoder import Posterior
from vdm_jax.networks.layers import conv, conv_3d, dense, param_dtype
from vdm_jax.partition import constrain


@dataclasses.dataclass(frozen=True)
class WanAutoencoderSpec:
    """Sizes of an autoencoder; the defaults are those of Wan 2.1.

    Every level but the first has half the height and width of the one before it, and
    half the frames where `halves_frames` says so.
    """

    in_channels: int = 3
    latent_channels: int = 16
    channels: tuple[int, ...] = (96, 192, 384, 384)  # of each level of the encoder
    decoder_channels: tuple[int, ...] = (96, 192, 384, 384)
    blocks: int = 2  # residual blocks of a level; the decoder has one more
    halves_frames: tuple[bool, ...] = (False, True, True)  # from level i to i + 1

    @property
    def factor(self) -> int:
        """Pixels per latent, along the height and along the width."""
        return 2 ** (len(self.channels) - 1)

    @property
    def frame_factor(self) -> int:
        """Frames per latent, but for the first, which is one frame."""
        return 2 ** sum(self.halves_frames)


def check(spec: WanAutoencoderSpec, frames: int, height: int, width: int) -> None:
    """Raise UserError, with the nearest size, for a video that it cannot encode."""
    n = spec.frame_factor
    if frames % n != 1 % n:
        below = frames // n * n + 1
        near = [str(each) for each in (below - n, below, below + n) if each > 0]
        nearest = [each for each in near if abs(int(each) - frames) < n]
        raise UserError(f"{frames} frames: frames {n}k+1: {' or '.join(nearest)}")
    for name, side in (("height", height), ("width", width)):
        check_multiple(name, side, spec.factor, "pixels per latent")


class CausalConv(nn.Module):
    """Convolution over frames, rows and columns that reads this and earlier frames.

    Before a video there are zeros.
    """

    features: int
    frames: int = 3
    size: int = 3

    @nn.compact
    def __call__(self, x: jax.Array, first: bool) -> jax.Array:
        """[b, f, h, w, c] -> [b, f, h, w, features]. first: a video starts with x."""
        x = _after_earlier(self, x, self.frames - 1, first)
        window = self.frames, self.size, self.size
        return time_conv(x, self.features, "conv", window, 1)


def _after_earlier(module: nn.Module, x: jax.Array, count: int, first: bool):
    """Return x behind the last `count` frames before it; keep those for the next."""
    if not count:
        return x
    shape = (x.shape[0], count, *x.shape[2:])
    cache = module.variable("cache", "frames", jnp.zeros, shape, x.dtype)
    x = jnp.concatenate([jnp.zeros(shape, x.dtype) if first else cache.value, x], 1)
    cache.value = x[:, -count:]
    return x


def time_conv(
    x: jax.Array, features: int, name: str, window: tuple[int, int, int], stride: int
) -> jax.Array:
    """Convolve [b, f, h, w, c]: rows and columns keep their number, frames do not."""
    sides = ((n // 2, n // 2) for n in window[1:])
    padding, strides = ((0, 0), *sides), (stride, 1, 1)
    return conv_3d(x, features, name, window, strides=strides, padding=padding)


class Norm(nn.Module):
    """x sqrt(c) / |x| times a scale, of the c channels of a pixel (RMS norm)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., c] -> [..., c], computed in float32 or wider."""
        dtype, c = param_dtype(x), x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (c,), dtype)
        y = x.astype(dtype)
        length = jnp.sqrt(jnp.square(y).sum(-1, keepdims=True))
        y = y / jnp.maximum(length, 1e-12) * c**0.5
        return (y * scale.reshape((1,) * (x.ndim - 1) + (c,))).astype(x.dtype)


class ResBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))).

    Where widths differ, x passes a product.
    """

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, first: bool) -> jax.Array:
        """[b, f, h, w, c] -> [b, f, h, w, channels]."""
        y = nn.swish(Norm(name="norm_0")(x))
        y = CausalConv(self.channels, name="conv_0")(y, first)
        y = nn.swish(Norm(name="norm_1")(y))
        y = CausalConv(self.channels, name="conv_1")(y, first)
        if x.shape[-1] != self.channels:
            x = dense(x, self.channels, "shortcut")
        return constrain(x + y)


class Attention(nn.Module):
    """x + attention(norm(x)) over the pixels of a frame, with one head."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, f, h, w, c] -> the same shape."""
        c = x.shape[-1]
        y = rearrange(Norm(name="norm")(x), "b f h w c -> b f (h w) 1 c")
        q, k, v = jnp.split(dense(y, 3 * c, "qkv"), 3, axis=-1)
        return x + dense(chunked_attention(q, k, v), c, "out").reshape(x.shape)


class Middle(nn.Module):
    """Two residual blocks at the lowest resolution, with attention between them."""

    @nn.compact
    def __call__(self, x: jax.Array, first: bool) -> jax.Array:
        """[b, f, h, w, c] -> the same shape."""
        x = ResBlock(x.shape[-1], name="block_0")(x, first)
        x = Attention(name="attention")(x)
        return ResBlock(x.shape[-1], name="block_1")(x, first)


class Downsample(nn.Module):
    """Halve height and width and, with `frames`, the frames behind the first."""

    frames: bool

    @nn.compact
    def __call__(self, x: jax.Array, first: bool) -> jax.Array:
        """[b, f, h, w, c] -> [b, f', h / 2, w / 2, c].

        f' is f; with `frames` it is (f + 1) / 2 of a first chunk, f / 2 of others.
        """
        c = x.shape[-1]
        # Padded at the bottom and right only.
        x = conv(x, c, "conv", strides=(2, 2), padding=((0, 1), (0, 1)))
        if not self.frames:
            return x
        start = x[:, :1]
        cache = self.variable("cache", "frames", jnp.zeros, start.shape, x.dtype)
        x = x if first else jnp.concatenate([cache.value, x], axis=1)
        cache.value = x[:, -1:]
        x = time_conv(x, c, "time_conv", (3, 1, 1), 2)
        return jnp.concatenate([start, x], axis=1) if first else x


class Upsample(nn.Module):
    """Double height and width and, with `frames`, the frames behind the first.

    It halves the channels.
    """

    frames: bool

    @nn.compact
    def __call__(self, x: jax.Array, first: bool) -> jax.Array:
        """[b, f, h, w, c] -> [b, f', 2 h, 2 w, c / 2].

        f' is f; with `frames` it is 2 f - 1 of a first chunk, 2 f of others.
        """
        c = x.shape[-1]
        if self.frames:  # the first frame is not read by those behind it
            start, rest = (x[:, :1], x[:, 1:]) if first else (x[:, :0], x)
            rest = CausalConv(2 * c, size=1, name="time_conv")(rest, first)
            rest = rearrange(rest, "b f h w (t c) -> b (f t) h w c", t=2)
            x = jnp.concatenate([start, rest], axis=1)
        x = x.repeat(2, axis=2).repeat(2, axis=3)
        return conv(x, c // 2, "conv")


class Encoder(nn.Module):
    """Frames to the moments of their latents."""

    spec: WanAutoencoderSpec

    @nn.compact
    def __call__(self, x: jax.Array, first: bool) -> jax.Array:
        """[b, f, h, w, c] -> [b, f', h', w', 2 k].

        The first k channels are means, the others log variances.
        """
        spec = self.spec
        x = CausalConv(spec.channels[0], name="conv_in")(x, first)
        for i, channels in enumerate(spec.channels):
            for j in range(spec.blocks):
                x = ResBlock(channels, name=f"level_{i}_block_{j}")(x, first)
            if i < len(spec.channels) - 1:
                halve = Downsample(spec.halves_frames[i], name=f"downsample_{i}")
                x = halve(x, first)
        x = Middle(name="middle")(x, first)
        x = nn.swish(Norm(name="norm_out")(x))
        x = CausalConv(2 * spec.latent_channels, name="conv_out")(x, first)
        return dense(x, x.shape[-1], "quant_conv")


class Decoder(nn.Module):
    """Latents to frames. Level 0 is the lowest resolution, the first that runs."""

    spec: WanAutoencoderSpec

    @nn.compact
    def __call__(self, z: jax.Array, first: bool) -> jax.Array:
        """[b, f', h', w', k] -> [b, f, h, w, c]."""
        spec = self.spec
        z = dense(z, z.shape[-1], "post_quant_conv")
        x = CausalConv(spec.decoder_channels[-1], name="conv_in")(z, first)
        x = Middle(name="middle")(x, first)
        doubles = spec.halves_frames[::-1]
        for i, channels in enumerate(reversed(spec.decoder_channels)):
            for j in range(spec.blocks + 1):
                x = ResBlock(channels, name=f"level_{i}_block_{j}")(x, first)
            if i < len(doubles):
                x = Upsample(doubles[i], name=f"upsample_{i}")(x, first)
        x = nn.swish(Norm(name="norm_out")(x))
        return CausalConv(spec.in_channels, name="conv_out")(x, first)


class WanAutoencoder(nn.Module):
    """Videos to latents and back, in chunks of frames or whole.

    The first chunk of a video has 1 + 4 n frames, or 1 + n latents, and later ones 4 n
    frames, or n latents. Activations have the dtype of the input. Parameters, norms,
    softmax and outputs are float32 or wider.
    """

    spec: WanAutoencoderSpec = WanAutoencoderSpec()

    def setup(self):
        """Make the two networks."""
        self.encoder = Encoder(self.spec)
        self.decoder = Decoder(self.spec)

    def encode(self, video: jax.Array, first: bool = True) -> Posterior:
        """Chunk [b, f, h, w, c] in [-1, 1] -> latents [b, f', h', w', k]."""
        moments = self.encoder(video, first).astype(param_dtype(video))
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return Posterior(mean, jnp.clip(log_variance, -30, 20))

    def decode(self, z: jax.Array, first: bool = True) -> jax.Array:
        """Chunk of latents [b, f', h', w', k] -> frames, around [-1, 1]."""
        return self.decoder(z, first).astype(param_dtype(z))

    def __call__(self, video: jax.Array) -> jax.Array:
        """Return the video of the mean latents."""
        return self.decode(self.encode(video).mean)
