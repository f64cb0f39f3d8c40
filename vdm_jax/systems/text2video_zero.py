"""Text2Video-Zero: videos of an image model, without training.

Khachatryan et al. 2023, arXiv:2303.13439. One frame is denoised from noise to t1 and on
to t0. The other frames are it, moved as far as their number says (section 3.3.1), with
noise that takes them back to t1. From there all frames are denoised together, and their
self-attention reads the first one (section 3.3.2).

With ControlNets all frames start from the same noise, and nothing is moved: their
controls say where things are. In a ControlNet, too, frames read the first one.

Arrays are those of the host, z and masks [b, f, h, w, c].
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from vdm_jax import sampling
from vdm_jax.diffusion import samplers
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel
from vdm_jax.runs import TrainedModel
from vdm_jax.sampling.settings import make_schedule
from vdm_jax.sampling.types import Progress, no_progress
from vdm_jax.settings.declaration import setting
from vdm_jax.systems.image_model import (
    check_controls,
    check_guidance,
    check_image_model,
    take_controls,
    with_frames,
)
from vdm_jax.systems.request import Request

NAME = "text2video_zero"
NO_OPTIONS = f"{NAME} with controls has no --set: they say what moves"
CANVAS = 512  # pixels of a picture's side, of which motion is measured
CHUNK = 8  # frames that are denoised at a time, the first one among them
# Number of the draw that takes a frame back to t1; the frame's stands for the step. The
# samplers' draws are smaller ones.
FRAME_DRAW = 16
DILATION = 5  # latents, the side of the square by which a foreground grows


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of --set."""

    motion: tuple[float, float] = setting(
        (1.0, 1.0), "x,y of the content from frame to frame, right and down", -100, 100
    )
    strength: float = setting(
        12.0, "pixels of a motion of 1 in a picture of 512 pixels", 0, CANVAS
    )
    t0: int = setting(881, "timestep at which the first frame is moved", 0, 10**6)
    t1: int = setting(
        941, "timestep, above t0, from which all frames are denoised", 0, 10**6
    )
    smooth: float = setting(
        0.0, "weight of the first frame's background in the others; the paper's is .6",
        0, 1,
    )  # fmt: skip


# --- on arrays ------------------------------------------------------------------------


def source_indices(n: int, motion: float, frame: int) -> np.ndarray:
    """Return which pixel of an axis each one of a moved picture is, int [n].

    The published program resizes a field of motion from 512 pixels and samples the
    nearest pixel of a reflected picture, which is this closed form. Its shift of half
    of one of the 512 pixels is kept; it changes no pixel by itself below n = 512.

    motion: of the content from frame to frame, in pixels of a picture of 512.
    """
    place = np.arange(n) - n / (2 * CANVAS) - motion * frame * n / CANVAS
    from_edge = (place + 0.5) % (2 * n)  # reflected about the outer edges
    place = np.minimum(from_edge, 2 * n - from_edge) - 0.5
    return np.rint(place.clip(0, n - 1)).astype(int)


