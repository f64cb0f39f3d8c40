"""How to sample: one frozen set of numbers, checked before anything compiles."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vdm_jax import sharding
from vdm_jax.conditions.low_resolution import LowResolution, time_from_snr
from vdm_jax.diffusion import guidance as guiding
from vdm_jax.diffusion import multidiffusion, samplers, schedules
from vdm_jax.diffusion.flow_timesteps import FlowTimesteps
from vdm_jax.errors import UserError
from vdm_jax.memory import check_memory
from vdm_jax.model import DiffusionModel
from vdm_jax.settings import check, settings_of
from vdm_jax.settings.sections import MAX_SCALE, Sample, Sampling, TopLevel

NO_SIGNAL_LOGSNR = -15.0  # below it, an eps output says nothing of x in float32


@dataclasses.dataclass(frozen=True)
class Settings(Sampling):
    """How to sample: a config's section `sample`, and flags of the same names."""

    @classmethod
    def from_config(cls, sample: Any) -> "Settings":
        """Read a config's `sample` section; a field that it lacks has its default.

        Raises:
          UserError: a value that is not allowed, as a damaged file may hold it.
        """
        fields = settings_of(cls)
        check(fields, sample, "sample.")
        return cls(**{name: sample[name] for name in fields if name in sample})


def make_sampler(settings: Settings) -> samplers.Sampler:
    """Return the sampler; the same object for equal settings, as jit compares it."""
    name = settings.sampler
    options = {
        "ancestral": (("gamma", settings.ancestral_gamma),),
        "heun": (("s_churn", settings.s_churn),),
    }
    return _cached_sampler(name, options.get(name, ()), settings.langevin_delta)


@functools.cache
def _cached_sampler(name: str, options: tuple, delta: float) -> samplers.Sampler:
    sampler = samplers.SAMPLERS[name](**dict(options))
    return samplers.with_langevin_corrector(sampler, delta) if delta else sampler


def make_schedule(model: DiffusionModel, settings: Settings) -> schedules.Schedule:
    """Return the noise levels of the steps: the model's own, or a named schedule's.

    A named schedule has the range of the model's own, and its shifts where it has any.
    "discrete" is the model's own table where it has one.
    UniPC has its own steps between a published flow model's timesteps.
    The default of the second-order samplers is "karras": they lose their order on the
    last levels of a cosine, where log SNR changes by ever longer steps.
    """
    name = settings.sampling_schedule
    own = model.schedule
    if settings.sampler == "unipc" and isinstance(own, FlowTimesteps) and not name:
        return dataclasses.replace(own, skip_last=True)
    if not name and settings.sampler in ("dpm", "heun", "unipc"):
        name = "karras"
    if name == "discrete" and isinstance(own, schedules.Discrete):
        # As DPM-Solver in diffusers, whose last step ends at the clean video.
        ends = {"set_alpha_to_one": True, "skip_last": True}
        return dataclasses.replace(own, **ends) if settings.sampler == "dpm" else own
    if not name:
        return own
    shifts = {
        key: getattr(own, key, 0.0) for key in ("logsnr_shift", "noise_logsnr_shift")
    }
    return schedules.make_schedule(name, *schedules.logsnr_range(own), **shifts)


def guidance_scales(settings: Settings, logsnr: np.ndarray, frames: int) -> np.ndarray:
    """Return the scales for a table of these logsnr, [n]: [n, 1, 1 or frames].

    settings.guidance_schedule: "constant"; "interval:LOW:HIGH", guided only where
    logsnr is between; "oscillating:LOW:FIRST", the full scale for the first fraction
    of the steps, then LOW and the full one alternately; "frames:FIRST", from FIRST at
    the first frame linearly to the full scale at the last.
    """
    scale = settings.guidance_scale
    n = len(logsnr)
    name, *words = settings.guidance_schedule.split(":")
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = [math.nan]
    match name, numbers:
        case "constant", []:
            scales = np.full(n, float(scale))
        case "interval", [low, high] if low < high:
            scales = guiding.interval(logsnr, scale, low, high)
        case "oscillating", [low, *first] if (
            1 <= low <= MAX_SCALE and len(first) < 2 and all(0 <= x <= 1 for x in first)
        ):
            scales = guiding.oscillating(n, scale, low, *first)
        case "frames", [first] if 1 <= first <= MAX_SCALE:
            return np.tile(np.linspace(first, scale, frames), (n, 1, 1))
        case _:
            meaning = settings_of(Settings)["guidance_schedule"].metadata["meaning"]
            raise UserError(
                f"guidance_schedule={settings.guidance_schedule!r}: {meaning}"
            )
    return scales[:, None, None]


def reconstruction_base_slope(
    settings: Settings, variance: float
) -> tuple[float, float]:
    """Return (base, slope) of w_r for `guidance.snr_dependent_weight`.

    The slope is 0 unless it is "exact". variance: variance of the data.
    """
    w = settings.reconstruction_weight or 0.0
    exact = settings.reconstruction_schedule == "exact"
    return w, w / variance if exact else 0.0


def uses_cfg(model: DiffusionModel, settings: Settings) -> bool:
    """Whether a call evaluates two branches, the conditional and the unconditional one.

    A student distilled with guidance takes the scale as a condition: it needs one.
    """
    return settings.guidance_scale > 1 and not model.guidance_range


