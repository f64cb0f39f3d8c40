"""ControlVideo: videos of an image model and its ControlNets, without training.

Zhang et al. 2023, arXiv:2305.13077. Every frame has its own controls and the same
initial noise. Self-attention reads all frames (section 3.2); long videos are denoised
by key frames (section 3.4). In a few steps every other frame of the predicted video is
replaced by what is between its neighbours (section 3.3).
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import sampling
from vdm_jax.codec import Codec
from vdm_jax.diffusion.key_frames import (
    MIN_WINDOW,
    Plan,
    denoise_by_key_frames,
    make_plan,
)
from vdm_jax.diffusion.process import Array, Denoiser, Prediction
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.runs import TrainedModel
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

NAME = "control_video"
Interpolate = Callable[[Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of --set."""

    together: int = setting(
        9, "most frames that are denoised together: more of them take memory", 3, 1024
    )
    window: int = setting(
        0, "frames from one key frame to the next, both counted; 0 is the square root "
        "of the number of frames, above --set=together", 0, 1024,
    )  # fmt: skip
    smooth_steps: int = setting(
        2, "steps in which every other frame is interpolated; 0 is none", 0, 1024
    )
    smooth_start: float = setting(0.6, "fraction of the steps before them", 0, 1)
    joint_norms: bool = setting(
        True, "norms outside of transformers have statistics over all frames"
    )


def midpoint(left: Array, right: Array) -> Array:
    """Return the mean of two frames [b, 1, h, w, c]."""
    return (left + right) / 2


def neighbours(frames: int, step: int) -> np.ndarray:
    """Return the two frames that each frame is interpolated from, int [frames, 2].

    An even step replaces odd frames, an odd step even ones; a frame that stays is
    twice its own. A border that lacks a neighbour stands for it, but the last frame
    stays in an even step.
    """
    pairs = np.arange(frames)[:, None].repeat(2, axis=1)
    last = frames - 1 if step % 2 else frames - 2
    for frame in range(1 - step % 2, last + 1, 2):
        pairs[frame] = max(frame - 1, 0), min(frame + 1, frames - 1)
    return pairs


@dataclasses.dataclass(frozen=True)
class Smoother:
    """A wrap of a denoiser that interpolates frames of the predicted x in these steps.

    The prediction of the noise stays. Two frames are decoded at a time.
    """

    codec: Codec
    steps: tuple[int, ...]
    interpolate: Interpolate = midpoint

    def __call__(self, denoise: Denoiser, params: Params) -> Denoiser:
        """Return the smoothed denoiser; params: of the model."""
        codec_params = params.get("codec")

        def smoothed(z: Array, level, cond) -> Prediction:
            x, eps = denoise(z, level, cond)
            is_on = (level.step_index == jnp.array(self.steps)).any()
            x = jax.lax.cond(
                is_on,
                lambda: self.smooth(x, level.step_index % 2, codec_params),
                lambda: x,
            )
            return Prediction(x, eps)

        return smoothed

    def smooth(self, x: Array, parity: Array, codec_params: Params) -> Array:
        """Return x [b, f, h, w, c] whose frames went through pixels.

        parity: of the step, 0 or 1.
        """
        pairs = np.stack([neighbours(x.shape[1], step) for step in (0, 1)])

        def decode(frame: Array) -> Array:
            z = jax.lax.dynamic_slice_in_dim(x, frame, 1, axis=1)
            return jnp.clip(self.codec.decode(z, codec_params), -1, 1)

        def one(pair: Array) -> Array:
            left = decode(pair[0])
            video = jax.lax.cond(
                pair[0] == pair[1],
                lambda: left,
                lambda: self.interpolate(left, decode(pair[1])),
            )
            return self.codec.encode(video, codec_params)[:, 0].astype(x.dtype)

        return jnp.moveaxis(jax.lax.map(one, jnp.asarray(pairs)[parity]), 0, 1)


