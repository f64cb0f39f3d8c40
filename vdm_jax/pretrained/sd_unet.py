"""Stable Diffusion's U-Net in diffusers' folders: its config and its names.

A folder unet/ has config.json and diffusion_pytorch_model.safetensors. What is returned
here are plain fields of our config and a table of names; networks/sd.py makes the
network.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vdm_jax.errors import UserError
from vdm_jax.files import read_json
from vdm_jax.pretrained.name_maps import KERNEL

CLASS = "UNet2DConditionModel"
TRANSFORMER = "spatial_transformer"  # our layer type
# Block types, and whether they have transformers.
DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
# diffusers' defaults of the options that `unet_fields` reads.
DEFAULTS = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "cross_attention_dim": 1280,
    "attention_head_dim": 8,
    "use_linear_projection": False,
    "dropout": 0.0,
}
INTEGER_OR_LIST = ("attention_head_dim", "sample_size")
WANTED = {  # of a default, for messages
    bool: "true or false", int: "a whole number", float: "a number", str: "a text",
    tuple: "a list",
}  # fmt: skip
# Options of other networks, and the only value that ours has.
FIXED = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": 1,
}
# Options without effect here: widths of parts that FIXED excludes, and
# upcast_attention, since scores and softmax are float32 in every network of ours.
UNUSED = {
    "addition_embed_type_num_heads",
    "addition_time_embed_dim",
    "class_embeddings_concat",
    "projection_class_embeddings_input_dim",
    "reverse_transformer_layers_per_block",
    "upcast_attention",
}


def read_config(folder: Path, *classes: str) -> dict[str, Any]:
    """Return config.json of a folder unet/, or of a network of one of other classes.

    Raises:
      UserError: it is missing, no JSON object, or of another class.
    """
    classes = classes or (CLASS,)
    cls = " or ".join(classes)
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} has no config.json: give a folder of {cls}")
    try:
        config = read_json(path)
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("_class_name") not in classes:
        given = config.get("_class_name") if isinstance(config, dict) else config
        kind = "no class of diffusers" if given is None else f"{given!r:.60}"
        raise UserError(f"{path} is of {kind}: give a folder of {cls}")
    return config


def read_options(
    cls: str,
    config: dict[str, Any],
    defaults: dict[str, Any],
    fixed: dict[str, Any],
) -> dict[str, Any]:
    """Return the options of `defaults`, as a config of a class has them.

    fixed: other options, with the only value that is read.

    Raises:
      UserError: an option is not known, or its value is that of another network.
    """
    options = {k: v for k, v in config.items() if not k.startswith("_")}
    for name, value in options.items():
        if name in fixed and value != fixed[name]:
            raise UserError(f"{cls} with {name}={value!r:.60}: only {fixed[name]!r}")
        if name not in fixed and name not in UNUSED and name not in defaults:
            raise UserError(f"{cls} with {name}={value!r:.60}: not a known option")
    given = {name: options.get(name, default) for name, default in defaults.items()}
    for name, value in given.items():
        if not _is_type_of(value, defaults[name], name in INTEGER_OR_LIST):
            kind = WANTED[type(defaults[name])]
            raise UserError(
                f"{cls} with {name}={value!r:.60}: give {kind}, as "
                f"{defaults[name]!r:.60}"
            )
    return given


def network_fields(cls: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return our config's sections for a network with such options, see `unet_fields`.

    given: options of `read_options`. Without up_block_types they are those of a U-Net's
    first half.
    """
    levels = _levels(cls, given)
    heads = given["attention_head_dim"]
    heads = [heads] * len(levels) if isinstance(heads, int) else list(heads)
    network = {
        "kind": "sd",
        "levels": levels,
        "num_heads": tuple(heads),
        "norm_groups": given["norm_num_groups"],
        "linear_projection": given["use_linear_projection"],
        "dropout": given.get("dropout", 0.0),
    }
    conditioning = {
        "cond_dim": 4 * levels[0]["channels"],
        "cond_mlp_layers": 1,
        "text_dim": given["cross_attention_dim"],
    }
    return {"network": network, "conditioning": conditioning}


