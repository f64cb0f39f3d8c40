"""A run that trains a ControlNet next to a frozen model: config.control.

The ControlNet starts as a copy of the first half of config.init_from, and its output at
0: the first loss is that of the frozen model.
"""

from typing import Any

from vdm_jax import runs
from vdm_jax.errors import UserError
from vdm_jax.model import Params
from vdm_jax.training import base_model

CONTROL = "control_0"
TRAINS = rf".*/{CONTROL}/.*"
NEW = rf".*/{CONTROL}/(hint|zero_\w+)/.*"  # what is not copied
COPIED = "down", "middle"  # parts of the U-Net


def applies(config: Any) -> bool:
    """Whether a config trains a ControlNet."""
    return "control" in config


def prepare(config: Any) -> None:
    """Fill in what trains, and what is the frozen model's.

    Raises:
      UserError: no model to control, one that has a ControlNet or a LoRA to train, or
        one with another noise schedule or prediction.
    """
    if not config.init_from:
        raise UserError("config.control trains next to a trained model: set init_from")
    base = runs.read_config(config.init_from)
    for name, has in (
        ("a ControlNet", "control" in base),
        (
            "a LoRA, which --format=diffusers merges",
            bool(base.network.get("lora_rank")),
        ),
    ):
        if has:
            raise UserError(
                f"config.init_from={config.init_from} has {name}: a ControlNet is "
                "trained next to a plain model"
            )
    base_model.check_same(config, base, "the ControlNet controls")
    config.data.update(mean=base.data.mean, variance=base.data.variance)
    config.init_new = tuple({*config.init_new, NEW})
    config.train.trainable = ((TRAINS, True), (".*", False))


def with_copy(params: Params) -> Params:
    """Return a model's parameters, and of its ControlNet those that are copies.

    Its noise level passes a copy of the encoder's layers.
    """
    network, encoder = params["network"], params["conditioning_encoder"]
    vector = {
        name: layer
        for name, layer in encoder.items()
        if name == "noise_level" or name.startswith("mlp_")
    }
    copied = {name: network[name] for name in COPIED} | vector
    return {**params, "network": {**network, CONTROL: copied}}
