"""Caption embeddings on disk: written once, read by caption.

A folder has ArrayRecord shards, the keys of their records (npy), and embeddings.json,
which names these files and the text encoder. A record is the key of the caption and its
tokens as float16 [l, dim], without padding. `python -m vdm_jax.text` writes the folder.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile, atomic_write, make_folder, read_json, write_json
from vdm_jax.npz import read_npy

SHARD_RECORDS = 1 << 13  # 0.1 GB for MiniLM, 1 GB for T5-XXL with 16 tokens
BATCH = 64  # captions that are encoded at once
KEY_BYTES = 32  # hexadecimal digits
KEYS = np.dtype(f"S{KEY_BYTES}")
OLD_FILE = re.compile(r"[0-9a-f]{12}(-\d{5}-of-\d{5}\.array_record|\.npy)")
UNREADABLE = (LookupError, OSError, RuntimeError, ValueError)  # a file is corrupt
INDEX = "embeddings.json"
RULE = "write it with python -m vdm_jax.text --captions=... --out=..."

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
        try:
            self.metadata = _read_index(path)
            self.dim = self.metadata["width"]
            self.max_tokens = self.metadata["max_tokens"]
            paths = [self.folder / name for name in self.metadata["shards"]]
            for path in paths:  # one by one, so that the error names the corrupt one
                if not path.is_file() or not path.stat().st_size:
                    raise CorruptFile("not a shard")
                ArrayRecordDataSource([str(path)])
            self.records = ArrayRecordDataSource(list(map(str, paths)))
            path = self.folder / self.metadata["keys"]
            self.keys = read_npy(path)
            if (self.keys.dtype, self.keys.shape) != (KEYS, (len(self.records),)):
                raise CorruptFile("not the keys of the records")
        except UNREADABLE as error:
            raise UserError(f"{path} cannot be read: {RULE}") from error

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, caption: str) -> np.ndarray:
        key = caption_key(caption)
        index = int(np.searchsorted(self.keys, key))
        if index == len(self.keys) or self.keys[index] != key:
            raise UserError(
                f"{self.folder} has no embedding of {caption[:60]!r}: "
                "run python -m vdm_jax.text on captions that include it"
            )
        try:
            return _parse_record(self.records[index], key, self.dim)
        except (CorruptFile, RuntimeError) as error:  # the latter: a wrong checksum
            raise UserError(
                f"{self.folder} is corrupt ({str(error).splitlines()[0]}): delete it "
                "and write it again"
            ) from error


def _read_index(path: Path) -> dict:
    """Return the content of embeddings.json.

    Raises CorruptFile for anything but what `write` has written, OSError.
    """
    metadata = read_json(path)
    if not isinstance(metadata, dict) or metadata.get("digest") != _digest(metadata):
        raise CorruptFile("it was changed after it was written")
    return metadata


def _digest(metadata: dict) -> str:
    """Return the sha256 of all other entries of embeddings.json."""
    others = {name: value for name, value in metadata.items() if name != "digest"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def _parse_record(record: bytes, key: bytes, dim: int) -> np.ndarray:
    """Return the tokens of a record, float32 [l, dim]. Raises CorruptFile."""
    if record[:KEY_BYTES] != key or (len(record) - KEY_BYTES) % (2 * dim):
        raise CorruptFile("a record does not match its key")
    tokens = np.frombuffer(record, np.float16, offset=KEY_BYTES)
    return tokens.reshape(-1, dim).astype(np.float32)


def write(
    folder: str | os.PathLike, captions: Iterable[str], encode: Encode, metadata: dict
) -> EmbeddingStore:
    """Write the embeddings of every distinct caption, and of "", the missing caption.

    Shards are written atomically. Their names are a function of captions and metadata:
    a stopped command resumes with the missing shards. The old content is replaced only
    when the new one is complete.

    Args:
      encode: captions, at most BATCH, to their tokens [l, dim] each.
      metadata: about the encoder, with its "width", for embeddings.json.
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
    for name, part in zip(tqdm(names, "embedding", disable=None), parts, strict=True):
        path = folder / name
        try:
            longest = _max_tokens(path, part, metadata["width"])
        except UNREADABLE:  # missing or corrupt
            with atomic_write(path, overwrite=True) as temporary:
                _write_shard(temporary, part, by_key, encode)
            longest = _max_tokens(path, part, metadata["width"])
        max_tokens = max(max_tokens, longest)
    index = metadata | {
        "max_tokens": max_tokens, "captions": len(keys), "keys": f"{prefix}.npy",
        "shards": names,
    }  # fmt: skip
    with (
        atomic_write(folder / index["keys"], overwrite=True) as temporary,
        temporary.open("wb") as file,
    ):
        np.save(file, np.array(keys), allow_pickle=False)
    write_json(folder / INDEX, index | {"digest": _digest(index)})
    for path in folder.iterdir():
        if OLD_FILE.fullmatch(path.name) and path.name not in (index["keys"], *names):
            path.unlink()
    return EmbeddingStore(folder)


def _write_shard(
    path: Path, keys: Sequence[bytes], by_key: dict[bytes, str], encode: Encode
) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:1")  # records are read one by one
    with contextlib.closing(writer):
        for start in tqdm(range(0, len(keys), BATCH), leave=False, disable=None):
            batch = keys[start : start + BATCH]
            texts = [by_key[key] for key in batch]
            for key, text, tokens in zip(batch, texts, encode(texts), strict=True):
                with np.errstate(over="ignore"):  # the error below names the caption
                    half = tokens.astype(np.float16)
                if not np.isfinite(half).all():
                    raise UserError(f"the embedding of {text[:60]!r} overflows float16")
                writer.write(key + half.tobytes())


def _max_tokens(path: Path, keys: Sequence[bytes], dim: int) -> int:
    """Return the tokens of the longest record. Raises UNREADABLE for another shard."""
    records = ArrayRecordDataSource([str(path)])
    pairs = zip(map(records.__getitem__, range(len(records))), keys, strict=True)
    return max(len(_parse_record(record, key, dim)) for record, key in pairs)