def warp(
    z: np.ndarray, motion: tuple[float, float], frames: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Return moved copies [b, len(frames), h, w, c] of the first frame of z.

    motion: x to the right and y down, as of `source_indices`. frames: their numbers,
    of which 0 does not move.
    """
    height, width = z.shape[2:4]
    moved = np.empty((len(z), len(frames), *z.shape[2:]), z.dtype)
    for i, frame in enumerate(frames):
        rows = source_indices(height, motion[1], frame)
        columns = source_indices(width, motion[0], frame)
        moved[:, i] = z[:, 0][:, rows][:, :, columns]
    return moved


def renoise(z: np.ndarray, eps: np.ndarray, ratio: float) -> np.ndarray:
    """Return z of a lower noise level with the noise eps that takes it to a higher one.

    ratio: alpha^2 of the higher level over that of the lower one.
    """
    return (ratio**0.5 * z + (1 - ratio) ** 0.5 * eps).astype(z.dtype)


def dilate(masks: np.ndarray) -> np.ndarray:
    """Return masks [b, f, h, w, 1] that have grown by two latents on each side."""
    pad = DILATION // 2
    masks = np.pad(masks, [(0, 0), (0, 0), (pad, pad), (pad, pad), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(masks, (DILATION,) * 2, (2, 3))
    return windows.max((-2, -1))


def smooth_background(
    z: np.ndarray, foreground: np.ndarray, motion: tuple[float, float], weight: float
) -> np.ndarray:
    """Mix the moved background of the first frame into z [b, f, h, w, c] at t1.

    Section 3.3.3, equation 10, with alpha = weight: it is the background of a frame
    where neither its own foreground is, nor the first frame's, moved.

    foreground: bool [1 or b, f, h, w, 1], of z.
    """
    frames = np.arange(z.shape[1])
    first = foreground[:, :1]
    background = ~foreground & ~warp(first, motion, frames)
    moved = warp(z[:, :1] * ~first, motion, frames)
    share = weight * background
    return ((1 - share) * z + share * moved).astype(z.dtype)


# --- the system -----------------------------------------------------------------------


def sample(
    loaded: TrainedModel,
    request: Request,
    settings: sampling.Settings,
    options: Options = Options(),
    progress: Progress = no_progress,
) -> np.ndarray:
    """Return videos [num, num_frames, h, w, c] in [-1, 1].

    Raises:
      UserError: as `generate`.
    """
    z = generate(loaded, request, settings, options, progress)
    return sampling.decode(loaded.model, loaded.params, z)


def generate(
    loaded: TrainedModel,
    request: Request,
    settings: sampling.Settings,
    options: Options = Options(),
    progress: Progress = no_progress,
) -> np.ndarray:
    """Return z [num, num_frames, h, w, c] of the videos, neither decoded nor clipped.

    Frames are denoised in chunks of CHUNK, each with the first frame. The chunks do not
    change what is made. A sampler's own noise is the same in all frames.

    Raises:
      UserError: the model or a setting is not for this system.
    """
    model, count = loaded.model, request.num_frames
    check_request(model, request, settings, options)
    if options.smooth and callable(find := request.foreground):
        request = dataclasses.replace(request, foreground=None)
        plain = dataclasses.replace(options, smooth=0.0)
        videos = sample(loaded, request, settings, plain, progress)
        request = dataclasses.replace(request, foreground=find(videos))
    size = max(2, min(CHUNK, count))
    starts = range(1, max(2, count), size - 1)
    if model.video_conditions:  # controls place each frame: section 3.3, figure 4
        row_1 = row_0 = 0
        z = np.repeat(initial_noise(model, request), count, axis=1)
    else:
        row_1, row_0, ratio = phases(model, settings, options)
    total = row_0 + len(starts) * (settings.steps - row_1)
    run = _Runs(loaded, request, settings, progress, total)
    if not model.video_conditions:
        first_1 = run(model, initial_noise(model, request), (0, row_1), [0])
        first_0 = run(model, first_1, (row_1, row_0), [0])
        eps = frame_noise(model, request)
        z = start(first_1, first_0, eps, ratio, request, options)
    video_model = with_frames(model, size, "first", frame_reads="first")
    made = np.empty_like(z)
    for begin in starts:
        # The last chunk is filled up with copies of the last frame: one program.
        chunk = np.minimum([0, *range(begin, begin + size - 1)], count - 1)
        rows = row_1, settings.steps
        made[:, chunk] = run(video_model, z[:, chunk], rows, chunk)
    return made


@dataclasses.dataclass
class _Runs:
    """The runs of the sampler that make videos, with their progress."""

    loaded: TrainedModel
    request: Request
    settings: sampling.Settings
    progress: Progress
    total: int
    done: int = 0

    def __call__(
        self, model: DiffusionModel, z: np.ndarray, rows: tuple[int, int], frames: Any
    ) -> np.ndarray:
        """Return z after these rows of the sampler's table; frames: numbers of z's."""
        request, length = self.request, rows[1] - rows[0]
        if not length:
            return z

        def report(part: int, whole: int) -> None:
            self.progress(self.done + part * length // whole, self.total)

        cond = take_controls(model, request.inputs.cond, frames)
        inputs = dataclasses.replace(request.inputs, cond=cond, initial_noise=z)
        how = sampling.Run(
            request.seed, first_video=request.first_video, rows=rows,
            shared_noise=True, progress=report,
        )  # fmt: skip
        params = self.loaded.params
        made = sampling.generate(model, params, request.num, self.settings, inputs, how)
        self.done += length
        return made


def start(
    first_1: np.ndarray, first_0: np.ndarray, eps: np.ndarray, ratio: float,
    request: Request, options: Options,
) -> np.ndarray:  # fmt: skip
    """Return z of all frames at t1, from those of the first frame at t1 and t0.

    eps: noise of the other frames. ratio: as of `renoise`.
    """
    x, y = options.motion
    motion = options.strength * x, options.strength * y
    frames = np.arange(request.num_frames)
    others = renoise(warp(first_0, motion, frames[1:]), eps, ratio)
    z = np.concatenate([first_1, others], axis=1)
    if not options.smooth:
        return z
    assert isinstance(request.foreground, np.ndarray)
    masks = latent_foreground(request.foreground, z.shape[2:4])
    if masks.shape[1] == 1:
        masks = warp(masks, motion, frames)
    return smooth_background(z, masks, motion, options.smooth)


def latent_foreground(foreground: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a foreground of pixels as one of latents of this size, dilated.

    The first pixel of each latent decides, which is nearest interpolation in torch.
    """
    rows, columns = (n // m for n, m in zip(foreground.shape[2:4], size, strict=True))
    return dilate(foreground[:, :, ::rows, ::columns])


def phases(
    model: DiffusionModel, settings: sampling.Settings, options: Options
) -> tuple[int, int, float]:
    """Return the rows of the sampler's table that start at t1 and at t0.

    They are those nearest to the timesteps. The third value is the ratio of alpha^2 at
    t1 to that at t0, as of `renoise`.

    Raises:
      UserError: no row is between them.
    """
    level, _ = samplers.grid(make_schedule(model, settings), settings.steps)
    timesteps = model.schedule.timestep(level.logsnr)  # type: ignore[attr-defined]
    row_1, row_0 = (int(abs(timesteps - t).argmin()) for t in (options.t1, options.t0))
    if row_1 >= row_0:
        raise UserError(
            f"t1={options.t1} and t0={options.t0}: with steps={settings.steps} the "
            f"nearest steps start at {timesteps[row_1]:.0f} and "
            f"{timesteps[row_0]:.0f}: that of t1 must be the higher one"
        )
    return row_1, row_0, float((level.alpha[row_1] / level.alpha[row_0]) ** 2)


def initial_noise(model: DiffusionModel, request: Request) -> np.ndarray:
    """Return the noise of the first frames, [num, 1, h, w, c], as of one picture."""
    if request.inputs.initial_noise is not None:
        return request.inputs.initial_noise
    return np.asarray(samplers.normal(_keys(request), 0, 0, model.shape))


def frame_noise(model: DiffusionModel, request: Request) -> np.ndarray:
    """Return the noise of the frames behind the first, by their numbers.

    [num, num_frames - 1, h, w, c].
    """
    keys, shape = _keys(request), model.shape[1:]
    eps = np.empty((request.num, request.num_frames - 1, *shape))
    for frame in range(1, request.num_frames):
        eps[:, frame - 1] = samplers.normal(keys, frame, FRAME_DRAW, shape)
    return eps


def _keys(request: Request):
    """Return the random keys of the videos, as `sampling.generate` has them."""
    numbers = request.first_video + np.arange(request.num)
    return samplers.video_keys(np.uint32(request.seed), 0, 0, numbers)


def check_request(
    model: DiffusionModel, request: Request, settings: sampling.Settings,
    options: Options,
) -> None:  # fmt: skip
    """Raise UserError for a model, a setting or a request that does not fit.

    It loads and computes nothing.
    """
    check_image_model(model, NAME)
    check_controls(model, request, NAME)
    sampling.check_settings(model, request.num, request.seed, settings)
    if not model.video_conditions:
        phases(model, settings, options)
    elif options != Options():
        raise UserError(NO_OPTIONS)
    check_guidance(settings, NAME)
    size = request.num_frames, *model.video_shape[1:3]
    shape = *size, model.video_shape[3]
    sampling.check_video_memory(request.num, shape, f"num_frames={size[0]}")
    foreground = request.foreground
    if callable(foreground):
        return
    if (foreground is None) == (options.smooth > 0):
        raise UserError(
            f"smooth={options.smooth:g}: above 0 it needs --mask=FILE, white where the "
            "foreground is, but for a model of sprites; at 0 it reads none"
        )
    if foreground is not None and foreground.shape[1:] not in (
        (*size, 1), (1, *size[1:], 1),
    ):  # fmt: skip
        raise UserError(
            f"a foreground of {foreground.shape}: [videos, 1 or {size[0]}, {size[1]}, "
            f"{size[2]}, 1]"
        )
