"""Tokenizers of text encoders: tokenizer.json, and vocab.json with merges.txt."""

import contextlib
import html
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from vdm_jax.errors import UserError, printable
from vdm_jax.pretrained import config_json
from vdm_jax.text.encoder import Tokenize

CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
MAX_IDS = 1 << 24  # of a vocabulary
LATTE_TOKENS = 120  # of a text in the training of Latte
# A word is split into letters, single digits and other characters; spaces are dropped.
CLIP_WORDS = (
    r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # of OpenAI's program
)


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


def clean_prompt(text: str) -> str:
    """Return a text as diffusers' pipelines of Wan clean it.

    Entities of HTML are characters, and white space is one space. ftfy repairs
    characters where it is installed, as it does there.
    """
    with contextlib.suppress(ModuleNotFoundError):
        import ftfy  # pyright: ignore[reportMissingImports]

        text = ftfy.fix_text(text)
    text = html.unescape(html.unescape(text)).strip()
    return re.sub(r"\s+", " ", text).strip()


def as_latte(tokenize: Tokenize) -> Tokenize:
    """Return a function that reads texts as diffusers' pipeline of Latte does.

    They are in lower case, without space around them, and cut to `LATTE_TOKENS` ids,
    of which the last stays, with a line on stderr.
    """

    def cut(text: str, ids: list[int]) -> list[int]:
        if len(ids) <= LATTE_TOKENS:
            return ids
        _say_cut(text, len(ids), LATTE_TOKENS)
        return [*ids[: LATTE_TOKENS - 1], ids[-1]]

    def tokenize_latte(texts: Sequence[str]) -> list[list[int]]:
        rows = tokenize([text.lower().strip() for text in texts])
        return list(map(cut, texts, rows))

    return tokenize_latte


def _say_cut(text: str, count: int, length: int) -> None:
    whole = f"a text of {count} tokens is cut to {length}"
    print(printable(f"{whole}: {text[:40]!r}..."), file=sys.stderr)


def load_clip_tokenizer(folder: Path, length: int) -> tuple[Tokenize, int]:
    """Return CLIP's function from texts to token ids, and the number of ids.

    Every text gets `length` ids: its start, its tokens, its end, and padding. A longer
    text is cut, with a line on stderr. Stable Diffusion was trained with all of them.

    folder: with vocab.json and merges.txt, or with tokenizer.json.
    """
    vocabulary, merges = _read_bpe(folder)
    if not all(type(n) is int and 0 <= n < MAX_IDS for n in vocabulary.values()):
        raise UserError(f"{folder}: the ids of its tokens are no integers from 0 up")
    if len({*vocabulary.values()}) < len(vocabulary):
        raise UserError(f"{folder}: several of its tokens have one id")
    ids = {}
    for token in (CLIP_START, CLIP_END, pad := _padding_token(folder)):
        if token not in vocabulary:
            raise UserError(f"the vocabulary of {folder} has no {token}")
        ids[token] = vocabulary[token]
    suffix = {"continuing_subword_prefix": "", "end_of_word_suffix": "</w>"}
    with _convert_errors(folder):
        model = models.BPE(vocabulary, merges, unk_token=CLIP_END, **suffix)
    tokenizer = tokenizers.Tokenizer(model)
    spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), spaces, normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(tokenizers.Regex(CLIP_WORDS), "removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # Not the padding token: "!" in a text is a word.
    tokenizer.add_special_tokens([CLIP_START, CLIP_END])

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        rows = []
        encodings = tokenizer.encode_batch(list(texts))
        for text, encoding in zip(texts, encodings, strict=True):
            if len(encoding.ids) > length - 2:
                _say_cut(text, len(encoding.ids) + 2, length)
            row = [ids[CLIP_START], *encoding.ids[: length - 2], ids[CLIP_END]]
            rows.append(row + [ids[pad]] * (length - len(row)))
        return rows

    return tokenize, 1 + max(vocabulary.values())


def _read_bpe(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a vocabulary and its merges, most frequent first."""
    paths = folder / "vocab.json", folder / "merges.txt"
    if all(path.is_file() for path in paths):
        with _convert_errors(folder):
            _, merges = models.BPE.read_file(*map(str, paths))
        # The package leaves out tokens whose id is no number.
        return config_json.read(paths[0]).values, merges
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{folder} has no vocab.json with merges.txt, no {path.name}")
    try:
        model = config_json.read(path).values["model"]
        pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        if not all(type(part) is str for pair in pairs for part in pair):
            raise ValueError("a merge is of two tokens")
        return dict(model["vocab"]), [(first, second) for first, second in pairs]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a tokenizer of byte pairs") from error


def _padding_token(folder: Path) -> str:
    """Return the padding token: the end of a text in Stable Diffusion 1, "!" in 2.

    special_tokens_map.json decides: tokenizer_config.json of version 2 names another.
    """
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (path := folder / name).is_file():
            token = config_json.read(path).values.get("pad_token")
            token = token.get("content") if isinstance(token, dict) else token
            if token is not None:
                return str(token)
    return CLIP_END


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
