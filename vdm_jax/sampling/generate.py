"""Model + parameters + conditions -> videos: the one way that every verb samples.

Batches of one compiled shape, a chunk of steps at a time, over whatever mesh is in
context. A video's noise comes from its own number, so the same seed gives the same
video for every batch size, device count and process count.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdm_jax import sharding
from vdm_jax.conditions.low_resolution import time_from_snr
from vdm_jax.diffusion import guidance as guiding
from vdm_jax.diffusion import samplers
from vdm_jax.diffusion.multidiffusion import average_windows, window_starts
from vdm_jax.diffusion.process import Denoiser, Prediction
from vdm_jax.diffusion.schedules import NoiseLevel
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.sampling import stability
from vdm_jax.sampling.settings import (
    Settings,
    check_settings,
    guidance_scales,
    make_sampler,
    make_schedule,
    reconstruction_base_slope,
    tile_starts,
    uses_cfg,
)

STEPS_PER_CALL = 8  # steps between two looks from the host: progress, Ctrl-C
DEFAULT_SETTINGS = Settings()
REPLACEMENT_DRAW = (
    8  # noise draws of known pixels are numbered from here, a sampler's from 0
)
AUGMENTATION_DRAW = 1  # of the noise on a given video; beside the starting noise's 0


class TextEmbeddings(NamedTuple):
    """Token embeddings [n, l, width] and which of them there are, bool [n, l]."""

    tokens: np.ndarray
    mask: np.ndarray


class Observation(NamedTuple):
    """What is known of the videos: given pixels, and a smaller version of the whole.

    video: [n, f, h, w, c] in [-1, 1]; mask: bool [n, f, h, w, 1], true where `video` is
    given; low: [n, f, h', w', c], area means of the video, or None. n is 1 for all
    videos alike, or their number.
    """

    video: np.ndarray
    mask: np.ndarray
    low_res: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class ProgramKey:
    """What of the settings makes another program; all else is an argument of it."""

    model: DiffusionModel
    sampler: samplers.Sampler
    mesh: Mesh
    cfg_mode: str = ""  # "" without guidance
    clip_x: float = 0.0
    dynamic_threshold: float = 0.0
    uses_reconstruction: bool = False
    size: tuple[int, int, int] | None = None  # larger than the model's: windows
    tiled_sampling: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (*self.size, self.model.shape[3]) if self.size else self.model.shape


def _observation_residual(known: Observation) -> Callable[[jax.Array], list[jax.Array]]:
    """Known minus predicted: of the given pixels, and of the area means.

    A mean of k pixels has a k-th of their variance: times sqrt(k), one weight w_r means
    the same for both terms.
    """

    def residual(x: jax.Array) -> list[jax.Array]:
        parts = [jnp.where(known.mask, known.video - x, 0)]
        if known.low_res is not None:
            h, w = known.low_res.shape[2:4]
            scale = (x.shape[2] * x.shape[3] / (h * w)) ** 0.5
            parts.append(scale * (known.low_res - guiding.area_downsample(x, h, w)))
        return parts

    return residual


def _with_guidance_embedding(
    model: DiffusionModel, denoise: Denoiser, weights: jax.Array
) -> Denoiser:
    """A guided student: the weight of the step is a condition, not a second branch."""

    def guided(z: jax.Array, step: NoiseLevel, cond) -> Prediction:
        w = jnp.broadcast_to(weights[step.step_index, 0, 0], z.shape[:1])
        return denoise(z, step, model.with_guidance_weight(cond, w))

    return guided


def _denoise_in_tiles(model: DiffusionModel, denoise: Denoiser) -> Denoiser:
    """A stage's own size from tiles of its crops' size, which overlap by half."""
    stage = model.low_resolution
    assert stage is not None
    window, where = (model.shape[0], *stage.train_crop), tile_starts(model)

    def cut(cond, place):
        low = cond["low"]
        size = (low.shape[0], *window, low.shape[-1])
        return cond | {"low": jax.lax.dynamic_slice(low, place, size)}

    return average_windows(denoise, window, where, cut)


def _guided_denoiser(
    plan: ProgramKey, params, null, known: Observation | None, weights, noise
):
    """The network with every guidance around it, in the order of `guidance`."""
    model = plan.model
    denoise = model.denoiser(params)
    if model.guidance_range:
        denoise = _with_guidance_embedding(model, denoise, weights["guidance"])
    if plan.tiled_sampling:
        denoise = _denoise_in_tiles(model, denoise)
    elif plan.size:
        overlap = tuple(n // 2 for n in model.shape[:3])
        where = window_starts(plan.size, model.shape[:3], overlap)
        denoise = average_windows(denoise, model.shape[:3], where)
    if plan.cfg_mode:
        combine = guiding.COMBINES[plan.cfg_mode](weights["guidance"])
        denoise = guiding.cfg(denoise, lambda cond: null, combine)
    if plan.uses_reconstruction:
        assert known is not None
        w_r = guiding.snr_dependent_weight(*weights["reconstruction"])
        denoise = guiding.reconstruction_guidance(
            denoise, _observation_residual(known), w_r
        )
    if plan.dynamic_threshold:
        denoise = guiding.dynamic_threshold(denoise, plan.dynamic_threshold)
    elif plan.clip_x:
        denoise = guiding.clip_x(denoise, plan.clip_x)
    if known is not None:
        fresh = lambda step: noise(step.step_index, REPLACEMENT_DRAW + step.call)  # noqa: E731
        denoise = guiding.replace_known(denoise, known.video, known.mask, fresh)
    return denoise


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="carry")
def _run_steps(
    params,
    cond,
    null,
    known,
    keys,
    carry,
    table,
    start,
    stop,
    weights,
    *,
    plan: ProgramKey,
):
    """Rows start..stop for one batch. What is no part of the plan is an argument."""
    split = sharding.batch_sharding(plan.mesh)
    keys, carry, cond, null, known = jax.lax.with_sharding_constraint(
        (keys, carry, cond, null, known), split
    )
    dtype = carry[0].dtype

    def noise(i, draw):
        return samplers.normal(keys, i + 1, draw, plan.shape, dtype)

    denoise = _guided_denoiser(plan, params, null, known, weights, noise)
    with sharding.activation_rules():
        return samplers.sample_loop(
            plan.sampler, denoise, carry, table, start, stop, noise, cond
        )


@functools.partial(jax.jit, static_argnames="plan")
def _augment_low_res(keys, low, t, *, plan: ProgramKey):
    """What a stage of a cascade is told of the videos that it is given."""
    stage = plan.model.low_resolution
    assert stage is not None
    eps = samplers.normal(keys, 0, AUGMENTATION_DRAW, plan.shape, low.dtype)
    times = jnp.broadcast_to(t.astype(low.dtype), low.shape[:1])
    return jax.lax.with_sharding_constraint(
        stage.augmented_cond(low, times, eps), sharding.batch_sharding(plan.mesh)
    )


@functools.partial(jax.jit, static_argnames="plan")
def _init_carry(videos, start, seed, stage, block, *, plan: ProgramKey):
    """Keys, and the starting carry: `start`, or noise by the videos' numbers."""
    keys = samplers.video_keys(seed, stage, block, videos)
    z = samplers.normal(keys, 0, 0, plan.shape) if start is None else start
    return jax.lax.with_sharding_constraint(
        (keys, plan.sampler.init(z)), sharding.batch_sharding(plan.mesh)
    )


