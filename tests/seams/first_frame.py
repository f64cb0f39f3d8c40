"""A video condition: the first frame, next to z at every frame."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.conditions.base import Contribution, VideoCondition


@dataclasses.dataclass(frozen=True)
class FirstFrame(VideoCondition):
    """first_frame [b, 1, h, w, c], without noise."""

    shape: tuple[int, int, int, int]

    @classmethod
    def from_config(cls, config: Any) -> "FirstFrame | None":
        """Return the condition where the config has the section."""
        v = config.video
        shape = v.frames, v.height, v.width, v.channels
        return cls(shape) if "first_frame" in config else None

    @property
    def input_shape(self):
        """One frame."""
        return (1, *self.shape[1:])

    def null(self, n: tuple[int, ...]) -> dict[str, Any]:
        """A grey frame."""
        return {"first_frame": np.zeros((n[0], *self.input_shape), np.float32)}

    def embed(self, name, cond, frames: int, dim: int) -> Contribution:
        """Channels at every frame."""
        return Contribution(concat=jnp.repeat(cond["first_frame"], frames, axis=1))

    def observation(self, x):
        """The first frame of a clip."""
        return x[:, :1]

    def prepare_batch(self, x, key: jax.Array, codec_params=None):
        """The whole clip, and its first frame."""
        return x, {"first_frame": self.observation(x)}

    def from_observation(self, video, t, eps, codec_params=None):
        """The frame as it is given."""
        return {"first_frame": video}

    def crop(self, cond, start, window):
        """The same place of the frame."""
        size = (len(cond["first_frame"]), 1, *window[1:], self.shape[3])
        start = (0, 0, *start[2:])
        return {"first_frame": jax.lax.dynamic_slice(cond["first_frame"], start, size)}
