"""Read gif, animated webp and folders of images with Pillow.

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
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vdm_jax.video_io.file_types import (
    IMAGE_SUFFIXES,
    BadVideo,
    check_frame,
    check_length,
)
from vdm_jax.video_io.info import VideoInfo

# Raised by Pillow for corrupt files. Its warning about large images becomes an error.
PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

FORMATS = ["GIF", "WEBP", "PNG", "JPEG", "BMP", "TIFF"]
# Modes without a stated range of values.
UNSUPPORTED_MODES = {"F": "floating-point", "I": "32-bit or signed"}


@contextlib.contextmanager
def _open(path: Any) -> Iterator[Image.Image]:
    """Open an image below the size limit. Raises BadVideo for all errors of Pillow."""
    if isinstance(path, (str, os.PathLike)) and Path(path).is_fifo():
        raise BadVideo(path, "not a regular file")  # reading from a pipe would block
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an exception follows
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
        with image:
            check_frame(path, image.height, image.width)
            if image.mode in UNSUPPORTED_MODES:
                reason = (
                    f"{UNSUPPORTED_MODES[image.mode]} pixels, whose range is not stated"
                )
                raise BadVideo(path, reason)
            yield image
    except UnidentifiedImageError as error:
        raise BadVideo(path, _why_unidentified(path)) from error
    except PILLOW_ERRORS as error:
        if system := getattr(error, "strerror", None):  # the file may be intact
            raise BadVideo(path, f"cannot be opened ({system})", False) from error
        raise BadVideo(path, f"corrupt or truncated ({error})") from error


def _why_unidentified(path: str | os.PathLike | IO[bytes]) -> str:
    """Return why Pillow finds no image in a file."""
    if isinstance(path, (str, os.PathLike)):
        with open(path, "rb") as file:
            head = file.read(16)
    else:
        path.seek(0)
        head = path.read(16)
    if not head:
        return "empty file"
    for name in FORMATS:
        accepts = Image.OPEN[name][1]
        if accepts and accepts(head):
            return f"corrupt or truncated: incomplete header of {name.lower()}"
    return f"not an image: no header of {', '.join(FORMATS).lower()}"


def to_rgb(image: Image.Image) -> np.ndarray:
    """Convert a Pillow image to uint8 [h, w, 3] by the rules of this module."""
    image = _apply_exif_rotation(image)
    if image.mode.startswith("I;16"):
        gray16 = np.asarray(image)
        gray = (gray16 >> 8).astype(np.uint8)
        gray[gray16 == image.info.get("transparency", -1)] = 0
        return np.repeat(gray[..., None], 3, axis=-1)
    if image.has_transparency_data:
        return composite_on_black(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def _apply_exif_rotation(image: Image.Image) -> Image.Image:
    """Rotate an image as its EXIF data states. Corrupt EXIF data are ignored."""
    with warnings.catch_warnings(), contextlib.suppress(*PILLOW_ERRORS):
        warnings.simplefilter("ignore")
        return ImageOps.exif_transpose(image)
    return image


def composite_on_black(pixels: np.ndarray) -> np.ndarray:
    """Composite RGBA uint8 [..., 4] on black: uint8 [..., 3]."""
    alpha = pixels[..., 3:].astype(np.uint16)
    return ((pixels[..., :3] * alpha + 127) // 255).astype(np.uint8)


def frame_paths(folder: str | os.PathLike) -> list[Path]:
    """Return the images of a folder in natural order: frame2 before frame10."""

    def natural(path: Path) -> list[tuple[int, int, str]]:
        parts = re.split(r"(\d+)", path.name.lower())
        return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts]

    return sorted(
        (
            path
            for path in Path(folder).iterdir()
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
        ),
        key=natural,
    )


def read_image(path: str | os.PathLike | IO[bytes]) -> np.ndarray:
    """Read one image from a path or a stream as uint8 [h, w, 3]. Raises BadVideo."""
    with _open(path) as image:
        return to_rgb(image)


def index(path: str, kind: str) -> VideoInfo:
    """Index an animated image or a folder of frames. Raises BadVideo."""
    if kind == "frames":
        return _index_folder(path)
    with _open(path) as image:
        if kind == "gif":
            _check_gif_end(path)
        frames = getattr(image, "n_frames", 1)
        check_length(path, frames)
        pts = np.zeros(frames, np.int64)  # milliseconds
        for number in range(1, frames):
            pts[number] = pts[number - 1] + _milliseconds(image, number - 1)
        check_length(path, frames, float(pts[-1]) / 1000)
        height, width = to_rgb(image).shape[:2]
    return _info(path, kind, height, width, pts, Fraction(1, 1000), [0])


def _milliseconds(image: Image.Image, number: int) -> int:
    """Return the duration of a frame. Like browsers, 10 ms and less count as 100 ms."""
    image.seek(number)
    image.load()
    duration = round(image.info.get("duration", 0))
    return duration if duration > 10 else 100


def _check_gif_end(path: str) -> None:
    """Raise BadVideo if a gif ends inside a block, which Pillow accepts.

    The trailer may be missing, and bytes after the last block are ignored.
    """

    def skip_color_table(flags: int) -> None:
        if flags & 0x80:
            file.seek(6 << (flags & 7), os.SEEK_CUR)

    with open(path, "rb") as file:
        try:
            skip_color_table(file.read(13)[10])
            while (mark := file.read(1)) in (b"!", b","):  # an extension, an image
                if mark == b",":
                    skip_color_table(file.read(9)[8])
                file.seek(1, os.SEEK_CUR)
                while length := file.read(1)[0]:
                    file.seek(length, os.SEEK_CUR)
        except IndexError as error:
            raise BadVideo(path, "truncated: a gif that ends inside a block") from error


@contextlib.contextmanager
def _name_in_reason(folder: str, image: Path) -> Iterator[None]:
    """Add the name of an image of the folder to the reason of a BadVideo."""
    try:
        yield
    except BadVideo as error:
        reason = f"{image.name}: {error.reason}"
        raise BadVideo(folder, reason, error.lasting) from error


def _index_folder(path: str) -> VideoInfo:
    paths = frame_paths(path)
    if not paths:
        raise BadVideo(path, "a folder without images")
    check_length(path, len(paths))
    with _name_in_reason(path, paths[0]), _open(paths[0]) as image:
        height, width = to_rgb(image).shape[:2]
    pts, every = np.arange(len(paths)), range(len(paths))
    return _info(path, "frames", height, width, pts, None, every)


def _info(path, kind, height, width, pts, time_base, keyframes) -> VideoInfo:
    keys = np.array(keyframes, np.int64)
    return VideoInfo(path, kind, kind, height, width, 0, pts, time_base, keys)


def decode_frames(info: VideoInfo, numbers: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield the frames ``numbers`` (increasing) as uint8 [h, w, 3]. Raises BadVideo."""
    if info.kind == "frames":
        try:
            paths = frame_paths(info.path)
        except OSError as error:
            raise BadVideo(info.path, f"cannot be opened ({error})") from error
        if len(paths) != info.frames:
            raise BadVideo(info.path, f"{len(paths)} frames now, {info.frames} before")
        for number in numbers:
            path = paths[number]
            with _name_in_reason(info.path, path), _open(path) as image:
                pixels = to_rgb(image)
            yield _check_size(pixels, info, path.name)
        return
    with _open(info.path) as image:
        for number in numbers:
            image.seek(number)
            yield _check_size(to_rgb(image), info, f"frame {number}")


def _check_size(pixels: np.ndarray, info: VideoInfo, name: str) -> np.ndarray:
    """Return a frame. Raises BadVideo if its size is not the one of the index."""
    height, width = pixels.shape[:2]
    if (height, width) != (info.height, info.width):
        raise BadVideo(
            info.path,
            f"{name} is {width}x{height}, the first frame {info.width}x{info.height}",
        )
    return pixels
