"""Build a model from a config; what it returns holds no ConfigDict."""

import dataclasses
from collections.abc import Callable
from typing import Any

from vdm_jax import codec as codecs
from vdm_jax import conditions
from vdm_jax.conditions.encoder import ConditioningEncoder
from vdm_jax.conditions.timestep import TimestepEmbedding
from vdm_jax.diffusion import schedules
from vdm_jax.errors import UserError, check_multiple
from vdm_jax.model import DiffusionModel
from vdm_jax.networks import NETWORKS, control
from vdm_jax.networks.layers import noise_level_embedding


def schedule_from_config(config: Any) -> schedules.Schedule:
    """Return the noise schedule of a config."""
    diffusion = config.diffusion
    name = diffusion.schedule
    accepted = {field.name for field in dataclasses.fields(schedules.SCHEDULES[name])}
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
    if name == "discrete" and "discrete" in config:
        if not (config.discrete.beta_start or config.discrete.beta_end):
            raise UserError("discrete.beta_start=0 and beta_end=0: one above 0")
        return schedules.Discrete(**config.discrete)
    return schedules.make_schedule(
        name,
        diffusion.logsnr_min,
        diffusion.logsnr_max,
        **{field: diffusion[field] for field in shifts},
    )


def noise_embedding(
    schedule: schedules.Schedule, num_features: int = 0
) -> Callable[..., Any]:
    """Return the embedding of a schedule's noise levels: of the timestep or the angle.

    A network that knows a table of levels was trained on their numbers.

    num_features: of a timestep, see `TimestepEmbedding`.
    """
    if isinstance(schedule, schedules.Discrete):
        return TimestepEmbedding(schedule, num_features)
    return noise_level_embedding


def build_model(config: Any) -> DiffusionModel:
    """Return the model that a config describes.

    Raises:
      UserError: values that do not fit each other.
    """
    video, diffusion = config.video, config.diffusion
    if diffusion.precondition and diffusion.prediction_type != "v":
        raise UserError(
            "diffusion.precondition needs diffusion.prediction_type='v', not "
            f"{diffusion.prediction_type!r}: set diffusion.precondition=False"
        )
    codec = codecs.from_config(config)
    video_shape = video.frames, video.height, video.width, video.channels
    z_shape = codec.z_shape(video_shape)
    if z_shape[1:3] != video_shape[1:3]:
        _check_size(config, z_shape)
    schedule = schedule_from_config(config)
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
    width, layers = config.conditioning.cond_dim, config.conditioning.cond_mlp_layers
    is_dit = config.conditioning.kind == "dit"
    embedding = noise_embedding(schedule, 256 if is_dit else 0)
    encoder = ConditioningEncoder(width, layers, rows, embedding, is_dit)
    make_network = NETWORKS[config.network.kind]
    network = make_network(config.network.to_dict(), z_shape[3], sizes)
    if "control" in config:
        network = _with_control(config, network, video_shape, z_shape)
    scaling = {}
    if diffusion.precondition:
        scaling = {"mean": config.data.mean, "variance": config.data.variance}
    return DiffusionModel(
        network=network,
        conditioning_encoder=encoder,
        schedule=schedule,
        training_schedule=training_schedule,
        video_shape=video_shape,
        codec=codec,
        conditions=rows,
        prediction_type=diffusion.prediction_type,
        **scaling,
    )


def _check_size(config: Any, z_shape: codecs.Shape) -> None:
    """Raise UserError for videos whose z does not halve at each level; in pixels."""
    network, video = config.network, config.video
    halvings = max(len(network.get("levels", ())) - 1, 0)
    multiple = network.get("patch_size", 1) * 2**halvings
    for field, side in zip(("height", "width"), z_shape[1:3], strict=True):
        factor = video[field] // side
        why = f"the codec's {factor} * patch_size * 2^(levels - 1)"
        check_multiple(f"video.{field}", video[field], factor * multiple, why)


def _with_control(
    config: Any, network: Any, video_shape: codecs.Shape, z_shape: codecs.Shape
) -> control.Controlled:
    """Return a network with the ControlNet that a config describes."""
    if config.network.kind != "sd":
        raise UserError(
            "config.control: a ControlNet is for a network of kind 'sd', not "
            f"{config.network.kind!r}"
        )
    width, layers = config.conditioning.cond_dim, config.conditioning.cond_mlp_layers
    channels = tuple(config.control.hint_channels)
    if not channels:
        raise UserError("config.control.hint_channels=(): one width or more")
    own = control.control_net(network, channels, width, layers)
    name = "config.control.hint_channels"
    control.check_hint(own, video_shape[1:3], z_shape[1:3], name)
    return control.Controlled(network, (own,))
