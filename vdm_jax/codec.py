"""What is diffused instead of pixels: codecs, from videos to z and back.

A codec is one frozen dataclass and a row of CODECS. Videos are [b, f, h, w, c] in
[-1, 1]; z is [b, f, h', w', c'] of another size and number of channels.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from vdm_jax.diffusion.schedules import array_namespace
from vdm_jax.errors import UserError

Shape = tuple[int, int, int, int]  # (frames, height, width, channels)


@dataclasses.dataclass(frozen=True)
class Codec:
    """The identity, and the interface of the others.

    limit: the largest |z| of any video in [-1, 1], by which the predicted z is clipped;
      None where there is none.
    """

    limit: float | None = 1.0

    def z_shape(self, video_shape: Shape) -> Shape:
        """Return the shape of z for a video of this shape."""
        return video_shape

    def encode(self, video: Any) -> Any:
        """Return z of videos."""
        return video

    def decode(self, z: Any) -> Any:
        """Return the videos of z."""
        return z

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

    def encode(self, video: Any) -> Any:
        """Mean and differences of each patch, times 2."""
        b, f, h, w, c = video.shape
        pixels = video.reshape(b, f, h // 2, 2, w // 2, 2, c)
        z = _einsum("bfyixjc,ijk->bfyxkc", pixels)
        return z.reshape(b, f, h // 2, w // 2, 4 * c)

    def decode(self, z: Any) -> Any:
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


CODECS: dict[str, Callable[[], Codec]] = {"identity": Codec, "patch": Patch}


def from_config(config: Any) -> Codec:
    """Return the codec of a config; the identity for a config without the section."""
    return CODECS[config.codec.kind if "codec" in config else "identity"]()
