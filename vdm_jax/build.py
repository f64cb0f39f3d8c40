"""Build a model from a config; what it returns holds no ConfigDict."""

import dataclasses
import types
import typing
from typing import Any

from vdm_jax.conditions.encoder import ConditioningEncoder
from vdm_jax.conditions.low_resolution import STAGE_KINDS, TEMPORAL_FILLS, LowResolution
from vdm_jax.diffusion import process, schedules
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel
from vdm_jax.networks import unet3d


def network_spec(config: Any) -> unet3d.UNetSpec:
    """Return the U-Net's frozen spec from the network section of a config."""
    fields = config.network.to_dict()
    levels = tuple(
        unet3d.LevelSpec(**{**level, "layers": tuple(level["layers"])})
        for level in fields.pop("levels")
    )
    fields["mid_layers"] = tuple(fields["mid_layers"])
    fields["out_channels"] = config.video.channels
    return unet3d.UNetSpec(levels=levels, **fields)


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


def low_resolution_from_config(config: Any) -> LowResolution | None:
    """Return the low-resolution condition of a stage, None for a base model."""
    stage, video = config.stage, config.video
    if stage.kind == "base":
        return None
    if stage.kind not in STAGE_KINDS:
        raise UserError(
            f"stage.kind={stage.kind!r}: one of base, {', '.join(STAGE_KINDS)}"
        )
    if stage.temporal_fill not in TEMPORAL_FILLS:
        raise UserError(
            f"stage.temporal_fill={stage.temporal_fill!r}: one of "
            + ", ".join(TEMPORAL_FILLS)
        )
    if stage.kind == "ssr" and stage.temporal_fill != "repeat":
        raise UserError(
            f"stage.temporal_fill={stage.temporal_fill!r} needs stage.kind='tsr'"
        )
    if stage.factor < 2:
        raise UserError(f"stage.factor={stage.factor}: 2 or more")
    times = tuple(stage.augmentation_time)
    if len(times) != 2 or not 0 <= times[0] <= times[1] <= 1:
        raise UserError(
            f"stage.augmentation_time={times}: two times from 0 to 1, in order"
        )
    names = ("frames",) if stage.kind == "tsr" else ("height", "width")
    for name in names:
        if video[name] % stage.factor:
            nearest = max(round(video[name] / stage.factor), 1) * stage.factor
            raise UserError(
                f"video.{name}={video[name]} must be a multiple of stage.factor="
                f"{stage.factor}: the nearest is {nearest}"
            )
    crop = tuple(stage.train_crop)
    if len(crop) not in (0, 2):
        raise UserError(f"stage.train_crop={crop}: (height, width), or () for none")
    for side, name in zip(crop, ("height", "width"), strict=False):
        if side % stage.factor or not 0 < side <= video[name]:
            raise UserError(
                f"stage.train_crop={crop}: a {name} of at most {video[name]} that is a "
                f"multiple of stage.factor={stage.factor}"
            )
    return LowResolution(
        kind=stage.kind,
        factor=stage.factor,
        shape=(video.frames, video.height, video.width, video.channels),
        temporal_fill=stage.temporal_fill,
        augmentation_time=(float(times[0]), float(times[1])),
        train_crop=crop,
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
    spec = network_spec(config)
    unet3d.check(spec, video.height, video.width)
    vocabulary = tuple(tuple(names) for names in config.data.label_vocabulary or ())
    schedule = schedule_from_config(diffusion)
    shifted = tuple(
        dataclasses.replace(schedule, logsnr_shift=shift)  # type: ignore[call-arg]
        for shift in diffusion.train_logsnr_shifts
    )
    training_schedule = schedules.AlternatingSchedules(shifted) if shifted else schedule
    guidance_range = tuple(conditioning.guidance_range)
    low_resolution = low_resolution_from_config(config)
    if low_resolution is not None and low_resolution.train_crop:
        unet3d.check(spec, *low_resolution.train_crop)
    scaling = {}
    if diffusion.precondition:
        scaling = {"mean": config.data.mean, "variance": config.data.variance}
    return DiffusionModel(
        network=unet3d.UNet3D(spec),
        conditioning_encoder=ConditioningEncoder(
            dim=conditioning.cond_dim,
            mlp_layers=conditioning.cond_mlp_layers,
            cardinalities=tuple(len(names) for names in vocabulary),
            frame_index=conditioning.frame_index_embedding,
            text=conditioning.text_dim > 0,
            # The embedding reads VDM's weight w = s - 1, as in all trained students.
            guidance_weight_range=tuple(scale - 1 for scale in guidance_range),
            low_resolution=low_resolution is not None,
        ),
        schedule=schedule,
        training_schedule=training_schedule,
        shape=(video.frames, video.height, video.width, video.channels),
        label_vocabulary=vocabulary,
        prediction_type=diffusion.prediction_type,
        label_dropout=conditioning.label_dropout,
        attribute_dropout=conditioning.attribute_dropout,
        text_dim=conditioning.text_dim,
        text_dropout=conditioning.text_dropout,
        guidance_range=guidance_range,
        low_resolution=low_resolution,
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
        inner = value if isinstance(value, tuple) else (value,)
        for each in filter(dataclasses.is_dataclass, inner):
            if found := mistyped_field(each):
                return found
    return ""


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
