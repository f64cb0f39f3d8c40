"""Embeddings of captions on disk: made once, read by the caption.

A folder of ArrayRecord shards, the keys of their records, and embeddings.json, which
names both and the encoder. A record is the caption's key and float16 [l, width], l its
tokens: there is no padding, so a mask is all true. `python -m vdm_jax.text` writes one.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from vdm_jax import files
from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile, atomic_write, make_folder, read_json
from vdm_jax.npz import read_npy

SHARD_RECORDS = 1 << 13  # in a shard: 0.1 GB of MiniLM's, 1 GB of T5-XXL's at 16 tokens
KEY_BYTES = 32  # bytes of a key: hexadecimal digits
INDEX = "embeddings.json"
MAX_SIZE = 1 << 24  # tokens of a caption, or their width

Encode = Callable[[list[str]], list[np.ndarray]]


def caption_key(caption: str) -> bytes:
    """What a caption is found by."""
    # surrogatepass: what no file holds, but a program may ask for
    digest = hashlib.sha256(caption.encode("utf-8", "surrogatepass")).hexdigest()
    return digest[:KEY_BYTES].encode()


class EmbeddingStore:
    """embeddings[caption] -> tokens float32 [l, width]; UserError for an unknown one.

    Pickles, for the worker processes of a pipeline.

    Attributes:
      about: encoder, weights (their sha256), width, longest (tokens) and what else
        embeddings.json says.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        path = self.folder / INDEX
        rule = "write it by python -m vdm_jax.text --captions=... --out=..."
        try:
            self.metadata = _checked(read_json(path))
            self.dim, self.max_tokens = (
                self.metadata["width"],
                self.metadata["longest"],
            )
            path = self.folder / self.metadata["keys"]
            self.keys = read_npy(path)
            shards = [self.folder / name for name in self.metadata["shards"]]
            for path in shards:
                if not path.stat().st_size or not path.is_file():
                    raise CorruptFile("no shard")
                # Opens it: with several at once it is not told which is damaged.
                len(ArrayRecordDataSource([str(path)]))
            self.records = ArrayRecordDataSource([str(path) for path in shards])
        except FileNotFoundError as error:
            raise UserError(f"{self.folder} has no {path.name}: {rule}") from error
        except (ValueError, OSError, RuntimeError) as error:
            raise UserError(f"{path} cannot be read: {rule}") from error
        if self.keys.dtype != f"S{KEY_BYTES}" or self.keys.ndim != 1:
            found = f"{self.keys.dtype} {self.keys.shape}"
            path = self.folder / self.metadata["keys"]
            raise UserError(f"{path}: keys {found}: {rule}")
        if len(self.records) != len(self.keys):
            raise UserError(
                f"{self.folder}: {len(self.records)} records of "
                f"{len(self.keys)}: {rule}"
            )

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, caption: str) -> bool:
        return self._place(caption_key(caption)) is not None

    def __getitem__(self, caption: str) -> np.ndarray:
        wanted = caption_key(caption)
        place = self._place(wanted)
        if place is None:
            raise UserError(
                f"{self.folder} has no embedding of {caption[:60]!r}: "
                "run python -m vdm_jax.text on captions that it is among"
            )
        try:
            record = self.records[place]
        except RuntimeError as error:  # of the reader: a checksum
            raise UserError(
                f"{self.folder} is damaged: delete it and write it again"
            ) from error
        tokens = _tokens(record, wanted, self.dim, self.folder)
        if len(tokens) > self.max_tokens:
            raise UserError(
                f"{self.folder / INDEX}: longest={self.max_tokens}, a record has "
                f"{len(tokens)} tokens: delete it and run python -m vdm_jax.text again"
            )
        return tokens

    def _place(self, wanted: bytes) -> int | None:
        place = int(np.searchsorted(self.keys, wanted))
        there = place < len(self.keys) and self.keys[place] == wanted
        return place if there else None


def _checked(about: Any) -> dict:
    """What embeddings.json says; CorruptFile where a value is not as `write` wrote it."""
    if not isinstance(about, dict):
        raise CorruptFile("no object")
    shards = about.get("shards")
    if not isinstance(shards, list) or not shards:
        raise CorruptFile("no shards")
    for name in (about.get("keys"), *shards):
        if not isinstance(name, str) or not name or files.why_invalid_text(name):
            raise CorruptFile("no name of a file")
        if os.path.basename(name) != name:
            raise CorruptFile("a file of another folder")
    for name in ("width", "longest"):
        if type(about.get(name)) is not int or not 1 <= about[name] <= MAX_SIZE:
            raise CorruptFile(f"{name} is not from 1 to {MAX_SIZE}")
    for name in (about.get("encoder"), about.get("weights", "")):
        if not isinstance(name, str):
            raise CorruptFile("no name of the encoder or of its weights")
    # Absent from what an earlier version wrote.
    if about.get("digest", _digest(about)) != _digest(about):
        raise CorruptFile("it was changed after it was written")
    return about


