"""From a config to a model: ConfigDicts stop here."""

import dataclasses
import types
import typing
from typing import Any

from vdm_jax.conditions.encoder import Conditioner
from vdm_jax.conditions.low_resolution import FILLS, KINDS, Stage
from vdm_jax.diffusion import process, schedules
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel
from vdm_jax.networks import unet3d


def network_spec(config: Any) -> unet3d.UNetSpec:
    """The U-Net's frozen spec from its plain data in the config."""
    fields = config.network.to_dict()
    levels = tuple(
        unet3d.LevelSpec(**{**level, "mixing": tuple(level["mixing"])})
        for level in fields.pop("levels")
    )
    fields["middle"] = tuple(fields["middle"])
    fields["out_channels"] = config.video.channels
    return unet3d.UNetSpec(levels=levels, **fields)


def make_schedule(diffusion: Any) -> schedules.Schedule:
    """The schedule that a config's diffusion section names, with its range."""
    name, known = diffusion.schedule, schedules.SCHEDULES
    if name not in known:
        raise UserError(f"diffusion.schedule={name!r}: one of {', '.join(known)}")
    takes = {field.name for field in dataclasses.fields(known[name])}
    for field in ("shift", "noise_shift"):
        if diffusion[field] and field not in takes:
            raise UserError(
                f"diffusion.{field}={diffusion[field]}: schedule {name!r} has none; "
                "set it to 0"
            )
    if diffusion.train_shifts and name not in ("cosine", "flow"):
        raise UserError(
            f"diffusion.train_shifts moves schedule 'cosine' or 'flow', not {name!r}: "
            "set it to ()"
        )
    if diffusion.output == "eps" and diffusion.logsnr_min < -20:
        raise UserError(
            f"diffusion.logsnr_min={diffusion.logsnr_min} with an eps output, which "
            "says nothing of the video where no signal is left: -20 or more, or "
            "diffusion.output='v'"
        )
    fields = ("logsnr_min", "logsnr_max", "shift", "noise_shift")
    return schedules.named(name, **{field: diffusion[field] for field in fields})


def make_stage(config: Any) -> Stage | None:
    """The super-resolution stage that a config describes, None for a base model."""
    asked, video = config.stage, config.video
    if asked.kind == "base":
        return None
    if asked.kind not in KINDS:
        raise UserError(f"stage.kind={asked.kind!r}: one of base, {', '.join(KINDS)}")
    if asked.fill not in FILLS:
        raise UserError(f"stage.fill={asked.fill!r}: one of {', '.join(FILLS)}")
    if asked.kind == "ssr" and asked.fill != "repeat":
        raise UserError(f"stage.fill={asked.fill!r} is of stage.kind='tsr'")
    if asked.factor < 2:
        raise UserError(f"stage.factor={asked.factor}: 2 or more")
    times = tuple(asked.noise)
    if len(times) != 2 or not 0 <= times[0] <= times[1] <= 1:
        raise UserError(f"stage.noise={times}: two times from 0 to 1, in order")
    names = ("frames",) if asked.kind == "tsr" else ("height", "width")
    for name in names:
        if video[name] % asked.factor:
            least = max(round(video[name] / asked.factor), 1) * asked.factor
            raise UserError(
                f"video.{name}={video[name]} must divide by stage.factor="
                f"{asked.factor}: the nearest that does is {least}"
            )
    if len(asked.crop) not in (0, 2):
        raise UserError(
            f"stage.crop={tuple(asked.crop)}: (height, width), or () for none"
        )
    for side, name in zip(asked.crop, ("height", "width"), strict=False):
        if side % asked.factor or not 0 < side <= video[name]:
            raise UserError(
                f"stage.crop={tuple(asked.crop)}: a {name} of at most {video[name]} "
                f"that divides by stage.factor={asked.factor}"
            )
    return Stage(
        kind=asked.kind,
        factor=asked.factor,
        shape=(video.frames, video.height, video.width, video.channels),
        fill=asked.fill,
        noise=(float(times[0]), float(times[1])),
        crop=tuple(asked.crop),
    )


def build_model(config: Any) -> DiffusionModel:
    """The model a config describes; raises UserError for sizes that do not fit."""
    video, diffusion, told = config.video, config.diffusion, config.conditioning
    if diffusion.output not in process.PREDICTIONS:
        raise UserError(
            f"diffusion.output={diffusion.output!r}: one of "
            + ", ".join(process.PREDICTIONS)
        )
    if diffusion.precondition and diffusion.output != "v":
        raise UserError(
            f"diffusion.precondition is for output 'v', not {diffusion.output!r}: "
            "set diffusion.precondition=False"
        )
    spec = network_spec(config)
    unet3d.check(spec, video.height, video.width)
    attributes = tuple(tuple(names) for names in config.data.attributes or ())
    schedule = make_schedule(diffusion)
    turns = tuple(
        dataclasses.replace(schedule, shift=shift)  # type: ignore[call-arg]
        for shift in diffusion.train_shifts
    )
    guidance_range = tuple(told.guidance_range)
    stage = make_stage(config)
    if stage is not None and stage.crop:
        unet3d.check(spec, *stage.crop)
    scaling = {}
    if diffusion.precondition:
        scaling = {"mean": config.data.mean, "variance": config.data.variance}
    return DiffusionModel(
        network=unet3d.UNet3D(spec),
        conditioner=Conditioner(
            width=told.width,
            layers=told.layers,
            cardinalities=tuple(len(names) for names in attributes),
            frame_position=told.frame_position,
            text=told.text_width > 0,
            guidance=guidance_range,
            low=stage is not None,
        ),
        schedule=schedule,
        training_schedule=schedules.TakingTurns(turns) if turns else schedule,
        shape=(video.frames, video.height, video.width, video.channels),
        attributes=attributes,
        output=diffusion.output,
        label_drop=told.label_drop,
        attribute_drop=told.attribute_drop,
        text_width=told.text_width,
        text_drop=told.text_drop,
        guidance_range=guidance_range,
        stage=stage,
        **scaling,
    )


def odd_field(made: Any) -> str:
    """Name a field of a dataclass, or of one in it, that is not of its type; or ""."""
    for field in dataclasses.fields(made):
        value = getattr(made, field.name, None)
        if not fits(value, field.type):
            return f"{field.name}={value!r:.40}"
        inner = value if isinstance(value, tuple) else (value,)
        for each in filter(dataclasses.is_dataclass, inner):
            if odd := odd_field(each):
                return odd
    return ""


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a declared type, of those that a config can hold."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in arguments)
    if typing.get_origin(kind) is tuple:
        if arguments[1:] == (...,):
            arguments = arguments[:1] * len(value)
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    if kind is float:  # NaN compares with nothing, so no range would hold it
        return type(value) in (int, float) and value == value
    if kind in (int, str, bool, types.NoneType):
        return type(value) is kind
    return True