def nfe(model: DiffusionModel, settings: Settings) -> int:
    """Return the number of function evaluations for one video of the model's size.

    One a step, two with Heun's sampler, one more with the corrector. Each counts twice
    with classifier-free guidance, and once per tile where a stage samples in tiles.
    """
    calls = 1 + (settings.sampler == "heun") + (settings.langevin_delta > 0)
    tiles = multidiffusion.window_starts(model.shape, window_shape(model, settings))
    return settings.steps * calls * (1 + uses_cfg(model, settings)) * len(tiles)


def window_shape(model: DiffusionModel, settings: Settings) -> tuple[int, int, int]:
    """Return (frames, height, width) of the z that the network takes.

    That of the model's videos; with tiled_sampling, of the crops of a stage's training.
    """
    frames, *size, channels = model.video_shape
    if settings.tiled_sampling and model.low_resolution:
        size = model.low_resolution.train_crop
    return model.codec.z_shape((frames, *size, channels))[:3]  # type: ignore[arg-type]


def why_unused(name: str, model: DiffusionModel, settings: Settings) -> str:
    """Return what a setting needs to have an effect; "" where it has one."""
    samplers_of = {"ancestral_gamma": "ancestral", "s_churn": "heun"}
    if (sampler := samplers_of.get(name)) and settings.sampler != sampler:
        return f"goes with sampler={sampler}"
    if name == "augmentation_snr" and model.low_resolution is None:
        return "is for super-resolution stages"
    return ""


# --- checks ------------------------------------------------------------------------


FLOAT32_COPIES = 4  # arrays of all videos that exist at once


def check_video_memory(num: int, shape: Sequence[int], what: str) -> None:
    """Raise UserError if so many videos [f, h, w, c] do not fit into memory."""
    need = FLOAT32_COPIES * 4 * num * math.prod(shape)
    check_memory(need, f"{what}: {num} videos of {tuple(shape)}")


def check_settings(
    model: DiffusionModel, num: int, seed: int, settings: Settings
) -> None:
    """Raise UserError for settings out of range, before anything compiles."""
    # Random keys would repeat for other seeds.
    fields = settings_of(Sample) | {"seed": settings_of(TopLevel)["seed"]}
    check(fields, vars(settings) | {"num": num, "seed": seed}, "")
    check_video_memory(num, model.video_shape, f"num={num}")
    sharding.parse_mesh(settings.mesh)
    stage = model.low_resolution
    if stage is not None:
        _check_augmentation_snr(stage, settings.augmentation_snr)
    if settings.tiled_sampling and not (stage and stage.train_crop):
        raise UserError(
            "tiled_sampling=True is for stages that were trained on crops "
            "(stage.train_crop): set it to False"
        )
    _check_guidance(model, settings)
    _check_start(model, settings)


def _check_guidance(model: DiffusionModel, settings: Settings) -> None:
    """Raise UserError for guidance that the model was not trained for."""
    scales = guidance_scales(settings, np.zeros(settings.steps), model.shape[0])
    if settings.guidance_schedule != "constant" and settings.guidance_scale == 1:
        raise UserError(
            f"guidance_schedule={settings.guidance_schedule!r} goes with a "
            "guidance_scale above 1"
        )
    if model.guidance_range:
        _check_trained_scales(model, settings, scales)
    if uses_cfg(model, settings) and not model.supports_cfg:
        raise UserError(
            f"guidance_scale={settings.guidance_scale} needs a model trained with "
            "conditions that were sometimes dropped (conditioning.label_dropout > 0); "
            "this one was not: set guidance_scale to 1"
        )


def _check_trained_scales(
    model: DiffusionModel, settings: Settings, scales: np.ndarray
) -> None:
    """Raise UserError for guidance outside the training of a student with guidance."""
    low, high = model.guidance_range
    if settings.guidance_schedule.startswith("interval"):
        scales = np.append(scales, (1.0, settings.guidance_scale))
    if settings.guidance_schedule.startswith("frames") or settings.cfg_mode != "linear":
        raise UserError(
            f"guidance_schedule={settings.guidance_schedule!r}, cfg_mode="
            f"{settings.cfg_mode!r}: a student distilled with guidance has one scale "
            "for all frames and combines linearly"
        )
    if not low <= scales.min() <= scales.max() <= high:
        raise UserError(
            f"guidance scales from {scales.min():g} to {scales.max():g}: this student "
            f"was trained with scales from {low:g} to {high:g}"
        )


def _check_augmentation_snr(stage: LowResolution, snr: float) -> None:
    """Raise UserError for noise on the low-resolution input unseen in training."""
    low, high = stage.augmentation_time
    if not low - 1e-3 <= time_from_snr(snr) <= high + 1e-3:
        least, most = (
            float(np.tan(np.pi / 2 * t) ** -2) if t > 0 else np.inf for t in (high, low)
        )
        raise UserError(
            f"augmentation_snr={snr}: this stage was trained with "
            f"{least if high < 1 else 0:.3g} to {most:.3g} on its low-resolution input"
        )


def _check_start(model: DiffusionModel, settings: Settings) -> None:
    """Raise UserError for more steps than a discrete schedule has.

    An eps output may not start without signal and without a bound.
    """
    schedule = make_schedule(model, settings)
    schedule.grid(settings.steps)
    logsnr = float(schedules.logsnr_from_angle(schedule.angle(np.ones(1)))[0])
    bounded = settings.clip_x or settings.dynamic_threshold
    if model.prediction_type == "eps" and logsnr < NO_SIGNAL_LOGSNR and not bounded:
        raise UserError(
            f"clip_x=0 with an eps output that starts at logsnr={logsnr:.3g}: with no "
            "signal left eps says nothing of the video, so it must be bounded: set "
            "clip_x to 1, or sampling_schedule to karras, which starts with some signal"
        )
