"""Videos in: an index, then any frames by number, at the size that is wanted.

``probe`` and ``read_frames`` run the decoder in this process. What trains on files of
unknown make uses ``guard.Guard``, which runs the same two in a child with limits.
"""

import functools
import os
from collections.abc import Iterator, Sequence

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import Interpolation

from vdm_jax.video_io import containers, stills
from vdm_jax.video_io.files import BadVideo, check_frame, detect_kind
from vdm_jax.video_io.info import VideoInfo, clip_frames, num_starts

# swscale with these flags is an area mean to .5 of 255 and without bias; without them
# colours come out one level dark and edges wrong by up to 48.
EXACT_SCALING = (
    Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)

FLAT_TOLERANCE = 8  # of 255 levels: the noise of a coded black frame


def probe(path: str | os.PathLike) -> VideoInfo:
    """Index a video file or a folder of frames. Raises BadVideo with the reason."""
    path = os.fspath(path)
    found = detect_kind(path)
    module = containers if found in containers.DEMUXERS else stills
    return module.index(path, found)


def inspect(path: str | os.PathLike) -> VideoInfo:
    """Probe a video that is to be learned from: BadVideo too if nothing is in it.

    Most files show content in their first frame and cost no more than that.
    """
    info = probe(path)
    if all(is_flat(frame) for frame in frames(info, size=(32, 32))):
        raise BadVideo(path, "constant: every frame is one flat colour")
    return info


def is_flat(pixels: np.ndarray) -> bool:
    """Whether every picture of uint8 [..., h, w, c] is one colour, within FLAT."""
    return bool((np.ptp(pixels, axis=(-3, -2)) <= FLAT_TOLERANCE).all())


def cover_size(
    height: int, width: int, size: tuple[int, int] | None
) -> tuple[int, int]:
    """The smallest size of the same shape that covers ``size``; None keeps its own."""
    if size is None:
        return height, width
    scale = max(size[0] / height, size[1] / width)
    return max(size[0], round(height * scale)), max(size[1], round(width * scale))


def frames(
    info: VideoInfo,
    numbers: Sequence[int] | None = None,
    size: tuple[int, int] | None = None,
) -> Iterator[np.ndarray]:
    """Decode frames ``numbers`` (increasing; None: all) resized to cover ``size``.

    Gives uint8 [H, W, 3] of cover_size, upright. Raises BadVideo at the first frame
    that is damaged or missing.
    """
    numbers = range(info.frames) if numbers is None else numbers
    shown = cover_size(info.height, info.width, size)
    check_frame(info.path, *shown)  # a thin strip that covers a square is long
    if info.kind in containers.DEMUXERS:
        turns = info.rotation // 90 % 4
        stored = shown[::-1] if turns % 2 else shown
        for frame in containers.decode_frames(info, numbers):
            try:
                pixels = _resized(frame, *stored)
            except FFmpegError as error:  # a colour matrix that swscale does not know
                reason = f"its colours cannot be converted ({error.strerror})"
                raise BadVideo(info.path, reason) from error
            yield np.rot90(pixels[:, ::-1] if info.mirrored else pixels, turns)
    else:
        for pixels in stills.decode_frames(info, numbers):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            yield _resized(frame, *shown) if pixels.shape[:2] != shown else pixels


