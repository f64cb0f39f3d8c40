"""The videos that a command samples: how many, how long, how large, how fast."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel
from vdm_jax.sampling.settings import check_video_memory
from vdm_jax.sampling.types import Observation
from vdm_jax.video_io import FrameSelection, VideoInfo


@dataclasses.dataclass(frozen=True)
class OutputSpec:
    """The videos to sample: their model, rate, length, size and number.

    num_frames: 0 for the default of the command. tiles: rows and columns, in sizes of
    the model. stride: of the frames of a clip, for a model that was tuned on one; 0
    takes them at the rate.
    """

    model: DiffusionModel
    fps: float
    num_frames: int = 0
    tiles: tuple[int, int] = (1, 1)
    num: int = 1
    stride: int = 0

    @classmethod
    def of(cls, model: DiffusionModel, config: Any, *fields: Any) -> "OutputSpec":
        """Return that of a model's config; fields: num_frames, tiles and num.

        A model that was tuned on a clip takes the frames that its tuning took.
        """
        data = config.data
        fps, stride = config.video.fps, 0
        if data.source == "one_clip":
            fps = data.target_fps or fps
            stride = 0 if data.target_fps else data.stride
        return cls(model, fps, *fields, stride=stride)

    def selection(self, frames: int, clip: VideoInfo) -> FrameSelection:
        """Return which of a clip's frames are taken.

        An image model has no rate of its own: it takes every frame of a clip that is
        slower than the files written.
        """
        if self.stride:
            return FrameSelection(frames, self.stride)
        is_slow = clip.fps is not None and clip.fps < self.fps
        any_rate = is_slow and self.model.video_shape[0] == 1
        return FrameSelection(frames, fps=0.0 if any_rate else self.fps)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        rows, columns = self.tiles
        return rows * self.model.video_shape[1], columns * self.model.video_shape[2]

    def checked_num_frames(self, default: int) -> int:
        """Return the number of frames, checked to be a block of the model or more."""
        frames = self.num_frames or default
        block = self.model.video_shape[0]
        shape = (frames, *self.size, self.model.video_shape[3])
        check_video_memory(self.num, shape, f"--num_frames={frames}")
        if frames < block:
            raise UserError(
                f"--num_frames={frames}: this model makes {block} frames at a time; "
                f"at least {block}"
            )
        return frames

    def empty_observation(self, frames: int) -> Observation:
        """Return an observation of that many frames in which nothing is known."""
        shape = (1, frames, *self.size)
        video = np.zeros((*shape, self.model.video_shape[3]), jnp.result_type(float))
        return Observation(video, np.zeros((*shape, 1), bool))
