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
from vdm_jax.conditions.low_resolution import time_of_snr
from vdm_jax.diffusion import guidance as guiding
from vdm_jax.diffusion import samplers
from vdm_jax.diffusion.multidiffusion import places, windows
from vdm_jax.diffusion.process import Denoiser, Prediction
from vdm_jax.diffusion.schedules import Step
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.sampling import stability
from vdm_jax.sampling.settings import (
    Settings,
    check,
    guidance_weights,
    make_sampler,
    make_schedule,
    reconstruction_weight,
    tile_places,
    two_branches,
)

CHUNK = 8  # steps between two looks from the host: progress, Ctrl-C
DEFAULT = Settings()
REPLACED = 8  # noise draws of known pixels are numbered from here, a sampler's from 0
AUGMENTED = 1  # of the noise on a given video; beside the starting noise's 0


class Text(NamedTuple):
    """Token embeddings [n, l, width] and which of them there are, bool [n, l]."""

    tokens: np.ndarray
    mask: np.ndarray


class Known(NamedTuple):
    """What is known of the videos: given pixels, and a smaller version of the whole.

    video: [n, f, h, w, c] in [-1, 1]; mask: bool [n, f, h, w, 1], true where `video` is
    given; low: [n, f, h', w', c], area means of the video, or None. n is 1 for all
    videos alike, or their number.
    """

    video: np.ndarray
    mask: np.ndarray
    low: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What of the settings makes another program; all else is an argument of it."""

    model: DiffusionModel
    sampler: samplers.Sampler
    mesh: Mesh
    combine: str = ""  # "" without guidance
    threshold: float = 0.0
    percentile: float = 0.0
    reconstruct: bool = False
    size: tuple[int, int, int] | None = None  # larger than the model's: windows
    tiled: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (*self.size, self.model.shape[3]) if self.size else self.model.shape


def _residual(known: Known) -> Callable[[jax.Array], list[jax.Array]]:
    """Known minus predicted: of the given pixels, and of the area means.

    A mean of k pixels has a k-th of their variance: times sqrt(k), one weight w_r means
    the same for both terms.
    """

    def residual(x: jax.Array) -> list[jax.Array]:
        parts = [jnp.where(known.mask, known.video - x, 0)]
        if known.low is not None:
            h, w = known.low.shape[2:4]
            scale = (x.shape[2] * x.shape[3] / (h * w)) ** 0.5
            parts.append(scale * (known.low - guiding.down(x, h, w)))
        return parts

    return residual


def _told(model: DiffusionModel, denoise: Denoiser, weights: jax.Array) -> Denoiser:
    """A guided student: the weight of the step is a condition, not a second branch."""

    def guided(z: jax.Array, step: Step, cond) -> Prediction:
        w = jnp.broadcast_to(weights[step.index, 0, 0], z.shape[:1])
        return denoise(z, step, model.tell(cond, w))

    return guided


def _tiles(model: DiffusionModel, denoise: Denoiser) -> Denoiser:
    """A stage's own size from tiles of its crops' size, which overlap by half."""
    stage = model.stage
    assert stage is not None
    window, where = (model.shape[0], *stage.crop), tile_places(model)

    def cut(cond, place):
        low = cond["low"]
        size = (low.shape[0], *window, low.shape[-1])
        return cond | {"low": jax.lax.dynamic_slice(low, place, size)}

    return windows(denoise, window, where, cut)


def _denoiser(plan: _Plan, params, null, known: Known | None, weights, noise):
    """The network with every guidance around it, in the order of `guidance`."""
    model = plan.model
    denoise = model.denoiser(params)
    if model.guidance_range:
        denoise = _told(model, denoise, weights["guidance"])
    if plan.tiled:
        denoise = _tiles(model, denoise)
    elif plan.size:
        overlap = tuple(n // 2 for n in model.shape[:3])
        where = places(plan.size, model.shape[:3], overlap)
        denoise = windows(denoise, model.shape[:3], where)
    if plan.combine:
        combine = guiding.COMBINES[plan.combine](weights["guidance"])
        denoise = guiding.cfg(denoise, lambda cond: null, combine)
    if plan.reconstruct:
        assert known is not None
        w_r = guiding.growing(*weights["reconstruction"])
        denoise = guiding.reconstruct(denoise, _residual(known), w_r)
    if plan.percentile:
        denoise = guiding.clip_percentile(denoise, plan.percentile)
    elif plan.threshold:
        denoise = guiding.clip_x(denoise, plan.threshold)
    if known is not None:
        fresh = lambda step: noise(step.index, REPLACED + step.call)  # noqa: E731
        denoise = guiding.replace(denoise, known.video, known.mask, fresh)
    return denoise


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="carry")
def _chunk(
    params, cond, null, known, keys, carry, table, start, stop, weights, *, plan: _Plan
):
    """Rows start..stop for one batch. What is no part of the plan is an argument."""
    split = sharding.batch_sharding(plan.mesh)
    keys, carry, cond, null, known = jax.lax.with_sharding_constraint(
        (keys, carry, cond, null, known), split
    )
    dtype = carry[0].dtype

    def noise(i, draw):
        return samplers.normal(keys, i + 1, draw, plan.shape, dtype)

    denoise = _denoiser(plan, params, null, known, weights, noise)
    with sharding.activation_rules():
        return samplers.loop(
            plan.sampler, denoise, carry, table, start, stop, noise, cond
        )


@functools.partial(jax.jit, static_argnames="plan")
def _given(keys, low, t, *, plan: _Plan):
    """What a stage of a cascade is told of the videos that it is given."""
    stage = plan.model.stage
    assert stage is not None
    eps = samplers.normal(keys, 0, AUGMENTED, plan.shape, low.dtype)
    times = jnp.broadcast_to(t.astype(low.dtype), low.shape[:1])
    return jax.lax.with_sharding_constraint(
        stage.conditions(low, times, eps), sharding.batch_sharding(plan.mesh)
    )


@functools.partial(jax.jit, static_argnames="plan")
def _begin(videos, start, seed, stage, block, *, plan: _Plan):
    """Keys, and the starting carry: `start`, or noise by the videos' numbers."""
    keys = samplers.video_keys(seed, stage, block, videos)
    z = samplers.normal(keys, 0, 0, plan.shape) if start is None else start
    return jax.lax.with_sharding_constraint(
        (keys, plan.sampler.init(z)), sharding.batch_sharding(plan.mesh)
    )


