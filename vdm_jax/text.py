"""Text encoders: strings to embeddings of their tokens, by frozen networks.

    encoder = text.load()               # MiniLM, from an installed package
    encoder = text.load("DIR")          # a T5 or BERT encoder as Hugging Face stores it
    tokens, mask, pooled = encoder(["a red square moves left", ""])

Embeddings of all captions of a data set, once, so that training runs no encoder:

    python -m vdm_jax.text --captions=MY_VIDEOS --out=DIR [--encoder=DIR]
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from tqdm import tqdm

from vdm_jax import files, runtime
from vdm_jax.data import embeddings, layout
from vdm_jax.data.assets import MINILM
from vdm_jax.errors import UserError, printable
from vdm_jax.files import user_path
from vdm_jax.networks.bert import Bert, BertSpec
from vdm_jax.networks.t5 import T5, T5Spec
from vdm_jax.pretrained import name_maps, safetensors_io

BATCH = 64  # texts that the network sees at a time
MIN_PADDED_TOKENS = 8  # tokens that a text is padded to
DTYPES = ("float32", "bfloat16")
# A config.json may declare any number; layers are made one by one.
MAX_CONFIG_VALUES = {"num_layers": 1000, "num_hidden_layers": 1000}
T5_MAX_TOKENS = 512  # tokens that T5 was trained with; its positions know no limit
Tokenize = Callable[[Sequence[str]], list[list[int]]]


class TextEmbedding(NamedTuple):
    """What an encoder makes of n strings, in float32."""

    tokens: jax.Array  # [n, l, width], 0 where there is no token
    mask: (
        jax.Array
    )  # bool [n, l], True for a token, the marks of begin and end among them
    pooled: jax.Array  # [n, width], the mean over the tokens


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """Strings to embeddings: tokenize, pad, and run a frozen network.

    Texts are padded to a power of two, in tokens and in number, so that a network is
    compiled a few times in all and not for every prompt.

    Attributes:
      name: as a user knows it.
      longest: tokens of a text that the network takes, its marks among them.
      tokenize: texts to the ids of their tokens, with marks and without padding.
      network: (ids int [n, l], mask bool [n, l]) -> [n, l, width].
      weights: the files that the parameters come from.
    """

    name: str
    max_tokens: int
    dim: int
    tokenize: Tokenize
    network: nn.Module
    params: Any
    weights: tuple[Path, ...] = ()

    def __call__(self, texts: Sequence[str]) -> TextEmbedding:
        """n strings, "" among them if you like; UserError for what cannot be told."""
        if isinstance(texts, str) or not len(texts):
            raise ValueError("give a list of one text or more")
        for text in texts:
            if reason := files.why_invalid_text(text):
                raise UserError(f"the text {text[:40]!r} {reason}")
        ids = self.tokenize(texts)
        for text, found in zip(texts, ids, strict=True):
            if len(found) > self.max_tokens:
                raise UserError(
                    f"a text of {len(found)} tokens, {self.name} takes {self.max_tokens} "
                    f"(marks of begin and end included): {text[:40]!r}..."
                )
        length = min(
            _power_of_two(max(map(len, ids)), MIN_PADDED_TOKENS), self.max_tokens
        )
        parts = [
            self._encode(ids[i : i + BATCH], length) for i in range(0, len(ids), BATCH)
        ]
        return TextEmbedding(
            *(jnp.concatenate(arrays) for arrays in zip(*parts, strict=True))
        )

    def _encode(self, ids: list[list[int]], length: int) -> TextEmbedding:
        shape = _power_of_two(len(ids)), length
        padded, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
        for row, found in enumerate(ids):
            padded[row, : len(found)] = found
            mask[row, : len(found)] = True
        tokens, pooled = _run(self.network, self.params, padded, mask)
        n = len(ids)
        return TextEmbedding(tokens[:n], jnp.asarray(mask[:n]), pooled[:n])

    def sha256(self) -> str:
        """Of the weights, one file behind the other."""
        told = hashlib.sha256()
        for path in self.weights:
            with path.open("rb") as file:
                while block := file.read(1 << 24):
                    told.update(block)
        return told.hexdigest()


@functools.partial(jax.jit, static_argnums=0)
def _run(network: nn.Module, params, ids: jax.Array, mask: jax.Array):
    """-> tokens [n, l, width] and their mean [n, width]."""
    tokens: Any = network.apply({"params": params}, ids, mask)
    tokens = jnp.where(mask[..., None], tokens.astype(jnp.float32), 0)
    # A row that only fills the batch has no token.
    return tokens, tokens.sum(1) / jnp.maximum(mask.sum(1), 1)[:, None]


def _power_of_two(number: int, least: int = 1) -> int:
    return max(least, 1 << (number - 1).bit_length())


def same_text_encoder(encoders: Sequence[Mapping[str, str]]) -> bool:
    """Whether all texts were embedded by the same one.

    made: "encoder", its name, and "encoder_sha256", of its weights, of each text. The
    weights decide where they are known ("" where not), else the name.
    """
    names, weights = (
        {m[k] for m in encoders} for k in ("text_encoder", "text_encoder_sha256")
    )
    known = weights - {""}
    return len(known) < 2 and (weights == known or len(names) == 1)


# --- loading ---------------------------------------------------------------------


def load(
    name: str | Path = "minilm", dtype: str = "float32", param_dtype: str = "float32"
) -> TextEncoder:
    """An encoder, ready to be called.

    Args:
      name: "minilm", or a folder with config.json, model.safetensors (or its shards and
        their index) and tokenizer.json (or spiece.model).
      dtype: of the activations; norms, softmax and what is returned are float32.
      param_dtype: of the parameters: bfloat16 halves the memory that they take.

    Raises:
      UserError: what is missing or does not fit, and what would be right.
    """
    for given, value in (("dtype", dtype), ("param_dtype", param_dtype)):
        if value not in DTYPES:
            raise UserError(
                f"{given}={value!r} of a text encoder: {' or '.join(DTYPES)}"
            )
    if name == "minilm":
        folder = [asset.verified_path() for asset in MINILM][0].parent
    else:
        folder = user_path(name, "encoder")
    if not folder.is_dir():
        raise UserError(
            f"no text encoder {str(name)!r}: minilm, or the folder of a T5 or BERT "
            "encoder with config.json, model.safetensors and tokenizer.json"
        )
    config = _json(folder / "config.json")
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise UserError(
            f"{folder / 'config.json'}: model_type={family!r}: {' or '.join(FAMILIES)}"
        )
    found = FAMILIES[family](folder, config, dtype)
    paths = safetensors_io.tensor_files(folder)
    tokenize, size = _tokenizer(folder)
    if size > found.spec.vocab_size:
        raise UserError(
            f"{folder}: its tokenizer knows {size} tokens, its network "
            f"{found.spec.vocab_size}: they do not belong together"
        )
    like = jax.eval_shape(
        found.network.init, jax.random.key(0), *np.zeros((2, 1, 1), np.int32)
    )["params"]
    return TextEncoder(
        name=str(name),
        max_tokens=found.max_tokens,
        dim=found.spec.width,
        tokenize=tokenize,
        network=found.network,
        params=safetensors_io.read(paths, like, found.table, jnp.dtype(param_dtype)),
        weights=paths,
    )


class EncoderFamily(NamedTuple):
    """A network that config.json describes, and how its weights are called."""

    network: nn.Module
    spec: BertSpec | T5Spec
    table: name_maps.NameMap
    max_tokens: int


def _bert(folder: Path, config: dict, dtype: str) -> EncoderFamily:
    path = folder / "config.json"
    number = functools.partial(_number, path, config)
    _one_of(path, config, "hidden_act", ("gelu",))
    _one_of(path, config, "position_embedding_type", ("absolute",))
    if number("hidden_size") % number("num_attention_heads"):
        raise UserError(
            f"{path}: hidden_size={config['hidden_size']} does not divide among "
            f"num_attention_heads={config['num_attention_heads']}"
        )
    spec = BertSpec(
        vocab_size=number("vocab_size"),
        max_positions=number("max_position_embeddings"),
        num_segments=number("type_vocab_size", 2),
        width=number("hidden_size"),
        mlp_width=number("intermediate_size"),
        num_layers=number("num_hidden_layers"),
        num_heads=number("num_attention_heads"),
        epsilon=_epsilon(path, config, "layer_norm_eps", 1e-12),
    )
    # Sentence encoders say to what length they were trained.
    trained = folder / "sentence_bert_config.json"
    longest = spec.max_positions
    if trained.is_file():
        longest = _number(trained, _json(trained), "max_seq_length", longest)
    return EncoderFamily(
        Bert(spec, dtype), spec, name_maps.BERT, min(longest, spec.max_positions)
    )


def _t5(folder: Path, config: dict, dtype: str) -> EncoderFamily:
    path = folder / "config.json"
    number = functools.partial(_number, path, config)
    kind = _one_of(path, config, "feed_forward_proj", ("relu", "gated-gelu"))
    spec = T5Spec(
        vocab_size=number("vocab_size"),
        width=number("d_model"),
        head_dim=number("d_kv"),
        num_heads=number("num_heads"),
        mlp_width=number("d_ff"),
        num_layers=number("num_layers"),
        gated=kind == "gated-gelu",
        num_buckets=number("relative_attention_num_buckets", 32),
        max_distance=number("relative_attention_max_distance", 128),
        epsilon=_epsilon(path, config, "layer_norm_epsilon", 1e-6),
    )
    longest = number("n_positions", T5_MAX_TOKENS)
    return EncoderFamily(T5(spec, dtype), spec, name_maps.T5, longest)


FAMILIES = {"bert": _bert, "t5": _t5}


def _json(path: Path) -> dict:
    try:
        found = files.read_json(path)
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} has no {path.name}") from error
    except (OSError, files.CorruptFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read: {reason}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no object: it is not what Hugging Face writes")
    return found


def _number(path: Path, config: dict, key: str, default: int | None = None) -> int:
    value = config.get(key, default)
    most = MAX_CONFIG_VALUES.get(key, 1 << 24)
    if type(value) is not int or not 1 <= value <= most:
        raise UserError(f"{path}: {key}={value!r:.40}: a number from 1 to {most}")
    return value


def _epsilon(path: Path, config: dict, key: str, default: float) -> float:
    value = config.get(key, default)
    if type(value) is not float or not 0 < value < 1:
        raise UserError(f"{path}: {key}={value!r:.40}: a number between 0 and 1")
    return value


def _one_of(path: Path, config: dict, key: str, known: tuple[str, ...]) -> str:
    """The value of a key that chooses; the first where it is absent."""
    value = config.get(key, known[0])
    if value not in known:
        raise UserError(f"{path}: {key}={value!r:.40}: {' or '.join(known)}")
    return value


# --- tokenizers ------------------------------------------------------------------


def _tokenizer(folder: Path) -> tuple[Tokenize, int]:
    """Texts to ids, and the number of ids, by whichever file is there."""
    for name, make in (
        ("tokenizer.json", _from_json),
        ("spiece.model", _sentencepiece),
    ):
        if (folder / name).is_file():
            return make(folder / name)
    raise UserError(f"{folder} has neither tokenizer.json nor spiece.model")


def _from_json(path: Path) -> tuple[Tokenize, int]:
    with _tokenizing(path):
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    ids = tokenizer.get_vocab()
    if not ids:
        raise UserError(f"{path} is no tokenizer: its vocabulary is empty")
    tokenizer.no_truncation()  # the file may cut texts without a word
    tokenizer.no_padding()

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        with _tokenizing(path):
            return [found.ids for found in tokenizer.encode_batch(list(texts))]

    # Marks have ids of their own; rare characters ask for the token of unknown ones.
    marked = tokenize(["", "a \ufdfa\u1242 \U0001f9ff"])
    # The largest id, which need not be their number less one.
    return tokenize, 1 + max(*ids.values(), *itertools.chain(*marked))


@contextlib.contextmanager
def _tokenizing(path: Path) -> Iterator[None]:
    """UserError for what the package finds wrong; it has no exception of its own."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:  # a bug, or the system's
            raise
        said = str(error).splitlines()[0]
        raise UserError(f"{path} is no tokenizer: {said}") from error


