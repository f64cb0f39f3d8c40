"""How to sample: one frozen set of numbers, checked before anything compiles."""

import dataclasses
import functools
import math
import typing
from collections.abc import Sequence

import numpy as np

from vdm_jax.build import fits
from vdm_jax.conditions.low_resolution import Stage, time_of_snr
from vdm_jax.diffusion import guidance as guiding
from vdm_jax.diffusion import multidiffusion, samplers, schedules
from vdm_jax.errors import UserError
from vdm_jax.files import check_memory
from vdm_jax.model import DiffusionModel

ZERO_SNR = -15.0  # of logsnr: from here on an eps output says nothing of x in float32


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a config's `sample` section and the flags of sample.py say.

    guidance is VDM's w, (1 + w) conditional - w unconditional; 0 is off.
    """

    steps: int = 64
    sampler: str = "ddim"  # diffusion/samplers.py SAMPLERS
    gamma: float = 0.0  # of the ancestral sampler's variance
    churn: float = 0.0  # of Heun's: S_churn
    corrector: float = 0.0  # delta of a Langevin step after each; 0 is off
    schedule: str = ""  # of the steps; "": see `make_schedule`
    guidance: float = 0.0
    guidance_schedule: str = "constant"  # see `guidance_weights`
    combine: str = "linear"  # diffusion/guidance.py COMBINES
    threshold: float = 1.0  # clip x to +-this at every step; 0 is off
    percentile: float = 0.0  # dynamic thresholding instead, as 99.5; 0 is off
    # w_r of reconstruction guidance; 0 replaces only; None: see `blocks.observing`
    reconstruction: float | None = None
    reconstruction_schedule: str = "constant"  # or "exact": grows towards the noise
    snr: float = 5.0  # of the noise on what a stage is given; inf is none
    tiled: bool = False  # overlapping tiles of the size that a stage's crops had
    batch_size: int = 16

    @classmethod
    def of(cls, sample) -> "Settings":
        """From a config's `sample` section; what an older one lacks is the default.

        Raises UserError for a value of another type, as a damaged file may hold it.
        """
        kinds = typing.get_type_hints(cls)
        given = {name: sample[name] for name in kinds if name in sample}
        for name, value in given.items():
            if not fits(value, kinds[name]):
                raise UserError(f"sample.{name}={value!r}: not {kinds[name]}")
        return cls(**given)


def make_sampler(settings: Settings) -> samplers.Sampler:
    """The sampler, one object for equal settings: a static argument of a jit."""
    name = settings.sampler
    used = {"ancestral": ("gamma",), "heun": ("churn",)}.get(name, ())
    options = tuple((option, getattr(settings, option)) for option in used)
    return _cached(name, options, settings.corrector)


@functools.cache
def _cached(name: str, options: tuple, corrector: float) -> samplers.Sampler:
    sampler = samplers.SAMPLERS[name](**dict(options))
    return samplers.corrected(sampler, corrector) if corrector else sampler


KARRAS = ("dpm", "heun")


def make_schedule(model: DiffusionModel, settings: Settings) -> schedules.Schedule:
    """Where the steps are: the model's own noise levels, or a named schedule's.

    That one keeps to the range of the model's own, and to its shifts where it has any.
    The samplers of second order take "karras" unless told: their order is lost on a
    cosine's last levels, where log SNR goes in ever longer steps.
    """
    name = settings.schedule or ("karras" if settings.sampler in KARRAS else "")
    own = model.schedule
    if not name:
        return own
    shifts = {key: getattr(own, key, 0.0) for key in ("shift", "noise_shift")}
    return schedules.named(name, *schedules.logsnr_range(own), **shifts)


SCHEDULES_HELP = (
    "constant, interval:LOW:HIGH (of logsnr), oscillating:LOW:FIRST (the lower weight "
    "and the share of steps before it) or frames:FIRST (the first frame's weight)"
)


def guidance_weights(settings: Settings, logsnr: np.ndarray, frames: int) -> np.ndarray:
    """Weights [n, 1, frames] for a table whose rows have these logsnr.

    settings.guidance_schedule: "constant"; "interval:LOW:HIGH", guided only where
    logsnr is between; "oscillating:LOW:FIRST", the full weight for the first share of
    the steps, then LOW and the full one in turn; "frames:FIRST", from FIRST at the
    first frame evenly to the full weight at the last.
    """
    w, n = settings.guidance, len(logsnr)
    name, *words = settings.guidance_schedule.split(":")
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = [np.nan]
    asked = f"guidance_schedule={settings.guidance_schedule!r}"
    counts = {"constant": (0,), "interval": (2,), "oscillating": (1, 2), "frames": (1,)}
    if len(numbers) not in counts.get(name, ()) or not np.isfinite(numbers).all():
        raise UserError(f"{asked}: {SCHEDULES_HELP}")
    if name == "frames":
        if not 0 <= numbers[0] <= MAX_GUIDANCE:
            raise UserError(f"{asked}: a weight from 0 to {MAX_GUIDANCE:g}")
        return guiding.by_frame(n, numbers[0], w, frames)
    if name == "interval":
        if numbers[0] >= numbers[1]:
            raise UserError(f"{asked}: LOW must be below HIGH")
        rows = guiding.interval(logsnr, w, *numbers)
    elif name == "oscillating":
        shares = numbers[1:]
        if not (
            0 <= numbers[0] <= MAX_GUIDANCE and all(0 <= share <= 1 for share in shares)
        ):
            raise UserError(
                f"{asked}: a weight from 0 to {MAX_GUIDANCE:g} and a share from 0 to 1"
            )
        rows = guiding.oscillating(n, w, *numbers)
    else:
        rows = guiding.constant(n, w)
    return np.tile(rows[:, None, None], (1, 1, frames))


def reconstruction_weight(settings: Settings, variance: float) -> tuple[float, float]:
    """(base, slope) of w_r for `guidance.growing`; "constant" has slope 0.

    variance: of the data, for "exact".
    """
    w = settings.reconstruction or 0.0
    exact = settings.reconstruction_schedule == "exact"
    return w, w / variance if exact else 0.0


NAMES = {
    "sampler": samplers.SAMPLERS,
    "schedule": {"": None, **schedules.SCHEDULES},
    "combine": guiding.COMBINES,
    "reconstruction_schedule": {"constant": None, "exact": None},
}
MAX_GUIDANCE = 1e3
# (setting, lowest, highest): both included.
RANGES = (
    ("steps", 1, samplers.MAX_STEPS),
    ("gamma", 0, 1),
    ("churn", 0, 1e3),
    ("corrector", 0, 1),
    ("guidance", 0, MAX_GUIDANCE),
    ("threshold", 0, 1e3),
    ("percentile", 0, 100),
    ("reconstruction", 0, 1e4),
    ("batch_size", 1, 2**20),
    ("snr", 1e-9, np.inf),
)
MEANING = {
    "gamma": "the variance of the ancestral sampler",
    "corrector": "delta of the Langevin corrector, 0 is off",
    "guidance": "a weight w >= 0 of (1+w) cond - w uncond",
    "threshold": "0 (off) or a bound on |x|",
    "percentile": "0 (off) or a percentile of |x|",
    "reconstruction": "a weight w_r, 0 is replacement alone",
}


def two_branches(model: DiffusionModel, settings: Settings) -> bool:
    """Whether a step asks the network twice: guided, and not a student told the weight.

    That one knows the outcome of both.
    """
    return settings.guidance > 0 and not model.guidance_range


def calls(model: DiffusionModel, settings: Settings) -> int:
    """How often the network is asked for one video of the model's own size.

    At every step, by Heun's sampler twice, by the corrector once more; each time by two
    branches if guided so, and for each tile of a stage in tiles.
    """
    each = 1 + (settings.sampler == "heun") + (settings.corrector > 0)
    tiles = len(tile_places(model)) if settings.tiled else 1
    return settings.steps * each * (1 + two_branches(model, settings)) * tiles


def tile_places(model: DiffusionModel) -> np.ndarray:
    """int [k, 3]: where tiles of a stage's crops, overlapping by half, begin."""
    assert model.stage is not None
    window = (model.shape[0], *model.stage.crop)
    return multidiffusion.places(
        model.shape[:3], window, (0, *(n // 2 for n in window[1:]))
    )


def _check_told(model: DiffusionModel, settings: Settings, weights: np.ndarray) -> None:
    """What a guided student was not taught."""
    low, high = model.guidance_range
    if settings.guidance_schedule.startswith("interval"):
        weights = np.append(weights, (0.0, settings.guidance))
    if settings.guidance_schedule.startswith("frames") or settings.combine != "linear":
        raise UserError(
            f"guidance_schedule={settings.guidance_schedule!r}, combine="
            f"{settings.combine!r}: a guided student has one weight for all frames and "
            "combines linearly"
        )
    for weight in (weights.min(), weights.max()):
        if not low <= weight <= high:
            raise UserError(
                f"guidance weight {weight:g}: this student was told weights from "
                f"{low:g} to {high:g}"
            )


def _check_snr(stage: Stage, snr: float) -> None:
    """No noise on what a stage is given that it never met in training."""
    low, high = stage.noise
    if np.isnan(snr) or snr <= 0 or not low - 1e-3 <= time_of_snr(snr) <= high + 1e-3:
        least, most = (
            float(np.tan(np.pi / 2 * t) ** -2) if t > 0 else np.inf for t in (high, low)
        )
        raise UserError(
            f"snr={snr}: this stage was trained with {least if high < 1 else 0:.3g} to "
            f"{most:.3g} on what it is given"
        )


def unread(name: str, model: DiffusionModel, settings: Settings) -> str:
    """What a setting needs to mean something; "" where it does."""
    if name in ("gamma", "churn"):
        sampler = {"gamma": "ancestral", "churn": "heun"}[name]
        return "" if settings.sampler == sampler else f"goes with sampler={sampler}"
    if name == "snr" and model.stage is None:
        return "is of stages that are given a video"
    return ""


COPIES = 4  # of all videos in float32, at once


def check_videos(num: int, shape: Sequence[int], what: str) -> None:
    """Raise UserError if so many videos [f, h, w, c] cannot be held in memory."""
    need = COPIES * 4 * num * math.prod(shape)
    check_memory(need, f"{what}: {num} videos of {tuple(shape)}")


def check(model: DiffusionModel, num: int, seed: int, settings: Settings) -> None:
    """Raise UserError for settings out of range, before anything compiles."""
    for field, known in NAMES.items():
        if (value := getattr(settings, field)) not in known:
            names = ", ".join(name or "''" for name in known)
            raise UserError(f"{field}={value!r} is not known: one of {names}")
    if num < 1:
        raise UserError(f"num={num}: at least 1")
    check_videos(num, model.shape, f"num={num}")
    if not 0 <= seed < 2**32:  # beyond, random keys would repeat
        raise UserError(f"seed={seed}: from 0 to {2**32 - 1}")
    if model.stage is not None:
        _check_snr(model.stage, settings.snr)
    for field, low, high in RANGES:
        value = getattr(settings, field)
        if field == "reconstruction" and value is None:
            continue  # what is observed decides
        if not low <= value <= high:  # nor is NaN
            meaning = f", {MEANING[field]}" if field in MEANING else ""
            raise UserError(f"{field}={value}: from {low} to {high:g}{meaning}")
    weights = guidance_weights(settings, np.zeros(settings.steps), model.shape[0])
    if settings.guidance_schedule != "constant" and not settings.guidance:
        raise UserError(
            f"guidance_schedule={settings.guidance_schedule!r} goes with a guidance "
            "above 0"
        )
    if model.guidance_range:
        _check_told(model, settings, weights)
    if settings.tiled and not (model.stage and model.stage.crop):
        raise UserError(
            "tiled=True is of a stage that was trained on crops (stage.crop): set it "
            "to False"
        )
    if two_branches(model, settings) and not model.guidable:
        raise UserError(
            f"guidance={settings.guidance} needs a model trained with conditions that "
            "were sometimes dropped (conditioning.label_drop > 0); this one was not: "
            "set guidance to 0"
        )
    start = make_schedule(model, settings).angle(np.ones(1))
    starts_at = float(schedules.logsnr_of_angle(start)[0])
    bounded = settings.threshold or settings.percentile
    if model.output == "eps" and starts_at < ZERO_SNR and not bounded:
        raise UserError(
            f"threshold=0 with an eps output that starts at logsnr={starts_at:.3g}: "
            "with no signal left eps says nothing of the video, so it must be bounded: "
            "set threshold to 1, or schedule to karras, which starts with some signal"
        )
