"""Frames of video files at the size of the clips, from a cache or by seeking."""

from collections.abc import Sequence

import numpy as np

from vdm_jax import video_io
from vdm_jax.data.clip_shape import ClipShape
from vdm_jax.files import cache_folder
from vdm_jax.video_io import BadVideo, VideoInfo, cache
from vdm_jax.video_io.sandbox import SandboxedDecoder


class FrameReader:
    """Reads frames of files; it caches those with the highest seek cost.

    Files are cached while they fit into config.data.cache_gib. The others are read by
    seeking. The choice is fixed, so that a data set larger than the cache does not
    evict its own entries.

    Attributes:
      cached: path of a file that is decoded once -> name and shape of its entry.
      bad: path of a file that was corrupt when it was read -> the error.
    """

    def __init__(
        self,
        infos: Sequence[VideoInfo],
        shape: ClipShape,
        data,
        decoder: SandboxedDecoder,
    ):
        self.size, self.decoder = shape.size, decoder
        self.cached: dict[str, tuple[str, cache.Shape]] = {}
        self.bad: dict[str, BadVideo] = {}
        budget = int(data.cache_gib * 2**30)
        self._cache = cache.FrameCache(data.cache_dir or cache_folder(), budget)
        for info in sorted(infos, key=lambda info: (-shape.seek_cost(info), info.path)):
            cover = video_io.cover_size(info.height, info.width, shape.size)
            entry = info.frames, *cover
            budget -= cache.entry_bytes(entry)
            if budget < 0:
                break
            self.cached[info.path] = cache.file_key(info.path, shape.size), entry

    def read(self, info: VideoInfo, numbers: list[int]) -> np.ndarray:
        """Return frames uint8 [f, H, W, 3]. Raises BadVideo, UserError."""
        if info.path in self.bad:
            raise self.bad[info.path]
        try:
            if info.path not in self.cached:
                return self.decoder.read_frames(info, numbers, self.size)
            return self._cache.read(
                *self.cached[info.path],
                numbers,
                lambda path: self.decoder.fill_entry(info, self.size, path),
            )
        except BadVideo as error:
            self.bad[info.path] = error
            raise
