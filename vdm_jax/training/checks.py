"""Checks of a training config: ranges, choices, and values that must fit others."""

import re

import jax

from vdm_jax.diffusion.losses import WEIGHTINGS
from vdm_jax.diffusion.samplers import MAX_STEPS
from vdm_jax.errors import UserError
from vdm_jax.memory import check_memory
from vdm_jax.runs import resolve_paths
from vdm_jax.training.optimizer import LR_SCHEDULES, OPTIMIZERS

# (field, lowest value, highest value); both are allowed.
RANGES = (
    ("seed", 0, 2**32 - 1),
    ("video.frames", 1, 4096),
    ("video.height", 1, 16384),
    ("video.width", 1, 16384),
    ("video.fps", 0.1, 240),
    ("data.batch_size", 1, 2**20),
    ("data.joint_image_frames", 0, 1024),
    ("data.stride", 1, 4096),
    ("data.target_fps", 0, 240),
    ("data.validation_fraction", 0, 0.9),
    ("data.workers", 0, 1024),
    ("data.cache_gib", 0, 1e6),
    ("data.max_bad_fraction", 0, 1),
    ("conditioning.cond_dim", 4, 2**16),
    ("conditioning.cond_mlp_layers", 0, 64),
    ("conditioning.text_dim", 0, 2**16),
    ("conditioning.label_dropout", 0, 0.999),
    ("conditioning.attribute_dropout", 0, 0.999),
    ("conditioning.text_dropout", 0, 0.999),
    ("diffusion.logsnr_min", -30, 30),
    ("diffusion.logsnr_max", -30, 30),
    ("diffusion.logsnr_shift", -30, 30),
    ("diffusion.distilled_steps", 0, MAX_STEPS),
    ("train.steps", 1, 2**31 - 1),
    ("train.learning_rate", 0, 10),
    ("train.warmup", 0, 2**31 - 1),
    ("train.end_lr_fraction", 0, 1),
    ("train.b1", 0, 0.999999),
    ("train.b2", 0, 0.99999999),
    ("train.weight_decay", 0, 10),
    ("train.grad_clip_norm", 1e-9, 1e9),
    ("train.ema_decay", 0, 0.99999999),
    ("train.grad_accum_steps", 1, 4096),
    ("train.checkpoint_every", 1, 2**31 - 1),
    ("train.keep_checkpoints", 2, 10_000),
    ("train.log_every", 1, 2**31 - 1),
    ("train.sample_every", 0, 2**31 - 1),
    ("train.eval_every", 0, 2**31 - 1),
    ("train.max_nonfinite_updates", 1, 2**31 - 1),
)

CHOICES = {
    "diffusion.loss_weighting": WEIGHTINGS,
    "train.optimizer": OPTIMIZERS,
    "train.lr_schedule": LR_SCHEDULES,
}

# Values that the stage section of a base model must have.
BASE_STAGE = {
    "factor": 1, "temporal_fill": "repeat", "augmentation_time": (0.0, 1.0),
    "train_crop": (),
}  # fmt: skip


def check_config(config) -> None:
    """Check all values of a config of training, before anything compiles.

    Raises:
      UserError: the first value that is out of its range or does not fit another.
    """
    resolve_paths(config)
    _check_ranges(config)
    _check_choices(config)
    _check_base_stage(config.stage)
    _check_trainable(config.train.trainable)
    _check_init(config)
    _check_diffusion(config.diffusion)
    _check_pixel_statistics(config.data)
    if config.conditioning.cond_dim % 2:
        raise UserError(
            f"config.conditioning.cond_dim={config.conditioning.cond_dim} must be even"
        )
    _check_batch_size(config)


def _check_ranges(config) -> None:
    for field, low, high in RANGES:
        value = _value(config, field)
        if not low <= value <= high:  # also refuses NaN
            raise UserError(f"config.{field}={value}: from {low} to {high}")
    train = config.train
    if train.warmup > train.steps:
        raise UserError(
            f"config.train.warmup={train.warmup} is longer than the "
            f"{train.steps} steps of training: lower it"
        )


def _check_choices(config) -> None:
    for field, known in CHOICES.items():
        if (value := _value(config, field)) not in known:
            raise UserError(f"config.{field}={value!r}: one of {', '.join(known)}")


def _value(config, field: str):
    """Return the value of a dotted field."""
    for name in field.split("."):
        config = config[name]
    return config


def _check_base_stage(stage) -> None:
    for name, default in BASE_STAGE.items() if stage.kind == "base" else ():
        value = stage[name]
        if (tuple(value) if isinstance(default, tuple) else value) != default:
            raise UserError(
                f"config.stage.{name}={value} with config.stage.kind='base', which "
                f"takes no video: set it to {default}"
            )


def _check_trainable(rules) -> None:
    for rule in rules:
        try:
            pattern, _ = rule
            re.compile(pattern)
        except (TypeError, ValueError, re.error) as error:
            raise UserError(
                f"config.train.trainable holds {rule!r} ({error}): pairs of a regular "
                "expression and True or False"
            ) from error


def _check_init(config) -> None:
    for field in ("init_new", "init_widen"):
        for pattern in config[field]:
            try:
                re.compile(pattern)
            except (TypeError, re.error) as error:
                raise UserError(
                    f"config.{field} holds {pattern!r} ({error}): regular expressions "
                    "of whole parameter paths"
                ) from error
        if config[field] and not config.init_from:
            raise UserError(f"config.{field} goes with config.init_from: set it to ()")


def _check_diffusion(diffusion) -> None:
    if diffusion.logsnr_min >= diffusion.logsnr_max:
        raise UserError(
            f"config.diffusion.logsnr_min={diffusion.logsnr_min} must be below "
            f"logsnr_max={diffusion.logsnr_max}"
        )
    for shift in diffusion.train_logsnr_shifts:
        if not isinstance(shift, int | float) or not -30 <= shift <= 30:
            raise UserError(
                f"config.diffusion.train_logsnr_shifts holds {shift!r}: numbers from "
                "-30 to 30"
            )


def _check_pixel_statistics(data) -> None:
    for name, low in (("mean", -1.0), ("variance", 1e-6)):
        value = data[name]
        if value is None:  # measured on the data
            continue
        if not isinstance(value, int | float) or not low <= value <= 1:
            raise UserError(f"config.data.{name}={value!r}: from {low} to 1")


def _check_batch_size(config) -> None:
    batch_size, parts = config.data.batch_size, config.train.grad_accum_steps
    unit = jax.device_count() * parts
    if batch_size % unit:
        nearest = max(round(batch_size / unit), 1) * unit
        raise UserError(
            f"config.data.batch_size={batch_size} must be a multiple of "
            f"{jax.device_count()} device(s) x train.grad_accum_steps={parts}: the "
            f"nearest is {nearest}"
        )


def check_batch_memory(config) -> None:
    """Check that a batch fits into the memory of this machine.

    Raises:
      UserError: it does not.
    """
    video, data = config.video, config.data
    frames = video.frames + data.joint_image_frames
    pixels = frames * video.height * video.width * video.channels
    # uint8 as it is loaded; float32 as it is diffused, the noise, and the output
    bytes_per_value = 1 + 3 * 4
    check_memory(
        data.batch_size / jax.process_count() * pixels * bytes_per_value,
        f"config.data.batch_size={data.batch_size} clips of {video.frames}x"
        f"{video.height}x{video.width}",
    )
