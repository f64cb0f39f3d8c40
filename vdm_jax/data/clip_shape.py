"""The shape of a clip, and the frames of video files at its size."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vdm_jax import video_io
from vdm_jax.data.source import Clip
from vdm_jax.errors import UserError
from vdm_jax.files import cache_folder
from vdm_jax.video_io import BadVideo, VideoInfo, cache
from vdm_jax.video_io.sandbox import SandboxedDecoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipShape(video_io.FrameSelection):
    """Size of a clip and selection of its frames.

    Attributes:
      height, width, channels: of the clip.
      crop: "center" or "random".

    Raises:
      UserError: both a stride and a frame rate.
    """

    height: int
    width: int
    channels: int = 3
    crop: str = "center"

    def __post_init__(self):
        if self.fps and self.stride != 1:
            raise UserError(
                f"stride={self.stride} and target_fps={self.fps}: set only one of "
                "them, with stride=1 or target_fps=0"
            )

    @classmethod
    def from_config(cls, config) -> "ClipShape":
        """Return the shape of config.video and config.data. Raises UserError."""
        data, video = config.data, config.video
        return cls(
            video.frames, data.stride, data.target_fps, height=video.height,
            width=video.width, channels=video.channels, crop=data.crop,
        )  # fmt: skip

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    def crop_frames(self, video: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Crop frames that cover the clip to its size."""
        return video_io.crop(video, self.size, rng if self.crop == "random" else None)

    def make_clip(
        self,
        video: np.ndarray,
        captions: Sequence[str],
        label: Sequence[int],
        rng: np.random.Generator,
    ) -> Clip:
        """Return a clip of cropped frames, with one of the captions; label () is none.

        video: uint8 [f, height, width, 3].
        """
        if self.channels == 1:
            video = video_io.to_gray(video)
        caption = captions[int(rng.integers(len(captions)))] if captions else ""
        clip = Clip(video=np.ascontiguousarray(video), caption=caption)
        if len(label):
            clip["label"] = np.array(label, np.int32)
        return clip


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
