"""Read gif, animated webp, images and folders of images with Pillow.

Every image is converted to RGB uint8: the EXIF rotation is applied, alpha is composited
on black, 16 bits per channel are truncated to 8, grey is repeated, CMYK and palettes
are converted.
"""

import contextlib
import os
import re
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vdm_jax.video_io.file_types import (
    IMAGE_SUFFIXES,
    BadVideo,
    check_frame,
    check_length,
    read_head,
)
from vdm_jax.video_io.info import VideoInfo

# Raised by Pillow for corrupt files. Its warning about large images becomes an error.
PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, IndexError, EOFError, struct.error,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip

KINDS = {"gif", "webp", "picture", "frames"}
FORMATS = ["GIF", "WEBP", "PNG", "JPEG", "BMP", "TIFF"]
ANIMATIONS = re.compile(rb"GIF8|RIFF....WEBP", re.DOTALL)  # how a file starts
PICTURES = re.compile(rb"\x89PNG|\xff\xd8\xff|BM|II\*\0|MM\0\*")


@contextlib.contextmanager
def _open(path: Any) -> Iterator[Image.Image]:
    """Open an image below the size limit. Raises BadVideo for all errors of Pillow."""
    try:
        if isinstance(path, (str, os.PathLike)):
            read_head(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an exception follows
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
        with image:
            check_frame(path, image.height, image.width)
            if image.mode in ("F", "I"):
                reason = "32-bit or floating-point pixels, whose range is not stated"
                raise BadVideo(path, reason)
            yield image
    except UnidentifiedImageError as error:
        raise BadVideo(path, "not an image, or truncated: no header") from error
    except PILLOW_ERRORS as error:
        if system := getattr(error, "strerror", None):  # the file may be intact
            raise BadVideo(path, f"cannot be opened ({system})", False) from error
        raise BadVideo(path, f"corrupt or truncated ({error})") from error


def to_rgb(image: Image.Image) -> np.ndarray:
    """Convert a Pillow image to uint8 [h, w, 3] by the rules of this module."""
    with warnings.catch_warnings(), contextlib.suppress(*PILLOW_ERRORS):
        warnings.simplefilter("ignore")  # corrupt EXIF data are ignored
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        gray16 = np.asarray(image)
        gray = (gray16 >> 8).astype(np.uint8)
        gray[gray16 == image.info.get("transparency", -1)] = 0
        return np.repeat(gray[..., None], 3, axis=-1)
    if image.has_transparency_data:
        return composite_on_black(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def composite_on_black(pixels: np.ndarray) -> np.ndarray:
    """Composite RGBA uint8 [..., 4] on black: uint8 [..., 3]."""
    alpha = pixels[..., 3:].astype(np.uint16)
    return ((pixels[..., :3] * alpha + 127) // 255).astype(np.uint8)


def _frame_paths(folder: str) -> list[Path]:
    """Return the images of a folder in natural order: frame2 before frame10."""

    def natural(path: Path) -> list[str | int]:
        parts = re.split(r"(\d+)", path.name.lower())  # text and digits in turn
        return [int(part) if part.isdecimal() else part for part in parts]

    try:
        paths = [p for p in Path(folder).iterdir() if not p.name.startswith(".")]
    except OSError as error:
        reason = f"cannot be opened ({error.strerror})"
        raise BadVideo(folder, reason, lasting=False) from error
    images = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    return sorted(images, key=natural)


def read_image(path: str | os.PathLike | IO[bytes]) -> np.ndarray:
    """Read one image from a path or a stream as uint8 [h, w, 3]. Raises BadVideo."""
    with _open(path) as image:
        return to_rgb(image)


def index_animation(path: str) -> VideoInfo:
    """Index a gif or a webp. Raises BadVideo."""
    with _open(path) as image:
        kind = (image.format or "").lower()
        frames = getattr(image, "n_frames", 1)
        check_length(path, frames)
        durations = [_milliseconds(image, number) for number in range(frames - 1)]
        pts = np.cumsum([0, *durations])
        check_length(path, frames, float(pts[-1]) / 1000)
        height, width = to_rgb(image).shape[:2]
    return VideoInfo(path, kind, kind, height, width, 0, pts, 1e-3, np.zeros(1, int))


def index_picture(path: str) -> VideoInfo:
    """Index an image as a video of one frame, its first. Raises BadVideo."""
    with _open(path) as image:
        height, width = to_rgb(image).shape[:2]
        codec = (image.format or "").lower()
    zero = np.zeros(1, int)
    return VideoInfo(path, "picture", codec, height, width, 0, zero, None, zero)


def _milliseconds(image: Image.Image, number: int) -> int:
    """Return the duration of a frame. Like browsers, 10 ms and less count as 100 ms."""
    image.seek(number)
    image.load()
    duration = round(image.info.get("duration", 0))
    return duration if duration > 10 else 100


def index_folder(path: str) -> VideoInfo:
    """Index a folder of frames. Raises BadVideo."""
    paths = _frame_paths(path)
    if not paths:
        raise BadVideo(path, "a folder without images")
    check_length(path, len(paths))
    height, width = _read_frame(path, paths[0]).shape[:2]
    every = np.arange(len(paths))
    return VideoInfo(path, "frames", "frames", height, width, 0, every, None, every)


def _read_frame(folder: str, path: Path) -> np.ndarray:
    """Read an image of a folder. Raises BadVideo of the folder."""
    try:
        return read_image(path)
    except BadVideo as error:
        reason = f"{path.name}: {error.reason}"
        raise BadVideo(folder, reason, error.lasting) from error


def decode_frames(info: VideoInfo, numbers: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield the frames ``numbers`` (increasing) as uint8 [h, w, 3]. Raises BadVideo."""
    if info.kind == "frames":
        paths = _frame_paths(info.path)
        if len(paths) != info.frames:
            raise BadVideo(info.path, f"{len(paths)} frames now, {info.frames} before")
        for number in numbers:
            path = paths[number]
            yield _check_size(_read_frame(info.path, path), info, path.name)
        return
    with _open(info.path) as image:
        for number in numbers:
            image.seek(number)
            yield _check_size(to_rgb(image), info, f"frame {number}")


def _check_size(pixels: np.ndarray, info: VideoInfo, name: str) -> np.ndarray:
    """Return a frame. Raises BadVideo if its size is not the one of the index."""
    height, width = pixels.shape[:2]
    if (height, width) != (info.height, info.width):
        first = f"the first frame {info.width}x{info.height}"
        raise BadVideo(info.path, f"{name} is {width}x{height}, {first}")
    return pixels
