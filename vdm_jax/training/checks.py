"""Ranges of a config's numbers, checked before anything compiles."""

import re

import jax

from vdm_jax.diffusion.losses import WEIGHTINGS
from vdm_jax.diffusion.samplers import MAX_STEPS
from vdm_jax.errors import UserError
from vdm_jax.files import check_memory
from vdm_jax.runs import resolve_paths
from vdm_jax.training.optimizer import LR_SCHEDULES, OPTIMIZERS

# (field, lowest, highest): both included.
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
    ("network.dropout", 0, 0.999),
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


# What the other fields of a stage are where there is none.
BASE_STAGE = {
    "factor": 1, "temporal_fill": "repeat", "augmentation_time": (0.0, 1.0),
    "train_crop": (),
}  # fmt: skip


def check_config(config) -> None:
    """Raise UserError for the first number out of its range, or that does not fit."""
    resolve_paths(config)
    for field, low, high in RANGES:
        value = config
        for name in field.split("."):
            value = value[name]
        if not low <= value <= high:  # nor is NaN
            raise UserError(f"config.{field}={value}: from {low} to {high}")
    train, data = config.train, config.data
    if train.warmup > train.steps:
        raise UserError(
            f"config.train.warmup={train.warmup} is longer than the "
            f"{train.steps} steps of training: lower it"
        )
    names = {
        "diffusion.loss_weighting": WEIGHTINGS,
        "train.optimizer": OPTIMIZERS,
        "train.lr_schedule": LR_SCHEDULES,
    }
    for field, known in names.items():
        group, name = field.split(".")
        if config[group][name] not in known:
            raise UserError(
                f"config.{field}={config[group][name]!r}: one of {', '.join(known)}"
            )
    for name, without in BASE_STAGE.items() if config.stage.kind == "base" else ():
        value = config.stage[name]
        if (tuple(value) if isinstance(without, tuple) else value) != without:
            raise UserError(
                f"config.stage.{name}={value} with config.stage.kind='base', which is "
                f"given no video: set it to {without}"
            )
    for rule in train.trainable:
        try:
            pattern, _ = rule
            re.compile(pattern)
        except (TypeError, ValueError, re.error) as error:
            raise UserError(
                f"config.train.trainable holds {rule!r} ({error}): pairs of a regular "
                "expression and True or False"
            ) from error
    diffusion = config.diffusion
    if diffusion.logsnr_min >= diffusion.logsnr_max:
        raise UserError(
            f"config.diffusion.logsnr_min={diffusion.logsnr_min} must be below "
            f"logsnr_max={diffusion.logsnr_max}"
        )
    for shift in diffusion.train_logsnr_shifts:
        if not isinstance(shift, int | float) or not -30 <= shift <= 30:
            raise UserError(
                f"config.diffusion.train_logsnr_shifts holds {shift!r}: numbers from -30 to 30"
            )
    for name, low in (("mean", -1.0), ("variance", 1e-6)):  # None: from the data
        value = data[name]
        if value is None:
            continue
        if not isinstance(value, int | float) or not low <= value <= 1:
            raise UserError(f"config.data.{name}={value!r}: from {low} to 1")
    if config.conditioning.cond_dim % 2:
        raise UserError(
            f"config.conditioning.cond_dim={config.conditioning.cond_dim} must be even"
        )
    shares = jax.device_count() * train.grad_accum_steps
    if data.batch_size % shares:
        nearest = max(round(data.batch_size / shares), 1) * shares
        raise UserError(
            f"config.data.batch_size={data.batch_size} does not divide among "
            f"{jax.device_count()} device(s) x train.grad_accum_steps={train.grad_accum_steps}: "
            f"the nearest that does is {nearest}"
        )


def check_batch_memory(config) -> None:
    """Raise UserError if a batch does not fit into the memory of this machine."""
    video, data = config.video, config.data
    clip = (
        (video.frames + data.joint_image_frames)
        * video.height
        * video.width
        * video.channels
    )
    share = data.batch_size / jax.process_count()
    check_memory(  # as it comes, as it is diffused, noise, and what the network makes
        share * clip * (1 + 3 * 4),
        f"config.data.batch_size={data.batch_size} clips of {video.frames}x"
        f"{video.height}x{video.width}",
    )