def _sentencepiece(path: Path) -> tuple[Tokenize, int]:
    try:
        package: Any = importlib.import_module("sentencepiece")
    except ImportError as error:
        raise UserError(
            f"{path} needs the package sentencepiece (tokenizer.json beside it would "
            "not); run: pip install sentencepiece"
        ) from error
    try:
        processor = package.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} is no sentencepiece model") from error

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        return processor.encode(list(texts), add_eos=True)

    return tokenize, processor.get_piece_size()


# --- the command -----------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Write embeddings of captions; return the exit status: 0, or 2 with one line."""
    parser = argparse.ArgumentParser("python -m vdm_jax.text")
    parser.add_argument(
        "--captions", required=True, type=runtime.path_type,
        help="a folder of videos, captions.jsonl, or a text file with one a line",
    )  # fmt: skip
    parser.add_argument(
        "--out", required=True, type=runtime.path_type, help="folder for the embeddings"
    )
    parser.add_argument(
        "--encoder",
        default="minilm",
        type=lambda name: str(runtime.path_type(name)),
        help="minilm, or a folder",
    )
    for name in ("dtype", "param_dtype"):
        parser.add_argument(f"--{name}", default="float32", choices=DTYPES)
    given = parser.parse_args(arguments)
    try:
        print(_write(given))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    return 0