@dataclasses.dataclass(frozen=True)
class KeyFrameModel(DiffusionModel):
    """A model of videos whose frames are denoised by key frames."""

    plan: Plan = Plan((), ())

    def in_calls(self, denoiser_of: Callable[[DiffusionModel], Denoiser]) -> Denoiser:
        """Join the denoiser of key frames, which read each other, and that of gaps."""
        keys, gap = (
            denoiser_of(with_frames(self, self.video_shape[0], frame_reads=reads))
            for reads in ("every", "ends")
        )

        def take_frames(conds: Sequence, frames: Array) -> list:
            return [take_controls(self, cond, frames) for cond in conds]

        return denoise_by_key_frames(keys, gap, self.plan, take_frames)


def video_model(model: DiffusionModel, frames: int, options: Options) -> KeyFrameModel:
    """Return an image model as one of videos, by key frames where they are many."""
    plan = make_plan(frames, options.together, options.window)
    of_videos = with_frames(model, frames, joint_norms=options.joint_norms)
    return KeyFrameModel(**vars(of_videos), plan=plan)


def smoothed_steps(options: Options, steps: int) -> tuple[int, ...]:
    """Return the steps of the sampler in which frames are interpolated."""
    first = round(options.smooth_start * steps)
    return tuple(range(first, min(first + options.smooth_steps, steps)))


def smoother(
    model: DiffusionModel,
    settings: sampling.Settings,
    options: Options,
    interpolate: Interpolate = midpoint,
) -> Smoother | None:
    """Return the wrap of the denoiser that smooths, None where no step is smoothed."""
    steps = smoothed_steps(options, settings.steps)
    return Smoother(model.codec, steps, interpolate) if steps else None


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
    interpolate: Interpolate = midpoint,
) -> np.ndarray:
    """Return z [num, num_frames, h, w, c] of the videos, neither decoded nor clipped.

    interpolate: makes the frame between two frames [b, 1, h, w, c] in [-1, 1]; it runs
      in the compiled program, and another one compiles another program.

    Raises:
      UserError: the model or a setting is not for this system.
    """
    check_request(loaded.model, request, settings, options)
    model = video_model(loaded.model, request.num_frames, options)
    inputs = request.inputs
    if (noise := inputs.initial_noise) is not None:
        noise = np.broadcast_to(noise, (len(noise), *model.shape))
        inputs = dataclasses.replace(inputs, initial_noise=noise)
    wrap = smoother(model, settings, options, interpolate)
    how = sampling.Run(
        request.seed, first_video=request.first_video, wrap=wrap,
        shared_noise=True, progress=progress,
    )  # fmt: skip
    return sampling.generate(model, loaded.params, request.num, settings, inputs, how)


def check_request(
    model: DiffusionModel, request: Request, settings: sampling.Settings,
    options: Options,
) -> None:  # fmt: skip
    """Raise UserError for a model, a setting or a request that does not fit.

    It loads and computes nothing.
    """
    check_image_model(model, NAME)
    sampling.check_settings(model, request.num, request.seed, settings)
    if not model.video_conditions:
        raise UserError(
            f"{NAME} makes videos by ControlNets: edit.py --system={NAME} "
            "--control=CLIP --controlnet=FOLDER"
        )
    check_controls(model, request, NAME)
    check_guidance(settings, NAME)
    if options.smooth_steps and not smoothed_steps(options, settings.steps):
        raise UserError(
            f"smooth_start={options.smooth_start}: no step of {settings.steps} is left "
            "to smooth in; give less, or smooth_steps=0"
        )
    if 0 < options.window < MIN_WINDOW:
        raise UserError(
            f"window={options.window}: 0, or {MIN_WINDOW} and more; a shorter one has "
            "no frame between two key frames"
        )
    if request.foreground is not None and not callable(request.foreground):
        raise UserError(f"{NAME} reads no --mask")
    shape = request.num_frames, *model.video_shape[1:]
    sampling.check_video_memory(request.num, shape, f"num_frames={shape[0]}")
