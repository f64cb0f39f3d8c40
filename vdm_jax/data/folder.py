"""A folder of videos as a data set; docs/data.md describes its layout.

Every file is indexed once and not decoded. A long file has several items: ranges of
first frames, each about one clip long, so that an epoch covers the whole file. Files
that turn out to be corrupt while they are loaded raise BadClip.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vdm_jax import video_io
from vdm_jax.data.clip_shape import ClipShape
from vdm_jax.data.folder_index import (
    ScanReport,
    VideoFile,
    clip_ranges,
    most_common_reason,
    scan,
    split_files,
)
from vdm_jax.data.source import BadClip, Clip, mentions_left_or_right
from vdm_jax.errors import UserError
from vdm_jax.video_io import BadVideo, cache
from vdm_jax.video_io.sandbox import SandboxedDecoder

MAX_DRAWS = 4  # starts tried before a file with blank segments counts as unusable


@dataclasses.dataclass
class _FrameReader:
    """Reads frames of files from the cache or by seeking, for both parts.

    Attributes:
      size: (h, w) that the frames cover.
      cached: name of a file that is decoded once -> its cache entry.
      bad: name of a file -> why it is corrupt, filled while loading.
    """

    size: tuple[int, int]
    frame_cache: cache.FrameCache
    decoder: SandboxedDecoder
    cached: dict[str, str]
    bad: dict[str, str] = dataclasses.field(default_factory=dict)

    def read(self, file: VideoFile, numbers: list[int]) -> np.ndarray:
        """Return frames uint8 [f, H, W, 3]. Raises BadVideo, OSError."""
        if file.name not in self.cached:
            return self.decoder.read_frames(file.info, numbers, self.size)
        return self.frame_cache.read(
            self.cached[file.name],
            numbers,
            lambda path: self.decoder.fill_entry(file.info, self.size, path),
        )


class Folder:
    """The source; data/source.py defines the protocol.

    Further attributes:
      report: the counts of the folder.
      files: the files of this part.
    """

    name = "folder"

    def __init__(
        self,
        parts,
        shape: ClipShape,
        report: ScanReport,
        reader: _FrameReader,
        held_out=False,
    ):
        self._parts, self._shape, self._reader = parts, shape, reader
        self.report, self.files = report, parts[held_out]
        files = parts[0] + parts[1]
        values = tuple(sorted({file.label for file in files if file.label is not None}))
        self.label_vocabulary = (values,) if values else ()
        texts = " ".join([*values, *(c for file in files for c in file.captions)])
        self.flip = not mentions_left_or_right(texts)
        self._items, names = [], []
        for file in self.files:
            ranges = clip_ranges(file, shape)
            self._items += [(file, low, high) for low, high in ranges]
            numbered = [f"{file.name} [{i + 1}]" for i in range(len(ranges))]
            names += [file.name] if len(ranges) == 1 else numbered
        self.names = tuple(names)
        self.sizes = tuple(file.num_bytes for file, _, _ in self._items)

    def __len__(self) -> int:
        return len(self._items)

    def split(self, held_out: bool) -> "Folder":
        """Return the held-out part or the training part."""
        return Folder(self._parts, self._shape, self.report, self._reader, held_out)

    def load(self, index: int, rng: np.random.Generator, frames: int) -> Clip:
        """Load a clip with a random start in the range of an item. Raises BadClip."""
        file, low, high = self._items[index]
        bad = self._reader.bad
        if file.name in bad:
            raise BadClip(self.names[index], bad[file.name])
        try:
            video = self._draw(file, low, high, rng, frames)
        except BadVideo as error:
            bad[file.name] = error.reason
            raise BadClip(self.names[index], error.reason) from error
        if video is None:
            reason = f"constant: {MAX_DRAWS} random clips are blank"
            raise BadClip(self.names[index], reason)
        if self._shape.channels == 1:
            video = video_io.to_gray(video)
        captions = file.captions
        text = captions[int(rng.integers(len(captions)))] if captions else ""
        clip = Clip(video=np.ascontiguousarray(video), caption=text)
        if self.label_vocabulary:
            values = self.label_vocabulary[0]
            label = -1 if file.label is None else values.index(file.label)
            clip["label"] = np.array([label], np.int32)
        return clip

    def _frame_numbers(self, file: VideoFile, first: int) -> np.ndarray:
        """Return the frame numbers of the clip that starts at frame ``first``."""
        shape, offset = self._shape, file.start
        numbers = video_io.clip_frames(
            file.segment, first - offset, shape.frames, shape.stride, shape.fps
        )
        return numbers + offset

    def _draw(
        self,
        file: VideoFile,
        low: int,
        high: int,
        rng: np.random.Generator,
        frames: int,
    ) -> np.ndarray | None:
        """Return cropped frames from a random start; None if all draws are blank."""
        shape = self._shape
        for _ in range(MAX_DRAWS):
            if frames == 1:  # any frame of the clips of this range
                last = self._frame_numbers(file, high - 1)[-1]
                numbers = rng.integers(low, last + 1, size=1)
            else:
                first = int(rng.integers(low, high))
                numbers = self._frame_numbers(file, first)[:frames]
            video = self._reader.read(file, numbers.tolist())
            crop_rng = rng if shape.crop == "random" else None
            video = video_io.crop(video, shape.size, crop_rng)
            if not video_io.is_flat(video):
                return video
        return None


def _choose_cached_files(
    files: Sequence[VideoFile], shape: ClipShape, budget: int
) -> dict[str, str]:
    """Return the cache entries of the files to decode once, by name.

    The files with the highest seek cost are chosen while they fit into ``budget``
    bytes. The others are read by seeking. The choice is fixed, so that a data set
    larger than the cache does not evict its own entries.
    """
    infos = {file.name: file.info for file in files}

    def seek_cost(name: str) -> float:
        info = infos[name]
        starts = video_io.num_starts(info, shape.frames, shape.stride, shape.fps)
        return video_io.seek_cost(info, info.frames - starts + 1)

    chosen = {}
    for name in sorted(infos, key=lambda name: (-seek_cost(name), name)):
        info = infos[name]
        cover = video_io.cover_size(info.height, info.width, shape.size)
        budget -= cache.FrameCache.entry_bytes((info.frames, *cover))
        if budget < 0:
            break
        chosen[name] = cache.file_key(info.path, shape.size)
    return chosen


def open_folder(config) -> Folder:
    """Open the folder config.data.path.

    Raises:
      UserError: no such folder, no usable video in it, or settings out of range.
    """
    data = config.data
    if not data.path:
        raise UserError("config.data.path is empty: --config.data.path=FOLDER")
    shape = ClipShape.from_config(config)
    cache_dir = data.cache_dir or cache.default_folder()
    decoder = SandboxedDecoder()
    files, report = scan(data.path, shape, cache.IndexStore(cache_dir), decoder)
    skipped, total = report.skipped, report.num_videos
    if len(skipped) > data.max_bad_fraction * total:
        raise UserError(
            f"{data.path}: {len(skipped)} of {total} videos cannot be used, more than "
            f"config.data.max_bad_fraction={data.max_bad_fraction}; "
            f"{most_common_reason(skipped)}; `python -m vdm_jax.data check` names all"
        )
    frame_cache = cache.FrameCache(cache_dir, int(data.cache_gib * 2**30))
    cached = _choose_cached_files(files, shape, frame_cache.max_bytes)
    reader = _FrameReader(shape.size, frame_cache, decoder, cached)
    parts = split_files(files, data.validation_fraction, shape)
    return Folder(parts, shape, report, reader)