def unet_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Return our config's sections for a U-Net of diffusers, and the shape of z.

    {"network": {...}, "conditioning": {"cond_dim", "cond_mlp_layers", "text_dim"},
    "z_shape": (1, height, width, channels)}. attention_head_dim is the number of heads,
    whatever its name says.

    Raises:
      UserError: an option is not known, or its value is that of another network.
    """
    given = read_options(CLASS, config, DEFAULTS, FIXED)
    if given["in_channels"] != given["out_channels"]:
        raise UserError(
            f"{CLASS} with in_channels={given['in_channels']} and out_channels="
            f"{given['out_channels']}: inpainting and depth models are not read"
        )
    size = given["sample_size"]
    size = (size, size) if isinstance(size, int) else tuple(size)
    if len(size) != 2:
        raise UserError(
            f"{CLASS} with sample_size={size}: one size, or (height, width)"
        )
    fields = network_fields(CLASS, given)
    return {**fields, "z_shape": (1, *size, given["in_channels"])}


def config_fields(spec: Any, text_dim: int, z_shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the config.json that `unet_fields` reads as this network.

    spec: an SDSpec of networks/sd.py. text_dim: width of the tokens.

    Raises:
      UserError: levels have different numbers of blocks.
    """
    has_transformer = [TRANSFORMER in level.layers for level in reversed(spec.levels)]
    up = {has: kind for kind, has in UP.items()}
    height, width = z_shape[1:3]
    return {
        "_class_name": CLASS,
        "sample_size": height if height == width else [height, width],
        "in_channels": z_shape[3],
        "out_channels": z_shape[3],
        "up_block_types": [up[has] for has in has_transformer],
        "dropout": spec.dropout,
        **encoder_options(CLASS, spec, text_dim),
    }


def encoder_options(cls: str, spec: Any, text_dim: int) -> dict[str, Any]:
    """Return the options of the first half of a U-Net: inverts `network_fields`."""
    levels = spec.levels
    if len({level.blocks for level in levels}) > 1:
        raise UserError(f"{cls} has one number of blocks for all levels")
    down = {has: kind for kind, has in DOWN.items()}
    return {
        "down_block_types": [down[TRANSFORMER in level.layers] for level in levels],
        "block_out_channels": [level.channels for level in levels],
        "layers_per_block": levels[0].blocks,
        "norm_num_groups": spec.norm_groups,
        "cross_attention_dim": text_dim,
        "attention_head_dim": list(spec.num_heads),
        "use_linear_projection": spec.linear_projection,
        "upcast_attention": True,  # scores are float32 here; see UNUSED
    }


def _is_type_of(value: Any, default: Any, list_too: bool) -> bool:
    """Whether a value of JSON has the type of a default. list_too: or a list of it."""
    if isinstance(default, tuple) or (list_too and isinstance(value, list | tuple)):
        element = default[0] if isinstance(default, tuple) else default
        is_list = isinstance(value, list | tuple)
        return is_list and all(_is_type_of(each, element, False) for each in value)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)


