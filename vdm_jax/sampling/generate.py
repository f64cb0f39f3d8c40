"""Model + parameters + conditions -> videos: what every command samples with.

Videos are made in batches of one compiled shape, a few steps per call, over the mesh in
context. A video's noise depends on its own number, so the same seed gives the same
video for every batch size, device count and process count.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdm_jax import sharding
from vdm_jax.conditions.low_resolution import time_from_snr
from vdm_jax.diffusion import samplers
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.sampling.program import (
    ProgramKey,
    augment_low_res,
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
)
from vdm_jax.sampling.types import Observation, TextEmbeddings

STEPS_PER_CALL = 8  # between two returns to the host, for progress and Ctrl-C
DEFAULT_SETTINGS = Settings()


class NoiseIndex(NamedTuple):
    """The numbers that decide a batch's noise, together with each video's own number.

    stage: of a cascade. block: of a long video. first_video: number of the first video.
    """

    seed: int = 0
    stage: int = 0
    block: int = 0
    first_video: int = 0


DEFAULT_NOISE = NoiseIndex()


def sample(
    model: DiffusionModel,
    params: Params,
    num: int,
    settings: Settings = DEFAULT_SETTINGS,
    *,
    labels: np.ndarray | None = None,
    negative_labels: np.ndarray | None = None,
    text: TextEmbeddings | None = None,
    negative_text: TextEmbeddings | None = None,
    low_res: np.ndarray | None = None,
    observation: Observation | None = None,
    initial_noise: np.ndarray | None = None,
    size: tuple[int, int, int] | None = None,
    seed: int = 0,
    stage_index: int = 0,
    block_index: int = 0,
    first_index: int = 0,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Sample videos `first_index` to `first_index + num`: [num, f, h, w, c] in [-1, 1].

    Args:
      labels: int [num, attributes], -1 for an attribute left open; None for all open.
      negative_labels: labels of the unconditional branch, instead of no label.
      text: embeddings of one text per video, for models conditioned on text.
      negative_text: texts of the unconditional branch, instead of no text.
      low_res: [num, f', h', w', c] in [-1, 1], the input of a super-resolution stage;
        noise is added to it, of SNR settings.augmentation_snr.
      observation: what is known of the videos; known pixels are returned unchanged.
      initial_noise: [num, f, h, w, c] to start from, as `invert` returns it.
      size: frames, height, width, none smaller than the model's. Larger ones are
        sampled by MultiDiffusion: overlapping windows, averaged at every call.
      stage_index: separates the noise of a cascade's stages.
      block_index: separates the noise of a long video's blocks.
      progress: called as progress(done, total) with steps of batches.

    Raises:
      UserError: settings out of range.
    """
    check_settings(model, num, seed, settings)
    is_negative = negative_labels is not None or negative_text is not None
    if is_negative and not uses_cfg(model, settings):
        raise UserError("a negative label or text needs guidance with two branches")
    _check_low_res(model, low_res)
    size = size or model.shape[:3]
    _check_size(model, size, observation)
    if observation is not None:  # one shape of mask, one program
        shape = observation.video[..., :1].shape
        observation = observation._replace(
            mask=np.broadcast_to(observation.mask, shape)
        )
        settings = with_reconstruction_weight(model, settings, observation)
    key = ProgramKey(
        model,
        make_sampler(settings),
        mesh or sharding.make_mesh(),
        cfg_mode=settings.cfg_mode if uses_cfg(model, settings) else "",
        clip_x=settings.clip_x,
        dynamic_threshold=settings.dynamic_threshold,
        uses_reconstruction=observation is not None
        and bool(settings.reconstruction_weight),
        size=size if size != model.shape[:3] else None,
        tiled_sampling=settings.tiled_sampling,
    )
    negative = raw_conditions(negative_labels, negative_text, low_res)
    videos = sample_batches(
        key,
        params,
        num,
        settings,
        raw_conditions(labels, text, low_res),
        negative=negative if is_negative else None,
        observation=observation,
        initial_noise=initial_noise,
        noise=NoiseIndex(seed, stage_index, block_index, first_index),
        progress=progress,
    )
    return np.clip(videos, -1.0, 1.0)


