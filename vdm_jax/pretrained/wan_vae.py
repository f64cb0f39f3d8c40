"""Wan 2.1's autoencoder in diffusers' folders: its config and its names.

A folder vae/ has config.json and diffusion_pytorch_model.safetensors. What is returned
here are plain fields and a table of names; networks/wan_autoencoder.py makes the
network.
"""

from collections.abc import Iterator
from typing import Any

from vdm_jax.errors import UserError
from vdm_jax.pretrained import sd_unet
from vdm_jax.pretrained.name_maps import KERNEL

CLASS = "AutoencoderKLWan"
# diffusers' defaults of the options that `fields` reads.
DEFAULTS = {
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": (1, 2, 4, 4),
    "num_res_blocks": 2,
    "temperal_downsample": (False, True, True),
    "latents_mean": (
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134,
        -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ),
    "latents_std": (
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526,
        2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    ),
    "in_channels": 3,
    "out_channels": 3,
}  # fmt: skip
# Options of other networks, as Wan 2.2's, and the only value that ours has.
FIXED = {"attn_scales": [], "is_residual": False, "patch_size": None}
# The factors are those of the levels.
UNUSED = {"dropout", "scale_factor_temporal", "scale_factor_spatial"}
MAX_LEVELS, MAX_BLOCKS, MAX_WIDTH = 10, 20, 2**16  # a config may declare any number


def fields(config: dict[str, Any]) -> dict[str, Any]:
    """Return what a config.json says of an autoencoder.

    "spec": fields of WanAutoencoderSpec. "mean" and "std" of the latents, by channel.

    Raises:
      UserError: an option is not known, or its value is that of another network.
    """
    base = config.get("decoder_base_dim")
    unread = UNUSED | {"decoder_base_dim"}
    config = {name: value for name, value in config.items() if name not in unread}
    given = sd_unet.read_options(CLASS, config, DEFAULTS, FIXED)
    widths, halves = given["dim_mult"], given["temperal_downsample"]
    base = given["base_dim"] if base is None else base
    sizes = [given["base_dim"], base, given["z_dim"], given["num_res_blocks"], *widths]
    limits = len(widths) <= MAX_LEVELS and given["num_res_blocks"] <= MAX_BLOCKS
    if not limits or not all(type(n) is int and 0 < n <= MAX_WIDTH for n in sizes):
        raise UserError(f"{CLASS} with widths and blocks {sizes!r:.60}: no such sizes")
    if len(halves) != len(widths) - 1 or not all(type(each) is bool for each in halves):
        raise UserError(
            f"{CLASS} with temperal_downsample={halves!r:.60}: true or false for each "
            f"of the {len(widths) - 1} halvings"
        )
    if given["out_channels"] != given["in_channels"]:
        raise UserError(
            f"{CLASS} with out_channels={given['out_channels']}: "
            f"in_channels={given['in_channels']}"
        )
    mean, std = (tuple(map(float, given[f"latents_{n}"])) for n in ("mean", "std"))
    if {len(mean), len(std)} != {given["z_dim"]} or min(std) <= 0:
        raise UserError(
            f"{CLASS} with latents_mean of {len(mean)} and latents_std of {len(std)} "
            f"channels: z_dim={given['z_dim']} of each, deviations above 0"
        )
    spec = {
        "in_channels": given["in_channels"],
        "latent_channels": given["z_dim"],
        "channels": tuple(given["base_dim"] * n for n in widths),
        "decoder_channels": tuple(base * n for n in widths),
        "blocks": given["num_res_blocks"],
        "halves_frames": tuple(halves),
    }
    return {"spec": spec, "mean": mean, "std": std}


def names(spec: dict[str, Any]) -> dict[str, str]:
    """Return diffusers' name of every tensor -> our path, both ways.

    spec: of `fields`. The path starts with `KERNEL` where torch's layout is another.
    """
    table = {}
    for theirs, ours in _modules(spec):
        if theirs.rpartition(".")[2].startswith("norm"):
            table[f"{theirs}.gamma"] = f"{ours}/scale"
        else:
            table[f"{theirs}.weight"] = f"{KERNEL}{ours}/kernel"
            table[f"{theirs}.bias"] = f"{ours}/bias"
    return table


def _modules(spec: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (module of diffusers, ours) for every module that has parameters."""
    yield "quant_conv", "encoder/quant_conv"
    yield "post_quant_conv", "decoder/post_quant_conv"
    for part in ("encoder", "decoder"):
        yield f"{part}.conv_in", f"{part}/conv_in/conv"
        yield f"{part}.norm_out", f"{part}/norm_out"
        yield f"{part}.conv_out", f"{part}/conv_out/conv"
        for i in range(2):
            block = f"{part}.mid_block.resnets.{i}"
            yield from _block(block, f"{part}/middle/block_{i}", False)
        for theirs, ours in (("norm", "norm"), ("to_qkv", "qkv"), ("proj", "out")):
            attention = f"{part}.mid_block.attentions.0"
            yield f"{attention}.{theirs}", f"{part}/middle/attention/{ours}"
    yield from _down(spec)
    yield from _up(spec)


def _down(spec: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the modules of the encoder's levels, which diffusers numbers in one row."""
    number, width = 0, spec["channels"][0]
    for i, channels in enumerate(spec["channels"]):
        for j in range(spec["blocks"]):
            block = f"encoder.down_blocks.{number}"
            yield from _block(block, f"encoder/level_{i}_block_{j}", width != channels)
            number, width = number + 1, channels
        if i < len(spec["halves_frames"]):
            theirs, ours = f"encoder.down_blocks.{number}", f"encoder/downsample_{i}"
            yield f"{theirs}.resample.1", f"{ours}/conv"
            if spec["halves_frames"][i]:
                yield f"{theirs}.time_conv", f"{ours}/time_conv"
            number += 1


def _up(spec: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the modules of the decoder's levels."""
    doubles = spec["halves_frames"][::-1]
    width = spec["decoder_channels"][-1]
    for i, channels in enumerate(reversed(spec["decoder_channels"])):
        theirs = f"decoder.up_blocks.{i}"
        for j in range(spec["blocks"] + 1):
            ours = f"decoder/level_{i}_block_{j}"
            yield from _block(f"{theirs}.resnets.{j}", ours, width != channels)
            width = channels
        if i < len(doubles):
            ours = f"decoder/upsample_{i}"
            yield f"{theirs}.upsamplers.0.resample.1", f"{ours}/conv"
            if doubles[i]:
                yield f"{theirs}.upsamplers.0.time_conv", f"{ours}/time_conv/conv"
            width = channels // 2


def _block(theirs: str, ours: str, has_shortcut: bool) -> Iterator[tuple[str, str]]:
    """Yield the modules of a residual block."""
    for i in range(2):
        yield f"{theirs}.norm{i + 1}", f"{ours}/norm_{i}"
        yield f"{theirs}.conv{i + 1}", f"{ours}/conv_{i}/conv"
    if has_shortcut:
        yield f"{theirs}.conv_shortcut", f"{ours}/shortcut"
