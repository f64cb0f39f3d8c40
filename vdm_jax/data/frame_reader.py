"""Frames of video files at the size of the clips, from a cache or by seeking."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vdm_jax import video_io
from vdm_jax.data.clip_shape import ClipShape
from vdm_jax.files import cache_folder
from vdm_jax.video_io import BadVideo, FrameCache, VideoInfo, cache
from vdm_jax.video_io.sandbox import SandboxedDecoder


@dataclasses.dataclass
class FrameReader:
    """Reads frames of files.

    Attributes:
      size: (h, w) that the frames cover.
      cached: path of a file that is decoded once -> its cache entry.
      bad: path of a file that was corrupt when it was read -> the error.
    """

    size: tuple[int, int]
    frame_cache: FrameCache
    decoder: SandboxedDecoder
    cached: dict[str, str]
    bad: dict[str, BadVideo] = dataclasses.field(default_factory=dict)

    def read(self, info: VideoInfo, numbers: list[int]) -> np.ndarray:
        """Return frames uint8 [f, H, W, 3]. Raises BadVideo, UserError."""
        if info.path in self.bad:
            raise self.bad[info.path]
        try:
            if info.path not in self.cached:
                return self.decoder.read_frames(info, numbers, self.size)
            return self.frame_cache.read(
                self.cached[info.path],
                numbers,
                lambda path: self.decoder.fill_entry(info, self.size, path),
            )
        except BadVideo as error:
            self.bad[info.path] = error
            raise


def entry_bytes(info: VideoInfo, size: tuple[int, int]) -> int:
    """Return the size on disk of all frames of a file."""
    cover = video_io.cover_size(info.height, info.width, size)
    return FrameCache.entry_bytes((info.frames, *cover))


def open_frame_reader(
    infos: Sequence[VideoInfo], shape: ClipShape, data, decoder: SandboxedDecoder
) -> FrameReader:
    """Return a reader of files; it caches those with the highest seek cost.

    Files are cached while they fit into config.data.cache_gib. The others are read by
    seeking. The choice is fixed, so that a data set larger than the cache does not
    evict its own entries.
    """

    def seek_cost(info: VideoInfo) -> float:
        return video_io.seek_cost(info, info.frames - shape.num_starts(info) + 1)

    folder = data.cache_dir or cache_folder()
    frame_cache = FrameCache(folder, int(data.cache_gib * 2**30))
    budget, cached = frame_cache.max_bytes, {}
    for info in sorted(infos, key=lambda info: (-seek_cost(info), info.path)):
        budget -= entry_bytes(info, shape.size)
        if budget < 0:
            break
        cached[info.path] = cache.file_key(info.path, shape.size)
    return FrameReader(shape.size, frame_cache, decoder, cached)