# w_r where none is asked for: VDM's of given frames; and that with which the guided
# prediction has the area means that are known.
PIXEL_WEIGHT, UPSCALE_WEIGHT = 9.0, 1.0


def with_reconstruction_weight(
    model: DiffusionModel, settings: Settings, known: Observation
) -> Settings:
    """The settings with a weight of reconstruction: what is observed decides it.

    Near the data the guided prediction is a gradient step of size w_r on half the
    squares of the residual: it multiplies the error of an area's mean by 1 - w_r times
    the share of the area that is not given pixel by pixel. Beyond 2 a step makes it
    larger; how much larger it ends depends on the steps before (`stability.off`).
    Given pixels are replaced, and bear any weight.

    Raises:
      UserError: a weight that leaves known area means further off than none does, or 0
        for them.
    """
    weight = settings.reconstruction_weight
    if weight is None:
        weight = PIXEL_WEIGHT if known.low_res is None else UPSCALE_WEIGHT
    settings = dataclasses.replace(settings, reconstruction=weight)
    if known.low_res is None:
        return settings
    if not weight:
        raise UserError(
            "reconstruction=0 replaces given pixels and cannot follow a small version: "
            "a weight above 0"
        )
    free = float(
        guiding.area_downsample(1.0 - known.mask, *known.low_res.shape[2:4]).max()
    )
    if weight * free <= UPSCALE_WEIGHT:
        return settings
    sampler, variance = make_sampler(settings), model.variance
    base, slope = (free * w for w in reconstruction_base_slope(settings, variance))
    table = sampler.table(make_schedule(model, settings), settings.steps)
    share = stability.largest_stable_fraction(
        sampler, table, guiding.snr_dependent_weight(base, slope), variance
    )
    if share < 1:
        raise UserError(
            f"reconstruction={weight:g} diverges for a small version, whose pixels end "
            f"further off in {settings.steps} steps of {settings.sampler} than without "
            f"guidance: {max(share * weight, UPSCALE_WEIGHT):.2g} at most, {UPSCALE_WEIGHT:g} is "
            "the default"
        )
    return settings


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
    """Sample videos number `first` to `first + num`: [num, f, h, w, c] in [-1, 1].

    Args:
      labels: int [num, attributes], -1 for an attribute left open; None for all open.
      negative: labels to be guided away from, instead of from no label.
      text: of every video, for models that are told by text; negative_text: to be
        guided away from, instead of from no text.
      low: [num, f', h', w', c] in [-1, 1], what a stage of a cascade is given; it gets
        settings.snr of noise.
      known: what is given of the videos; given pixels come back as they are.
      start: [num, f, h, w, c] to start from instead of noise, as `invert` leaves it.
      size: frames, height, width, none smaller than the model's: larger ones are made
        by overlapping windows whose predictions are averaged at every call.
      stage: a number that tells the noise of a cascade's stages apart.
      block: a number that tells the blocks of a long video's noise apart.
      progress: called as progress(done, total) with steps of batches.

    Raises:
      UserError: settings out of range.
    """
    check_settings(model, num, seed, settings)
    against = negative_labels is not None or negative_text is not None
    if against and not uses_cfg(model, settings):
        raise UserError("a negative label or text needs guidance with two branches")
    _check_low_res(model, low_res)
    size = size or model.shape[:3]
    if any(n < least for n, least in zip(size, model.shape, strict=False)) or (
        observation is not None and observation.video.shape[1:4] != size
    ):
        raise UserError(
            f"size={size}: no smaller than the model's {model.shape[:3]}, and that of "
            "the videos that are known"
        )
    if observation is not None:  # one shape of mask, one program
        observation = observation._replace(
            mask=np.broadcast_to(observation.mask, observation.video[..., :1].shape)
        )
        settings = with_reconstruction_weight(model, settings, observation)
    plan = ProgramKey(
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
    videos = _sample_batches(
        plan, params, num, settings,
        told=_raw_conditions(labels, text, low_res),
        negative=_raw_conditions(negative_labels, negative_text, low_res) if against else None,
        known=observation, start=initial_noise,
        seed=seed, stage=stage_index, block=block_index, first=first_index, progress=progress,
    )  # fmt: skip
    return np.clip(videos, -1.0, 1.0)


INVERSION_SAMPLER = samplers.ddim_inversion()


def invert(
    model: DiffusionModel,
    params: Params,
    videos: np.ndarray,
    settings: Settings = DEFAULT_SETTINGS,
    *,
    labels: np.ndarray | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """The noise [n, f, h, w, c] that DDIM takes back to `videos`, in [-1, 1].

    Of the settings, steps, schedule (or the sampler that chooses it) and batch_size
    count: nothing is guided or clipped. (A guided student is told settings.guidance.)

    Raises:
      UserError: settings out of range, or a model that is given a video or text.
    """
    if model.low_resolution is not None or model.text_dim:
        raise UserError(
            "inversion is of models that are told labels or nothing, and no stage"
        )
    check_settings(model, len(videos), 0, settings)
    plan = ProgramKey(model, INVERSION_SAMPLER, mesh or sharding.make_mesh())
    return _sample_batches(plan, params, len(videos), settings, _raw_conditions(labels), start=videos,
                progress=progress)  # fmt: skip


def _sample_batches(
    plan: ProgramKey,
    params,
    num: int,
    settings: Settings,
    told: dict[str, np.ndarray],
    negative: dict[str, np.ndarray] | None = None,
    known: Observation | None = None,
    start=None,
    seed: int = 0,
    stage: int = 0,
    block: int = 0,
    first: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """`num` videos, batch by batch, as the sampler leaves them."""
    model, mesh, steps = plan.model, plan.mesh, settings.steps
    # A loaded model's parameters are on one device; a run's are where they shall be.
    params = jax.device_put(params, sharding.state_shardings(mesh, params))
    batch = min(settings.batch_size, num)
    batch += -batch % mesh.size
    dtype = jnp.result_type(float)
    rows = plan.sampler.table(make_schedule(model, settings), steps)
    table, weights = _step_arrays(rows, settings, plan.shape[0], model.variance, dtype)
    starts = range(0, num, batch)
    out = []
    with jax.set_mesh(mesh):
        for k, at in enumerate(starts):
            numbers = np.arange(at, at + batch)
            # A last batch is filled up with copies of the last video.
            of = functools.partial(_take_rows, rows=np.minimum(numbers, num - 1))
            keys, carry = _init_carry(
                numbers + first,
                None if start is None else of(start),
                np.uint32(seed), np.uint32(stage), np.uint32(block), plan=plan,
            )  # fmt: skip
            given = {}
            if model.low_resolution is not None:
                t = np.asarray(time_from_snr(settings.augmentation_snr))
                given = _augment_low_res(
                    keys, of(told["low"]).astype(dtype), t, plan=plan
                )
            cond = _conditions(model, jax.tree.map(of, told), batch) | given
            null = model.unconditional(cond)
            if negative is not None:
                null = _conditions(model, jax.tree.map(of, negative), batch) | given
            held = None if known is None else jax.tree.map(of, known)
            for row in range(0, steps, STEPS_PER_CALL):
                stop = min(row + STEPS_PER_CALL, steps)
                carry = _run_steps(
                    params, cond, null, held, keys, carry, table, row, stop, weights,
                    plan=plan,
                )  # fmt: skip
                jax.block_until_ready(carry)
                progress(k * steps + stop, len(starts) * steps)
            out.append(np.asarray(sharding.replicate(mesh, carry[0])))
    return np.concatenate(out)[:num]


def _step_arrays(rows, settings: Settings, frames: int, variance: float, dtype):
    """A sampler's table and the weights of each of its rows, padded to one shape."""
    guided = guidance_scales(settings, rows["logsnr"], frames)
    pad = max(samplers.MAX_STEPS, len(guided)) - len(guided)
    guided = np.pad(guided, [(0, pad), (0, 0), (0, 0)])
    weights = {
        "guidance": guided.astype(dtype),
        "reconstruction": np.array(
            reconstruction_base_slope(settings, variance), dtype
        ),
    }
    return samplers.pad_table(rows, dtype), weights


def _take_rows(a: Any, rows: np.ndarray) -> np.ndarray:
    """Those rows of an array, or its only row for all of them."""
    a = np.asarray(a)
    return a[rows] if len(a) > 1 else np.repeat(a, len(rows), 0)


def _raw_conditions(
    labels=None, text: TextEmbeddings | None = None, low=None
) -> dict[str, np.ndarray]:
    """Raw conditions by their names in a batch, those that there are."""
    told = {"label": labels, "low": low}
    if text is not None:
        told |= {"text": text.tokens, "text_mask": text.mask}
    return {name: array for name, array in told.items() if array is not None}


def _conditions(model: DiffusionModel, told: dict, batch: int):
    open_ones = np.full((batch, len(model.label_vocabulary)), -1, np.int32)
    nothing = {
        "label": open_ones,
        "text": np.zeros((batch, 1, model.text_dim), jnp.result_type(float)),
        "text_mask": np.zeros((batch, 1), bool),
    }
    return model.raw_conditions(nothing | told)


def _check_low_res(model: DiffusionModel, low: np.ndarray | None) -> None:
    """A stage is given videos of its own size, a base model none."""
    if model.low_resolution is None:
        if low is not None:
            raise UserError(
                "a video to start from: this model is no stage that takes one"
            )
        return
    given = model.low_resolution.input_shape
    if low is None:
        raise UserError(
            "this model is a stage of a cascade: it starts from videos of "
            f"{given}, and there are none; run the whole cascade"
        )
    if low.shape[1:] != given:
        raise UserError(
            f"videos of {low.shape[1:]} to start from: this stage takes {given}"
        )


def to_uint8(video: np.ndarray) -> np.ndarray:
    """[-1, 1] -> 0..255, rounded."""
    return np.round((video + 1) * 127.5).clip(0, 255).astype(np.uint8)
