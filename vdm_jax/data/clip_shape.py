"""The shape of a clip, and how it is made from the frames of a video."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vdm_jax import video_io
from vdm_jax.data.source import Clip
from vdm_jax.errors import UserError


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
