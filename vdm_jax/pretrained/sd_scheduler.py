"""The noise schedule in the folder scheduler/ of diffusers, as plain fields of ours."""

from typing import Any

from vdm_jax.errors import UserError

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


def schedule_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Return {"schedule": fields of a discrete schedule, "prediction_type": ours}.

    config: scheduler_config.json. Its class decides the levels at which a sampler
    starts and ends, not which of our samplers runs.

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
    prediction_type = config.get("prediction_type", "epsilon")
    return {"schedule": schedule, "prediction_type": PREDICTION_TYPES[prediction_type]}
