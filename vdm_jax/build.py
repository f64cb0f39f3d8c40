"""Build a model from a config; what it returns holds no ConfigDict."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any

from vdm_jax import codec as codecs
from vdm_jax import conditions, networks
from vdm_jax.conditions.encoder import ConditioningEncoder
from vdm_jax.diffusion import process, schedules
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel


def schedule_from_config(diffusion: Any) -> schedules.Schedule:
    """Return the noise schedule of a config's diffusion section."""
    name, known = diffusion.schedule, schedules.SCHEDULES
    if name not in known:
        raise UserError(f"diffusion.schedule={name!r}: one of {', '.join(known)}")
    accepted = {field.name for field in dataclasses.fields(known[name])}
    shifts = ("logsnr_shift", "noise_logsnr_shift")
    for field in shifts:
        if diffusion[field] and field not in accepted:
            raise UserError(
                f"diffusion.{field}={diffusion[field]}: schedule {name!r} has none; "
                "set it to 0"
            )
    if diffusion.train_logsnr_shifts and name not in ("cosine", "flow"):
        raise UserError(
            "diffusion.train_logsnr_shifts moves schedule 'cosine' or 'flow', not "
            f"{name!r}: set it to ()"
        )
    if diffusion.prediction_type == "eps" and diffusion.logsnr_min < -20:
        raise UserError(
            f"diffusion.logsnr_min={diffusion.logsnr_min} with "
            "diffusion.prediction_type='eps', which does not determine the video where "
            "no signal is left: -20 or more, or prediction_type='v'"
        )
    return schedules.make_schedule(
        name,
        diffusion.logsnr_min,
        diffusion.logsnr_max,
        **{field: diffusion[field] for field in shifts},
    )


def build_model(config: Any) -> DiffusionModel:
    """Return the model that a config describes.

    Raises:
      UserError: values that are unknown or do not fit each other.
    """
    video, diffusion = config.video, config.diffusion
    conditioning = config.conditioning
    if diffusion.prediction_type not in process.PREDICTION_TYPES:
        raise UserError(
            f"diffusion.prediction_type={diffusion.prediction_type!r}: one of "
            + ", ".join(process.PREDICTION_TYPES)
        )
    if diffusion.precondition and diffusion.prediction_type != "v":
        raise UserError(
            "diffusion.precondition needs diffusion.prediction_type='v', not "
            f"{diffusion.prediction_type!r}: set diffusion.precondition=False"
        )
    codec = codecs.from_config(config)
    video_shape = video.frames, video.height, video.width, video.channels
    z_shape = codec.z_shape(video_shape)
    schedule = schedule_from_config(diffusion)
    shifted = tuple(
        dataclasses.replace(schedule, logsnr_shift=shift)  # type: ignore[call-arg]
        for shift in diffusion.train_logsnr_shifts
    )
    training_schedule = schedules.AlternatingSchedules(shifted) if shifted else schedule
    rows = conditions.from_config(config)
    crop = getattr(dict(rows).get("low_resolution"), "train_crop", ())
    sizes = [z_shape[1:3]]
    if crop:
        sizes.append(codec.z_shape((video.frames, *crop, video.channels))[1:3])
    scaling = {}
    if diffusion.precondition:
        scaling = {"mean": config.data.mean, "variance": config.data.variance}
    return DiffusionModel(
        network=networks.from_config(config, z_shape[3], sizes),
        conditioning_encoder=ConditioningEncoder(
            dim=conditioning.cond_dim,
            mlp_layers=conditioning.cond_mlp_layers,
            conditions=rows,
        ),
        schedule=schedule,
        training_schedule=training_schedule,
        video_shape=video_shape,
        codec=codec,
        conditions=rows,
        prediction_type=diffusion.prediction_type,
        **scaling,
    )


def mistyped_field(instance: Any) -> str:
    """Return "name=value" of a field whose value is not of its declared type, or "".

    Dataclasses inside of the dataclass are checked too.
    """
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name, None)
        if not matches_type(value, field.type):
            return f"{field.name}={value!r:.40}"
        for each in _leaves(value):
            if not dataclasses.is_dataclass(each) or isinstance(each, type):
                continue
            if found := mistyped_field(each):
                return found
    return ""


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what a tuple of tuples holds."""
    if not isinstance(value, tuple):
        yield value
        return
    for each in value:
        yield from _leaves(each)


def matches_type(value: Any, kind: Any) -> bool:
    """Return whether a value is of a declared type that a config can hold."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(matches_type(value, each) for each in arguments)
    if typing.get_origin(kind) is tuple:
        if arguments[1:] == (...,):
            arguments = arguments[:1] * len(value)
        return len(value) == len(arguments) and all(map(matches_type, value, arguments))
    if kind is float:  # NaN compares false with every bound: refuse it here
        return type(value) in (int, float) and value == value
    if kind in (int, str, bool, types.NoneType):
        return type(value) is kind
    return True
