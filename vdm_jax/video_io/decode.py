"""Index videos and decode frames by number at a requested size.

These functions run the decoder in this process. For untrusted files use
``sandbox.SandboxedDecoder``, which runs them in a child process with limits.
"""

import os
from collections.abc import Iterator, Sequence

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import Interpolation

from vdm_jax.area_means import area_matrix
from vdm_jax.files import StrPath
from vdm_jax.video_io import containers, images
from vdm_jax.video_io.file_types import BadVideo, check_frame, read_head
from vdm_jax.video_io.info import VideoInfo

Size = tuple[int, int]  # height, width

# With these flags swscale computes area means to 0.5 of 255 without bias. Without them
# colours are one level too dark and edges are wrong by up to 48.
EXACT_SCALING = (
    Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)

FLAT_TOLERANCE = 8  # of 255 levels: the noise of an encoded black frame
LUMA = np.array([0.299, 0.587, 0.114])  # grey from RGB (ITU-R BT.601)


def probe(path: StrPath) -> VideoInfo:
    """Index a video file, an image or a folder of frames. Raises BadVideo."""
    path = os.fspath(path)
    if os.path.isdir(path):
        return images.index_folder(path)
    head = read_head(path)
    if images.ANIMATIONS.match(head):
        return images.index_animation(path)
    is_picture = images.PICTURES.match(head)
    return images.index_picture(path) if is_picture else containers.index(path)


def inspect(path: StrPath) -> VideoInfo:
    """Index a video for training. Raises BadVideo also if all frames are one colour.

    Decoding stops at the first frame with content, which is frame 0 in most files.
    """
    info = probe(path)
    if all(is_flat(frame) for frame in decode_frames(info, size=(32, 32))):
        raise BadVideo(path, "constant: every frame is one flat colour")
    return info


def is_flat(pixels: np.ndarray) -> bool:
    """Return whether each image of uint8 [..., h, w, c] has one colour.

    FLAT_TOLERANCE is the largest difference of a pixel within a channel.
    """
    return bool((np.ptp(pixels, axis=(-3, -2)) <= FLAT_TOLERANCE).all())


def cover_size(height: int, width: int, size: Size | None) -> Size:
    """Return the smallest size of the same aspect that covers ``size`` (h, w).

    size: None keeps the original size.
    """
    if size is None:
        return height, width
    scale = max(size[0] / height, size[1] / width)
    return max(size[0], round(height * scale)), max(size[1], round(width * scale))


def decode_frames(
    info: VideoInfo, numbers: Sequence[int] | None = None, size: Size | None = None
) -> Iterator[np.ndarray]:
    """Yield the frames ``numbers`` (increasing; None: all) resized to cover ``size``.

    Yields uint8 [H, W, 3] with (H, W) = cover_size, rotated for display. Raises
    BadVideo at the first frame that is corrupt or missing.
    """
    numbers = range(info.frames) if numbers is None else numbers
    output = cover_size(info.height, info.width, size)
    check_frame(info.path, *output)  # a narrow video becomes long if it covers a square
    if info.kind in images.KINDS:
        for pixels in images.decode_frames(info, numbers):
            yield _resize_pixels(pixels, output)
        return
    turns = info.rotation // 90 % 4
    stored = output[::-1] if turns % 2 else output
    for frame in containers.decode_frames(info, numbers):
        try:
            pixels = _resize_frame(frame, *stored)
        except FFmpegError as error:  # a colour matrix unknown to swscale
            reason = f"its colours cannot be converted ({error.strerror})"
            raise BadVideo(info.path, reason) from error
        yield np.rot90(pixels[:, ::-1] if info.mirrored else pixels, turns)


