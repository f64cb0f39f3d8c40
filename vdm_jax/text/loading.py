"""Load a text encoder from a folder in Hugging Face's format."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.data.assets import MINILM
from vdm_jax.errors import UserError
from vdm_jax.files import user_path
from vdm_jax.networks.bert import Bert, BertSpec
from vdm_jax.networks.clip import ACTIVATIONS, ClipText, ClipTextSpec
from vdm_jax.networks.t5 import T5, T5Spec
from vdm_jax.pretrained import (
    config_json,
    lora_files,
    name_maps,
    safetensors_io,
    sd_pipeline,
)
from vdm_jax.pretrained.config_json import ConfigFile
from vdm_jax.text.encoder import TextEncoder, Tokenize
from vdm_jax.text.tokenization import (
    LATTE_TOKENS,
    as_latte,
    clean_prompt,
    load_clip_tokenizer,
    load_tokenizer,
)
from vdm_jax.trees import named_leaves

DTYPES = ("float32", "bfloat16")
# Limits for a config.json, which may declare any number. Layers are made one by one,
# in up to a second each; the largest encoders have 24 (T5) and 48 (BERT).
MAX_LAYERS = 100
EPSILONS = (1e-15, 1.0)
T5_MAX_TOKENS = 512  # in the training of T5; its relative positions have no limit
SENTENCE_CONFIG = "sentence_bert_config.json"


def load_encoder(
    name: str | Path = "minilm",
    dtype: str = "float32",
    param_dtype: str = "",
    clip_skip: int = 0,
) -> TextEncoder:
    """Load a text encoder.

    Args:
      name: "minilm", or a folder with config.json, model.safetensors (or its shards and
        their index) and tokenizer.json, which may be in the folder `tokenizer` next
        to it. CLIP's tokenizer may be vocab.json with merges.txt.
      dtype: of the activations. Norms, softmax and the result are float32.
      param_dtype: of the parameters; bfloat16 halves their memory. "" is bfloat16
        where the files have no other, which loses nothing, else float32.
      clip_skip: number of CLIP's last layers that are not read, as in diffusers.

    Raises:
      UserError: a file is missing or invalid, or files do not match.
    """
    if not {dtype, param_dtype or dtype} <= {*DTYPES}:
        dtypes = f"a text encoder with {dtype=} and {param_dtype=}"
        raise UserError(f"{dtypes}: {' or '.join(DTYPES)}")
    folder = _encoder_folder(name)
    network, name_map, max_tokens = _read_config(folder, dtype)
    if clip_skip:
        if not isinstance(network, ClipText):
            raise UserError(f"clip_skip={clip_skip}: {name} is no CLIP: give 0")
        last = network.spec.num_layers - 1
        if not 0 < clip_skip <= last:
            raise UserError(f"clip_skip={clip_skip}: of {name} from 0 to {last}")
        network = network.clone(clip_skip=clip_skip)
    paths = safetensors_io.tensor_files(folder)
    if isinstance(network, ClipText):
        tokenize, num_ids = load_clip_tokenizer(tokenizer_folder(folder), max_tokens)
    else:
        path = tokenizer_folder(folder) / "tokenizer.json"
        tokenize, num_ids = load_tokenizer(path)
        if name_map is name_maps.UMT5:
            tokenize = _clean_first(tokenize)
        elif sd_pipeline.class_of(folder.parent) == sd_pipeline.LATTE:
            tokenize, max_tokens = as_latte(tokenize), LATTE_TOKENS
    if num_ids > network.spec.vocab_size:
        raise UserError(
            f"{folder}: its tokenizer has {num_ids} tokens, its network "
            f"{network.spec.vocab_size}: they do not belong together"
        )
    if not param_dtype:
        is_half = safetensors_io.stored_dtypes(paths) == {"BF16"}
        param_dtype = "bfloat16" if is_half else "float32"
    like = _shapes(network)
    params = safetensors_io.read(paths, like, name_map, jnp.dtype(param_dtype))
    width = network.spec.width
    return TextEncoder(str(name), max_tokens, width, tokenize, network, params, paths)


def clip_modules(name: str | Path) -> dict[str, lora_files.Module]:
    """Return the modules that a LoRA can change; none of an encoder that is not CLIP.

    Their names are transformers', with the prefix of its versions before 5 and without.
    Only the folder's config.json is read, with the errors of `load_encoder`.
    """
    if name == "minilm":
        return {}
    network, *_ = _read_config(_encoder_folder(name), "float32")
    if not isinstance(network, ClipText):
        return {}
    leaves = named_leaves(_shapes(network))
    names = name_maps.their_names(leaves, name_maps.CLIP_TEXT_WRITTEN)
    modules = lora_files.modules_of(names, leaves)
    return modules | {m.removeprefix("text_model."): own for m, own in modules.items()}


def _encoder_folder(name: str | Path) -> Path:
    """Return the folder of an encoder, that of the package for "minilm"."""
    if name == "minilm":
        return [asset.verified_path() for asset in MINILM][0].parent
    folder = user_path(name, "text_encoder")
    if not folder.is_dir():
        raise UserError(
            f"no text encoder {str(name)!r}: minilm, or the folder of a T5, BERT or "
            "CLIP text encoder with config.json, model.safetensors and tokenizer.json"
        )
    return folder


def _shapes(network: Bert | T5 | ClipText) -> Any:
    """Return the shapes of an encoder's parameters."""
    ids_and_mask = np.zeros((2, 1, 1), np.int32)
    return jax.eval_shape(network.init, jax.random.key(0), *ids_and_mask)["params"]


