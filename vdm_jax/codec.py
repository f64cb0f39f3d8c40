"""What is diffused instead of pixels: codecs, from videos to z and back.

A codec is one frozen dataclass and a row of CODECS. Videos are [b, f, h, w, c] in
[-1, 1]; z is [b, f, h', w', c'] of another size and number of channels.

Parameters of a codec do not train. They are an argument of its methods: the loss reads
aux_params["codec"], and sampling params["codec"].
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vdm_jax import causal_latents, latents
from vdm_jax.causal_latents import CausalAutoencoder
from vdm_jax.diffusion.schedules import array_namespace
from vdm_jax.errors import UserError, check_multiple
from vdm_jax.latents import Autoencoder
from vdm_jax.networks.autoencoder import check as check_size
from vdm_jax.networks.wan_autoencoder import check as check_video

Shape = tuple[int, int, int, int]  # (frames, height, width, channels)


@dataclasses.dataclass(frozen=True)
class Codec:
    """The identity, and the interface of the others.

    limit: the largest |z| of any video in [-1, 1], by which the predicted z is clipped;
      None where there is none.
    """

    limit: float | None = 1.0

    @property
    def frame_factor(self) -> int:
        """Frames of the video that a frame of z is made of; the first is of one."""
        return 1

    def whole_frames(self, frames: int) -> int:
        """Return the most frames, of so many, that whole frames of z are made of."""
        return frames - (frames - 1) % self.frame_factor

    def z_shape(self, video_shape: Shape) -> Shape:
        """Return the shape of z for a video of this shape."""
        return video_shape

    def load_params(self) -> dict[str, Any]:
        """Return its parameters; empty where it has none."""
        return {}

    def param_shapes(self) -> dict[str, Any]:
        """Return the shapes of its parameters, without reading them."""
        return {}

    def fingerprint(self) -> str:
        """Return a hash of its files; "" where it has none."""
        return ""

    def encode(self, video: Any, params: Any = None, key: Any = None) -> Any:
        """Return z of videos.

        key: of a draw, where a video has a distribution of z; None for its mean.
        """
        return video

    def decode(self, z: Any, params: Any = None) -> Any:
        """Return the videos of z."""
        return z

    def encode_on_host(self, videos: np.ndarray, params: Any = None) -> np.ndarray:
        """Return z of host arrays as host arrays."""
        return np.asarray(self.encode(videos, params))

    def moments_on_host(self, videos: np.ndarray, params: Any = None) -> np.ndarray:
        """Return mean and deviation of z, [b, f, h', w', 2 k], of host arrays."""
        z = self.encode_on_host(videos, params)
        return np.concatenate([z, np.zeros_like(z)], axis=-1)

    def decode_on_host(self, z: np.ndarray, params: Any = None) -> np.ndarray:
        """Return the videos of z as host arrays, decoded one by one."""
        decode = jax.jit(self.decode)
        return np.concatenate([np.asarray(decode(one[None], params)) for one in z])

    def encode_mask(self, mask: Any) -> Any:
        """Return where z is known, bool [b, f, h', w', 1], from a mask of pixels.

        mask: bool [b, f, h, w, 1]. A part of z is known where all of its pixels are.
        """
        return mask


@dataclasses.dataclass(frozen=True)
class Patch(Codec):
    """Orthogonal transform of 2 x 2 pixels: their mean and three differences.

    z has half the height and width and four times the channels, and the same norm. It
    is Haar's wavelet transform, one level.
    """

    limit: float | None = 2.0

    def z_shape(self, video_shape: Shape) -> Shape:
        """Half the height and width, four times the channels."""
        frames, height, width, channels = video_shape
        if height % 2 or width % 2:
            raise UserError(
                f"config.codec.kind='patch' needs an even height and width, not "
                f"{height}x{width}"
            )
        return frames, height // 2, width // 2, 4 * channels

    def encode(self, video: Any, params: Any = None, key: Any = None) -> Any:
        """Mean and differences of each patch, times 2."""
        b, f, h, w, c = video.shape
        pixels = video.reshape(b, f, h // 2, 2, w // 2, 2, c)
        z = _einsum("bfyixjc,ijk->bfyxkc", pixels)
        return z.reshape(b, f, h // 2, w // 2, 4 * c)

    def decode(self, z: Any, params: Any = None) -> Any:
        """The transposed transform, which is its inverse."""
        b, f, h, w, c = z.shape
        parts = z.reshape(b, f, h, w, 4, c // 4)
        video = _einsum("bfyxkc,ijk->bfyixjc", parts)
        return video.reshape(b, f, 2 * h, 2 * w, c // 4)

    def encode_mask(self, mask: Any) -> Any:
        """Whether all four pixels are known."""
        b, f, h, w, c = mask.shape
        return mask.reshape(b, f, h // 2, 2, w // 2, 2, c).all((3, 5))


def _einsum(rule: str, x: Any) -> Any:
    """Multiply by the orthogonal transform [2, 2, 4]: row, column, coefficient."""
    one = np.array([[1, 1], [1, -1]]) / 2**0.5
    haar = np.einsum("ip,jq->ijpq", one, one).reshape(2, 2, 4).astype(x.dtype)
    return array_namespace(x).einsum(rule, x, haar)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderCodec(Codec):
    """Latents of an autoencoder in a folder, shifted and scaled as its config says.

    path: of the folder, which has the parameters.
    """

    limit: float | None = None
    path: str
    autoencoder: Any

    def check_channels(self, channels: int) -> None:
        """Raise UserError for videos of other channels than the autoencoder's."""
        if channels != (own := self.autoencoder.network.spec.in_channels):
            raise UserError(
                f"the autoencoder {self.path} is for videos of {own} channels, not "
                f"{channels}"
            )

    def fingerprint(self) -> str:
        """Return a hash of the config and the tensors in its folder."""
        return latents.fingerprint(Path(self.path))

    def encode(self, video: Any, params: Any = None, key: Any = None) -> Any:
        """Return means or draws, scaled; a few frames are in memory at a time."""
        return self.autoencoder.encode(params, video, key)

    def decode(self, z: Any, params: Any = None) -> Any:
        """Return the videos; a few frames are in memory at a time."""
        return self.autoencoder.decode(params, z)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latents(AutoencoderCodec):
    """Latents of each frame."""

    autoencoder: Autoencoder

    def z_shape(self, video_shape: Shape) -> Shape:
        """The height and width over the factor; the channels of the latents."""
        spec = self.autoencoder.network.spec
        frames, height, width, channels = video_shape
        check_size(spec, height, width)
        self.check_channels(channels)
        size = height // spec.factor, width // spec.factor
        return frames, *size, spec.latent_channels

    def load_params(self) -> dict[str, Any]:
        """Return the parameters of the network, from its folder."""
        return latents.read_params(self.autoencoder, Path(self.path))

    def param_shapes(self) -> dict[str, Any]:
        """Return the shapes of the network's parameters."""
        return latents.param_shapes(self.autoencoder)

    def encode_on_host(self, videos: np.ndarray, params: Any = None) -> np.ndarray:
        """Encode chunks of frames by one compiled program."""
        return _by_frames(self.autoencoder.stream_encode, params, videos)

    def moments_on_host(self, videos: np.ndarray, params: Any = None) -> np.ndarray:
        """Return mean and deviation of z, [b, f, h', w', 2 k], by the same program."""
        return _by_frames(self.autoencoder.stream_moments, params, videos)

    def decode_on_host(self, z: np.ndarray, params: Any = None) -> np.ndarray:
        """Decode chunks of frames by one compiled program."""
        return _by_frames(self.autoencoder.stream_decode, params, z)

    def with_chunk(self, frames: int) -> "Latents":
        """Return the codec that encodes and decodes so many frames at a time."""
        autoencoder = dataclasses.replace(self.autoencoder, chunk=frames)
        return dataclasses.replace(self, autoencoder=autoencoder)

    def encode_mask(self, mask: Any) -> Any:
        """Whether all pixels of a latent are known."""
        b, f, h, w, c = mask.shape
        n = self.autoencoder.network.spec.factor
        return mask.reshape(b, f, h // n, n, w // n, n, c).all((3, 5))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLatents(AutoencoderCodec):
    """Latents of a causal autoencoder: 1 + 4 n frames are 1 + n of z, as Wan's."""

    autoencoder: CausalAutoencoder

    @property
    def frame_factor(self) -> int:
        """Frames of a latent behind the first."""
        return self.autoencoder.network.spec.frame_factor

    def z_shape(self, video_shape: Shape) -> Shape:
        """Return the frames, height and width over their factors, and the channels."""
        spec = self.autoencoder.network.spec
        frames, height, width, channels = video_shape
        check_video(spec, frames, height, width)
        self.check_channels(channels)
        frames = 1 + (frames - 1) // spec.frame_factor
        size = height // spec.factor, width // spec.factor
        return frames, *size, spec.latent_channels

    def load_params(self) -> dict[str, Any]:
        """Return the parameters of the network, from its folder."""
        return causal_latents.read_params(self.autoencoder, Path(self.path))

    def param_shapes(self) -> dict[str, Any]:
        """Return the shapes of the network's parameters."""
        return causal_latents.param_shapes(self.autoencoder)

    def encode_on_host(self, videos: np.ndarray, params: Any = None) -> np.ndarray:
        """Encode videos one by one, by one compiled program."""
        return np.split(self.moments_on_host(videos, params), 2, axis=-1)[0]

    def moments_on_host(self, videos: np.ndarray, params: Any = None) -> np.ndarray:
        """Return mean and deviation of z of videos, one by one."""
        moments = jax.jit(self.autoencoder.moments)
        return _by_videos(moments, params, videos, "encoder")

    def decode_on_host(self, z: np.ndarray, params: Any = None) -> np.ndarray:
        """Decode videos one by one, by one compiled program."""
        return _by_videos(jax.jit(self.autoencoder.decode), params, z, "decoder")

    def encode_mask(self, mask: Any) -> Any:
        """Whether all pixels of all frames of a latent are known."""
        b, _, h, w, c = mask.shape
        spec = self.autoencoder.network.spec
        n, m = spec.factor, spec.frame_factor
        known = mask.reshape(b, -1, h // n, n, w // n, n, c).all((3, 5))
        later = known[:, 1:].reshape(b, -1, m, *known.shape[2:]).all(2)
        return array_namespace(mask).concatenate([known[:, :1], later], 1)


def _by_videos(fn: Callable, params: Any, videos: np.ndarray, part: str) -> np.ndarray:
    """Return fn(params, video) of each video as host arrays, checked to be finite."""
    results = []
    for video in videos:
        results.append(np.asarray(fn(params, video[None])))
        latents.check_finite(results[-1][0], part)
    return np.concatenate(results)


def _by_frames(stream: Callable, params: Any, videos: np.ndarray) -> np.ndarray:
    """Return videos [b, f, ...] whose frames went through a stream."""
    frames = np.concatenate(list(stream(params, videos.reshape(-1, *videos.shape[2:]))))
    return frames.reshape(*videos.shape[:2], *frames.shape[1:])


def _folder_of(section: Any) -> Path:
    """Return the folder that a section names; UserError if there is none."""
    if not section.path:
        raise UserError(
            f"config.codec.kind={section.kind!r} needs config.codec.path, the folder "
            "of an autoencoder"
        )
    folder = Path(section.path)
    if not folder.is_dir():
        raise UserError(
            f"config.codec.path={section.path}: no such folder: train an autoencoder "
            "(configs/autoencoder.py), or give the folder vae of diffusers"
        )
    return folder


def _autoencoder_from_config(section: Any) -> Latents:
    folder = _folder_of(section)
    autoencoder = latents.read_config(folder)
    check_multiple(
        "config.codec.tile", section.tile, autoencoder.tile_unit,
        "a quarter of it is the overlap of two tiles, in whole latents",
    )  # fmt: skip
    autoencoder = dataclasses.replace(autoencoder, tile=section.tile)
    return Latents(path=section.path, autoencoder=autoencoder)


def _causal_from_config(section: Any) -> CausalLatents:
    autoencoder = causal_latents.read_config(_folder_of(section))
    return CausalLatents(path=section.path, autoencoder=autoencoder)


# config.codec.kind -> the codec of that section.
CODECS: dict[str, Callable[[Any], Codec]] = {
    "identity": lambda section: Codec(),
    "patch": lambda section: Patch(),
    "autoencoder": _autoencoder_from_config,
    "causal_autoencoder": _causal_from_config,
}


def from_config(config: Any) -> Codec:
    """Return the codec of a config; the identity for a config without the section.

    Raises:
      UserError: the folder of an autoencoder is missing or damaged.
    """
    if "codec" not in config:
        return Codec()
    kind, tile = config.codec.kind, config.codec.tile
    if tile and kind != "autoencoder":
        raise UserError(
            f"config.codec.tile={tile}: kind={kind!r} has no tiles; set it to 0, or "
            "kind to 'autoencoder'"
        )
    return CODECS[kind](config.codec)
