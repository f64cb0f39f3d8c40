"""Model + parameters + conditions -> videos: what every command samples with.

Videos are made in batches of one compiled shape, a few steps per call, over the mesh in
context. A video's noise depends on its own number, so the same seed gives the same
video for every batch size, device count and process count.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import sharding
from vdm_jax.conditions.base import Cond
from vdm_jax.conditions.low_resolution import time_from_snr
from vdm_jax.diffusion import samplers
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.sampling.controls import check_controls, control_scales
from vdm_jax.sampling.given_frames import (
    encode_strength,
    frame_strength,
    rows_of_frames,
)
from vdm_jax.sampling.program import (
    SamplerProgram,
    augment_video,
    init_carry,
    run_steps,
)
from vdm_jax.sampling.reconstruction import with_reconstruction_weight
from vdm_jax.sampling.settings import (
    Settings,
    check_settings,
    guidance_scales,
    make_sampler,
    make_schedule,
    reconstruction_base_slope,
    uses_cfg,
    window_shape,
)
from vdm_jax.sampling.types import Conditions, Observation, Run, SamplingInputs

STEPS_PER_CALL = 8  # between two returns to the host, for progress and Ctrl-C


def sample(
    model: DiffusionModel,
    params: Params,
    num: int,
    settings: Settings = Settings(),
    inputs: SamplingInputs = SamplingInputs(),
    run: Run = Run(),
) -> np.ndarray:
    """Sample `num` videos [num, f, h, w, c] in [-1, 1].

    For the z of a run that stops early use `generate`.

    Raises:
      UserError: settings, inputs or rows that are out of range or do not fit the model,
        or what the network or the decoder makes is not finite.
    """
    z = generate(model, params, num, settings, inputs, run)
    return decode(model, params, z, inputs.observation)


def generate(
    model: DiffusionModel,
    params: Params,
    num: int,
    settings: Settings = Settings(),
    inputs: SamplingInputs = SamplingInputs(),
    run: Run = Run(),
) -> np.ndarray:
    """Return z [num, f, h, w, c] as the sampler leaves it, neither decoded nor clipped.

    The arguments and errors are those of `sample`, which decodes it.
    """
    check_settings(model, num, run.seed, settings)
    if inputs.negative is not None and not uses_cfg(model, settings):
        raise UserError("a negative label or text needs guidance with two branches")
    _check_videos(model, inputs.cond)
    _check_conditions(model, num, inputs.cond)
    _check_conditions(model, num, inputs.negative or {})
    _check_rows(run, settings.steps, inputs)
    check_controls(model, inputs.controls)
    observation = inputs.observation
    size = run.size or model.video_shape[:3]
    _check_size(model, size, observation)
    if observation is not None:  # one shape of mask, one program
        shape = observation.video[..., :1].shape
        observation = observation._replace(
            mask=np.broadcast_to(observation.mask, shape)
        )
        strength = frame_strength(model, observation, settings)
        observation = observation._replace(strength=strength)
        inputs = dataclasses.replace(inputs, observation=observation)
        if strength is None:
            settings = with_reconstruction_weight(settings, observation)
    program = make_program(model, settings, run, observation)
    return sample_batches(program, params, num, settings, inputs, run)


def make_program(
    model: DiffusionModel,
    settings: Settings,
    run: Run = Run(),
    observation: Observation | None = None,
) -> SamplerProgram:
    """Return what the program of `generate` is made for."""
    size = run.size or model.video_shape[:3]
    limit = model.codec.limit or 0.0
    return SamplerProgram(
        model,
        make_sampler(settings),
        run.mesh or sharding.mesh_from_text(settings.mesh),
        model.codec.z_shape((*size, model.video_shape[3])),
        window_shape(model, settings),
        cfg_mode=settings.cfg_mode if uses_cfg(model, settings) else "",
        clip_x=settings.clip_x * limit,
        dynamic_threshold=settings.dynamic_threshold if limit else 0.0,
        uses_reconstruction=bool(
            observation
            and observation.strength is None
            and settings.reconstruction_weight
        ),
        wrap=run.wrap,
        shared_noise=run.shared_noise,
    )


def sample_batches(
    program: SamplerProgram,
    params: Params,
    num: int,
    settings: Settings,
    inputs: SamplingInputs,
    run: Run = Run(),
) -> np.ndarray:
    """Return z of `num` videos as the sampler leaves it, made batch by batch.

    Raises UserError for z that is not finite.
    """
    model, mesh = program.model, program.mesh
    _check_required(model, inputs.cond)
    first, last = run.rows or (0, settings.steps)
    # A loaded model's parameters are on one device; those of a run are in place.
    params = jax.device_put(params, sharding.state_shardings(mesh, params))
    batch = sharding.whole_batch(mesh, min(settings.batch_size, num))
    dtype = jnp.result_type(float)
    table, weights = step_arrays(program, settings, first, dtype)
    columns = samplers.pad_table(table, dtype)
    if inputs.controls:
        scales = control_scales(inputs.controls, settings.steps, samplers.MAX_STEPS)
        weights["control_scales"] = scales.astype(dtype)
    t = np.asarray(time_from_snr(settings.augmentation_snr))
    initial = inputs.initial_noise
    starts = range(0, num, batch)
    out = []
    with jax.set_mesh(mesh):
        for k, start in enumerate(starts):
            numbers = np.arange(start, start + batch)
            # A last batch is filled up with copies of the last video.
            take = functools.partial(_take_rows, rows=np.minimum(numbers, num - 1))
            keys, carry = init_carry(
                numbers + run.first_video,
                None if initial is None else take(initial),
                np.uint32(run.seed), np.uint32(run.stage), np.uint32(run.block),
                program=program,
            )  # fmt: skip
            cond, uncond = branch_conditions(
                program, inputs, keys, take, t, dtype, params.get("codec")
            )
            known = jax.tree.map(take, inputs.observation)
            known = _encode(model, params, known)
            conditions = cond, uncond, known
            if known is not None and known.strength is not None:
                own = rows_of_frames(program.sampler, table, known.strength)
                columns = samplers.pad_table(own, dtype)
            for row in range(first, last, STEPS_PER_CALL):
                stop = min(row + STEPS_PER_CALL, last)
                carry = run_steps(
                    params, conditions, keys, carry, columns, row, stop, weights,
                    program=program,
                )  # fmt: skip
                jax.block_until_ready(carry)
                steps = last - first
                run.progress(k * steps + stop - first, len(starts) * steps)
            out.append(np.asarray(sharding.replicate(mesh, carry[0])))
    z = np.concatenate(out)[:num]
    _check_finite(z, run.first_video)
    return z


def _check_finite(z: np.ndarray, first_video: int) -> None:
    """Raise UserError for z that is not finite: as pictures it would be black."""
    finite = np.isfinite(z).reshape(*z.shape[:2], -1).all(2)  # [videos, frames]
    if not finite.all():
        videos, frames = np.nonzero(~finite)
        first = ", ".join(map(str, frames[videos == videos[0]]))
        raise UserError(
            f"the network gives values that are not finite in {len({*videos})} of "
            f"{len(z)} videos, first in frames {first} of video "
            f"{first_video + videos[0]}: "
            "compute in float32, or check its weights, LoRAs and conditions"
        )


def _encode(
    model: DiffusionModel, params: Params, known: Observation | None
) -> Observation | None:
    """Return what is known of z, given what is known of the videos."""
    if known is None:
        return None
    z = known.z
    if z is None:
        z = model.codec.encode_on_host(known.video, params.get("codec"))
    strength = encode_strength(model.codec, known)
    if strength is not None:
        strength = strength.astype(z.dtype)
    mask = model.codec.encode_mask(known.mask)
    _check_frames(np.asarray(known.mask), np.asarray(mask))
    return known._replace(video=z, mask=mask, strength=strength, z=None)


def _check_frames(mask: np.ndarray, z_mask: np.ndarray) -> None:
    """Raise UserError for known frames in a frame of z that is not wholly known.

    It could not be conditioned on them, and they would stand out from the video.
    mask, z_mask: bool [b, f, h, w, c], of the video and of z.
    """
    frames, z_frames = mask.shape[1], z_mask.shape[1]
    if frames == z_frames:
        return
    known, z_known = (np.any(np.all(m, axis=(2, 3, 4)), axis=0) for m in (mask, z_mask))
    factor = (frames - 1) // (z_frames - 1)
    lost = [i for i in np.flatnonzero(known) if not z_known[-(-i // factor)]]
    if lost:
        raise UserError(
            f"frame {lost[0]} is given without the others of its latent, of {factor} "
            f"frames: give {factor}k + 1 frames at the start and {factor}k at the end"
        )


def step_arrays(program: SamplerProgram, settings: Settings, first: int, dtype):
    """Return the sampler's table, and the weights of its rows padded to one shape.

    first: row at which the run starts.
    """
    model = program.model
    table = program.sampler.table(make_schedule(model, settings), settings.steps)
    if first:
        table = program.sampler.first_row(table, first)
    scales = guidance_scales(settings, table["logsnr"], program.shape[0])
    pad = max(samplers.MAX_STEPS, len(scales)) - len(scales)
    scales = np.pad(scales, [(0, pad), (0, 0), (0, 0)])
    reconstruction = reconstruction_base_slope(settings, model.variance)
    weights = {
        "guidance_scale": scales.astype(dtype),
        # A student's embedding reads VDM's weight w = s - 1.
        "guidance_weight": (scales - 1).astype(dtype),
        "reconstruction": np.array(reconstruction, dtype),
    }
    return table, weights


def _take_rows(a: Any, rows: np.ndarray) -> np.ndarray:
    """Return these rows of an array, or its only row for each of them."""
    a = np.asarray(a)
    return a[rows] if len(a) > 1 else np.repeat(a, len(rows), 0)


def branch_conditions(
    program: SamplerProgram, inputs: SamplingInputs, keys, take, t: np.ndarray, dtype,
    codec_params: Any,
) -> tuple[Cond, Cond]:  # fmt: skip
    """Return the conditions of a batch and those of its unconditional branch.

    t: time of the noise on the videos of the conditions, which both branches read.
    """
    model = program.model
    batch = len(keys)
    videos = {}
    for name, _ in model.video_conditions:
        video = take(inputs.cond[name]).astype(dtype)
        videos |= augment_video(
            keys, video, t, codec_params, name=name, program=program
        )
    null = {
        name: jnp.broadcast_to(array, (batch, *array.shape[1:]))
        for name, array in model.null_conditions((1,)).items()
    }
    cond = _raw_conditions(model, inputs.cond, take, null) | videos
    if inputs.negative is None:
        return cond, model.unconditional(cond)
    # Both branches have arrays of the same shapes.
    return cond, _raw_conditions(model, inputs.negative, take, cond) | videos


def _raw_conditions(
    model: DiffusionModel, cond: Conditions, take, others: Cond
) -> Cond:
    """Return the model's conditions of a batch; those that are missing are dropped.

    others: arrays of the missing ones, which are not read.
    """
    arrays = {name: take(array) for name, array in cond.items()}
    raw = model.raw_conditions(others | arrays)
    for name, mask in raw["keep"].items():
        if next(iter(model.condition(name).null((1,)))) not in arrays:
            raw["keep"][name] = jnp.zeros_like(mask)
    return raw


def decode(
    model: DiffusionModel,
    params: Params,
    z: np.ndarray,
    known: Observation | None = None,
) -> np.ndarray:
    """Return the videos of z in [-1, 1], decoded in parts: a decoder takes memory.

    known: its known pixels are returned unchanged.
    """
    if model.shape == model.video_shape:
        videos = np.asarray(model.codec.decode(z))
    else:
        videos = model.codec.decode_on_host(z, params.get("codec"))
    videos = np.clip(videos, -1.0, 1.0)
    if known is None:
        return videos
    return np.where(known.mask, known.video, videos).astype(videos.dtype)


def _check_size(model: DiffusionModel, size, observation: Observation | None) -> None:
    """Raise UserError for a smaller size than the model's, or not the observation's."""
    least = model.video_shape[:3]
    other = observation is not None and observation.video.shape[1:4] != tuple(size)
    if other or any(n < m for n, m in zip(size, least, strict=True)):
        raise UserError(
            f"size={size}: no smaller than the model's {least}, and that of the "
            "observation"
        )


def _check_rows(run: Run, steps: int, inputs: SamplingInputs) -> None:
    """Raise UserError for rows outside the table, or a later start without its z."""
    start, stop = run.rows or (0, steps)
    if not 0 <= start < stop <= steps:
        raise UserError(f"rows={run.rows}: start and stop, from 0 to steps={steps}")
    if start and inputs.initial_noise is None:
        raise UserError(f"rows={run.rows}: needs initial_noise, the z of row {start}")


def _check_conditions(model: DiffusionModel, num: int, cond: Conditions) -> None:
    """Raise UserError for an array that the model does not read, or of another size."""
    known = model.batch_arrays | dict(model.video_conditions).keys()
    if unknown := sorted(cond.keys() - known):
        raise UserError(
            f"this model is not conditioned on {', '.join(unknown)}; it knows "
            f"{', '.join(sorted(known)) or 'none'}"
        )
    null = model.null_conditions((1,))
    for name, array in cond.items():
        shape = np.shape(array)
        if name in null and len(shape) != np.ndim(null[name]):
            own = ", ".join(["videos", *map(str, np.shape(null[name])[1:])])
            raise UserError(f"{name} of shape {shape}: an array [{own}]")
        if shape[0] not in (1, num):
            raise UserError(f"{name} of {shape[0]} videos: {num} are sampled")


def _check_required(model: DiffusionModel, cond: Conditions) -> None:
    """Raise UserError for an array that a dropped condition needs and is not given."""
    for name, condition in model.conditions:
        if missing := [a for a in condition.required if a not in cond]:
            raise UserError(
                f"this model's {name} needs {', '.join(missing)}, the tokens of '' by "
                "its encoder: cascade.encode_conditions returns them"
            )


def _check_videos(model: DiffusionModel, cond: Conditions) -> None:
    """Raise UserError for a video that a condition lacks, or of another shape."""
    for name, condition in model.video_conditions:
        given = np.shape(cond.get(name, 0))[1:]
        if given != condition.input_shape:
            raise UserError(
                f"this model is conditioned on {name}, videos of "
                f"{condition.input_shape}: not {given or 'given'}"
            )


def to_uint8(video: np.ndarray) -> np.ndarray:
    """Return a video of [-1, 1] as 0..255, rounded."""
    return np.round((video + 1) * 127.5).clip(0, 255).astype(np.uint8)
