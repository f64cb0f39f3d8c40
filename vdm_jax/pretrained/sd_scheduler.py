"""The noise schedule in the folder scheduler/ of diffusers, as plain fields of ours."""

from typing import Any

from vdm_jax.errors import UserError
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
# Their name -> (our field of a discrete schedule, diffusers' default in all classes).
FIELDS = {
    "num_train_timesteps": ("train_steps", 1000),
    "beta_start": ("beta_start", 0.0001),
    "beta_end": ("beta_end", 0.02),
    "beta_schedule": ("beta_schedule", "linear"),
    "steps_offset": ("steps_offset", 0),
}
# Option -> the values that are read, the default first.
ALLOWED: dict[str, tuple] = {
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (False,),
    "beta_schedule": ("linear", "scaled_linear"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
}


def config_fields(
    schedule: Discrete, prediction_type: str, sample: Any
) -> dict[str, Any]:
    """Return a scheduler_config.json that `schedule_fields` reads as this schedule.

    sample: the config's section, whose sampler decides the class.
    """
    theirs = {own: name for name, own in PREDICTION_TYPES.items()}
    fields = {
        **{name: getattr(schedule, own) for name, (own, _) in FIELDS.items()},
        "timestep_spacing": schedule.timestep_spacing,
        "prediction_type": theirs[prediction_type],
    }
    if sample.sampler == "dpm" and sample.sampling_schedule == "discrete":
        return {"_class_name": "DPMSolverMultistepScheduler", **fields}
    if schedule.timestep_spacing == "fractional":
        fields["timestep_spacing"] = "linspace"
        return {"_class_name": "EulerDiscreteScheduler", **fields}
    end = {"set_alpha_to_one": schedule.set_alpha_to_one, "clip_sample": False}
    return {"_class_name": "DDIMScheduler", **fields, **end}


def schedule_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Return {"schedule": fields of a discrete schedule, "prediction_type", "sample"}.

    config: scheduler_config.json. Its class decides the levels at which a sampler
    starts and ends, and "sample", the fields of our sampler.

    Raises:
      UserError: a class or a value that is not read.
    """
    kind = config.get("_class_name")
    if kind not in CLASSES:
        known = ", ".join(CLASSES)
        raise UserError(f"scheduler_config.json is of {kind!r:.60}: one of {known}")
    for name, values in ALLOWED.items():
        if (value := config.get(name, values[0])) not in values:
            choices = " or ".join(map(repr, values))
            raise UserError(
                f"scheduler_config.json has {name}={value!r:.60}: {choices}"
            )
    schedule = CLASSES[kind] | {
        own: config.get(name, default) for name, (own, default) in FIELDS.items()
    }
    own_options = ("timestep_spacing", "set_alpha_to_one")
    schedule |= {name: config[name] for name in own_options if name in config}
    if kind in FRACTIONAL and schedule["timestep_spacing"] == "linspace":
        schedule["timestep_spacing"] = "fractional"
    prediction_type = config.get("prediction_type", "epsilon")
    return {
        "schedule": schedule,
        "prediction_type": PREDICTION_TYPES[prediction_type],
        "sample": SAMPLERS.get(kind, {"sampler": "ddim"}),
    }
