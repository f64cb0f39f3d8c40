"""A run that tunes a model by a LoRA: config.network.lora_rank above 0.

The LoRA leaves train, and all parameters of config.init_from are frozen.
"""

from typing import Any

from vdm_jax import runs
from vdm_jax.errors import UserError
from vdm_jax.model import Params
from vdm_jax.networks import lora
from vdm_jax.training import base_model


def applies(config: Any) -> bool:
    """Whether a config tunes by a LoRA."""
    return bool(config.network.get("lora_rank"))


def prepare(config: Any) -> None:
    """Fill in what trains, and what the LoRA has in common with the model it tunes.

    Raises:
      UserError: no model to tune, or one with another noise schedule or prediction.
    """
    if not config.init_from:
        rank = config.network.lora_rank
        raise UserError(
            f"config.network.lora_rank={rank} tunes a model: set config.init_from"
        )
    base = runs.read_config(config.init_from)
    base_model.check_same(config, base, "the LoRA tunes")
    config.data.update(mean=base.data.mean, variance=base.data.variance)
    config.init_new = tuple({*config.init_new, lora.LEAVES})
    config.train.trainable = ((lora.LEAVES, True), (".*", False))


def check(config: Any, params: Params) -> None:
    """Raise UserError if no module of the parameters has a LoRA."""
    if not lora.deltas_of(params):
        pattern = config.network.lora_modules
        raise UserError(f"config.network.lora_modules={pattern!r} matches no module")
