"""Folders of diffusers' ControlNetModel: config, names of tensors, both ways.

A folder has config.json and diffusion_pytorch_model.safetensors. What is returned here
are plain fields and a table of names; networks/control.py makes the network.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vdm_jax.errors import UserError
from vdm_jax.pretrained import sd_unet

CLASS = "ControlNetModel"
# diffusers' defaults of the options that `fields` reads.
DEFAULTS = {
    "in_channels": 4,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "cross_attention_dim": 1280,
    "attention_head_dim": 8,
    "use_linear_projection": False,
    "conditioning_channels": 3,
    "conditioning_embedding_out_channels": (16, 32, 96, 256),
}
# Options of other networks, and the only value that ours has.
FIXED = {
    **sd_unet.FIXED,
    "controlnet_conditioning_channel_order": "rgb",
    "global_pool_conditions": False,  # guess mode's (arXiv:2302.05543, section 3.4)
}
# What a ControlNet of ours was trained on. diffusers ignores names with an underscore.
KINDS = "_control_kinds"


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json of a folder.

    Raises:
      UserError: it is missing, no JSON object, or of another class.
    """
    return sd_unet.read_config(folder, CLASS)


def fields(config: dict[str, Any]) -> dict[str, Any]:
    """Return what a config.json says of a ControlNet.

    {"network", "conditioning"}: the sections of `sd_unet.unet_fields`. "channels": of
    z. "hint_channels": of the hint encoder, whose first layer reads "hint_inputs"
    channels. "kinds": of the controls that it was trained on, () where it names none.

    Raises:
      UserError: an option is not known, or its value is that of another network.
    """
    given = sd_unet.read_options(CLASS, config, DEFAULTS, FIXED)
    kinds = config.get(KINDS, ())
    if not isinstance(kinds, list | tuple) or not all(
        isinstance(k, str) for k in kinds
    ):
        raise UserError(f"{CLASS} with {KINDS}={kinds!r:.60}: a list of names")
    hint_channels = tuple(given["conditioning_embedding_out_channels"])
    if not hint_channels:
        raise UserError(f"{CLASS} with conditioning_embedding_out_channels=(): widths")
    return {
        **sd_unet.network_fields(CLASS, given),
        "channels": given["in_channels"],
        "hint_channels": hint_channels,
        "hint_inputs": given["conditioning_channels"],
        "kinds": tuple(kinds),
    }


def config_fields(
    control: Any, text_dim: int, channels: int, hint_inputs: int, kinds: tuple[str, ...]
) -> dict[str, Any]:
    """Return the config.json that `fields` reads as this network.

    control: a ControlNet of networks/control.py whose spec is an SDSpec. text_dim:
    width of the tokens. channels: of z. hint_inputs: channels of the hints.

    Raises:
      UserError: levels have different numbers of blocks.
    """
    return {
        "_class_name": CLASS,
        KINDS: list(kinds),
        "in_channels": channels,
        "conditioning_channels": hint_inputs,
        "conditioning_embedding_out_channels": list(control.hint_channels),
        **sd_unet.encoder_options(CLASS, control.spec, text_dim),
    }


def names(network: dict[str, Any], hint_channels: tuple[int, ...]) -> dict[str, str]:
    """Return diffusers' name of every tensor -> our path below control_0, both ways.

    network, hint_channels: of `fields`. Paths start as those of `sd_unet.unet_names`.
    """
    return sd_unet.names_of(_modules(network["levels"], len(hint_channels)))


def _modules(levels: sd_unet.Levels, widths: int) -> Iterator[tuple[str, str]]:
    """Yield (module of diffusers, ours) for every module that has parameters."""
    for theirs, ours in sd_unet.encoder_modules(levels):
        yield theirs, re.sub("^(network|conditioning_encoder)/", "", ours)
    for name in ("conv_in", "conv_out"):
        yield f"controlnet_cond_embedding.{name}", f"hint/{name}"
    for i in range(2 * (widths - 1)):
        yield f"controlnet_cond_embedding.blocks.{i}", f"hint/conv_{i}"
    # Of the first convolution, every block and every downsampling.
    for i in range(sum(level["blocks"] for level in levels) + len(levels)):
        yield f"controlnet_down_blocks.{i}", f"zero_{i}"
    yield "controlnet_mid_block", "zero_middle"
