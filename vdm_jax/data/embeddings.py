"""Caption embeddings on disk: written once, read by caption.

A folder has ArrayRecord shards, the keys of their records (npy), and embeddings.json,
which names these files and the text encoder. A record is the key of the caption and its
tokens as float16 [l, dim], without padding. `python -m vdm_jax.text` writes the folder.
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

SHARD_RECORDS = 1 << 13  # 0.1 GB for MiniLM, 1 GB for T5-XXL with 16 tokens
KEY_BYTES = 32  # hexadecimal digits
INDEX = "embeddings.json"
MAX_SIZE = 1 << 24  # of the tokens of a caption, and of their dim
# Keys of embeddings.json in earlier versions -> now.
RENAMED_KEYS = {"longest": "max_tokens"}

Encode = Callable[[list[str]], list[np.ndarray]]


def caption_key(caption: str) -> bytes:
    """Return the key under which the embedding of a caption is stored."""
    # surrogatepass: files cannot contain half of a surrogate pair, but programs can.
    digest = hashlib.sha256(caption.encode("utf-8", "surrogatepass")).hexdigest()
    return digest[:KEY_BYTES].encode()


class EmbeddingStore:
    """Token embeddings by caption: store[caption] is float32 [l, dim].

    An unknown caption raises UserError. The object can be pickled for worker processes.

    Attributes:
      metadata: the content of embeddings.json: encoder, weights (their sha256), width,
        max_tokens and others.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        path = self.folder / INDEX
        rule = "write it with python -m vdm_jax.text --captions=... --out=..."
        try:
            self.metadata = _validated(read_json(path))
            self.dim = self.metadata["width"]
            self.max_tokens = self.metadata["max_tokens"]
            path = self.folder / self.metadata["keys"]
            self.keys = read_npy(path)
            shards = [self.folder / name for name in self.metadata["shards"]]
            for path in shards:
                if not path.stat().st_size or not path.is_file():
                    raise CorruptFile("not a shard")
                # Opened one by one, so that the error names the corrupt shard.
                len(ArrayRecordDataSource([str(path)]))
            self.records = ArrayRecordDataSource([str(path) for path in shards])
        except FileNotFoundError as error:
            raise UserError(f"{self.folder} has no {path.name}: {rule}") from error
        except (ValueError, OSError, RuntimeError) as error:
            raise UserError(f"{path} cannot be read: {rule}") from error
        if self.keys.dtype != f"S{KEY_BYTES}" or self.keys.ndim != 1:
            path = self.folder / self.metadata["keys"]
            raise UserError(f"{path}: keys {self.keys.dtype} {self.keys.shape}: {rule}")
        if len(self.records) != len(self.keys):
            raise UserError(
                f"{self.folder}: {len(self.records)} records of "
                f"{len(self.keys)}: {rule}"
            )

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, caption: str) -> bool:
        return self._index(caption_key(caption)) is not None

    def __getitem__(self, caption: str) -> np.ndarray:
        key = caption_key(caption)
        index = self._index(key)
        if index is None:
            raise UserError(
                f"{self.folder} has no embedding of {caption[:60]!r}: "
                "run python -m vdm_jax.text on captions that include it"
            )
        try:
            record = self.records[index]
        except RuntimeError as error:  # a wrong checksum
            raise UserError(
                f"{self.folder} is corrupt: delete it and write it again"
            ) from error
        tokens = _parse_record(record, key, self.dim, self.folder)
        if len(tokens) > self.max_tokens:
            raise UserError(
                f"{self.folder / INDEX}: max_tokens={self.max_tokens}, a record has "
                f"{len(tokens)} tokens: delete it and run python -m vdm_jax.text again"
            )
        return tokens

    def _index(self, key: bytes) -> int | None:
        index = int(np.searchsorted(self.keys, key))
        exists = index < len(self.keys) and self.keys[index] == key
        return index if exists else None


def _validated(metadata: Any) -> dict:
    """Return the content of embeddings.json with today's keys.

    Raises CorruptFile for a value that `write` does not write.
    """
    if not isinstance(metadata, dict):
        raise CorruptFile("not an object")
    shards = metadata.get("shards")
    if not isinstance(shards, list) or not shards:
        raise CorruptFile("no shards")
    for name in (metadata.get("keys"), *shards):
        if not isinstance(name, str) or not name or files.why_invalid_text(name):
            raise CorruptFile("not a file name")
        if os.path.basename(name) != name:
            raise CorruptFile("a file of another folder")
    for name in (metadata.get("encoder"), metadata.get("weights", "")):
        if not isinstance(name, str):
            raise CorruptFile("not a name of the encoder or of its weights")
    # Earlier versions wrote no digest.
    if metadata.get("digest", _digest(metadata)) != _digest(metadata):
        raise CorruptFile("it was changed after it was written")
    metadata = {RENAMED_KEYS.get(key, key): value for key, value in metadata.items()}
    for name in ("width", "max_tokens"):
        if type(metadata.get(name)) is not int or not 1 <= metadata[name] <= MAX_SIZE:
            raise CorruptFile(f"{name} is not from 1 to {MAX_SIZE}")
    return metadata


