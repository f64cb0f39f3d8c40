"""Build a model from a config; what it returns holds no ConfigDict."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from vdm_jax import codec as codecs
from vdm_jax import conditions
from vdm_jax.conditions.encoder import ConditioningEncoder
from vdm_jax.conditions.timestep import TimestepEmbedding
from vdm_jax.diffusion import schedules, time_sampling
from vdm_jax.diffusion.flow_timesteps import FlowTimesteps
from vdm_jax.errors import UserError, check_multiple
from vdm_jax.model import DiffusionModel
from vdm_jax.networks import NETWORKS, control
from vdm_jax.networks.layers import noise_level_embedding
from vdm_jax.networks.wan import WanSpec


def schedules_from_config(
    config: Any, z_shape: codecs.Shape
) -> tuple[schedules.Schedule, schedules.Schedule]:
    """Return the noise schedules of a config: that of sampling, and that of training.

    Both have the shift of the resolution, once.
    """
    diffusion, name = config.diffusion, config.diffusion.schedule
    _check_schedule(diffusion)
    resolution = 0.0
    if diffusion.resolution_base:
        size, frames = (config.video.height, config.video.width), z_shape[0]
        r = time_sampling.resolution_shift(*size, frames, diffusion.resolution_base)
        resolution = -2 * math.log(r)
    ends = diffusion.logsnr_min, diffusion.logsnr_max
    if name == "discrete" and "discrete" in config:
        if not (config.discrete.beta_start or config.discrete.beta_end):
            raise UserError("discrete.beta_start=0 and beta_end=0: one above 0")
        schedule = schedules.Discrete(**config.discrete)
    elif name == "flow" and "flow" in config:
        shift = diffusion.logsnr_shift + resolution
        schedule = FlowTimesteps(*ends, shift, **config.flow)
    else:
        schedule = schedules.make_schedule(
            name,
            *ends,
            logsnr_shift=diffusion.logsnr_shift + resolution,
            noise_logsnr_shift=diffusion.noise_logsnr_shift + resolution,
        )
    training = schedule
    if diffusion.train_lognormal:
        mean, std = diffusion.train_lognormal
        shift = getattr(schedule, "logsnr_shift", 0.0)
        training = time_sampling.LogNormal(mean, std, *ends, shift)
    shifted = tuple(
        dataclasses.replace(training, logsnr_shift=shift + resolution)  # type: ignore[call-arg]
        for shift in diffusion.train_logsnr_shifts
    )
    return schedule, schedules.AlternatingSchedules(shifted) if shifted else training


def _check_schedule(diffusion: Any) -> None:
    """Raise UserError for fields that the schedule lacks, or that do not fit it."""
    name = diffusion.schedule
    accepted = {field.name for field in dataclasses.fields(schedules.SCHEDULES[name])}
    fields = {"resolution_base": "logsnr_shift"}
    fields |= {field: field for field in ("logsnr_shift", "noise_logsnr_shift")}
    for field, moved in fields.items():
        if diffusion[field] and moved not in accepted:
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
    _, std = diffusion.train_lognormal or (0, 1)
    if std <= 0 or (diffusion.train_lognormal and name == "discrete"):
        raise UserError(
            f"diffusion.train_lognormal={diffusion.train_lognormal}: a mean and a "
            "deviation above 0, for any schedule but 'discrete', which is a table"
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
    if isinstance(schedule, FlowTimesteps):
        return TimestepEmbedding(schedule, schedule.timestep_dim)
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
    schedule, training_schedule = schedules_from_config(config, z_shape)
    rows = conditions.from_config(config)
    _check_conditions(config)
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
        reads_flow_state=isinstance(schedule, FlowTimesteps),
        **scaling,
    )


def at_size(config: Any, size: tuple[int, ...]) -> Any:
    """Return the config of the same model for videos of another size.

    size: (height, width), or (frames, height, width).

    Raises:
      UserError: the network does not take the size, or its parameters depend on it.
    """
    resized = config.copy_and_resolve_references()
    sides = ("frames", "height", "width")[-len(size) :]
    resized.video.update(dict(zip(sides, size, strict=True)))
    text = f"size {'x'.join(map(str, size))}"
    try:
        models = build_model(config), build_model(resized)
    except UserError as error:
        raise UserError(f"{text}: {error}") from error
    own, other = (jax.eval_shape(m.init_params, jax.random.key(0)) for m in models)
    if own != other:
        raise UserError(
            f"{text}: the parameters of this model are for videos of "
            f"{config.video.height}x{config.video.width} alone"
        )
    return resized


def _check_conditions(config: Any) -> None:
    """Raise UserError for conditions that a transformer cannot read, or lacks."""
    network, conditioning = config.network, config.conditioning
    kind, text = network.kind, conditioning.text_dim
    reads_text = kind == "wan" or (kind == "dit" and network.get("cross_attention"))
    if reads_text and not text:
        raise UserError(
            f"conditioning.text_dim=0: a network of kind {kind!r} that reads a text "
            "wants the width of its embeddings"
        )
    if kind != "wan":
        return
    if config.data.joint_image_frames:
        raise UserError(
            f"data.joint_image_frames={config.data.joint_image_frames}: 0 with a "
            "network of kind 'wan', which has no images behind a video"
        )
    width = WanSpec(**network.to_dict()).width
    if conditioning.cond_dim != width:
        raise UserError(
            f"conditioning.cond_dim={conditioning.cond_dim}: num_heads * head_dim="
            f"{width} with a network of kind 'wan'"
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