def _command() -> int:
    runtime.configure_jax()
    runtime.start_devices()
    return main()


def _write(given: argparse.Namespace) -> str:
    captions, dropped = layout.read_all_captions(given.captions)
    for name, reason in dropped:
        print(printable(f"left out: {name}: {reason}"), file=sys.stderr)
    made = write_embeddings(
        given.out,
        captions,
        load(given.encoder, given.dtype, given.param_dtype),
        dtype=given.dtype,
        param_dtype=given.param_dtype,
    )
    return f"{len(made)} captions of up to {made.max_tokens} tokens in {given.out}"


def write_embeddings(
    out: str | Path, captions: Iterable[str], encoder: TextEncoder, **about: str
) -> embeddings.EmbeddingStore:
    """Embeddings of captions, on disk; about: what else to note there."""
    about = about | {
        "encoder": encoder.name,
        "weights": encoder.sha256(),
        "width": encoder.dim,
    }

    def encode(texts: list[str]) -> list[np.ndarray]:
        found = encoder(texts)
        tokens, mask = np.asarray(found.tokens), np.asarray(found.mask)
        return [a[m] for a, m in zip(tokens, mask, strict=True)]

    with tqdm(unit=" captions", disable=None) as bar:
        return embeddings.write(
            out, captions, encode, about, batch=BATCH, done=bar.update
        )


if __name__ == "__main__":
    runtime.run(_command)