def _resize_pixels(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Resize uint8 [h, w, 3] as a frame of a video."""
    if pixels.shape[:2] == size:
        return pixels
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
    return _resize_frame(frame, *size)


def _resize_frame(frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
    """Resize by area means (smaller) or bicubic interpolation (larger), on black."""
    may_have_alpha = any(part.is_alpha for part in frame.format.components)
    if may_have_alpha or frame.format.has_palette:
        pixels = images.composite_on_black(_convert(frame, "rgba"))
        frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
    elif frame.interlaced_frame:  # swscale would resize each field separately
        frame = av.VideoFrame.from_ndarray(_convert(frame, "rgb24"), "rgb24")
    smaller = height * width < frame.height * frame.width
    method = Interpolation.AREA if smaller else Interpolation.BICUBIC
    return _convert(frame, "rgb24", method, height=height, width=width)


def _convert(frame: av.VideoFrame, name: str, method=Interpolation.BICUBIC, **size):
    """Convert a frame to a pixel format, and to a size if height and width are set."""
    exact = method | EXACT_SCALING
    frame = frame.reformat(format=name, interpolation=exact, threads=1, **size)
    return frame.to_ndarray()


def read_frames(
    info: VideoInfo, numbers: Sequence[int], size: Size | None = None
) -> np.ndarray:
    """Read frames by number, in any order and with repeats, as uint8 [f, H, W, 3].

    size: (h, w) that the frames are resized to cover, without a crop. Raises BadVideo.
    """
    unique, inverse = np.unique(np.asarray(numbers, np.int64), return_inverse=True)
    return np.stack(list(decode_frames(info, unique.tolist(), size)))[inverse]


def read_image(path: StrPath, size: Size) -> tuple[np.ndarray, Size]:
    """Read an image as a video of one frame uint8 [1, h, w, 3].

    The image is resized to cover ``size`` (h, w) and center-cropped. Returns the video
    and the original (h, w). Raises BadVideo.
    """
    pixels = images.read_image(path)
    height, width = pixels.shape[:2]
    cover = cover_size(height, width, size)
    check_frame(path, *cover)
    return crop(_resize_pixels(pixels, cover)[None], size), (height, width)


def decode_previews(
    info: VideoInfo, size: Size, previews: int
) -> tuple[np.ndarray, bool]:
    """Decode a whole video; return some frames and whether anything moves.

    Returns ``previews`` evenly spaced frames uint8 [previews, h, w, 3], and whether
    some pixel ever differs from its first value by more than FLAT_TOLERANCE. Raises
    BadVideo if a frame does not decode.
    """
    numbers = np.round(np.linspace(0, info.frames - 1, previews)).astype(int)
    first = None
    selected = {}
    moves = False
    for number, frame in enumerate(decode_frames(info, size=size)):
        first = frame.astype(np.int16) if first is None else first
        moves = moves or bool(np.abs(frame - first).max() > FLAT_TOLERANCE)
        if number in numbers:
            selected[number] = frame
    return crop(np.stack([selected[number] for number in numbers]), size), moves


def resize(video: np.ndarray, size: Size) -> np.ndarray:
    """Resize uint8 [f, h, w, c] to the smallest size of its aspect that covers `size`.

    Each new pixel is the exact mean over its area. A larger size repeats pixels.
    """
    old = video.shape[1:3]
    new = cover_size(old[0], old[1], size)
    if new == old:
        return video
    down, across = map(area_matrix, old, new)
    resized = np.einsum("Hh,fhwc,Ww->fHWc", down, video, across, optimize=True)
    return np.rint(resized).astype(np.uint8)


def crop(
    video: np.ndarray, size: Size, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Crop [f, H, W, c] to ``size`` (h, w): the center, or a random crop with rng."""
    extra_h, extra_w = video.shape[1] - size[0], video.shape[2] - size[1]
    top, left = extra_h // 2, extra_w // 2
    if rng is not None:
        top, left = int(rng.integers(extra_h + 1)), int(rng.integers(extra_w + 1))
    return video[:, top : top + size[0], left : left + size[1]]


def to_gray(video: np.ndarray) -> np.ndarray:
    """Convert RGB uint8 [..., 3] to grey uint8 [..., 1]."""
    return np.rint(video @ LUMA).astype(np.uint8)[..., None]