def sample_batches(
    key: ProgramKey,
    params: Params,
    num: int,
    settings: Settings,
    conditions: dict[str, np.ndarray],
    *,
    negative: dict[str, np.ndarray] | None = None,
    observation: Observation | None = None,
    initial_noise: np.ndarray | None = None,
    noise: NoiseIndex = DEFAULT_NOISE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Return `num` videos as the sampler leaves them, made batch by batch.

    conditions, negative: raw conditions of every video. The rest is as for `sample`.
    """
    model, mesh, steps = key.model, key.mesh, settings.steps
    # A loaded model's parameters are on one device; those of a run are in place.
    params = jax.device_put(params, sharding.state_shardings(mesh, params))
    batch = min(settings.batch_size, num)
    batch += -batch % mesh.size
    dtype = jnp.result_type(float)
    rows = key.sampler.table(make_schedule(model, settings), steps)
    table, weights = _step_arrays(rows, settings, key.shape[0], model.variance, dtype)
    starts = range(0, num, batch)
    out = []
    with jax.set_mesh(mesh):
        for k, start in enumerate(starts):
            numbers = np.arange(start, start + batch)
            # A last batch is filled up with copies of the last video.
            take = functools.partial(_take_rows, rows=np.minimum(numbers, num - 1))
            keys, carry = init_carry(
                numbers + noise.first_video,
                None if initial_noise is None else take(initial_noise),
                np.uint32(noise.seed), np.uint32(noise.stage), np.uint32(noise.block),
                key=key,
            )  # fmt: skip
            augmented = {}
            if model.low_resolution is not None:
                t = np.asarray(time_from_snr(settings.augmentation_snr))
                low_res = take(conditions["low_res"]).astype(dtype)
                augmented = augment_low_res(keys, low_res, t, key=key)
            cond = _all_conditions(model, jax.tree.map(take, conditions), batch)
            cond |= augmented
            null = model.unconditional(cond)
            if negative is not None:
                null = _all_conditions(model, jax.tree.map(take, negative), batch)
                null |= augmented
            known = None if observation is None else jax.tree.map(take, observation)
            for row in range(0, steps, STEPS_PER_CALL):
                stop = min(row + STEPS_PER_CALL, steps)
                carry = run_steps(
                    params, cond, null, known, keys, carry, table, row, stop, weights,
                    key=key,
                )  # fmt: skip
                jax.block_until_ready(carry)
                progress(k * steps + stop, len(starts) * steps)
            out.append(np.asarray(sharding.replicate(mesh, carry[0])))
    return np.concatenate(out)[:num]


def _step_arrays(rows, settings: Settings, frames: int, variance: float, dtype):
    """Return a sampler's table and the weights of its rows, padded to one shape."""
    scales = guidance_scales(settings, rows["logsnr"], frames)
    pad = max(samplers.MAX_STEPS, len(scales)) - len(scales)
    scales = np.pad(scales, [(0, pad), (0, 0), (0, 0)])
    reconstruction = reconstruction_base_slope(settings, variance)
    weights = {
        "guidance_scale": scales.astype(dtype),
        # A student's embedding reads VDM's weight w = s - 1.
        "guidance_weight": (scales - 1).astype(dtype),
        "reconstruction": np.array(reconstruction, dtype),
    }
    return samplers.pad_table(rows, dtype), weights


def _take_rows(a: Any, rows: np.ndarray) -> np.ndarray:
    """Return these rows of an array, or its only row for each of them."""
    a = np.asarray(a)
    return a[rows] if len(a) > 1 else np.repeat(a, len(rows), 0)


def raw_conditions(
    labels: np.ndarray | None = None,
    text: TextEmbeddings | None = None,
    low_res: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return the conditions that are not None, by their names in a batch."""
    arrays = {"label": labels, "low_res": low_res}
    if text is not None:
        arrays |= {"text": text.tokens, "text_mask": text.mask}
    return {name: array for name, array in arrays.items() if array is not None}


def _all_conditions(model: DiffusionModel, conditions: dict, batch: int):
    """Return the model's conditions of a batch; those that are missing are open."""
    missing = {
        "label": np.full((batch, len(model.label_vocabulary)), -1, np.int32),
        "text": np.zeros((batch, 1, model.text_dim), jnp.result_type(float)),
        "text_mask": np.zeros((batch, 1), bool),
    }
    return model.raw_conditions(missing | conditions)


def _check_size(
    model: DiffusionModel, size: Sequence[int], observation: Observation | None
) -> None:
    """Raise UserError for a smaller size than the model's, or not the observation's."""
    smaller = any(n < least for n, least in zip(size, model.shape, strict=False))
    if smaller or (
        observation is not None and observation.video.shape[1:4] != tuple(size)
    ):
        raise UserError(
            f"size={size}: no smaller than the model's {model.shape[:3]}, and that of "
            "the observation"
        )


def _check_low_res(model: DiffusionModel, low_res: np.ndarray | None) -> None:
    """Raise UserError unless a stage has an input of its shape, and a base model none.

    low_res: [num, f', h', w', c].
    """
    if model.low_resolution is None:
        if low_res is not None:
            raise UserError(
                "a low-resolution input: this model is no super-resolution stage"
            )
        return
    shape = model.low_resolution.input_shape
    if low_res is None:
        raise UserError(
            "this model is a super-resolution stage: it needs low-resolution videos of "
            f"{shape}; run the whole cascade"
        )
    if low_res.shape[1:] != shape:
        raise UserError(
            f"low-resolution videos of {low_res.shape[1:]}: this stage takes {shape}"
        )


def to_uint8(video: np.ndarray) -> np.ndarray:
    """Return a video of [-1, 1] as 0..255, rounded."""
    return np.round((video + 1) * 127.5).clip(0, 255).astype(np.uint8)
