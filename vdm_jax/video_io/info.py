"""The index of a video, and the frame numbers of a clip.

Frames are counted in presentation order from 0. A clip is a list of frame numbers:
every ``stride``-th frame, or the frames nearest in time to a target rate.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np

from vdm_jax.video_io.file_types import BadVideo

RATE_TOLERANCE = 0.01  # 23.976 and 24 fps count as one rate: every frame is used


@dataclasses.dataclass(frozen=True, eq=False)
class VideoInfo:
    """The index of one video.

    Attributes:
      height, width: as displayed, with rotation and pixel aspect applied.
      rotation: degrees counter-clockwise from the stored to the displayed frame.
      pts: int64 [frames], presentation times in units of ``time_base`` seconds.
      kind: gif, webp, picture, frames (a folder), or FFmpeg's name of the container.
      time_base: None for a picture and a folder of frames, which have no frame rate.
      keyframes: int64, the frames at which decoding can start. 0 is one of them.
      mirrored: frames are flipped left to right before they are rotated.
      counted: decoded frames have no reliable time stamps and are counted instead.
      stream: the number of the video stream in its container.
    """

    path: str
    kind: str
    codec: str
    height: int
    width: int
    rotation: int
    pts: np.ndarray
    time_base: float | None
    keyframes: np.ndarray
    mirrored: bool = False
    counted: bool = False
    stream: int = 0

    @property
    def frames(self) -> int:
        return len(self.pts)

    @property
    def times(self) -> np.ndarray:
        """Seconds since the first frame, float64 [frames]."""
        return (self.pts - self.pts[0]) * (self.time_base or 0.0)

    @property
    def fps(self) -> float | None:
        """Mean frame rate; None for a folder of frames and for a single frame."""
        if self.time_base is None or self.frames < 2:
            return None
        return (self.frames - 1) / max(float(self.times[-1]), 1e-9)

    @property
    def duration(self) -> float | None:
        """Seconds. The last frame is counted with the mean duration."""
        return self.fps and self.frames / self.fps

    @property
    def variable(self) -> bool:
        """Whether the rate varies: a frame differs by over 10% and over one tick."""
        if self.fps is None:
            return False
        durations = np.diff(self.pts)
        median = np.median(durations)
        return bool(np.abs(durations - median).max() > max(0.1 * median, 1))

    def to_json(self) -> dict[str, Any]:
        """Return plain data from which `from_json` makes an equal index."""
        arrays = {name: getattr(self, name).tolist() for name in ("pts", "keyframes")}
        return vars(self) | arrays

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "VideoInfo":
        """Return the index that `to_json` described."""
        fields = dict(data)
        for name in ("pts", "keyframes"):
            fields[name] = np.array(data[name], np.int64)
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class FrameSelection:
    """Which frames of a video make a clip.

    Attributes:
      frames: number of frames of a clip.
      stride: every ``stride``-th frame is used.
      fps: 0 selects by ``stride``; else the frames nearest to the times start + k / fps
        are used. A rate within 1% of the file's uses every frame. A clip of one frame
        has no rate.
    """

    frames: int
    stride: int = 1
    fps: float = 0.0

    def num_starts(self, info: VideoInfo) -> int:
        """Return the number of frames at which a clip can start.

        Raises BadVideo if there is none, and if the rate of the file is below ``fps``:
        frames would repeat.
        """
        have = "1 frame" if info.frames == 1 else f"{info.frames} frames"
        if rate := self._time_rate(info):
            times = info.times
            seconds = (self.frames - 1) / rate
            # In half a frame the last frame is the nearest one.
            last = times[-1] + 0.5 / (info.fps or rate) - seconds
            number = int(np.searchsorted(times, last, side="right"))
            number = min(number, info.frames - (self.frames > 1))
            have = f"{times[-1]:.2f} s ({have})"
            need = f"{seconds:.2f} s"
        else:
            span = (self.frames - 1) * self.stride + 1
            number = info.frames - span + 1
            need = f"{span} frames"
        if number < 1:
            raise BadVideo(info.path, f"too short: {have}, a clip spans {need}")
        return number

    def longest(self, info: VideoInfo) -> int:
        """Return how many frames the longest clip has, whatever ``frames`` is.

        Raises BadVideo if the rate of the file is below ``fps``.
        """
        if not (rate := self._time_rate(info)):
            return (info.frames - 1) // self.stride + 1
        seconds = info.times[-1] - info.times[0] + 0.5 / (info.fps or rate)
        return 1 + int(seconds * rate)

    def span(self, info: VideoInfo) -> int:
        """Return the number of frames that a clip spans. Raises as `num_starts`."""
        return info.frames - self.num_starts(info) + 1

    def seek_cost(self, info: VideoInfo) -> float:
        """Return the mean number of frames that are decoded to seek to a clip."""
        first = np.arange(self.num_starts(info))
        keys = info.keyframes
        before = keys[np.searchsorted(keys, first, side="right") - 1]
        return float(np.mean(first - before) + self.span(info))

    def frame_numbers(self, info: VideoInfo, start: int) -> np.ndarray:
        """Return the frame numbers int64 [frames] of the clip that starts at a frame.

        Raises BadVideo if the rate of the file is below ``fps``.
        """
        rate = self._time_rate(info)
        if not rate:
            return start + self.stride * np.arange(self.frames)
        times = info.times
        targets = times[start] + np.arange(self.frames) / rate
        after = np.searchsorted(times, targets).clip(1, info.frames - 1)
        closer_before = targets - times[after - 1] <= times[after] - targets
        return after - closer_before

    def start_ranges(self, info: VideoInfo) -> list[tuple[int, int]]:
        """Return ranges [low, high) of first frames that cover all starts once.

        Each range is about one clip long. Raises as `num_starts`.
        """
        num_starts = self.num_starts(info)
        number = -(-num_starts // self.span(info))
        edges = [num_starts * i // number for i in range(number + 1)]
        return list(itertools.pairwise(edges))

    def range_numbers(self, info: VideoInfo, low: int, high: int) -> np.ndarray:
        """Return frame numbers int64 [n] of the clips that start in low .. high - 1.

        They are selected as those of one clip that starts at ``low``; n is at least
        ``frames``. If a clip uses every frame, each of its starts is among them.
        """
        end = int(self.frame_numbers(info, high - 1)[-1])
        if rate := self._time_rate(info):
            # As in `num_starts`, half a frame more.
            seconds = info.times[end] - info.times[low] + 0.5 / (info.fps or rate)
            number = 1 + int(seconds * rate)
        else:
            number = 1 + (end - low) // self.stride
        longer = dataclasses.replace(self, frames=max(number, self.frames))
        return longer.frame_numbers(info, low)

    def describe(self, info: VideoInfo) -> str:
        """Describe in words which frames of a video make a clip."""
        rate = "no frame rate" if info.fps is None else f"{info.fps:.4g} fps"
        if info.variable:
            rate += " on average, variable"
        if self._time_rate(info):
            return f"frames nearest to {self.fps:.4g} fps (file: {rate})"
        every = "every frame" if self.stride == 1 else f"one frame in {self.stride}"
        return f"{every} (file: {rate})"

    def _time_rate(self, info: VideoInfo) -> float:
        """Return ``fps``, or 0 if clips are not selected by time. Raises BadVideo."""
        if not self.fps or info.fps is None or self.frames == 1:
            return 0.0
        if info.fps < self.fps * (1 - RATE_TOLERANCE):
            reason = f"its {info.fps:.3g} frames per second are below the "
            reason += f"{self.fps:.3g} requested: frames would repeat"
            raise BadVideo(info.path, reason)
        is_faster = info.fps > self.fps * (1 + RATE_TOLERANCE)
        return self.fps if info.variable or is_faster else 0.0
