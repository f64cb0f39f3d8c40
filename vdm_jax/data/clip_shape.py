"""The shape of a clip, and how its frames are selected from a video."""

import dataclasses

from vdm_jax.errors import UserError

MAX_VALUES = {"frames": 4096, "height": 16384, "width": 16384, "stride": 4096}


@dataclasses.dataclass(frozen=True)
class ClipShape:
    """Size of a clip and selection of its frames.

    Attributes:
      frames, height, width, channels: of the clip.
      stride: every ``stride``-th frame is used.
      fps: frames per second; 0 selects by ``stride``.
      crop: "center" or "random".
    """

    frames: int
    height: int
    width: int
    channels: int = 3
    stride: int = 1
    fps: float = 0.0
    crop: str = "center"

    @classmethod
    def from_config(cls, config) -> "ClipShape":
        """Return the shape of config.video and config.data. Raises UserError."""
        data, video = config.data, config.video
        shape = cls(
            video.frames, video.height, video.width, video.channels,
            data.stride, data.target_fps or 0.0, data.crop,
        )  # fmt: skip
        shape.check()
        return shape

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        for name, most in MAX_VALUES.items():
            if not 1 <= getattr(self, name) <= most:
                raise UserError(f"{name}={getattr(self, name)}: from 1 to {most}")
        if self.channels not in (1, 3):
            raise UserError(
                f"config.video.channels={self.channels}: 3 (colour) or 1 (grey)"
            )
        if not 0 <= self.fps <= 240:
            raise UserError(
                f"target_fps={self.fps}: a frame rate up to 240, or 0 for the file's"
            )
        if self.fps and self.stride != 1:
            raise UserError(
                f"stride={self.stride} and target_fps={self.fps}: set only one of "
                "them, with stride=1 or target_fps=0"
            )
        if self.crop not in ("center", "random"):
            raise UserError(f"config.data.crop={self.crop!r}: center or random")
