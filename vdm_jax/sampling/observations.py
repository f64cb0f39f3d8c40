"""Observations from a user's files: frames, masks and small clips.

A clip is resized to cover the output, its centre is cropped, and frames are taken by
`OutputSpec.selection`. The ClipInfo that is returned with an observation says how.
"""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vdm_jax import video_io
from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile
from vdm_jax.model import DiffusionModel
from vdm_jax.sampling.output import OutputSpec
from vdm_jax.sampling.settings import check_video_memory
from vdm_jax.sampling.types import Observation
from vdm_jax.video_io import BadVideo
from vdm_jax.video_io.file_types import IMAGE_SUFFIXES
from vdm_jax.video_io.sandbox import SandboxedDecoder

DECODER = SandboxedDecoder()  # a clip that crashes it, or fills memory, is one message

ClipInfo = dict[str, Any]  # which frames of which clip were read; goes to samples.json


def no_observation(output: OutputSpec) -> tuple[Observation, ClipInfo]:
    """Return an empty observation of the output's length, by default one block."""
    frames = output.checked_num_frames(output.model.video_shape[0])
    return output.empty_observation(frames), {}


def extend(
    output: OutputSpec,
    clip: str,
    num_cond_frames: int | None = None,
    backward: bool = False,
    loop: bool = False,
) -> tuple[Observation, ClipInfo]:
    """Observe a clip's first frames at the output's start, or at its end if `backward`.

    With `loop` they are at both, so that the output without its last ones is a loop.

    num_cond_frames: how many; the default is half a block. The output's default length
    is two blocks. Both are as many as make whole frames of z.
    """
    block, whole = output.model.video_shape[0], output.model.codec.whole_frames
    frames = output.checked_num_frames(whole(2 * block))
    number = num_cond_frames or max(1, whole(block // 2))
    _check_num_cond_frames(number, frames, 1, min(block, (frames - 1) // (1 + loop)))
    first = np.arange(number)
    last = first + frames - number
    indices = np.concatenate([first, last]) if loop else last if backward else first
    clip_indices = np.tile(first, 1 + loop)
    return _observe_frames(output, clip, frames, clip_indices, indices)


def animate(
    output: OutputSpec, picture: str, loop: bool = False
) -> tuple[Observation, ClipInfo]:
    """Observe a picture, or a clip's first frame, as the output's first frame.

    With `loop` it is the last frame, too.
    """
    frames = output.checked_num_frames(output.model.video_shape[0])
    if frames < 2 + loop:
        raise UserError(
            f"--animate: {frames} frames, a video has at least {2 + loop}: give a "
            "model of videos, or --edit to change a picture"
        )
    indices = np.array([0, frames - 1] if loop else [0])
    return _observe_frames(output, picture, frames, 0 * indices, indices)


def interpolate(
    output: OutputSpec, clip: str, num_cond_frames: int | None = None
) -> tuple[Observation, ClipInfo]:
    """Observe frames of a clip, spread evenly from the output's first to its last.

    num_cond_frames: how many; the default is the first, the last, and as many between
    that none is more than a block from the next. A frame of the output is the clip's
    frame of the same time, so the clip must be as long as the output.
    """
    block = output.model.video_shape[0]
    frames = output.checked_num_frames(block)
    if block == 1:
        raise UserError(
            "--interpolate: this model makes 1 frame at a time, so none is between "
            "others: give a model of videos, or --edit to change a picture"
        )
    if frames < 3:
        raise UserError(
            f"--num_frames={frames}: --interpolate needs 3 or more, of which the first "
            "and the last are the clip's"
        )
    default = max(2, math.ceil((frames - 1) / max(1, block - 1)) + 1)
    number = num_cond_frames or default
    _check_num_cond_frames(number, frames, 2, frames - 1)
    indices = np.round(np.linspace(0, frames - 1, number)).astype(int)
    return _observe_frames(output, clip, frames, indices, indices)


def inpaint(
    output: OutputSpec, clip: str, mask: str | None
) -> tuple[Observation, ClipInfo]:
    """Observe a clip's pixels where `mask`, an image or a video, is black.

    The mask has the shape of the clip's frames; a video of masks has one per frame.
    """
    if not mask:
        raise UserError("--inpaint needs --mask=FILE, white where to inpaint")
    frames = output.checked_num_frames(output.model.video_shape[0])
    indices = np.arange(frames)
    observation, info = _observe_frames(output, clip, frames, indices, indices)
    white, size = read_mask(mask, frames, output)
    if size[0] * info["height"] != size[1] * info["width"]:
        raise UserError(
            f"--mask={mask} is {size[0]}x{size[1]}, the clip "
            f"{info['width']}x{info['height']}: draw it on a frame of the clip"
        )
    unknown = white > 127
    if not unknown.any():
        raise UserError(
            f"--mask={mask} has no white (255) left at the output's size of "
            f"{output.size[1]}x{output.size[0]}: nothing to inpaint"
        )
    info |= {"mask": mask, "masked_fraction": float(unknown.mean())}
    return observation._replace(mask=observation.mask & ~unknown), info


def upscale(
    output: OutputSpec, clip: str, downscale_factor: int | None = None
) -> tuple[Observation, ClipInfo]:
    """Observe a clip smaller than the output as the area means of the output.

    downscale_factor: resizes the clip to the output's size divided by it first; the
    default is the clip's own size, its centre cropped to the output's aspect ratio.
    """
    frames = output.checked_num_frames(output.model.video_shape[0])
    height, width = output.size
    factor = downscale_factor
    largest = min(height, width)
    if factor is not None and not 2 <= factor <= largest:
        raise UserError(f"--downscale_factor={factor}: from 2 to {largest}")
    low = None if factor is None else (height // factor, width // factor)
    video, info = _read_clip(clip, np.arange(frames), output, low)
    scale = min(info["height"] / height, info["width"] / width)
    if low is None and scale < 1:
        low = max(1, round(height * scale)), max(1, round(width * scale))
        video = video_io.crop(video, low)
    if low is None or info["height"] < low[0] or info["width"] < low[1]:
        raise UserError(
            f"--upscale={clip} is {info['width']}x{info['height']}, the output "
            f"{width}x{height}: a smaller clip needs no --downscale_factor, a larger "
            "one --downscale_factor=2 or more, or larger --tiles"
        )
    info |= {"low_res": f"{low[1]}x{low[0]}", "output": f"{width}x{height}"}
    low_res = _encode(output.model, video)[None]
    return output.empty_observation(frames)._replace(low_res=low_res), info


def edit(
    output: OutputSpec, clip: str, strength: float | Sequence[float] | None
) -> tuple[Observation, ClipInfo]:
    """Read the clip or picture that the output starts from. A picture is every frame.

    The observation has its video, and nothing of it is known, but the frames of
    strength 0 where each frame has its own.
    """
    frames = output.checked_num_frames(output.model.video_shape[0])
    indices = np.arange(frames) * (not _is_picture(clip))
    video, info = _read_clip(clip, indices, output, output.size)
    observation = output.empty_observation(frames)
    observation.video[0] = _encode(output.model, video)
    if isinstance(strength, Sequence):
        if len(strength) != frames:
            raise UserError(
                f"--strength has {len(strength)} numbers: one, or one for each of "
                f"{frames} frames"
            )
        observation.mask[0, np.equal(strength, 0)] = True
        observation = observation._replace(strength=np.array([strength]))
    height, width = output.size
    return observation, info | {"output": f"{width}x{height}", "strength": strength}


def read_control(output: OutputSpec, clip: str) -> tuple[np.ndarray, ClipInfo]:
    """Read frames from a clip's start, uint8 [f, h, w, c] of the model's channels.

    output: num_frames of 0 reads as many as the clip has. A picture is every frame.

    Raises:
      UserError: the clip cannot be read or is too short, or its frames need too much
        memory.
    """
    longest = _longest(clip, output)
    frames, is_still = output.num_frames or longest, _is_picture(clip)
    if frames > longest and not is_still:
        raise UserError(
            f"--control={clip} gives {longest} frames, not {frames}: --num_frames=0 "
            "takes all"
        )
    shape = frames, *output.size, output.model.video_shape[3]
    check_video_memory(output.num, shape, f"--control={clip} of {frames} frames")
    indices = np.arange(frames) * (not is_still)
    video, info = _read_clip(clip, indices, output, output.size)
    if shape[3] == 1 and video.shape[-1] == 3:
        video = video_io.to_gray(video)
    return video, info | {"output": f"{shape[2]}x{shape[1]}"}


def describe(info: ClipInfo) -> str:
    """Return the line that says which frames of a clip are used."""
    used, length = len(info["clip_frames"]), info["clip_length"]
    ignored = ", the rest is ignored" if used < length else ""
    frames = f"{used} of its {length} frames are used{ignored}"
    return f"{info['clip']}: {frames}; {info['timing']}"


def _longest(path: str, output: OutputSpec) -> int:
    """Return the number of frames that can be taken of a clip."""
    if Path(path).suffix.lower() == ".npz":
        return len(_read_npz(path))
    try:
        clip = DECODER.probe(path)
        return output.selection(2, clip).longest(clip)
    except BadVideo as error:
        raise UserError(str(error)) from error


def _is_picture(path: str) -> bool:
    """Whether a file is a video of one frame; False for one that cannot be read."""
    if Path(path).suffix.lower() == ".npz":
        return len(_read_npz(path)) == 1
    with contextlib.suppress(BadVideo):
        return DECODER.probe(path).frames == 1
    return False


def _check_num_cond_frames(number: int, frames: int, lowest: int, highest: int) -> None:
    if not lowest <= number <= highest:
        raise UserError(
            f"--num_cond_frames={number} of --num_frames={frames}: at least {lowest}, "
            f"at most {highest}: within one block, and fewer than the output has"
        )


def _observe_frames(
    output: OutputSpec, clip: str, frames: int, clip_indices: np.ndarray,
    indices: np.ndarray,
) -> tuple[Observation, ClipInfo]:  # fmt: skip
    """Observe these of the frames taken of a clip, as these output frames."""
    video, info = _read_clip(clip, clip_indices, output, output.size)
    observation = output.empty_observation(frames)
    observation.video[0, indices] = _encode(output.model, video)
    observation.mask[0, indices] = True
    height, width = output.size
    info |= {"output": f"{width}x{height}", "output_frames": indices.tolist()}
    return observation, info


def _encode(model: DiffusionModel, video: np.ndarray) -> np.ndarray:
    """Return uint8 [f, h, w, 3] as the model diffuses it; grey for grey models."""
    if model.video_shape[3] == 1 and video.shape[-1] == 3:
        video = video_io.to_gray(video)
    return np.asarray(model.normalize(jnp.asarray(video)))


def _read_clip(
    path: str, indices: np.ndarray, output: OutputSpec, size: tuple[int, int] | None
) -> tuple[np.ndarray, ClipInfo]:
    """Read some of the frames taken of a clip: uint8 [n, h, w, 3 or 1], and its info.

    path: a video file, a folder of frames, or the samples.npz of a run, of which the
    first video is read. size: (h, w) of the frames, which are resized to cover it and
    cropped at the centre; None keeps the clip's own.
    """
    if Path(path).suffix.lower() == ".npz":
        video = _read_npz(path)
        if len(video) <= indices[-1]:
            raise UserError(
                f"{path}: too short: {len(video)} frames, {indices[-1] + 1} are needed"
            )
        chosen = indices
        height, width = video.shape[1:3]
        length = len(video)
        timing = "every frame"
        video = video[indices]
        if size:
            video = video_io.resize(video, size)
    else:
        try:
            clip = DECODER.probe(path)
            selection = output.selection(int(indices[-1]) + 1, clip)
            selection.num_starts(clip)  # raises if the clip is too short
            chosen = selection.frame_numbers(clip, 0)[indices]
            video = DECODER.read_frames(clip, chosen.tolist(), size)
        except BadVideo as error:
            raise UserError(str(error)) from error
        height, width, length = clip.height, clip.width, clip.frames
        timing = selection.describe(clip)
    info = {
        "clip": path, "clip_frames": chosen.tolist(), "clip_length": length,
        "height": height, "width": width, "timing": timing,
    }  # fmt: skip
    return (video_io.crop(video, size) if size else video), info


def _read_npz(path: str) -> np.ndarray:
    """Return the first video of a samples.npz."""
    try:
        return video_io.read_npz(path)[0]
    except (OSError, CorruptFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} is no samples.npz of sample.py: {reason}") from error


def read_mask(
    path: str, frames: int, output: OutputSpec
) -> tuple[np.ndarray, tuple[int, int]]:
    """Read a mask: [1 or frames, h, w, 1] of 0..255 at the output's size.

    Returns it with its own (width, height).
    """
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
    video, info = _read_clip(path, np.arange(frames), output, output.size)
    return video.mean(-1, keepdims=True), (info["width"], info["height"])