Family = tuple[Bert | T5 | ClipText, name_maps.NameMap, int]  # and a text's most tokens


def _read_config(folder: Path, dtype: str) -> Family:
    config = config_json.read(folder / "config.json")
    config.values.setdefault("model_type")  # which has no default
    return FAMILIES[config.one_of("model_type", tuple(FAMILIES))](config, dtype)


def _bert(config: ConfigFile, dtype: str) -> Family:
    config.one_of("hidden_act", ("gelu",))
    config.one_of("position_embedding_type", ("absolute",))
    spec = BertSpec(
        vocab_size=config.number("vocab_size"),
        max_positions=config.number("max_position_embeddings"),
        num_segments=config.number("type_vocab_size", 2),
        width=_divisible_width(config),
        mlp_width=config.number("intermediate_size"),
        num_layers=config.number("num_hidden_layers", most=MAX_LAYERS),
        num_heads=config.number("num_attention_heads"),
        epsilon=config.number("layer_norm_eps", 1e-12, *EPSILONS),
    )
    # Sentence encoders have a file with the length of their training texts.
    sentence_path = config.path.parent / SENTENCE_CONFIG
    max_tokens = spec.max_positions
    if sentence_path.is_file():
        sentence = config_json.read(sentence_path)
        max_tokens = min(sentence.number("max_seq_length", max_tokens), max_tokens)
    return Bert(spec, dtype), name_maps.BERT, max_tokens


def _clean_first(tokenize: Tokenize) -> Tokenize:
    return lambda texts: tokenize([clean_prompt(text) for text in texts])


def _t5(config: ConfigFile, dtype: str) -> Family:
    is_umt5 = config.values["model_type"] == "umt5"
    activation = config.one_of("feed_forward_proj", ("relu", "gated-gelu"))
    spec = T5Spec(
        vocab_size=config.number("vocab_size"),
        width=config.number("d_model"),
        head_dim=config.number("d_kv"),
        num_heads=config.number("num_heads"),
        mlp_width=config.number("d_ff"),
        num_layers=config.number("num_layers", most=MAX_LAYERS),
        gated=activation == "gated-gelu",
        num_buckets=config.number("relative_attention_num_buckets", 32),
        max_distance=config.number("relative_attention_max_distance", 128),
        epsilon=config.number("layer_norm_epsilon", 1e-6, *EPSILONS),
        position_in_layers=is_umt5,
    )
    name_map = name_maps.UMT5 if is_umt5 else name_maps.T5
    return T5(spec, dtype), name_map, config.number("n_positions", T5_MAX_TOKENS)


def _clip_text(config: ConfigFile, dtype: str) -> Family:
    spec = ClipTextSpec(
        vocab_size=config.number("vocab_size", 49408),
        max_positions=config.number("max_position_embeddings", 77, least=2),
        width=_divisible_width(config),
        mlp_width=config.number("intermediate_size"),
        num_layers=config.number("num_hidden_layers", most=MAX_LAYERS),
        num_heads=config.number("num_attention_heads"),
        activation=config.one_of("hidden_act", tuple(ACTIVATIONS)),
        epsilon=config.number("layer_norm_eps", 1e-5, *EPSILONS),
    )
    return ClipText(spec, dtype), name_maps.CLIP_TEXT, spec.max_positions


FAMILIES = {"bert": _bert, "t5": _t5, "umt5": _t5, "clip_text_model": _clip_text}


def _divisible_width(config: ConfigFile) -> int:
    """Return hidden_size, which the heads divide."""
    width, heads = config.number("hidden_size"), config.number("num_attention_heads")
    if width % heads:
        raise UserError(
            f"{config.path}: hidden_size={width} is not a multiple of "
            f"num_attention_heads={heads}"
        )
    return width


def tokenizer_folder(folder: Path) -> Path:
    """Return the folder of an encoder's tokenizer: the same, or its neighbour."""
    here = any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json"))
    neighbour = folder.parent / "tokenizer"
    return folder if here or not neighbour.is_dir() else neighbour
