"""DiT and Latte in diffusers' folders: their configs and names.

A folder transformer/ has config.json and diffusion_pytorch_model.safetensors. What is
returned here are plain fields of our config and a table of names; networks/dit.py makes
the network.

Two things are as in the original programs, by which the published weights were trained,
and not as in diffusers 0.42.1: the frequencies of DiT's timesteps are 10^(-4 i / 128),
not / 127, and its norms have an epsilon of 1e-6, not of 1e-5 before an MLP.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from vdm_jax.errors import UserError
from vdm_jax.pretrained.name_maps import KERNEL
from vdm_jax.pretrained.sd_unet import read_options

DIT, LATTE = "DiTTransformer2DModel", "LatteTransformer3DModel"
FORMER_DIT = "Transformer2DModel"  # its class before version 0.28 of diffusers
DEFAULTS: dict[str, dict[str, Any]] = {
    DIT: {
        "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4,
        "num_layers": 28, "sample_size": 32, "patch_size": 2,
        "num_embeds_ada_norm": 1000,
    },
    LATTE: {
        "num_attention_heads": 16, "attention_head_dim": 88, "in_channels": 4,
        "num_layers": 1, "sample_size": 64, "patch_size": 2, "cross_attention_dim": 0,
        "caption_channels": 0, "video_length": 16,
    },
}  # fmt: skip
# Options of other networks, and the only value that ours has.
FIXED_OF_ALL = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "dropout": 0.0,
    "norm_elementwise_affine": False,
}
FIXED = {
    DIT: FIXED_OF_ALL
    | {
        "attention_type": "default",
        "caption_channels": None,
        "cross_attention_dim": None,
        "double_self_attention": False,
        "interpolation_scale": None,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "norm_type": "ada_norm_zero",
        "num_vector_embeds": None,
        "only_cross_attention": False,
        "use_additional_conditions": None,
        "use_linear_projection": False,
    },
    LATTE: FIXED_OF_ALL
    | {
        "norm_eps": 1e-6,
        "norm_type": "ada_norm_single",
        "num_embeds_ada_norm": 1000,  # of levels, which is not read
    },
}


def fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return our config's sections for a transformer of diffusers, and the shape of z.

    {"network": {...}, "conditioning": {...}, "z_shape": (frames, height, width,
    channels), "num_classes": 0 without labels}.

    Raises:
      UserError: an option is not known, or its value is that of another network.
    """
    cls = LATTE if config["_class_name"] == LATTE else DIT
    options = {name: value for name, value in config.items() if name != "out_channels"}
    given = read_options(cls, options, DEFAULTS[cls], FIXED[cls])
    channels, size = given["in_channels"], given["sample_size"]
    out = config.get("out_channels") or channels
    if out not in (channels, 2 * channels):
        raise UserError(
            f"{cls} with out_channels={out!r:.60}: in_channels={channels} or twice that"
        )
    width = given["num_attention_heads"] * given["attention_head_dim"]
    if cls == LATTE and given["cross_attention_dim"] != width:
        raise UserError(
            f"{cls} with cross_attention_dim={given['cross_attention_dim']}: {width}, "
            "as all of its heads"
        )
    if cls == LATTE and size >= 128:  # its positions are not whole numbers then
        raise UserError(f"{cls} with sample_size={size}: 127 at most")
    network = {
        "kind": "dit",
        "width": width,
        "depth": given["num_layers"],
        "num_heads": given["num_attention_heads"],
        "patch_size": given["patch_size"],
        "attend": "v1" if cls == LATTE else "full",
        "cross_attention": cls == LATTE,
        "adaln_single": cls == LATTE,
        "learn_sigma": out == 2 * channels,
    }
    conditioning = {
        "kind": "dit",
        "cond_dim": width,
        "cond_mlp_layers": 1,
        "text_dim": given.get("caption_channels", 0),
    }
    return {
        "network": network,
        "conditioning": conditioning,
        "z_shape": (given.get("video_length", 1), size, size, channels),
        "num_classes": given.get("num_embeds_ada_norm", 0),
    }


ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "out"}
MLP = {"ff.net.0.proj": "mlp_in", "ff.net.2": "mlp_out"}
TIMESTEPS = {
    "timestep_embedder.linear_1": "conditioning_encoder/noise_level",
    "timestep_embedder.linear_2": "conditioning_encoder/mlp_0",
}