# w_r where none is asked for: VDM's of given frames; and that with which the guided
# prediction has the area means that are known.
OF_PIXELS, OF_MEANS = 9.0, 1.0


def observing(model: DiffusionModel, settings: Settings, known: Known) -> Settings:
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
    weight = settings.reconstruction
    if weight is None:
        weight = OF_PIXELS if known.low is None else OF_MEANS
    settings = dataclasses.replace(settings, reconstruction=weight)
    if known.low is None:
        return settings
    if not weight:
        raise UserError(
            "reconstruction=0 replaces given pixels and cannot follow a small version: "
            "a weight above 0"
        )
    free = float(guiding.down(1.0 - known.mask, *known.low.shape[2:4]).max())
    if weight * free <= OF_MEANS:
        return settings
    sampler, variance = make_sampler(settings), model.variance
    base, slope = (free * w for w in reconstruction_weight(settings, variance))
    table = sampler.table(make_schedule(model, settings), settings.steps)
    share = stability.largest(sampler, table, guiding.growing(base, slope), variance)
    if share < 1:
        raise UserError(
            f"reconstruction={weight:g} diverges for a small version, whose pixels end "
            f"further off in {settings.steps} steps of {settings.sampler} than without "
            f"guidance: {max(share * weight, OF_MEANS):.2g} at most, {OF_MEANS:g} is "
            "the default"
        )
    return settings


