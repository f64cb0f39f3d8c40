"""Items of a data set, and the clips that are decoded from them.

An item is a file, or a part of one, that is decoded in one pass. It becomes the records
of all its clips: each has the frames of about two clips, so that every start of the
file, re-timed, is in one record.
"""

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vdm_jax import video_io
from vdm_jax.clip_shards.records import Record
from vdm_jax.errors import printable
from vdm_jax.video_io import BadVideo, FrameSelection, VideoInfo, cache
from vdm_jax.video_io.sandbox import SandboxedDecoder

PASS_BYTES = 256 << 20  # pixels that are decoded in one pass


@dataclasses.dataclass(frozen=True)
class Item:
    """A file, or a part of one.

    Attributes:
      name: of the file, within the data set.
      path: of the file, or of the tar that it is in.
      member: offset and size of the file in the tar; None without one.
      frames: [start, stop) of the part that clips are taken from; None: all.
      seconds: [start, end), the same by time.
      ranges: [first, last) of `FrameSelection.start_ranges` of that part; None: all.
      label: -1 = unknown.
    """

    name: str
    path: str
    member: tuple[int, int] | None = None
    frames: tuple[int, int] | None = None
    seconds: tuple[float, float] | None = None
    ranges: tuple[int, int] | None = None
    captions: tuple[str, ...] = ()
    label: int = -1
    scores: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class ClipFormat:
    """How clips are made of files.

    Attributes:
      size: height and width that frames are resized to cover.
      center_crop: whether they are cropped to that size.
    """

    selection: FrameSelection
    size: tuple[int, int]
    center_crop: bool


class ItemReader:
    """Reads the clips of items.

    cache_folder: of the indices of files; those in a tar are not stored.
    """

    def __init__(self, shape: ClipFormat, cache_folder: str):
        self._shape, self._cache = shape, cache_folder
        self._decoder = SandboxedDecoder()
        self._index = functools.lru_cache(8)(self._stored_index)

    def _stored_index(self, path: str) -> VideoInfo:
        return cache.stored_index(self._cache, path, self._decoder.inspect)

    def records(self, item: Item) -> Iterator[Record | BadVideo]:
        """Yield the records of an item, and what is wrong with clips that have none.

        Raises BadVideo if it has no clip.
        """
        with _file(item) as path:
            info = self._decoder.inspect(path) if item.member else self._index(path)
            start, stop = _part(item, info)
            part = dataclasses.replace(info, pts=info.pts[start:stop])
            ranges = self._shape.selection.start_ranges(part)[
                slice(*(item.ranges or (None,)))
            ]
            numbers = [
                start + self._shape.selection.range_numbers(part, low, high)
                for low, high in ranges
            ]
            for each in passes(numbers, info, self._shape):
                yield from self._decode(item, info, numbers[each])

    def _decode(
        self, item: Item, info: VideoInfo, numbers: list[np.ndarray]
    ) -> Iterator[Record | BadVideo]:
        """Yield the records of some clips, whose frames are decoded once."""
        size = self._shape.size
        wanted = np.unique(np.concatenate(numbers))
        frames = self._decoder.read_frames(info, wanted.tolist(), size)
        if self._shape.center_crop:
            frames = video_io.crop(frames, size)
        for own in numbers:
            video = frames[np.searchsorted(wanted, own)]
            times = info.times[own] if info.time_base else np.zeros(0)
            if video_io.is_flat(video):
                yield BadVideo(item.name, f"constant: frames {own[0]} to {own[-1]}")
                continue
            yield Record(
                video, times, own, item.captions, printable(item.name), item.label,
                item.scores,
            )  # fmt: skip


def passes(
    numbers: list[np.ndarray], info: VideoInfo, shape: ClipFormat
) -> Iterator[slice]:
    """Yield slices of the clips of a file, each decoded in one pass.

    numbers: the frames of each clip.
    """
    height, width = video_io.cover_size(info.height, info.width, shape.size)
    most = max(map(len, numbers))
    each = max(1, PASS_BYTES // (most * height * width * 3))
    yield from (slice(i, i + each) for i in range(0, len(numbers), each))


def _part(item: Item, info: VideoInfo) -> tuple[int, int]:
    """Return the range of frames of an item. Raises BadVideo if it has none."""
    if item.seconds is None:
        return item.frames or (0, info.frames)
    if info.time_base is None:
        raise BadVideo(info.path, "has no frame rate: its start and end are unknown")
    edges = np.array(item.seconds) - 1e-6  # decimals are not exact
    start, stop = np.searchsorted(info.times, edges).tolist()
    if start >= stop:
        raise BadVideo(info.path, f"has no frame from {item.seconds[0]:g} s on")
    return start, stop


@contextlib.contextmanager
def _file(item: Item) -> Iterator[str]:
    """Yield the path of an item's file, which is temporary if it is in a tar."""
    if item.member is None:
        yield item.path
        return
    offset, size = item.member
    with tempfile.TemporaryDirectory(prefix="vdm_jax-") as folder:
        path = Path(folder) / "member"
        with open(item.path, "rb") as tar:
            tar.seek(offset)
            path.write_bytes(tar.read(size))
        yield str(path)
