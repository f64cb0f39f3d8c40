"""gif, animated webp and folders of pictures through Pillow.

Any picture becomes RGB uint8 by these rules: turned as its EXIF data says, alpha
composited on black, 16 bits a channel cut to 8, grey repeated, CMYK and palettes
converted.
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

from vdm_jax.video_io.files import IMAGE_SUFFIXES, BadVideo, check_frame, check_length
from vdm_jax.video_io.info import VideoInfo

# What Pillow raises on broken files; its warning on large ones is made an error.
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


UNSUPPORTED_MODES = {"F": "floating-point", "I": "32-bit or signed"}


@contextlib.contextmanager
def _opened(path: Any) -> Iterator[Image.Image]:
    """An image whose size passes; BadVideo for all that Pillow finds wrong in it."""
    if isinstance(path, (str, os.PathLike)) and Path(path).is_fifo():
        raise BadVideo(path, "not a regular file")  # it would be waited for
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what is wrong is raised, too
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
        raise BadVideo(path, _unidentified(path)) from error
    except PILLOW_ERRORS as error:
        if system := getattr(error, "strerror", None):  # its bytes may be sound
            raise BadVideo(path, f"cannot be opened ({system})", False) from error
        raise BadVideo(path, f"damaged or cut off ({error})") from error


def _unidentified(path: str | os.PathLike | IO[bytes]) -> str:
    """Why Pillow finds no picture in a file."""
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
            return f"damaged or cut off: no whole header of {name.lower()}"
    return f"not a picture: no header of {', '.join(FORMATS).lower()}"


def to_rgb(image: Image.Image) -> np.ndarray:
    """Any Pillow image -> uint8 [h, w, 3] by the rules at the top."""
    image = _upright(image)
    if image.mode.startswith("I;16"):
        deep = np.asarray(image)
        shown = (deep >> 8).astype(np.uint8)
        shown[deep == image.info.get("transparency", -1)] = 0
        return np.repeat(shown[..., None], 3, axis=-1)
    if image.has_transparency_data:
        return composite_on_black(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF data says; as it is stored where these are damaged."""
    with warnings.catch_warnings(), contextlib.suppress(*PILLOW_ERRORS):
        warnings.simplefilter("ignore")
        return ImageOps.exif_transpose(image)
    return image


def composite_on_black(pixels: np.ndarray) -> np.ndarray:
    """uint8 [..., 4] -> uint8 [..., 3] as it looks on a black ground."""
    alpha = pixels[..., 3:].astype(np.uint16)
    return ((pixels[..., :3] * alpha + 127) // 255).astype(np.uint8)


def frame_paths(folder: str | os.PathLike) -> list[Path]:
    """The pictures of a folder in natural order: frame2 before frame10."""

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
    """One picture, of a path or of bytes, as uint8 [h, w, 3]. Raises BadVideo."""
    with _opened(path) as image:
        return to_rgb(image)


def index(path: str, kind: str) -> VideoInfo:
    """Index an animated picture or a folder of frames. Raises BadVideo."""
    if kind == "frames":
        return _index_folder(path)
    with _opened(path) as image:
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
    """How long a frame is shown; browsers show those of 10 ms and less for 100."""
    image.seek(number)
    image.load()
    shown = round(image.info.get("duration", 0))
    return shown if shown > 10 else 100


def _check_gif_end(path: str) -> None:
    """Raise BadVideo if a gif ends within one of its blocks: Pillow shows what is left.

    What stands behind the last block is no part of it, the end mark may be missing.
    """

    def skip_colours(flags: int) -> None:
        if flags & 0x80:
            file.seek(6 << (flags & 7), os.SEEK_CUR)

    with open(path, "rb") as file:
        try:
            skip_colours(file.read(13)[10])
            while (mark := file.read(1)) in (b"!", b","):  # an extension, a picture
                if mark == b",":
                    skip_colours(file.read(9)[8])
                file.seek(1, os.SEEK_CUR)
                while length := file.read(1)[0]:
                    file.seek(length, os.SEEK_CUR)
        except IndexError as error:
            raise BadVideo(path, "truncated: a gif that ends within a block") from error


@contextlib.contextmanager
def _naming(folder: str, picture: Path) -> Iterator[None]:
    """Let the reason of a BadVideo say which picture of the folder it is."""
    try:
        yield
    except BadVideo as error:
        reason = f"{picture.name}: {error.reason}"
        raise BadVideo(folder, reason, error.lasting) from error


def _index_folder(path: str) -> VideoInfo:
    paths = frame_paths(path)
    if not paths:
        raise BadVideo(path, "a folder without pictures as frames")
    check_length(path, len(paths))
    with _naming(path, paths[0]), _opened(paths[0]) as image:
        height, width = to_rgb(image).shape[:2]
    pts, every = np.arange(len(paths)), range(len(paths))
    return _info(path, "frames", height, width, pts, None, every)


def _info(path, kind, height, width, pts, time_base, keyframes) -> VideoInfo:
    keys = np.array(keyframes, np.int64)
    return VideoInfo(path, kind, kind, height, width, 0, pts, time_base, keys)


def decode_frames(info: VideoInfo, numbers: Sequence[int]) -> Iterator[np.ndarray]:
    """The frames ``numbers`` (increasing) as uint8 [h, w, 3]. Raises BadVideo."""
    if info.kind == "frames":
        try:
            paths = frame_paths(info.path)
        except OSError as error:
            raise BadVideo(info.path, f"cannot be opened ({error})") from error
        if len(paths) != info.frames:
            raise BadVideo(info.path, f"{len(paths)} frames now, {info.frames} before")
        for number in numbers:
            with _naming(info.path, paths[number]), _opened(paths[number]) as image:
                pixels = to_rgb(image)
            yield _same_size(pixels, info, paths[number].name)
        return
    with _opened(info.path) as image:
        for number in numbers:
            image.seek(number)
            yield _same_size(to_rgb(image), info, f"frame {number}")


def _same_size(pixels: np.ndarray, info: VideoInfo, name: str) -> np.ndarray:
    height, width = pixels.shape[:2]
    if (height, width) != (info.height, info.width):
        raise BadVideo(
            info.path,
            f"{name} is {width}x{height}, the first frame {info.width}x{info.height}",
        )
    return pixels
