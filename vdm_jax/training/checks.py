"""Checks of a training config: its declared settings, and values that fit others."""

import math
import re

import jax

from vdm_jax import settings, sharding
from vdm_jax.data import mixed_sizes
from vdm_jax.errors import UserError, check_multiple
from vdm_jax.memory import check_memory
from vdm_jax.runs import resolve_paths


def check_config(config) -> None:
    """Check all values of a config of training, before anything compiles.

    Raises:
      UserError: the first value that is not allowed or does not fit another.
    """
    settings.check_config(config, settings.TRAINING)
    resolve_paths(config)
    train, diffusion = config.train, config.diffusion
    if train.warmup > train.steps:
        raise UserError(
            f"config.train.warmup={train.warmup} is longer than the "
            f"{train.steps} steps of training: lower it"
        )
    for pattern, _ in train.trainable:
        _check_pattern("train.trainable", pattern)
    for field in ("init_new", "init_widen"):
        for pattern in config[field]:
            _check_pattern(field, pattern)
        if config[field] and not config.init_from:
            raise UserError(f"config.{field} goes with config.init_from: set it to ()")
    if diffusion.logsnr_min >= diffusion.logsnr_max:
        raise UserError(
            f"config.diffusion.logsnr_min={diffusion.logsnr_min} must be below "
            f"logsnr_max={diffusion.logsnr_max}"
        )
    dim = config.conditioning.cond_dim
    check_multiple("config.conditioning.cond_dim", dim, 2, "sines and cosines")
    _check_rate(config)
    configs = mixed_sizes.in_turn(config)
    field = "data.batch_size" if len(configs) == 1 else "mixed_sizes.rows: clips"
    for own in configs:
        _check_batch_size(own, f"config.{field}")
        _check_batch_memory(own)


def _check_batch_size(config, field: str) -> None:
    """Check that a batch is divided evenly, or smaller than the mesh divides it.

    What a small batch leaves of the mesh splits frames, see `partition`. field: the
    setting that has its size.
    """
    size, steps = config.data.batch_size, config.train.grad_accum_steps
    mesh = sharding.mesh_from_config(config.mesh)
    parts = sharding.batch_parts(mesh, config.mesh.activation_rules)
    parts = parts if size > parts * steps else 1
    check_multiple(
        field,
        size,
        parts * steps,
        f"{parts} device(s) that split a batch x train.grad_accum_steps={steps}",
    )


def _check_pattern(field: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"config.{field} holds {pattern!r} ({error}): regular expressions of whole "
            "parameter paths"
        ) from error


def _check_rate(config) -> None:
    rate, fps = config.data.target_fps, config.video.fps
    if rate and rate != fps:
        raise UserError(
            f"config.data.target_fps={rate}: clips are trained at this rate, and "
            f"config.video.fps={fps} is that of the files written: set both to one rate"
        )


def _check_batch_memory(config) -> None:
    """Check that a batch fits into the memory of this machine."""
    video, data = config.video, config.data
    frames = video.frames + data.joint_image_frames
    pixels = frames * video.height * video.width * video.channels
    if "mixed_sizes" in config:  # smaller than all clips in frames of their own
        each = (math.prod(row) for row in config.mixed_sizes.rows)
        pixels = sum(each) * video.channels / data.batch_size
    # uint8 as it is loaded; float32 as it is diffused, the noise, and the output
    bytes_per_value = 1 + 3 * 4
    check_memory(
        data.batch_size / jax.process_count() * pixels * bytes_per_value,
        f"config.data.batch_size={data.batch_size} clips of {video.frames}x"
        f"{video.height}x{video.width}",
    )
