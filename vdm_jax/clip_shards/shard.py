"""A shard: the clips of some items in one file, which appears whole or not at all.

    DIR/clips-train.array_record-00003-of-00016    the clips
    DIR/shards/train-00003.json                    what is in it, written after it

A task does nothing if its shard is as the second file says, so that it can be repeated,
by another process or on another machine, with the same bytes.
"""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from vdm_jax.clip_shards.items import ClipFormat, Item, ItemReader
from vdm_jax.clip_shards.records import Format, Record
from vdm_jax.files import CorruptFile, atomic_write, read_json, write_json
from vdm_jax.video_io import BadVideo

NAME = "clips"  # of the data set, for TFDS
SUMMARIES = "shards"
BLOCK = 1 << 20  # bytes that are hashed at once


class Reader(Protocol):
    """Reads the records of items; `ItemReader` is one."""

    def records(self, item: Item) -> Iterator[Record | BadVideo]:
        """Yield them, and what is wrong with clips that have none. Raises BadVideo."""
        ...


@dataclasses.dataclass(frozen=True)
class Task:
    """Writes one shard.

    Attributes:
      number, count: of the shards of the split.
      items: with their numbers in the order of the data set.
      encoding, label_vocabulary, scores: as of `Format`.
      reader: (shape, cache_folder) -> what yields the records of an item.
    """

    folder: str
    split: str
    number: int
    count: int
    items: Sequence[tuple[int, Item]]
    shape: ClipFormat
    encoding: str
    label_vocabulary: Sequence[str]
    scores: Sequence[str]
    cache_folder: str
    reader: Callable[[ClipFormat, str], Reader] = ItemReader

    @property
    def path(self) -> Path:
        """The shard."""
        return Path(self.folder) / shard_name(self.split, self.number, self.count)

    @property
    def summary(self) -> Path:
        """What is in it."""
        name = f"{self.split}-{self.number:05}.json"
        return Path(self.folder) / SUMMARIES / name


def shard_name(split: str, number: int, count: int) -> str:
    """Return the name that TFDS gives to a shard."""
    return f"{NAME}-{split}.array_record-{number:05}-of-{count:05}"


def write(task: Task) -> dict[str, Any]:
    """Write a shard unless it is there; return its summary.

    A summary has:
      name, split, number: of the shard.
      items: number of the item of each record.
      bytes, sha256: of the shard.
      pixels: how often each of 0 .. 255 is a value of a pixel.
      dropped: [file, reason] of items and clips without a record.
      bad: number of items without a record.

    Raises UserError if it cannot be written.
    """
    if summary := stored_summary(task):
        return summary
    writer = _Writer(task)
    with atomic_write(task.path, overwrite=True) as temporary:
        writer.write(temporary)
    summary = writer.summary | digest(task.path)
    write_json(task.summary, summary, indent=None)
    return summary


def stored_summary(task: Task) -> dict[str, Any] | None:
    """Return the summary of a task that is done, None if it is not."""
    with contextlib.suppress(FileNotFoundError, CorruptFile, LookupError, TypeError):
        summary = read_json(task.summary)
        found = digest(task.path)
        if found == {name: summary[name] for name in found}:
            return summary
    return None


def digest(path: Path) -> dict[str, Any]:
    """Return bytes and sha256 of a file."""
    found = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
            size += len(block)
    return {"bytes": size, "sha256": found.hexdigest()}


@functools.lru_cache(1)  # its decoder starts once in a process
def _reader(
    reader: Callable[[ClipFormat, str], Reader], shape: ClipFormat, cache_folder: str
) -> Reader:
    return reader(shape, cache_folder)


class _Writer:
    """Writes the records of a task; `summary` is that of the shard."""

    def __init__(self, task: Task):
        self._task = task
        self._format = Format(task.encoding, task.label_vocabulary, task.scores)
        self._reader = _reader(task.reader, task.shape, task.cache_folder)
        self._pixels = np.zeros(256, np.int64)
        self._items: list[int] = []
        self._dropped: list[tuple[str, str]] = []
        self._bad = 0

    @property
    def summary(self) -> dict[str, Any]:
        return {
            "name": self._task.path.name, "split": self._task.split,
            "number": self._task.number,
            "items": self._items, "pixels": self._pixels.tolist(),
            "dropped": self._dropped, "bad": self._bad,
        }  # fmt: skip

    def write(self, path: Path) -> None:
        options = self._format.encoding.options
        with contextlib.closing(ArrayRecordWriter(str(path), options)) as writer:
            for number, item in self._task.items:
                before = len(self._items)
                for record in self._records(item):
                    writer.write(self._format.to_bytes(record))
                    self._items.append(number)
                    self._pixels += np.bincount(record.video.ravel(), minlength=256)
                self._bad += len(self._items) == before
        if (found := len(ArrayRecordDataSource([str(path)]))) != len(self._items):
            raise OSError(f"{found} records are there, not {len(self._items)}")

    def _records(self, item: Item) -> Iterator[Record]:
        """Yield the records of an item, and note what has none."""
        try:
            for record in self._reader.records(item):
                if isinstance(record, BadVideo):
                    self._dropped.append((item.name, record.reason))
                else:
                    yield record
        except BadVideo as error:
            self._dropped.append((item.name, error.reason))
