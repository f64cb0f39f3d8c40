"""An image model as one of videos, whose frames it denoises together."""

import dataclasses
from typing import Any

import flax.linen as nn
import numpy as np

from vdm_jax.conditions.base import Condition
from vdm_jax.conditions.hint import Hint
from vdm_jax.diffusion.schedules import Discrete
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel
from vdm_jax.networks.control import Controlled
from vdm_jax.networks.lora import WithLora
from vdm_jax.networks.sd import SDSpec
from vdm_jax.sampling import Conditions, Settings
from vdm_jax.systems.request import Request


def check_image_model(model: DiffusionModel, system: str) -> None:
    """Raise UserError for all but Stable Diffusion's kind of model of one frame.

    It may have ControlNets.
    """
    videos = [own for _, own in model.video_conditions if not isinstance(own, Hint)]
    others = {
        "network.kind='sd'": isinstance(_spec(model.network), SDSpec),
        "diffusion.schedule='discrete'": isinstance(model.schedule, Discrete),
        "video.frames=1": model.video_shape[0] == 1,
        # Indices above 0 were never trained.
        "conditioning.frame_index_embedding=False": not model.condition("frame_index"),
        "no condition that is a video": not videos,
    }
    if missing := [name for name, fits in others.items() if not fits]:
        raise UserError(
            f"{system} makes videos of an image model with {', '.join(others)}; "
            f"this model has not {', '.join(missing)}"
        )


def check_controls(model: DiffusionModel, request: Request, system: str) -> None:
    """Raise UserError for videos of controls that are not of the request's length."""
    for name, condition in model.video_conditions:
        wanted = request.num_frames, *condition.input_shape[1:]
        given = np.shape(request.inputs.cond.get(name, 0))[1:]
        if given != wanted:
            raise UserError(
                f"{system} makes {request.num_frames} frames: {name} is a video of "
                f"controls of {wanted}, not {given or 'given'}"
            )


def check_guidance(settings: Settings, system: str) -> None:
    """Raise UserError for guidance of a system that denoises frames in several calls.

    What has a scale of each frame, or statistics over a whole video, would differ by
    call.
    """
    whole = {
        "guidance_schedule": not settings.guidance_schedule.startswith("frames"),
        "cfg_mode": settings.cfg_mode == "linear",
        "dynamic_threshold": not settings.dynamic_threshold,
    }
    for name, fits in whole.items():
        if not fits:
            raise UserError(
                f"{name}={getattr(settings, name)!r} is of all frames of a video, "
                f"which {system} denoises in several calls: leave it out"
            )


def take_controls(model: DiffusionModel, cond: Conditions, frames: Any) -> Conditions:
    """Return conditions with these frames of the videos of controls."""
    names = dict(model.video_conditions)
    return {k: v[:, frames] if k in names else v for k, v in cond.items()}


def _spec(network: Any) -> Any:
    if isinstance(network, Controlled):
        return _spec(network.unet)
    return _spec(network.network) if isinstance(network, WithLora) else network.spec


def with_frames(
    model: DiffusionModel, frames: int, control_reads: str = "own", **network: Any
) -> DiffusionModel:
    """Return an image model as one of so many frames; its parameters stay the same.

    network: fields of its SDSpec that change, as frame_reads="first". A ControlNet's
      change, too, but for its frame_reads, which is control_reads.
    """
    conditions = tuple((name, _resized(own, frames)) for name, own in model.conditions)
    encoder = dataclasses.replace(model.conditioning_encoder, conditions=conditions)
    return dataclasses.replace(
        model,
        network=_with_spec(model.network, network, control_reads),
        conditioning_encoder=encoder,
        conditions=conditions,
        video_shape=(frames, *model.video_shape[1:]),
    )


def _resized(condition: Condition, frames: int) -> Condition:
    if not isinstance(condition, Hint):
        return condition
    return dataclasses.replace(condition, shape=(frames, *condition.shape[1:]))


def _with_spec(network: Any, changes: dict[str, Any], control_reads: str) -> nn.Module:
    if isinstance(network, WithLora):
        unet = _with_spec(network.network, changes, control_reads)
        return network.clone(network=unet)
    if isinstance(network, Controlled):
        own = changes | {"frame_reads": control_reads}
        return network.clone(
            unet=_with_spec(network.unet, changes, control_reads),
            controls=tuple(_with_spec(each, own, "") for each in network.controls),
        )
    return network.clone(spec=dataclasses.replace(network.spec, **changes))
