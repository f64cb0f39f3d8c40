"""The index of a video, and the frame numbers of a clip.

Frames are counted in presentation order from 0. A clip is a list of frame numbers:
every ``stride``-th frame, or the frames nearest in time to a target rate.
``describe_frame_selection`` states which rule applies to a file.
"""

import dataclasses
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
      kind: gif, webp, frames (a folder), or FFmpeg's name of the container.
      time_base: None for a folder of frames, which has no frame rate.
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


def num_starts(
    info: VideoInfo, count: int, stride: int = 1, fps: float | None = None
) -> int:
    """Return the number of frames at which a clip of ``count`` frames can start.

    Raises BadVideo if there is none, and if the rate of the file is below ``fps``:
    frames would repeat.
    """
    have, span = f"{info.frames} frame", (count - 1) * stride + 1
    have, need = have + "s" * (info.frames != 1), f"{span} frames"
    number = info.frames - span + 1
    if rate := _time_rate(info, fps):
        times, seconds = info.times, (count - 1) / rate
        half_frame = 0.5 / (info.fps or rate)  # in it the last frame is the nearest one
        last = times[-1] + half_frame - seconds
        number = int(np.searchsorted(times, last, side="right"))
        number = min(number, info.frames - (count > 1))
        have, need = f"{times[-1]:.2f} s ({have})", f"{seconds:.2f} s"
    if number < 1:
        raise BadVideo(info.path, f"too short: {have}, a clip spans {need}")
    return number


def clip_frames(
    info: VideoInfo, start: int, count: int, stride: int = 1, fps: float | None = None
) -> np.ndarray:
    """Return the frame numbers int64 [count] of the clip from frame ``start`` on.

    fps: None or 0 for every ``stride``-th frame, else the frames nearest to the times
    start + k / fps. A rate within 1% of the file's uses every frame.
    """
    rate = _time_rate(info, fps)
    if not rate:
        return start + stride * np.arange(count)
    times = info.times
    targets = times[start] + np.arange(count) / rate
    after = np.searchsorted(times, targets).clip(1, info.frames - 1)
    closer_before = targets - times[after - 1] <= times[after] - targets
    return after - closer_before


def _time_rate(info: VideoInfo, fps: float | None) -> float | None:
    """Return ``fps`` if clips are selected by time. Raises BadVideo for a low rate."""
    if not fps or info.fps is None:
        return None
    if info.fps < fps * (1 - RATE_TOLERANCE):
        reason = (
            f"its {info.fps:.3g} frames per second are below the {fps:.3g} requested"
        )
        raise BadVideo(info.path, f"{reason}: frames would repeat")
    return fps if info.variable or info.fps > fps * (1 + RATE_TOLERANCE) else None


def describe_frame_selection(
    info: VideoInfo, stride: int = 1, fps: float | None = None
) -> str:
    """Describe in words which frames of a video make a clip."""
    rate = "no frame rate" if info.fps is None else f"{info.fps:.4g} fps"
    if info.variable:
        rate += " on average, variable"
    if _time_rate(info, fps):
        return f"frames nearest to {fps:.4g} fps (file: {rate})"
    every = "every frame" if stride == 1 else f"one frame in {stride}"
    return f"{every} (file: {rate})"


def seek_cost(info: VideoInfo, span: int) -> float:
    """Return the mean number of frames decoded to seek to a clip of ``span`` frames."""
    first = np.arange(max(1, info.frames - span + 1))
    before = info.keyframes[np.searchsorted(info.keyframes, first, side="right") - 1]
    return float(np.mean(first - before) + span)
