"""Flow matching in the folder scheduler/ of diffusers, as plain fields of ours."""

from typing import Any

from vdm_jax.pretrained.config_json import ConfigFile

EULER, UNIPC = "FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"
# Class -> our sampler, the name of its shift, and the values of its options that ours
# has, the first of them diffusers' default where that is one of ours.
SIGMAS: dict[str, tuple[Any, ...]] = dict.fromkeys(
    (
        "use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas",
        "use_beta_sigmas",
    ),
    (False,),
) | {"shift_terminal": (None,)}  # fmt: skip
CLASSES: dict[str, tuple[str, str, dict[str, tuple[Any, ...]]]] = {
    UNIPC: (
        "unipc",
        "flow_shift",
        SIGMAS
        | {
            "prediction_type": ("flow_prediction",),
            "use_flow_sigmas": (True,),
            "solver_order": (2,),
            "solver_type": ("bh2",),
            "predict_x0": (True,),
            "lower_order_final": (True,),
            "disable_corrector": ([],),
            "solver_p": (None,),
            "final_sigmas_type": ("zero",),
            "thresholding": (False,),
        },
    ),
    EULER: (
        "ddim",  # which is Euler's method on flow's straight path
        "shift",
        SIGMAS | {"invert_sigmas": (False,), "stochastic_sampling": (False,)},
    ),
}


def fields(config: ConfigFile) -> dict[str, Any]:
    """Return {"shift", "flow": fields of our section, "sample": those of our sampler}.

    config: scheduler_config.json. Its shift is used once. diffusers' Euler has it twice
    at its lowest level where a pipeline does not give the levels.

    Raises:
      UserError: a class or a value that is not read.
    """
    config.values.setdefault("_class_name")  # which has no default
    kind = config.one_of("_class_name", tuple(CLASSES))
    sampler, shift, options = CLASSES[kind]
    for name, values in options.items():
        if name in ("prediction_type", "use_flow_sigmas"):  # diffusers' are of no flow
            config.values.setdefault(name)
        config.one_of(name, values)
    return {
        "shift": config.number(shift, 1.0, 1e-3, 1e3),
        "flow": {
            "train_steps": config.number("num_train_timesteps", 1000),
            "whole_timesteps": kind == UNIPC,
        },
        "sample": {"sampler": sampler},
    }
