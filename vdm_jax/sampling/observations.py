"""What a user gives of a video, read from files into `Known` of the output's length.

A clip is resized to cover the output and its middle cut out, and frames are taken from
it at the model's rate; the note that comes with it says how.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vdm_jax import video_io
from vdm_jax.data.folder import LUMA
from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile
from vdm_jax.model import DiffusionModel
from vdm_jax.sampling.generate import Observation
from vdm_jax.sampling.settings import check_video_memory
from vdm_jax.video_io import BadVideo
from vdm_jax.video_io.files import IMAGE_SUFFIXES
from vdm_jax.video_io.sandbox import SandboxedDecoder

DECODER = (
    SandboxedDecoder()
)  # a clip that crashes the decoder, or eats memory, ends in one line


@dataclasses.dataclass(frozen=True)
class OutputSpec:
    """The output: model, rate, frames (0: the verb's own), tiles down and across."""

    model: DiffusionModel
    fps: float
    num_frames: int = 0
    tiles: tuple[int, int] = (1, 1)
    num: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        rows, columns = self.tiles
        return rows * self.model.shape[1], columns * self.model.shape[2]

    def checked_num_frames(self, default: int) -> int:
        """Frames, checked: no fewer than the model makes at a time."""
        frames, block = self.num_frames or default, self.model.shape[0]
        shape = (frames, *self.size, self.model.shape[3])
        check_video_memory(self.num, shape, f"--frames={frames}")
        if frames < block:
            raise UserError(
                f"--frames={frames}: this model makes {block} frames at a time; "
                f"at least {block}"
            )
        return frames

    def empty_observation(self, frames: int) -> Observation:
        """Nothing known of that many frames."""
        shape = (1, frames, *self.size)
        video = np.zeros((*shape, self.model.shape[3]), jnp.result_type(float))
        return Observation(video, np.zeros((*shape, 1), bool))


ClipInfo = dict[str, Any]


def no_observation(output: OutputSpec) -> tuple[Observation, ClipInfo]:
    """A video of which nothing is given: one block, or more of them."""
    return output.empty_observation(
        output.checked_num_frames(output.model.shape[0])
    ), {}


def extend(
    output: OutputSpec, clip: str, num_cond_frames: int = 0, backward: bool = False
) -> tuple[Observation, ClipInfo]:
    """A clip's first `given` frames open the output, or end it if `backward`.

    given: 0 is half a block. The output has two blocks if no length is asked for.
    """
    block = output.model.shape[0]
    frames, num_cond_frames = (
        output.checked_num_frames(2 * block),
        num_cond_frames or max(1, block // 2),
    )
    if num_cond_frames > block:
        raise UserError(
            f"--given={num_cond_frames}: more than the {block} frames of a block; at most {block}"
        )
    _check_num_cond_frames(num_cond_frames, frames)
    first = np.arange(num_cond_frames)
    return _observe_frames(
        output, clip, frames, first, first + (frames - num_cond_frames) * backward
    )


def interpolate(
    output: OutputSpec, clip: str, num_cond_frames: int = 0
) -> tuple[Observation, ClipInfo]:
    """`given` frames of a clip, spread evenly from the output's first to its last.

    given: 0 gives the first, the last, and so many between that none is more than a
    block from the next. A frame of the output is that of the clip at its own time, so
    the clip must be as long as the output.
    """
    block = output.model.shape[0]
    frames = output.checked_num_frames(block)
    num_cond_frames = num_cond_frames or max(
        2, math.ceil((frames - 1) / max(1, block - 1)) + 1
    )
    if num_cond_frames < 2:
        raise UserError(
            f"--given={num_cond_frames}: at least 2 frames have something between"
        )
    _check_num_cond_frames(num_cond_frames, frames)
    places = np.round(np.linspace(0, frames - 1, num_cond_frames)).astype(int)
    return _observe_frames(output, clip, frames, places, places)


def inpaint(output: OutputSpec, clip: str, mask: str) -> tuple[Observation, ClipInfo]:
    """A clip whose pixels are painted anew where `mask`, a picture or video, is white.

    The mask has the shape of the clip's frames; a video of one masks frame by frame.
    """
    if not mask:
        raise UserError("--inpaint needs --mask=FILE, white where to paint")
    frames = output.checked_num_frames(output.model.shape[0])
    every = np.arange(frames)
    known, note = _observe_frames(output, clip, frames, every, every)
    white, size = _read_mask(mask, frames, output)
    if size[0] * note["height"] != size[1] * note["width"]:
        raise UserError(
            f"--mask={mask} is {size[0]}x{size[1]}, the clip "
            f"{note['width']}x{note['height']}: draw it on a frame of the clip"
        )
    paint = white > 127
    if not paint.any():
        raise UserError(
            f"--mask={mask} has no white (255) left at the output's size of "
            f"{output.size[1]}x{output.size[0]}: nothing to paint"
        )
    note = note | {"mask": mask, "painted": float(paint.mean())}
    return known._replace(mask=known.mask & ~paint), note


def upscale(
    output: OutputSpec, clip: str, downscale_factor: int = 0
) -> tuple[Observation, ClipInfo]:
    """A clip smaller than the output, of which the output's area means are known.

    factor: shrinks the clip to the output's size over it first; 0 takes the clip as it
    is, its middle cut to the output's shape.
    """
    frames = output.checked_num_frames(output.model.shape[0])
    height, width = output.size
    if (
        downscale_factor < 0
        or downscale_factor == 1
        or downscale_factor > min(height, width)
    ):
        raise UserError(f"--factor={downscale_factor}: from 2 to {min(height, width)}")
    if downscale_factor:
        low = height // downscale_factor, width // downscale_factor
        video, note = _read_clip(clip, np.arange(frames), output.fps, low)
        if note["height"] < low[0] or note["width"] < low[1]:
            raise UserError(
                f"--upscale={clip} is {note['width']}x{note['height']}, smaller than "
                f"{low[1]}x{low[0]}: leave out --factor={downscale_factor}"
            )
    else:
        video, note = _read_clip(clip, np.arange(frames), output.fps, None)
        scale = min(video.shape[1] / height, video.shape[2] / width)
        low = max(1, round(height * scale)), max(1, round(width * scale))
        if scale >= 1:
            raise UserError(
                f"--upscale={clip} is {video.shape[2]}x{video.shape[1]}, no smaller "
                f"than the output of {width}x{height}: --factor=2 shrinks it to half "
                "of that, --tiles asks for a larger output"
            )
        video = video_io.crop(video, low)
    known = output.empty_observation(frames)
    note |= {"low": f"{low[1]}x{low[0]}", "output": f"{width}x{height}"}
    return known._replace(low=_encode(output.model, video)[None]), note


def _check_num_cond_frames(given: int, frames: int) -> None:
    if given < 1 or given >= frames:
        raise UserError(
            f"--given={given} of --frames={frames}: at least 1, and fewer than the "
            "output has"
        )


def _observe_frames(
    output: OutputSpec, clip: str, frames: int, numbers: np.ndarray, places: np.ndarray
) -> tuple[Observation, ClipInfo]:
    """Frames of a clip, counted at the model's rate, at these places of the output."""
    video, note = _read_clip(clip, numbers, output.fps, output.size)
    known = output.empty_observation(frames)
    known.video[0, places] = _encode(output.model, video)
    known.mask[0, places] = True
    height, width = output.size
    note |= {"output": f"{width}x{height}", "places": places.tolist()}
    return known, note


def _encode(model: DiffusionModel, video: np.ndarray) -> np.ndarray:
    """uint8 [f, h, w, 3] -> what the model diffuses."""
    if model.shape[3] == 1 and video.shape[-1] == 3:
        video = np.rint(video @ LUMA).astype(np.uint8)[..., None]
    return np.asarray(model.encode(jnp.asarray(video)))


def _read_clip(
    path: str, numbers: np.ndarray, fps: float, size: tuple[int, int] | None
) -> tuple[np.ndarray, ClipInfo]:
    """Frames of a clip at `fps`, by number: uint8 [n, h, w, 3 or 1], and how.

    A video file or a folder of frames; or the first video of a samples.npz. `size` (h,
    w) resizes to cover it and cuts the middle out.
    """
    if Path(path).suffix.lower() == ".npz":
        video = _read_npz(path)
        if len(video) <= numbers[-1]:
            raise UserError(
                f"{path}: too short: {len(video)} frames, {numbers[-1] + 1} are needed"
            )
        chosen, (height, width), there = numbers, video.shape[1:3], len(video)
        timing, video = "every frame", video[numbers]
        if size:
            video = video_io.resize(video, size)
    else:
        try:
            info = DECODER.probe(path)
            count = int(numbers[-1]) + 1
            video_io.num_starts(info, count, fps=fps)
            chosen = video_io.clip_frames(info, 0, count, fps=fps)[numbers]
            video = DECODER.read_frames(info, chosen.tolist(), size)
        except BadVideo as error:
            raise UserError(str(error)) from error
        height, width, there = info.height, info.width, info.frames
        timing = video_io.describe_frame_selection(info, fps=fps)
    note = {
        "clip": path,
        "frames_of_clip": chosen.tolist(),
        "frames_in_clip": there,
        "height": height,
        "width": width,
        "timing": timing,
    }
    return (video_io.crop(video, size) if size else video), note


def _read_npz(path: str) -> np.ndarray:
    """The first video of a samples.npz, uint8 [f, h, w, c]."""
    what = f"{path} is no samples.npz of sample.py"
    try:
        return video_io.read_npz(path, rows=1)[0]
    except (OSError, CorruptFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{what}: {reason}") from error


def _read_mask(
    path: str, frames: int, output: OutputSpec
) -> tuple[np.ndarray, tuple[int, int]]:
    """[1 or frames, h, w, 1] at the output's size, and its own (width, height)."""
    suffix = Path(path).suffix.lower()
    try:
        if (
            suffix in IMAGE_SUFFIXES
            or suffix in (".webp", ".gif")
            and video_io.probe(path).frames == 1
        ):
            video, (height, width) = video_io.read_image(path, output.size)
            return video.mean(-1, keepdims=True), (width, height)
    except BadVideo as error:
        raise UserError(str(error)) from error
    video, note = _read_clip(path, np.arange(frames), output.fps, output.size)
    return video.mean(-1, keepdims=True), (note["width"], note["height"])