def _levels(cls: str, given: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """Return the levels of a network section."""
    types, widths = given["down_block_types"], given["block_out_channels"]
    if not widths:
        raise UserError(f"{cls} with block_out_channels=(): one width or more")
    up = given.get("up_block_types")
    for table, kinds in ((DOWN, types), (UP, up or ())):
        if unknown := [kind for kind in kinds if kind not in table]:
            raise UserError(f"{cls} with {unknown[0]!r:.60}: {' or '.join(table)}")
    has_transformer = [DOWN[kind] for kind in types]
    mirrors = up is None or [UP[kind] for kind in reversed(up)] == has_transformer
    if not mirrors or len(widths) != len(types):
        raise UserError(
            f"{cls} whose up_block_types and block_out_channels do not mirror its "
            f"down_block_types {tuple(types)}"
        )
    return tuple(
        {
            "channels": channels,
            "blocks": given["layers_per_block"],
            "layers": (TRANSFORMER,) if transformer else (),
        }
        for channels, transformer in zip(widths, has_transformer, strict=True)
    )


# Module of diffusers -> ours, within a module that has both.
LAYERS = {
    "resnets": (
        "resnet",
        {
            "norm1": "norm_0", "conv1": "conv_0", "time_emb_proj": "vector",
            "norm2": "norm_1", "conv2": "conv_1", "conv_shortcut": "skip",
        },
    ),
    "attentions": (
        TRANSFORMER,
        {
            "norm": "norm", "proj_in": "proj_in", "proj_out": "proj_out",
            **{
                f"transformer_blocks.0.{theirs}": f"block/{ours}"
                for theirs, ours in (
                    ("norm1", "self_norm"), ("norm2", "cross_norm"),
                    ("norm3", "mlp_norm"),
                    ("ff.net.0.proj", "mlp_in"), ("ff.net.2", "mlp_out"),
                    *(
                        (f"attn{i}.{theirs}", f"{layer}/{ours}")
                        for i, layer in ((1, "self_attention"), (2, "cross_attention"))
                        for theirs, ours in (
                            ("to_q", "q"), ("to_k", "k"), ("to_v", "v"),
                            ("to_out.0", "out"),
                        )
                    ),
                )
            },
        },
    ),
}  # fmt: skip
NO_BIAS = ("to_q", "to_k", "to_v")


def unet_names(network: dict[str, Any]) -> dict[str, str]:
    """Return diffusers' name of every tensor -> our path, in the model's parameters.

    network: the section of `unet_fields`. The path starts with `KERNEL` where torch's
    layout is another. No two names have one path, so it is the table of both ways.
    """
    levels = network["levels"]
    return names_of([*encoder_modules(levels), *_decoder_modules(levels)])


def names_of(modules: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the names of the tensors of modules, (theirs, ours), see `unet_names`."""
    names = {}
    for theirs, ours in modules:
        is_norm = "norm" in theirs.rpartition(".")[2]
        scale = f"{ours}/scale" if is_norm else f"{KERNEL}{ours}/kernel"
        names[f"{theirs}.weight"] = scale
        if not theirs.endswith(NO_BIAS):
            names[f"{theirs}.bias"] = f"{ours}/bias"
    return names


Levels = tuple[dict[str, Any], ...]


def encoder_modules(levels: Levels) -> Iterator[tuple[str, str]]:
    """Yield (module of diffusers, ours) for the modules that a ControlNet has too."""
    yield "time_embedding.linear_1", "conditioning_encoder/noise_level"
    yield "time_embedding.linear_2", "conditioning_encoder/mlp_0"
    yield "conv_in", "network/down/conv_in"
    for i, level in enumerate(levels):
        # A level of diffusers ends with its resampling; ours begins with that of the
        # level above.
        if i:
            yield (
                f"down_blocks.{i - 1}.downsamplers.0.conv",
                f"network/down/downsample_{i}",
            )
        width_above = levels[max(i - 1, 0)]["channels"]
        for j in range(level["blocks"]):
            has_skip = j == 0 and width_above != level["channels"]
            ours, transformer = f"level_{i}_block_{j}", _has_transformer(level)
            yield from _block(
                f"down_blocks.{i}", j, f"network/down/{ours}", transformer, has_skip
            )
    yield from _block("mid_block", 0, "network/middle/block_0", True, False)
    yield from _block("mid_block", 1, "network/middle/block_1", False, False)


def _decoder_modules(levels: Levels) -> Iterator[tuple[str, str]]:
    """Yield (module of diffusers, ours) for the others of a U-Net."""
    yield "conv_norm_out", "network/norm_out"
    yield "conv_out", "network/conv_out"
    for i, level in enumerate(levels):
        theirs = f"up_blocks.{len(levels) - 1 - i}"
        if i:
            yield f"{theirs}.upsamplers.0.conv", f"network/up/upsample_{i}"
        for j in range(level["blocks"] + 1):  # their inputs have a skip concatenated
            ours = f"network/up/level_{i}_block_{j}"
            yield from _block(theirs, j, ours, _has_transformer(level), True)


def _has_transformer(level: dict[str, Any]) -> bool:
    return TRANSFORMER in level.get("layers", ())


def _block(
    theirs: str, index: int, ours: str, transformer: bool, skip: bool
) -> Iterator[tuple[str, str]]:
    """Yield the modules of a residual block and of the transformer behind it."""
    for kind in ("resnets", "attentions") if transformer else ("resnets",):
        layer, modules = LAYERS[kind]
        for module, own in modules.items():
            if own != "skip" or skip:
                yield f"{theirs}.{kind}.{index}.{module}", f"{ours}/{layer}/{own}"
