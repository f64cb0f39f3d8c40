"""Load a text encoder from a folder in Hugging Face's format."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import files
from vdm_jax.data.assets import MINILM
from vdm_jax.errors import UserError
from vdm_jax.files import user_path
from vdm_jax.networks.bert import Bert, BertSpec
from vdm_jax.networks.t5 import T5, T5Spec
from vdm_jax.pretrained import name_maps, safetensors_io
from vdm_jax.text.encoder import TextEncoder
from vdm_jax.text.tokenization import load_tokenizer

DTYPES = ("float32", "bfloat16")
# Limits for a config.json, which may declare any number. Layers are made one by one,
# in up to a second each; the largest encoders have 24 (T5) and 48 (BERT).
MAX_LAYERS = 100
EPSILONS = (1e-15, 1.0)
T5_MAX_TOKENS = 512  # in the training of T5; its relative positions have no limit
SENTENCE_CONFIG = "sentence_bert_config.json"


def load_encoder(
    name: str | Path = "minilm", dtype: str = "float32", param_dtype: str = "float32"
) -> TextEncoder:
    """Load a text encoder.

    Args:
      name: "minilm", or a folder with config.json, model.safetensors (or its shards and
        their index) and tokenizer.json.
      dtype: of the activations. Norms, softmax and the result are float32.
      param_dtype: of the parameters; bfloat16 halves their memory.

    Raises:
      UserError: a file is missing or invalid, or files do not match.
    """
    if not {dtype, param_dtype} <= {*DTYPES}:
        dtypes = f"a text encoder with {dtype=} and {param_dtype=}"
        raise UserError(f"{dtypes}: {' or '.join(DTYPES)}")
    if name == "minilm":
        folder = [asset.verified_path() for asset in MINILM][0].parent
    else:
        folder = user_path(name, "text_encoder")
    if not folder.is_dir():
        raise UserError(
            f"no text encoder {str(name)!r}: minilm, or the folder of a T5 or BERT "
            "encoder with config.json, model.safetensors and tokenizer.json"
        )
    path = folder / "config.json"
    config = _read_object(path)
    family = _one_of(path, {"model_type": None} | config, "model_type", ("bert", "t5"))
    describe = {"bert": _bert, "t5": _t5}[family]
    network, name_map, max_tokens = describe(path, config, dtype)
    paths = safetensors_io.tensor_files(folder)
    tokenize, num_ids = load_tokenizer(folder / "tokenizer.json")
    if num_ids > network.spec.vocab_size:
        raise UserError(
            f"{folder}: its tokenizer has {num_ids} tokens, its network "
            f"{network.spec.vocab_size}: they do not belong together"
        )
    like = jax.eval_shape(
        network.init, jax.random.key(0), *np.zeros((2, 1, 1), np.int32)
    )["params"]
    params = safetensors_io.read(paths, like, name_map, jnp.dtype(param_dtype))
    width = network.spec.width
    return TextEncoder(str(name), max_tokens, width, tokenize, network, params, paths)


Family = tuple[Bert | T5, name_maps.NameMap, int]  # and the most tokens of a text


def _bert(path: Path, config: dict, dtype: str) -> Family:
    number = functools.partial(_number, path, config)
    _one_of(path, config, "hidden_act", ("gelu",))
    _one_of(path, config, "position_embedding_type", ("absolute",))
    if number("hidden_size") % number("num_attention_heads"):
        raise UserError(
            f"{path}: hidden_size={config['hidden_size']} is not a multiple of "
            f"num_attention_heads={config['num_attention_heads']}"
        )
    spec = BertSpec(
        vocab_size=number("vocab_size"),
        max_positions=number("max_position_embeddings"),
        num_segments=number("type_vocab_size", 2),
        width=number("hidden_size"),
        mlp_width=number("intermediate_size"),
        num_layers=number("num_hidden_layers", most=MAX_LAYERS),
        num_heads=number("num_attention_heads"),
        epsilon=number("layer_norm_eps", 1e-12, *EPSILONS),
    )
    # Sentence encoders have a file with the length of their training texts.
    sentence_config = path.parent / SENTENCE_CONFIG
    max_tokens = spec.max_positions
    if sentence_config.is_file():
        values = _read_object(sentence_config)
        trained = _number(sentence_config, values, "max_seq_length", max_tokens)
        max_tokens = min(trained, max_tokens)
    return Bert(spec, dtype), name_maps.BERT, max_tokens


def _t5(path: Path, config: dict, dtype: str) -> Family:
    number = functools.partial(_number, path, config)
    activation = _one_of(path, config, "feed_forward_proj", ("relu", "gated-gelu"))
    spec = T5Spec(
        vocab_size=number("vocab_size"),
        width=number("d_model"),
        head_dim=number("d_kv"),
        num_heads=number("num_heads"),
        mlp_width=number("d_ff"),
        num_layers=number("num_layers", most=MAX_LAYERS),
        gated=activation == "gated-gelu",
        num_buckets=number("relative_attention_num_buckets", 32),
        max_distance=number("relative_attention_max_distance", 128),
        epsilon=number("layer_norm_epsilon", 1e-6, *EPSILONS),
    )
    return T5(spec, dtype), name_maps.T5, number("n_positions", T5_MAX_TOKENS)


def _read_object(path: Path) -> dict:
    """Read a JSON object. Raises UserError for a missing or invalid file."""
    try:
        values = files.read_json(path)
    except (OSError, files.CorruptFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read: {reason}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} cannot be read: not a JSON object")
    return values


def _number(
    path: Path,
    config: dict,
    key: str,
    default: Any = None,
    least: float = 1,
    most: float = 1 << 24,
) -> Any:
    """Return the value of a key, of the type of its bounds; UserError beyond them."""
    value = config.get(key, default)
    if type(value) is not type(least) or not least <= value <= most:
        raise UserError(f"{path}: {key}={value!r:.40}: a number from {least} to {most}")
    return value


def _one_of(path: Path, config: dict, key: str, choices: tuple[str, ...]) -> str:
    """Return the value of a key with supported choices; the first is the default."""
    value = config.get(key, choices[0])
    if value not in choices:
        raise UserError(f"{path}: {key}={value!r:.40}: {' or '.join(choices)}")
    return value