def names(network: Mapping[str, Any]) -> dict[str, str]:
    """Return diffusers' name of every tensor -> our path, in the model's parameters.

    network: the section of `fields`. The path starts with `KERNEL` where torch's layout
    is another. Every block of DiT has a copy of the embeddings of timestep and label:
    so many names have one path.
    """
    tensors = _latte if network["adaln_single"] else _dit
    return dict(tensors(network["depth"]))


def _dit(depth: int) -> Iterator[tuple[str, str]]:
    modules = {
        "pos_embed.proj": "network/patch_in",
        "proj_out_1": "network/head/modulation",
        "proj_out_2": "network/head/out",
    }
    for i in range(depth):
        theirs, ours = f"transformer_blocks.{i}", f"network/block_{i}"
        embedding = f"{theirs}.norm1.emb"
        modules |= {f"{embedding}.{name}": path for name, path in TIMESTEPS.items()}
        modules[f"{theirs}.norm1.linear"] = f"{ours}/modulation"
        modules |= _block(theirs, ours, {"attn1": "attention"})
        yield (
            f"{embedding}.class_embedder.embedding_table.weight",
            "conditioning_encoder/label/attribute_0/embedding",
        )
    yield from _kernels(modules)


def _latte(depth: int) -> Iterator[tuple[str, str]]:
    modules = {
        "pos_embed.proj": "network/patch_in",
        "adaln_single.linear": "network/modulation",
        "caption_projection.linear_1": "network/token_in",
        "caption_projection.linear_2": "network/token_out",
        "proj_out": "network/head/out",
        **{f"adaln_single.emb.{name}": path for name, path in TIMESTEPS.items()},
    }
    yield "scale_shift_table", "network/head/table"
    for i in range(depth):
        for theirs, ours, attentions in (
            ("transformer_blocks", "block", {"attn1": "attention",
                                             "attn2": "cross_attention"}),
            ("temporal_transformer_blocks", "time_block", {"attn1": "attention"}),
        ):  # fmt: skip
            own = f"network/{ours}_{i}"
            modules |= _block(f"{theirs}.{i}", own, attentions)
            yield f"{theirs}.{i}.scale_shift_table", f"{own}/modulation_table"
    yield from _kernels(modules)


def _block(theirs: str, ours: str, attentions: Mapping[str, str]) -> dict[str, str]:
    """Return their modules -> ours of a block."""
    return {f"{theirs}.{name}": f"{ours}/{own}" for name, own in MLP.items()} | {
        f"{theirs}.{attention}.{name}": f"{ours}/{path}/{own}"
        for attention, path in attentions.items()
        for name, own in ATTENTION.items()
    }


def _kernels(modules: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield name and path of the kernel and the bias of modules."""
    for theirs, ours in modules.items():
        yield f"{theirs}.weight", f"{KERNEL}{ours}/kernel"
        yield f"{theirs}.bias", f"{ours}/bias"


def labels(id2label: Mapping[str, str], num_classes: int) -> tuple[str, ...]:
    """Return a name for each class: the first of its names that no other has before it.

    id2label: of model_index.json, "0" -> "tench, Tinca tinca". A class without a name
    of its own has its number behind it.

    Raises:
      UserError: it has not one text for each class.
    """
    texts = [id2label.get(str(i)) for i in range(num_classes)]
    if len(id2label) != num_classes or not all(isinstance(t, str) for t in texts):
        raise UserError(f"id2label: a text for each of the {num_classes} classes")
    chosen: dict[str, None] = {}
    for i, text in enumerate(texts):
        own = [name.strip() for name in str(text).split(",")]
        free = [name for name in own if name not in chosen]
        chosen[free[0] if free else f"{own[0]} {i}"] = None
    if len(chosen) != num_classes:
        raise UserError("id2label: a class has the name and number of another one")
    return tuple(chosen)
