"""Tokenizers of text encoders: tokenizer.json or spiece.model."""

import contextlib
import importlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from vdm_jax.errors import UserError
from vdm_jax.text.encoder import Tokenize


def load_tokenizer(folder: Path) -> tuple[Tokenize, int]:
    """Return a function from texts to token ids, and the number of ids."""
    for name, load in (
        ("tokenizer.json", _load_tokenizer_json),
        ("spiece.model", _load_sentencepiece),
    ):
        if (folder / name).is_file():
            return load(folder / name)
    raise UserError(f"{folder} has neither tokenizer.json nor spiece.model")


def _load_tokenizer_json(path: Path) -> tuple[Tokenize, int]:
    with _convert_errors(path):
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    vocabulary = tokenizer.get_vocab()
    if not vocabulary:
        raise UserError(f"{path} is not a tokenizer: its vocabulary is empty")
    tokenizer.no_truncation()  # the file may enable silent truncation
    tokenizer.no_padding()

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        with _convert_errors(path):
            return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]

    # Special tokens may be missing in the vocabulary. Rare characters give the id of
    # unknown tokens.
    special = tokenize(["", "a \ufdfa\u1242 \U0001f9ff"])
    # The largest id plus one: ids may have gaps.
    return tokenize, 1 + max(*vocabulary.values(), *itertools.chain(*special))


@contextlib.contextmanager
def _convert_errors(path: Path) -> Iterator[None]:
    """Convert errors of the package, which have no type of their own, to UserError."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:  # a bug, or a system error
            raise
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not a tokenizer: {reason}") from error


def _load_sentencepiece(path: Path) -> tuple[Tokenize, int]:
    try:
        package: Any = importlib.import_module("sentencepiece")
    except ImportError as error:
        raise UserError(
            f"{path} needs the package sentencepiece (a tokenizer.json next to it does "
            "not); run: pip install sentencepiece"
        ) from error
    try:
        processor = package.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} is not a sentencepiece model") from error

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        return processor.encode(list(texts), add_eos=True)

    return tokenize, processor.get_piece_size()
