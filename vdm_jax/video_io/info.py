"""What is known of a video before its frames are decoded, and which frames make a clip.

Frames are counted in presentation order from 0. A clip is a list of frame numbers:
every ``stride``-th frame, or the frames nearest in time to a target rate. Nothing is
re-timed silently: ``describe`` says what was done.
"""

import dataclasses
from fractions import Fraction

import numpy as np

from vdm_jax.video_io.files import BadVideo

RATE_TOLERANCE = 0.01  # 23.976 and 24 fps are one rate: frames are taken one by one


@dataclasses.dataclass(frozen=True, eq=False)
class VideoInfo:
    """The index of one video.

    ``height`` and ``width`` are as displayed: rotation and pixel aspect applied.
    ``pts`` int64 [frames] are presentation times in units of ``time_base`` seconds
    (None: a folder of frames, which has no clock). Decoding can start at the frames
    ``keyframes``; 0 is always one of them.
    The shown picture is the stored one, ``mirrored`` (left for right), then turned.
    ``counted``: decoded frames carry no dependable time stamps, their order is all.
    ``stream`` is the number of the video's stream in its container.
    """

    path: str
    kind: str
    codec: str
    height: int
    width: int
    rotation: int  # degrees counter-clockwise from the stored picture to the shown one
    pts: np.ndarray
    time_base: Fraction | None
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
        return (self.pts - self.pts[0]) * float(self.time_base or 0)

    @property
    def fps(self) -> float | None:
        """Mean frame rate; None without a clock or with a single frame."""
        if self.time_base is None or self.frames < 2:
            return None
        return (self.frames - 1) / max(float(self.times[-1]), 1e-9)

    @property
    def duration(self) -> float | None:
        """Seconds, the last frame shown as long as an average one."""
        return self.fps and self.frames / self.fps

    @property
    def variable(self) -> bool:
        """Whether frames last unequally: by more than a tenth and the clock's tick."""
        if self.fps is None or self.time_base is None:
            return False
        gaps = np.diff(self.pts)
        usual = np.median(gaps)
        return bool(np.abs(gaps - usual).max() > max(0.1 * usual, 1))

    def to_json(self) -> dict:
        """Plain data; from_json gives back an equal index."""
        return dataclasses.asdict(self) | {
            "pts": self.pts.tolist(),
            "keyframes": self.keyframes.tolist(),
            "time_base": None if self.time_base is None else str(self.time_base),
        }

    @classmethod
    def from_json(cls, data: dict) -> "VideoInfo":
        """The index that to_json described."""
        fields = dict(data)
        for name in ("pts", "keyframes"):
            fields[name] = np.array(data[name], np.int64)
        fields["time_base"] = data["time_base"] and Fraction(data["time_base"])
        return cls(**fields)


def num_starts(
    info: VideoInfo, count: int, stride: int = 1, fps: float | None = None
) -> int:
    """How many frames of a video can start a clip of ``count`` frames.

    Raises BadVideo where none can, or where the file is slower than the ``fps`` asked
    for: frames would repeat.
    """
    if _by_time(info, fps):
        assert fps is not None
        ticks = (count - 1) / fps
        assert info.fps is not None
        last = info.times[-1] + 0.5 / info.fps  # the last frame is shown until then
        number = int(np.searchsorted(info.times, last - ticks, side="right"))
        number = min(number, info.frames - (count > 1))
    else:
        ticks = None
        number = info.frames - (count - 1) * stride
    if number < 1:
        need = f"{(count - 1) * stride + 1} frames" if ticks is None else f"{ticks:.2f}"
        have = f"{info.frames} frame" + "s" * (info.frames != 1)
        if ticks is None:
            raise BadVideo(info.path, f"too short: {have}, a clip spans {need}")
        raise BadVideo(
            info.path,
            f"too short: {info.times[-1]:.2f} s ({have}), a clip spans {need} s",
        )
    return number


def clip_frames(
    info: VideoInfo, start: int, count: int, stride: int = 1, fps: float | None = None
) -> np.ndarray:
    """Frame numbers int64 [count] of the clip that starts at frame ``start``.

    ``fps`` None or 0: every ``stride``-th frame. Else the frames nearest to the times
    start + k / fps (a rate within 1% of the file's takes every frame).
    """
    if not _by_time(info, fps):
        return start + stride * np.arange(count)
    assert fps is not None
    times = info.times
    wanted = times[start] + np.arange(count) / fps
    after = np.searchsorted(times, wanted).clip(1, info.frames - 1)
    closer_before = wanted - times[after - 1] <= times[after] - wanted
    return after - closer_before


def _by_time(info: VideoInfo, fps: float | None) -> bool:
    """Whether clips are chosen by time stamps. Raises BadVideo for too slow a file."""
    if not fps or info.fps is None:
        return False
    if info.fps < fps * (1 - RATE_TOLERANCE):
        raise BadVideo(
            info.path,
            f"its {info.fps:.3g} frames a second are below the {fps:.3g} asked for: "
            "frames would repeat",
        )
    return info.variable or info.fps > fps * (1 + RATE_TOLERANCE)


def describe_frame_selection(
    info: VideoInfo, stride: int = 1, fps: float | None = None
) -> str:
    """Say in words how frames are taken from a video."""
    rate = "no clock" if info.fps is None else f"{info.fps:.4g} fps"
    if info.variable:
        rate += " on average, variable"
    if _by_time(info, fps):
        return f"frames nearest to {fps:.4g} fps (file: {rate})"
    every = "every frame" if stride == 1 else f"one frame in {stride}"
    return f"{every} (file: {rate})"


def seek_cost(info: VideoInfo, span: int) -> float:
    """Frames decoded on average for a random clip of ``span`` frames by seeking."""
    first = np.arange(max(1, info.frames - span + 1))
    before = info.keyframes[np.searchsorted(info.keyframes, first, side="right") - 1]
    return float(np.mean(first - before) + span)
