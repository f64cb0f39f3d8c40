"""Tokenizers of text encoders: tokenizer.json."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import tokenizers

from vdm_jax.errors import UserError
from vdm_jax.text.encoder import Tokenize


def load_tokenizer(path: Path) -> tuple[Tokenize, int]:
    """Return a function from texts to token ids, and the number of ids."""
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}")
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