def _digest(about: dict) -> str:
    """Of all that embeddings.json says besides."""
    told = {name: value for name, value in about.items() if name != "digest"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _tokens(record: bytes, wanted: bytes, width: int, where: Path) -> np.ndarray:
    """float32 [l, width] of a record."""
    if record[:KEY_BYTES] != wanted or (len(record) - KEY_BYTES) % (2 * width):
        raise UserError(f"{where} is damaged: a record is not the one of its key")
    tokens = np.frombuffer(record, np.float16, offset=KEY_BYTES)
    return tokens.reshape(-1, width).astype(np.float32)


def write(
    folder: str | os.PathLike,
    captions: Iterable[str],
    encode: Encode,
    about: dict,
    batch: int = 64,
    done: Callable[[int], object] = lambda count: None,
) -> EmbeddingStore:
    """Embeddings of every distinct caption, and of "", which stands for none.

    Shards are written whole or not at all under names that follow from captions and
    `about`: a command that was stopped goes on with the shards that are missing, and
    one with other captions leaves what was there in force until it is done.

    Args:
      encode: `batch` captions at the most to their tokens, [l, width] each.
      about: of the encoder, with its "width"; goes into embeddings.json.
      done: is told how many captions more are done.
    """
    folder = make_folder(folder)
    by_key = {caption_key(caption): caption for caption in ("", *captions)}
    keys = sorted(by_key)
    content = json.dumps([about, SHARD_RECORDS], sort_keys=True).encode() + b"".join(
        keys
    )
    mark = hashlib.sha256(content).hexdigest()[:12]
    parts = [keys[i : i + SHARD_RECORDS] for i in range(0, len(keys), SHARD_RECORDS)]
    names = [
        f"{mark}-{i:05}-of-{len(parts):05}.array_record" for i in range(len(parts))
    ]
    longest = 0
    for name, part in zip(names, parts, strict=True):
        length = _longest(folder / name, part, about["width"])
        if length is None:
            with atomic_write(folder / name, overwrite=True) as temporary:
                _write_shard(temporary, part, by_key, encode, batch, done)
            length = _longest(folder / name, part, about["width"])
        else:
            done(len(part))
        if length is None:
            raise UserError(f"{folder / name} is not what was written: a failing disk?")
        longest = max(longest, length)
    about = about | {
        "longest": longest,
        "captions": len(keys),
        "keys": f"{mark}.npy",
        "shards": names,
    }
    about["digest"] = _digest(about)
    with (
        atomic_write(folder / about["keys"], overwrite=True) as temporary,
        temporary.open("wb") as file,
    ):
        np.save(file, np.array(keys), allow_pickle=False)
    before = _files(folder)
    with atomic_write(folder / INDEX, overwrite=True) as temporary:
        temporary.write_text(json.dumps(about, indent=1) + "\n")
    left = {path.name for path in folder.glob(f".{mark}-*.tmp")}  # by a kill
    for name in left | before - {about["keys"], *names}:
        (folder / name).unlink(missing_ok=True)
    return EmbeddingStore(folder)


def _write_shard(
    path: Path,
    keys: Sequence[bytes],
    by_key: dict[bytes, str],
    encode: Encode,
    batch: int,
    done: Callable[[int], object],
) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:1")  # read one at a time
    with contextlib.closing(writer):
        for start in range(0, len(keys), batch):
            some = keys[start : start + batch]
            texts = [by_key[k] for k in some]
            for k, text, tokens in zip(some, texts, encode(texts), strict=True):
                with np.errstate(over="ignore"):  # what overflows is named here
                    half = tokens.astype(np.float16)
                if not np.isfinite(half).all():
                    raise UserError(f"the embedding of {text[:60]!r} is no float16")
                writer.write(k + half.tobytes())
            done(len(some))


def _longest(path: Path, keys: Sequence[bytes], width: int) -> int | None:
    """Tokens of the longest record; None for a shard that is missing or damaged."""
    try:
        records = ArrayRecordDataSource([str(path)])
        if len(records) != len(keys):
            return None
        return max(
            len(_tokens(records[i], wanted, width, path))
            for i, wanted in enumerate(keys)
        )
    except (OSError, RuntimeError, ValueError, UserError):
        return None


def _files(folder: Path) -> set[str]:
    """Names of the files that embeddings.json speaks of; none if there is none."""
    try:
        about = _checked(read_json(folder / INDEX))
    except (FileNotFoundError, CorruptFile):
        return set()
    return {about["keys"], *about["shards"]}
