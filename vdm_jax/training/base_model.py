"""A config that leaves its model open: it is that of config.init_from."""

from typing import Any

from ml_collections import ConfigDict

from vdm_jax import runs
from vdm_jax.errors import UserError
from vdm_jax.settings import MODEL

OF_Z = ("mean", "variance")  # fields of `data` that belong to the model
# Fields of a network of kind "sd" with which a model is tuned.
OF_SD = ("lora_rank", "temporal", "frame_reads", "joint_norms")


# Fields of config.diffusion that decide what a frozen network computes.
SAME = (
    "prediction_type", "schedule", "logsnr_min", "logsnr_max", "logsnr_shift",
    "noise_logsnr_shift", "precondition",
)  # fmt: skip


def check_same(config: Any, base: Any, what: str) -> None:
    """Raise UserError unless a frozen model keeps its noise schedule and prediction.

    base: the config of config.init_from. what: is done with it, as "the LoRA tunes".
    """
    for field in SAME:
        if (value := config.diffusion[field]) != base.diffusion[field]:
            raise UserError(
                f"config.diffusion.{field}={value!r}: the model {config.init_from}, "
                f"which {what}, has {base.diffusion[field]!r}"
            )
    own, theirs = (dict(each.get("discrete", {})) for each in (config, base))
    if own != theirs:  # ConfigDicts also differ where one is locked
        raise UserError(
            f"config.discrete: the model {config.init_from}, which {what}, has other "
            "timesteps"
        )


def complete(config: Any) -> None:
    """Fill in the model of config.init_from where a config of configs.base.tuning is.

    Fields that are set, by its file or by a flag, are kept.

    Raises:
      UserError: no model is given, its kind of network lacks a field that is set, or
        the data are to have another mean or variance.
    """
    if config.network.get("levels", ()) is not None:
        return
    if not config.init_from:
        raise UserError(
            "config.init_from='': this config tunes a model: --config.init_from=DIR, "
            "an image model or a folder of diffusers"
        )
    base = runs.read_config(config.init_from)
    own = [name for name in OF_SD if config.network.get(name)]
    if own and base.network.kind != "sd":
        raise UserError(
            f"config.network.{own[0]}={config.network[own[0]]}: for a network of kind "
            f"'sd'; {config.init_from} has {base.network.kind!r}"
        )
    with config.unlocked():
        for name in MODEL:
            if name in base:
                fields = config.get(name, {}).items()
                own = {field: value for field, value in fields if value is not None}
                config[name] = ConfigDict(base[name].to_dict() | own)
        for field in OF_Z:
            value = base.data[field]
            if config.data[field] not in (None, value):
                raise UserError(
                    f"config.data.{field}={config.data[field]}: the model "
                    f"{config.init_from} has {value}"
                )
            config.data[field] = value