def _digest(metadata: dict) -> str:
    """Return the sha256 of all other entries of embeddings.json."""
    others = {name: value for name, value in metadata.items() if name != "digest"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def _parse_record(record: bytes, key: bytes, dim: int, folder: Path) -> np.ndarray:
    """Return the tokens of a record, float32 [l, dim]."""
    if record[:KEY_BYTES] != key or (len(record) - KEY_BYTES) % (2 * dim):
        raise UserError(f"{folder} is corrupt: a record does not match its key")
    tokens = np.frombuffer(record, np.float16, offset=KEY_BYTES)
    return tokens.reshape(-1, dim).astype(np.float32)


def write(
    folder: str | os.PathLike,
    captions: Iterable[str],
    encode: Encode,
    metadata: dict,
    batch: int = 64,
    progress: Callable[[int], object] = lambda count: None,
) -> EmbeddingStore:
    """Write the embeddings of every distinct caption, and of "", the missing caption.

    Shards are written atomically. Their names are a function of captions and metadata:
    a stopped command resumes with the missing shards. The old content is replaced only
    when the new one is complete.

    Args:
      encode: captions, at most `batch`, to their tokens [l, dim] each.
      metadata: about the encoder, with its "width", for embeddings.json.
      progress: called with the number of newly written captions.
    """
    folder = make_folder(folder)
    by_key = {caption_key(caption): caption for caption in ("", *captions)}
    keys = sorted(by_key)
    content = json.dumps([metadata, SHARD_RECORDS], sort_keys=True).encode()
    prefix = hashlib.sha256(content + b"".join(keys)).hexdigest()[:12]
    parts = [keys[i : i + SHARD_RECORDS] for i in range(0, len(keys), SHARD_RECORDS)]
    names = [
        f"{prefix}-{i:05}-of-{len(parts):05}.array_record" for i in range(len(parts))
    ]
    max_tokens = 0
    for name, part in zip(names, parts, strict=True):
        length = _max_tokens(folder / name, part, metadata["width"])
        if length is None:
            with atomic_write(folder / name, overwrite=True) as temporary:
                _write_shard(temporary, part, by_key, encode, batch, progress)
            length = _max_tokens(folder / name, part, metadata["width"])
        else:
            progress(len(part))
        if length is None:
            raise UserError(f"{folder / name} is not what was written: a failing disk?")
        max_tokens = max(max_tokens, length)
    metadata = metadata | {
        "max_tokens": max_tokens,
        "captions": len(keys),
        "keys": f"{prefix}.npy",
        "shards": names,
    }
    metadata["digest"] = _digest(metadata)
    with (
        atomic_write(folder / metadata["keys"], overwrite=True) as temporary,
        temporary.open("wb") as file,
    ):
        np.save(file, np.array(keys), allow_pickle=False)
    old_files = _listed_files(folder)
    with atomic_write(folder / INDEX, overwrite=True) as temporary:
        temporary.write_text(json.dumps(metadata, indent=1) + "\n")
    leftovers = {path.name for path in folder.glob(f".{prefix}-*.tmp")}  # after a kill
    for name in leftovers | old_files - {metadata["keys"], *names}:
        (folder / name).unlink(missing_ok=True)
    return EmbeddingStore(folder)


def _write_shard(
    path: Path,
    keys: Sequence[bytes],
    by_key: dict[bytes, str],
    encode: Encode,
    batch: int,
    progress: Callable[[int], object],
) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:1")  # records are read one by one
    with contextlib.closing(writer):
        for start in range(0, len(keys), batch):
            batch_keys = keys[start : start + batch]
            texts = [by_key[key] for key in batch_keys]
            for key, text, tokens in zip(batch_keys, texts, encode(texts), strict=True):
                with np.errstate(over="ignore"):  # the error below names the caption
                    half = tokens.astype(np.float16)
                if not np.isfinite(half).all():
                    raise UserError(f"the embedding of {text[:60]!r} overflows float16")
                writer.write(key + half.tobytes())
            progress(len(batch_keys))


def _max_tokens(path: Path, keys: Sequence[bytes], dim: int) -> int | None:
    """Return the tokens of the longest record; None for a missing or corrupt shard."""
    try:
        records = ArrayRecordDataSource([str(path)])
        if len(records) != len(keys):
            return None
        return max(
            len(_parse_record(records[i], key, dim, path)) for i, key in enumerate(keys)
        )
    except (OSError, RuntimeError, ValueError, UserError):
        return None


def _listed_files(folder: Path) -> set[str]:
    """Return the files that embeddings.json names; none if it is missing."""
    try:
        metadata = _validated(read_json(folder / INDEX))
    except (FileNotFoundError, CorruptFile):
        return set()
    return {metadata["keys"], *metadata["shards"]}
