"""The noise schedule in the folder scheduler/ of diffusers, as plain fields of ours."""

from collections.abc import Mapping
from typing import Any

from vdm_jax.pretrained.config_json import ConfigFile
from vdm_jax.settings.discrete import Discrete

PREDICTION_TYPES = {"epsilon": "eps", "v_prediction": "v", "sample": "x"}
# Class -> the defaults in which it differs from the others, by our names. A sampler
# ends at phi = 0 but for PNDM and, if its config says so, DDIM.
CLEAN = {"timestep_spacing": "linspace", "set_alpha_to_one": True}
CLASSES = {
    "DDIMScheduler": CLEAN | {"timestep_spacing": "leading"},
    "DDPMScheduler": CLEAN | {"timestep_spacing": "leading"},
    "PNDMScheduler": {"timestep_spacing": "leading", "set_alpha_to_one": False},
    "DPMSolverMultistepScheduler": CLEAN | {"skip_last": True},
    "EulerAncestralDiscreteScheduler": CLEAN,
    "EulerDiscreteScheduler": CLEAN,
    "LMSDiscreteScheduler": CLEAN,
}
# Their "linspace" is not rounded to whole timesteps.
FRACTIONAL = (
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
    "LMSDiscreteScheduler",
)  # fmt: skip
# Class -> our sampler, where it is another than DDIM's.
ANCESTRAL = {"sampler": "ancestral", "ancestral_gamma": 0.0}
SAMPLERS = {
    "DDPMScheduler": ANCESTRAL,
    "DPMSolverMultistepScheduler": {"sampler": "dpm", "sampling_schedule": "discrete"},
    "EulerAncestralDiscreteScheduler": ANCESTRAL,
}
# Class -> its method, where it is none of ours. It is sampled on its timesteps by DDIM.
OTHER_METHODS = {"PNDMScheduler": "PLMS", "LMSDiscreteScheduler": "LMS"}
# Their name -> our field of a discrete schedule, diffusers' default in all classes, and
# the bounds.
FIELDS = {
    "num_train_timesteps": ("train_steps", 1000, 2, 10**6),
    "beta_start": ("beta_start", 0.0001, 0.0, 0.999),
    "beta_end": ("beta_end", 0.02, 0.0, 0.999),
    "steps_offset": ("steps_offset", 0, 0, 10**6),
}
BETA_SCHEDULES = "linear", "scaled_linear"
SPACINGS = "leading", "trailing", "linspace"
FIXED = {"trained_betas": None, "rescale_betas_zero_snr": False}
LEVELS: dict[str, Any] = dict.fromkeys(
    ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), False
)
# Class -> options that change pictures and are not read, with what our samplers do.
UNREAD: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"thresholding": False},
    "DDPMScheduler": {"thresholding": False, "variance_type": "fixed_small"},
    "DPMSolverMultistepScheduler": LEVELS
    | {
        "use_lu_lambdas": False,
        "use_flow_sigmas": False,
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "solver_type": "midpoint",
        "final_sigmas_type": "zero",
        "thresholding": False,
    },
    "EulerDiscreteScheduler": LEVELS
    | {
        "interpolation_type": "linear",
        "timestep_type": "discrete",
        "final_sigmas_type": "zero",
    },
    "LMSDiscreteScheduler": LEVELS,
}


def config_fields(
    schedule: Discrete, prediction_type: str, sample: Any
) -> dict[str, Any]:
    """Return a scheduler_config.json that `schedule_fields` reads as this schedule.

    sample: the config's section, whose sampler decides the class.
    """
    theirs = {own: name for name, own in PREDICTION_TYPES.items()}
    fields = {
        **{name: getattr(schedule, own) for name, (own, *_) in FIELDS.items()},
        "beta_schedule": schedule.beta_schedule,
        "timestep_spacing": schedule.timestep_spacing,
        "prediction_type": theirs[prediction_type],
    }
    if sample.sampler == "dpm" and sample.sampling_schedule == "discrete":
        return {"_class_name": "DPMSolverMultistepScheduler", **fields}
    is_ancestral = sample.sampler == "ancestral"
    if schedule.timestep_spacing == "fractional":
        fields["timestep_spacing"] = "linspace"
        kind = "Ancestral" if is_ancestral else ""
        return {"_class_name": f"Euler{kind}DiscreteScheduler", **fields}
    if is_ancestral and schedule.set_alpha_to_one:
        return {"_class_name": "DDPMScheduler", **fields, "clip_sample": False}
    end = {"set_alpha_to_one": schedule.set_alpha_to_one, "clip_sample": False}
    return {"_class_name": "DDIMScheduler", **fields, **end}


def schedule_fields(config: ConfigFile) -> dict[str, Any]:
    """Return {"schedule": fields of a discrete schedule, "prediction_type", "sample"}.

    config: scheduler_config.json. Its class decides the levels at which a sampler
    starts and ends, and "sample", the fields of our sampler.

    Raises:
      UserError: a class or a value that is not read.
    """
    config.values.setdefault("_class_name")  # which has no default
    kind = config.one_of("_class_name", tuple(CLASSES))
    for name, value in FIXED.items():
        config.one_of(name, (value,))
    schedule = CLASSES[kind] | {
        own: config.number(name, *bounds) for name, (own, *bounds) in FIELDS.items()
    }
    schedule["beta_schedule"] = config.one_of("beta_schedule", BETA_SCHEDULES)
    default = schedule["timestep_spacing"]
    spacings = tuple(dict.fromkeys((default, *SPACINGS)))
    schedule["timestep_spacing"] = config.one_of("timestep_spacing", spacings)
    if kind in ("DDIMScheduler", "PNDMScheduler"):  # others have no such option
        default = schedule["set_alpha_to_one"]
        values = default, not default
        schedule["set_alpha_to_one"] = bool(config.one_of("set_alpha_to_one", values))
    if kind in FRACTIONAL and schedule["timestep_spacing"] == "linspace":
        schedule["timestep_spacing"] = "fractional"
    prediction_type = config.one_of("prediction_type", tuple(PREDICTION_TYPES))
    return {
        "schedule": schedule,
        "prediction_type": PREDICTION_TYPES[prediction_type],
        "sample": {**SAMPLERS.get(kind, {"sampler": "ddim"})},
    }


def clip_x(config: ConfigFile) -> float:
    """Return the bound of |x| at every step, 0 for none.

    Stable Diffusion's pipelines have none, whatever the file says.
    """
    if config.values["_class_name"] not in ("DDIMScheduler", "DDPMScheduler"):
        return 0.0
    if not config.one_of("clip_sample", (True, False)):
        return 0.0
    return config.number("clip_sample_range", 1.0, 0.0, 1000.0)


def unread(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a scheduler_config.json that would change pictures."""
    neutral = UNREAD.get(config["_class_name"], {})
    return {k: config[k] for k in neutral if config.get(k, neutral[k]) != neutral[k]}
