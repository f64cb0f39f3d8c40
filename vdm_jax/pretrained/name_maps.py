"""Name maps: names of other libraries' tensors -> paths of our parameters.

There is one map per network. A row has a pattern, which must match the whole name of
the tensor, and our path, in which \\1 is the first group of the match. A path of None
means that the tensor is not read. A path that starts with `KERNEL` belongs to a matrix
or convolution that torch stores as [out, in, *window]; our kernels are
[*window, in, out].

A map that is written back too is made of a table of modules, read in both directions.
"""

import re
from collections.abc import Iterable

KERNEL = "kernel "

NameMap = tuple[tuple[str, str | None], ...]
# (their module, ours, our leaf that is their `weight`). {} is a number. Both modules
# have their numbers in the same order.
Modules = tuple[tuple[str, str, str], ...]


def rename(name_map: NameMap, name: str) -> str | None:
    """Return the path of a name, the name itself where no row matches it."""
    for pattern, target in name_map:
        if match := re.fullmatch(pattern, name):
            return None if target is None else match.expand(target)
    return name  # of no parameter


def to_ours(modules: Modules) -> NameMap:
    """Return the map from their names to our paths."""
    return tuple(
        (_pattern(f"{theirs}.{kind}"), prefix + _template(f"{ours}/{leaf}"))
        for theirs, ours, weight in modules
        for kind, leaf in (("weight", weight), ("bias", "bias"))
        for prefix in [KERNEL if leaf == "kernel" else ""]
    )


def to_theirs(modules: Modules) -> NameMap:
    """Return the map from our paths to their names, with KERNEL before a kernel's."""
    return tuple(
        (_pattern(f"{ours}/{leaf}"), prefix + _template(f"{theirs}.{kind}"))
        for theirs, ours, weight in modules
        for kind, leaf in (("weight", weight), ("bias", "bias"))
        for prefix in [KERNEL if leaf == "kernel" else ""]
    )


def their_names(paths: Iterable[str], name_map: NameMap) -> dict[str, str]:
    """Return their names of our paths -> the paths, after KERNEL in torch's layout.

    name_map: of `to_theirs`.

    Raises:
      KeyError: the map has no name for a path.
    """
    names = {}
    for path in paths:
        name = rename(name_map, path)
        if name is None or name == path:
            raise KeyError(f"no name for {path}")
        kernel = KERNEL if name.startswith(KERNEL) else ""
        names[name.removeprefix(KERNEL)] = kernel + path
    return names


def _pattern(template: str) -> str:
    return re.escape(template).replace(r"\{\}", r"(\d+)")


def _template(template: str) -> str:
    parts = template.split("{}")
    return "".join(f"{part}\\{i}" for i, part in enumerate(parts[:-1], 1)) + parts[-1]


_BERT_LAYER = r"(?:bert\.)?encoder\.layer\.(\d+)\."
BERT: NameMap = (
    (r"(?:bert\.)?embeddings\.word_embeddings\.weight", "token/embedding"),
    (r"(?:bert\.)?embeddings\.position_embeddings\.weight", "position/embedding"),
    (r"(?:bert\.)?embeddings\.token_type_embeddings\.weight", "segment/embedding"),
    (r"(?:bert\.)?embeddings\.LayerNorm\.weight", "norm/scale"),
    (r"(?:bert\.)?embeddings\.LayerNorm\.bias", "norm/bias"),
    *(
        (rf"{_BERT_LAYER}{theirs}\.{kind}", prefix + rf"layer_\1/{ours}/{leaf}")
        for theirs, ours in (
            (r"attention\.self\.([qkv])(?:uery|ey|alue)", r"\2"),
            (r"attention\.output\.dense", "out"),
            (r"intermediate\.dense", "mlp_in"),
            (r"output\.dense", "mlp_out"),
        )
        for kind, prefix, leaf in (("weight", KERNEL, "kernel"), ("bias", "", "bias"))
    ),
    *(
        (rf"{_BERT_LAYER}{theirs}\.LayerNorm\.{kind}", rf"layer_\1/{ours}/{leaf}")
        for theirs, ours in (
            (r"attention\.output", "attention_norm"),
            ("output", "norm"),
        )
        for kind, leaf in (("weight", "scale"), ("bias", "bias"))
    ),
    (r"(?:bert\.)?embeddings\.position_ids", None),  # 0, 1, 2, ...
    (r"(?:bert\.)?pooler\..*|cls\..*", None),  # heads on the encoder
)