def _resized(frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
    """An area mean when shrinking (no aliasing), bicubic when enlarging; on black."""
    if _may_be_clear(frame.format.name):
        pixels = stills.composite_on_black(_converted(frame, "rgba"))
        frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
    elif frame.interlaced_frame:  # swscale would shrink each of its fields by itself
        frame = av.VideoFrame.from_ndarray(_converted(frame, "rgb24"), "rgb24")
    shrinks = height * width < frame.height * frame.width
    method = Interpolation.AREA if shrinks else Interpolation.BICUBIC
    return _converted(frame, "rgb24", method, height=height, width=width)


@functools.cache
def _may_be_clear(name: str) -> bool:
    """Whether pixels of this format have an alpha of their own."""
    form = av.VideoFormat(name)
    return form.has_palette or any(part.is_alpha for part in form.components)


def _converted(
    frame: av.VideoFrame, form: str, method=Interpolation.BICUBIC, **size: int
) -> np.ndarray:
    converted = frame.reformat(
        format=form, interpolation=method | EXACT_SCALING, threads=1, **size
    )
    return converted.to_ndarray()


def read_frames(
    info: VideoInfo, numbers: Sequence[int], size: tuple[int, int] | None = None
) -> np.ndarray:
    """Frames by number, in any order and with repeats, as uint8 [f, H, W, 3].

    ``size`` (h, w): shrunk or enlarged to cover it, not cropped. Raises BadVideo.
    """
    unique, places = np.unique(np.asarray(numbers, np.int64), return_inverse=True)
    if len(unique) == 0 or unique[0] < 0 or unique[-1] >= info.frames:
        raise ValueError(f"frames {unique[:1]}..{unique[-1:]} of {info.frames}")
    return np.stack(list(frames(info, unique.tolist(), size)))[places]


def read_image(
    path: str | os.PathLike, size: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """A png, jpg or webp as a video of one frame, uint8 [1, h, w, 3]; its own (h, w).

    Resized to cover ``size`` (h, w) and cut to its middle, as `read` does. Raises
    BadVideo.
    """
    pixels = stills.read_image(path)
    height, width = pixels.shape[:2]
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
    cover = cover_size(height, width, size)
    check_frame(path, *cover)
    return crop(_resized(frame, *cover)[None], size), (height, width)


def decode_previews(
    info: VideoInfo, size: tuple[int, int], previews: int
) -> tuple[np.ndarray, bool]:
    """Decode all of a video, keep little: is it whole, and does anything move?

    Returns ``previews`` frames spread evenly, uint8 [previews, h, w, 3], and whether
    some pixel ever leaves its first value by more than FLAT. Raises BadVideo.
    """
    wanted = np.round(np.linspace(0, info.frames - 1, previews)).astype(int)
    first, kept, moves = None, {}, False
    for number, frame in enumerate(frames(info, size=size)):
        first = frame.astype(np.int16) if first is None else first
        moves = moves or bool(np.abs(frame - first).max() > FLAT_TOLERANCE)
        if number in wanted:
            kept[number] = frame
    return crop(np.stack([kept[number] for number in wanted]), size), moves


def resize(video: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [f, h, w, c] to the smallest size of its shape that covers `size`.

    Every new pixel is the mean over its area, exactly; enlarging repeats pixels.
    """

    def weights(old: int, new: int) -> np.ndarray:
        edges = np.arange(new + 1) * old / new
        cells = np.arange(old)
        upto = np.clip(edges[:, None] - cells, 0, 1)  # of each cell below each edge
        return np.diff(upto, axis=0) * new / old

    old = video.shape[1:3]
    new = cover_size(old[0], old[1], size)
    if new == old:
        return video
    down, across = weights(old[0], new[0]), weights(old[1], new[1])
    resized = np.einsum("Hh,fhwc,Ww->fHWc", down, video, across, optimize=True)
    return np.rint(resized).astype(np.uint8)


def crop(
    video: np.ndarray, size: tuple[int, int], rng: np.random.Generator | None = None
) -> np.ndarray:
    """Cut [f, H, W, c] to ``size`` (h, w): the middle, or a place that rng draws."""
    down, right = video.shape[1] - size[0], video.shape[2] - size[1]
    top, left = down // 2, right // 2
    if rng is not None:
        top, left = int(rng.integers(down + 1)), int(rng.integers(right + 1))
    return video[:, top : top + size[0], left : left + size[1]]


def read(
    path: str | os.PathLike,
    start: int = 0,
    count: int | None = None,
    stride: int = 1,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    index: VideoInfo | None = None,
) -> np.ndarray:
    """Read one clip as uint8 [f, h, w, 3].

    ``count`` frames from frame ``start`` on (None: to the end), each ``stride``-th or
    at ``fps`` by time stamps; ``size`` (h, w) resizes to cover it and cuts the middle
    out. ``index`` saves probing again. Raises BadVideo, also for too short a file.
    """
    info = index or probe(path)
    if count is None:
        count = len(range(start, info.frames, stride))
    if start >= num_starts(info, count, stride, fps):
        raise ValueError(f"no clip of {count} frames starts at frame {start}")
    video = read_frames(
        info, clip_frames(info, start, count, stride, fps).tolist(), size
    )
    return video if size is None else crop(video, size)
