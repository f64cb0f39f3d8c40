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
from vdm_jax.model import Model
from vdm_jax.sampling.blocks import Known
from vdm_jax.video_io import BadVideo


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The output: model, rate, frames (0: the verb's own), tiles down and across."""

    model: Model
    fps: float
    frames: int = 0
    tiles: tuple[int, int] = (1, 1)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        rows, columns = self.tiles
        return rows * self.model.shape[1], columns * self.model.shape[2]

    def length(self, default: int) -> int:
        """Frames, checked: no fewer than the model makes at a time."""
        frames, block = self.frames or default, self.model.shape[0]
        if frames < block:
            raise UserError(
                f"--frames={frames}: this model makes {block} frames at a time; "
                f"at least {block}"
            )
        return frames

    def empty(self, frames: int) -> Known:
        """Nothing known of that many frames."""
        shape = (1, frames, *self.size)
        video = np.zeros((*shape, self.model.shape[3]), jnp.result_type(float))
        return Known(video, np.zeros((*shape, 1), bool))


Note = dict[str, Any]


def nothing(wanted: Wanted) -> tuple[Known, Note]:
    """A video of which nothing is given: one block, or more of them."""
    return wanted.empty(wanted.length(wanted.model.shape[0])), {}


def extend(
    wanted: Wanted, clip: str, given: int = 0, backward: bool = False
) -> tuple[Known, Note]:
    """A clip's first `given` frames open the output, or end it if `backward`.

    given: 0 is half a block. The output has two blocks if no length is asked for.
    """
    block = wanted.model.shape[0]
    frames, given = wanted.length(2 * block), given or max(1, block // 2)
    if given > block:
        raise UserError(
            f"--given={given}: more than the {block} frames of a block; at most {block}"
        )
    _check_given(given, frames)
    places = np.arange(given) + (frames - given) * backward
    return _at(wanted, clip, frames, places, wanted.fps)


def between(wanted: Wanted, clip: str, given: int = 0) -> tuple[Known, Note]:
    """A clip's first `given` frames, spread evenly from the output's first to its last.

    given: 0 gives both ends of every block. They are taken from the clip at their own
    distance in time, so that the output plays at the model's rate.
    """
    block = wanted.model.shape[0]
    frames = wanted.length(block)
    given = given or max(2, math.ceil((frames - 1) / max(1, block - 1)) + 1)
    if given < 2:
        raise UserError(f"--given={given}: at least 2 frames have something between")
    _check_given(given, frames)
    places = np.round(np.linspace(0, frames - 1, given)).astype(int)
    rate = wanted.fps * (given - 1) / (frames - 1)
    return _at(wanted, clip, frames, places, rate)


def inpaint(wanted: Wanted, clip: str, mask: str) -> tuple[Known, Note]:
    """A clip whose pixels are painted anew where `mask`, a picture or video, is white.

    The mask has the shape of the clip's frames; a video of one masks frame by frame.
    """
    if not mask:
        raise UserError("--inpaint needs --mask=FILE, white where to paint")
    known, note = _at(wanted, clip, *_whole(wanted), wanted.fps)
    frames = known.video.shape[1]
    white, size = _read_mask(mask, frames, wanted)
    if size[0] * note["height"] != size[1] * note["width"]:
        raise UserError(
            f"--mask={mask} is {size[0]}x{size[1]}, the clip "
            f"{note['width']}x{note['height']}: draw it on a frame of the clip"
        )
    paint = white > 127
    if not paint.any():
        raise UserError(f"--mask={mask} has no white pixel: nothing to paint")
    note = note | {"mask": mask, "painted": float(paint.mean())}
    return known._replace(mask=known.mask & ~paint), note


def upscale(wanted: Wanted, clip: str, factor: int = 0) -> tuple[Known, Note]:
    """A clip smaller than the output, of which the output's area means are known.

    factor: shrinks the clip to the output's size over it first; 0 takes the clip as it
    is, its middle cut to the output's shape.
    """
    frames = wanted.length(wanted.model.shape[0])
    height, width = wanted.size
    if factor < 0 or factor == 1 or factor > min(height, width):
        raise UserError(f"--factor={factor}: from 2 to {min(height, width)}")
    if factor:
        low = height // factor, width // factor
        video, note = _read(clip, frames, wanted.fps, low)
    else:
        video, note = _read(clip, frames, wanted.fps, None)
        scale = min(video.shape[1] / height, video.shape[2] / width)
        low = max(1, round(height * scale)), max(1, round(width * scale))
        if scale >= 1:
            raise UserError(
                f"--upscale={clip} is {video.shape[2]}x{video.shape[1]}, no smaller "
                f"than the output of {width}x{height}: --factor=2 shrinks it to half "
                "of that, --tiles asks for a larger output"
            )
        video = video_io.crop(video, low)
    known = wanted.empty(frames)
    note |= {"low": f"{low[1]}x{low[0]}", "output": f"{width}x{height}"}
    return known._replace(low=_encode(wanted.model, video)[None]), note


def _check_given(given: int, frames: int) -> None:
    if given < 1 or given >= frames:
        raise UserError(
            f"--given={given} of --frames={frames}: at least 1, and fewer than the "
            "output has"
        )


def _whole(wanted: Wanted) -> tuple[int, np.ndarray]:
    frames = wanted.length(wanted.model.shape[0])
    return frames, np.arange(frames)


def _at(
    wanted: Wanted, clip: str, frames: int, places: np.ndarray, fps: float
) -> tuple[Known, Note]:
    """A clip's first frames at these places of the output."""
    video, note = _read(clip, len(places), fps, wanted.size)
    known = wanted.empty(frames)
    known.video[0, places] = _encode(wanted.model, video)
    known.mask[0, places] = True
    height, width = wanted.size
    note |= {"output": f"{width}x{height}", "places": places.tolist()}
    return known, note


def _encode(model: Model, video: np.ndarray) -> np.ndarray:
    """uint8 [f, h, w, 3] -> what the model diffuses."""
    if model.shape[3] == 1 and video.shape[-1] == 3:
        video = np.rint(video @ LUMA).astype(np.uint8)[..., None]
    return np.asarray(model.encode(jnp.asarray(video)))


def _read(
    path: str, count: int, fps: float, size: tuple[int, int] | None
) -> tuple[np.ndarray, Note]:
    """The first `count` frames at `fps`: uint8 [count, h, w, 3 or 1], and how.

    A video file or a folder of frames; or the first video of a samples.npz, taken as it
    is.
    """
    if Path(path).suffix == ".npz":
        return _read_npz(path, count, size)
    try:
        info = video_io.probe(path)
        numbers = video_io.clip(info, 0, count, fps=fps)
        video_io.starts(info, count, fps=fps)
        video = video_io.read(path, count=count, fps=fps, size=size, index=info)
    except BadVideo as error:
        raise UserError(str(error)) from error
    return video, {
        "clip": path,
        "frames_of_clip": numbers.tolist(),
        "frames_in_clip": info.frames,
        "height": info.height,
        "width": info.width,
        "timing": video_io.describe(info, fps=fps),
    }


def _read_npz(path: str, count: int, size) -> tuple[np.ndarray, Note]:
    try:
        with np.load(path) as arrays:
            video = arrays["videos"][0]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} holds no videos: a samples.npz of sample.py"
        ) from error
    if len(video) < count:
        raise UserError(f"{path}: too short: {len(video)} frames, {count} are needed")
    if size and video.shape[1:3] != size:
        raise UserError(
            f"{path} is {video.shape[2]}x{video.shape[1]}, the output "
            f"{size[1]}x{size[0]}: give the mp4, which is resized"
        )
    return video[:count], {
        "clip": path,
        "frames_of_clip": list(range(count)),
        "frames_in_clip": len(video),
        "height": video.shape[1],
        "width": video.shape[2],
        "timing": "every frame",
    }


def _read_mask(
    path: str, frames: int, wanted: Wanted
) -> tuple[np.ndarray, tuple[int, int]]:
    """[1 or frames, h, w, 1] at the output's size, and its own (width, height)."""
    if Path(path).suffix.lower() in (".png", ".jpg", ".jpeg"):
        try:
            video, (height, width) = video_io.read_picture(path, wanted.size)
        except BadVideo as error:
            raise UserError(str(error)) from error
    else:
        video, note = _read(path, frames, wanted.fps, wanted.size)
        height, width = note["height"], note["width"]
    return video.mean(-1, keepdims=True), (width, height)