def sample(
    model: DiffusionModel,
    params: Params,
    num: int,
    settings: Settings = DEFAULT,
    *,
    labels: np.ndarray | None = None,
    negative: np.ndarray | None = None,
    text: Text | None = None,
    negative_text: Text | None = None,
    low: np.ndarray | None = None,
    known: Known | None = None,
    start: np.ndarray | None = None,
    size: tuple[int, int, int] | None = None,
    seed: int = 0,
    stage: int = 0,
    block: int = 0,
    first: int = 0,
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
    check(model, num, seed, settings)
    against = negative is not None or negative_text is not None
    if against and not two_branches(model, settings):
        raise UserError("a negative label or text needs guidance with two branches")
    _check_low(model, low)
    size = size or model.shape[:3]
    if any(n < least for n, least in zip(size, model.shape, strict=False)) or (
        known is not None and known.video.shape[1:4] != size
    ):
        raise UserError(
            f"size={size}: no smaller than the model's {model.shape[:3]}, and that of "
            "the videos that are known"
        )
    if known is not None:  # one shape of mask, one program
        known = known._replace(
            mask=np.broadcast_to(known.mask, known.video[..., :1].shape)
        )
        settings = observing(model, settings, known)
    plan = _Plan(
        model,
        make_sampler(settings),
        mesh or sharding.make_mesh(),
        combine=settings.combine if two_branches(model, settings) else "",
        threshold=settings.threshold,
        percentile=settings.percentile,
        reconstruct=known is not None and bool(settings.reconstruction),
        size=size if size != model.shape[:3] else None,
        tiled=settings.tiled,
    )
    videos = _run(
        plan, params, num, settings,
        told=_raw(labels, text, low),
        negative=_raw(negative, negative_text, low) if against else None,
        known=known, start=start,
        seed=seed, stage=stage, block=block, first=first, progress=progress,
    )  # fmt: skip
    return np.clip(videos, -1.0, 1.0)


INVERSION = samplers.inversion()


def invert(
    model: DiffusionModel,
    params: Params,
    videos: np.ndarray,
    settings: Settings = DEFAULT,
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
    if model.stage is not None or model.text_width:
        raise UserError(
            "inversion is of models that are told labels or nothing, and no stage"
        )
    check(model, len(videos), 0, settings)
    plan = _Plan(model, INVERSION, mesh or sharding.make_mesh())
    return _run(plan, params, len(videos), settings, _raw(labels), start=videos,
                progress=progress)  # fmt: skip


def _run(
    plan: _Plan,
    params,
    num: int,
    settings: Settings,
    told: dict[str, np.ndarray],
    negative: dict[str, np.ndarray] | None = None,
    known: Known | None = None,
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
    table, weights = _arguments(rows, settings, plan.shape[0], model.variance, dtype)
    starts = range(0, num, batch)
    out = []
    with jax.set_mesh(mesh):
        for k, at in enumerate(starts):
            numbers = np.arange(at, at + batch)
            # A last batch is filled up with copies of the last video.
            of = functools.partial(_take, rows=np.minimum(numbers, num - 1))
            keys, carry = _begin(
                numbers + first,
                None if start is None else of(start),
                np.uint32(seed), np.uint32(stage), np.uint32(block), plan=plan,
            )  # fmt: skip
            given = {}
            if model.stage is not None:
                t = np.asarray(time_of_snr(settings.snr))
                given = _given(keys, of(told["low"]).astype(dtype), t, plan=plan)
            cond = _conditions(model, jax.tree.map(of, told), batch) | given
            null = model.null(cond)
            if negative is not None:
                null = _conditions(model, jax.tree.map(of, negative), batch) | given
            held = None if known is None else jax.tree.map(of, known)
            for row in range(0, steps, CHUNK):
                stop = min(row + CHUNK, steps)
                carry = _chunk(
                    params, cond, null, held, keys, carry, table, row, stop, weights,
                    plan=plan,
                )  # fmt: skip
                jax.block_until_ready(carry)
                progress(k * steps + stop, len(starts) * steps)
            out.append(np.asarray(sharding.everywhere(mesh, carry[0])))
    return np.concatenate(out)[:num]


def _arguments(rows, settings: Settings, frames: int, variance: float, dtype):
    """A sampler's table and the weights of each of its rows, padded to one shape."""
    guided = guidance_weights(settings, rows["logsnr"], frames)
    pad = max(samplers.MAX_STEPS, len(guided)) - len(guided)
    guided = np.pad(guided, [(0, pad), (0, 0), (0, 0)])
    weights = {
        "guidance": guided.astype(dtype),
        "reconstruction": np.array(reconstruction_weight(settings, variance), dtype),
    }
    return samplers.padded(rows, dtype), weights


def _take(a: Any, rows: np.ndarray) -> np.ndarray:
    """Those rows of an array, or its only row for all of them."""
    a = np.asarray(a)
    return a[rows] if len(a) > 1 else np.repeat(a, len(rows), 0)


def _raw(labels=None, text: Text | None = None, low=None) -> dict[str, np.ndarray]:
    """Raw conditions by their names in a batch, those that there are."""
    told = {"label": labels, "low": low}
    if text is not None:
        told |= {"text": text.tokens, "text_mask": text.mask}
    return {name: array for name, array in told.items() if array is not None}


def _conditions(model: DiffusionModel, told: dict, batch: int):
    open_ones = np.full((batch, len(model.attributes)), -1, np.int32)
    nothing = {
        "label": open_ones,
        "text": np.zeros((batch, 1, model.text_width), jnp.result_type(float)),
        "text_mask": np.zeros((batch, 1), bool),
    }
    return model.conditions(nothing | told)


def _check_low(model: DiffusionModel, low: np.ndarray | None) -> None:
    """A stage is given videos of its own size, a base model none."""
    if model.stage is None:
        if low is not None:
            raise UserError(
                "a video to start from: this model is no stage that takes one"
            )
        return
    given = model.stage.given
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