_T5_LAYER = r"encoder\.block\.(\d+)\.layer\."
T5: NameMap = (
    (r"shared\.weight|encoder\.embed_tokens\.weight", "token/embedding"),
    (
        r"encoder\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight",
        KERNEL + "position/table",
    ),
    *(
        (_T5_LAYER + theirs + r"\.weight", KERNEL + rf"layer_\1/{ours}/kernel")
        for theirs, ours in (
            (r"0\.SelfAttention\.([qkv])", r"\2"),
            (r"0\.SelfAttention\.o", "out"),
            # Version 1.0 has wi. Version 1.1 has wi_1 with the gate wi_0.
            (r"1\.DenseReluDense\.wi_0", "mlp_gate"),
            (r"1\.DenseReluDense\.wi(?:_1)?", "mlp_in"),
            (r"1\.DenseReluDense\.wo", "mlp_out"),
        )
    ),
    (_T5_LAYER + r"0\.layer_norm\.weight", r"layer_\1/attention_norm/scale"),
    (_T5_LAYER + r"1\.layer_norm\.weight", r"layer_\1/norm/scale"),
    (r"encoder\.final_layer_norm\.weight", "norm/scale"),
    (r"decoder\..*|lm_head\..*", None),
)

UMT5: NameMap = (
    (
        _T5_LAYER + r"0\.SelfAttention\.relative_attention_bias\.weight",
        KERNEL + r"layer_\1/position/table",
    ),
    *T5,
)

# Of transformers' CLIPTextModel. Its names had the prefix `text_model.` before version
# 5 of transformers, and public files have it.
_CLIP_MODULES: Modules = (
    ("embeddings.token_embedding", "token", "embedding"),
    ("embeddings.position_embedding", "position", "embedding"),
    *(
        (f"encoder.layers.{{}}.{theirs}", f"layer_{{}}/{ours}", leaf)
        for theirs, ours, leaf in (
            ("self_attn.q_proj", "q", "kernel"),
            ("self_attn.k_proj", "k", "kernel"),
            ("self_attn.v_proj", "v", "kernel"),
            ("self_attn.out_proj", "out", "kernel"),
            ("layer_norm1", "attention_norm", "scale"),
            ("layer_norm2", "norm", "scale"),
            ("mlp.fc1", "mlp_in", "kernel"),
            ("mlp.fc2", "mlp_out", "kernel"),
        )
    ),
    ("final_layer_norm", "norm", "scale"),
)
CLIP_TEXT: NameMap = (
    *((rf"(?:text_model\.)?{name}", path) for name, path in to_ours(_CLIP_MODULES)),
    (r"(?:text_model\.)?embeddings\.position_ids", None),  # 0, 1, 2, ...
)
CLIP_TEXT_WRITTEN: NameMap = to_theirs(
    tuple((f"text_model.{theirs}", ours, leaf) for theirs, ours, leaf in _CLIP_MODULES)
)

# Of diffusers' AutoencoderKL.
_AUTOENCODER_BLOCK = (
    ("norm1", "norm_0", "scale"),
    ("conv1", "conv_0", "kernel"),
    ("norm2", "norm_1", "scale"),
    ("conv2", "conv_1", "kernel"),
    ("conv_shortcut", "shortcut", "kernel"),
)
_AUTOENCODER_MODULES: Modules = (
    ("quant_conv", "encoder/quant_conv", "kernel"),
    ("post_quant_conv", "decoder/post_quant_conv", "kernel"),
    *(
        (f"{part}.{theirs}", f"{part}/{ours}", leaf)
        for part, levels, samplers, sample in (
            ("encoder", "down_blocks", "downsamplers", "downsample"),
            ("decoder", "up_blocks", "upsamplers", "upsample"),
        )
        for theirs, ours, leaf in (
            ("conv_in", "conv_in", "kernel"),
            ("conv_norm_out", "norm_out", "scale"),
            ("conv_out", "conv_out", "kernel"),
            (f"{levels}.{{}}.{samplers}.0.conv", f"{sample}_{{}}", "kernel"),
            *(
                (f"{block}.{theirs}", f"{ours_block}/{ours}", leaf)
                for block, ours_block in (
                    (f"{levels}.{{}}.resnets.{{}}", "level_{}_block_{}"),
                    ("mid_block.resnets.{}", "middle/block_{}"),
                )
                for theirs, ours, leaf in _AUTOENCODER_BLOCK
            ),
            *(
                (f"mid_block.attentions.0.{theirs}", f"middle/attention/{ours}", leaf)
                for theirs, ours, leaf in (
                    ("group_norm", "norm", "scale"),
                    ("to_q", "q", "kernel"),
                    ("to_k", "k", "kernel"),
                    ("to_v", "v", "kernel"),
                    ("to_out.0", "out", "kernel"),
                )
            ),
        )
    ),
)
# Names of the attention before version 0.15 of diffusers, as in the public files.
_FORMER_ATTENTION: Modules = tuple(
    (f"{part}.mid_block.attentions.0.{theirs}", f"{part}/middle/attention/{ours}", leaf)
    for part in ("encoder", "decoder")
    for theirs, ours, leaf in (
        ("query", "q", "kernel"),
        ("key", "k", "kernel"),
        ("value", "v", "kernel"),
        ("proj_attn", "out", "kernel"),
    )
)
AUTOENCODER_KL: NameMap = to_ours(_AUTOENCODER_MODULES + _FORMER_ATTENTION)
AUTOENCODER_KL_WRITTEN: NameMap = to_theirs(_AUTOENCODER_MODULES)
