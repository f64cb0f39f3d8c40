"""Wan 2.1's transformer in diffusers' folders: its config and its names.

A folder transformer/ has config.json and diffusion_pytorch_model.safetensors or its
shards. What is returned here are plain fields of our config and a table of names;
networks/wan.py makes the network.
"""

import re
from collections.abc import Iterator
from typing import Any

from vdm_jax.errors import UserError
from vdm_jax.pretrained import sd_unet
from vdm_jax.pretrained.name_maps import KERNEL

CLASS = "WanTransformer3DModel"
# diffusers' defaults of the options that `fields` reads.
DEFAULTS = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 13824,
    "num_layers": 40,
    "cross_attn_norm": True,
    "eps": 1e-6,
}
# Options of image to video, and the only value that ours has.
FIXED = {
    "added_kv_proj_dim": None,
    "image_dim": None,
    "pos_embed_seq_len": None,
    "qk_norm": "rms_norm_across_heads",
}
UNUSED = {"rope_max_seq_len"}  # positions have no limit here


def fields(config: dict[str, Any]) -> dict[str, Any]:
    """Return our config's sections for a config.json of diffusers.

    {"network": {...}, "conditioning": {"cond_dim", "cond_mlp_layers", "text_dim"},
    "timestep_dim": features of a timestep, "channels": of z}.

    Raises:
      UserError: an option is not known, or its value is that of another network.
    """
    config = {name: value for name, value in config.items() if name not in UNUSED}
    given = sd_unet.read_options(CLASS, config, DEFAULTS, FIXED)
    if given["in_channels"] != given["out_channels"]:
        raise UserError(
            f"{CLASS} with in_channels={given['in_channels']} and out_channels="
            f"{given['out_channels']}: models of image to video are not read"
        )
    patch = tuple(given["patch_size"])
    if len(patch) != 3 or patch[0] != 1 or patch[1] != patch[2]:
        raise UserError(f"{CLASS} with patch_size={patch}: one frame of a square")
    network = {
        "kind": "wan",
        "patch_size": patch[1],
        "num_layers": given["num_layers"],
        "num_heads": given["num_attention_heads"],
        "head_dim": given["attention_head_dim"],
        "mlp_width": given["ffn_dim"],
        "cross_norm": given["cross_attn_norm"],
        "epsilon": given["eps"],
    }
    conditioning = {
        "cond_dim": network["num_heads"] * network["head_dim"],
        "cond_mlp_layers": 1,
        "text_dim": given["text_dim"],
    }
    return {
        "network": network,
        "conditioning": conditioning,
        "timestep_dim": given["freq_dim"],
        "channels": given["in_channels"],
    }


def names(network: dict[str, Any]) -> dict[str, str]:
    """Return diffusers' name of every tensor -> our path, in the model's parameters.

    network: the section of `fields`. The path starts with `KERNEL` where torch's layout
    is another. No two names have one path, so it is the table of both ways.
    """
    table = {"scale_shift_table": "network/scale_shift_table"}
    for i in range(network["num_layers"]):
        table[f"blocks.{i}.scale_shift_table"] = f"network/block_{i}/scale_shift_table"
    for theirs, ours in _modules(network):
        if ours.endswith("_norm"):
            table[f"{theirs}.weight"] = f"{ours}/scale"
        else:
            table[f"{theirs}.weight"] = f"{KERNEL}{ours}/kernel"
        if not theirs.endswith(("norm_q", "norm_k")):
            table[f"{theirs}.bias"] = f"{ours}/bias"
    return table


EMBEDDERS = {
    "time_embedder.linear_1": "conditioning_encoder/noise_level",
    "time_embedder.linear_2": "conditioning_encoder/mlp_0",
    "time_proj": "network/levels",
    "text_embedder.linear_1": "network/text_in",
    "text_embedder.linear_2": "network/text_out",
}
ATTENTIONS = {"attn1": "self_attention", "attn2": "cross_attention"}
PROJECTIONS = {
    "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "out",
    "norm_q": "q_norm", "norm_k": "k_norm",
}  # fmt: skip


# Modules of image to video, in both spellings.
IMAGE_MODULES = re.compile(r"\b(k_img|v_img|add_[kv]_proj|img_emb|image_embedder)\b")
# Of the names in diffusers, the parts that the original program has otherwise.
ORIGINAL = {
    "attn1.to_out.0": "self_attn.o", "attn2.to_out.0": "cross_attn.o",
    **{f"attn1.to_{name}": f"self_attn.{name}" for name in "qkv"},
    **{f"attn2.to_{name}": f"cross_attn.{name}" for name in "qkv"},
    "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "proj_out": "head.head",
}  # fmt: skip


def original_name(module: str) -> str:
    """Return the name of a module in Wan's own program, which LoRA files have."""
    for theirs, original in ORIGINAL.items():
        if module == theirs or module.endswith(f".{theirs}"):
            return module.removesuffix(theirs) + original
    return module  # patch_embedding


def _modules(network: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (module of diffusers, ours) for every module that has parameters."""
    yield "patch_embedding", "network/patch"
    yield "proj_out", "network/head"
    for theirs, ours in EMBEDDERS.items():
        yield f"condition_embedder.{theirs}", ours
    for i in range(network["num_layers"]):
        block, own = f"blocks.{i}", f"network/block_{i}"
        for attention, ours in ATTENTIONS.items():
            for theirs, name in PROJECTIONS.items():
                yield f"{block}.{attention}.{theirs}", f"{own}/{ours}/{name}"
        if network["cross_norm"]:
            yield f"{block}.norm2", f"{own}/cross_norm"
        yield f"{block}.ffn.net.0.proj", f"{own}/mlp_in"
        yield f"{block}.ffn.net.2", f"{own}/mlp_out"
