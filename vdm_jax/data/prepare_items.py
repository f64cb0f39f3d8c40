"""The items of a data set that is prepared: of a folder, of a manifest, of tars."""

import collections
import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from vdm_jax.clip_shards.items import ClipFormat, Item, ItemReader, passes
from vdm_jax.clip_shards.shard import Reader
from vdm_jax.data import folder_index, tars
from vdm_jax.data.clip_shape import ClipShape
from vdm_jax.data.folder_index import VideoFile
from vdm_jax.data.layout import MAX_JSONL_BYTES, Skipped
from vdm_jax.data.sample_fields import Fields, parse_fields
from vdm_jax.data.source import mentions_left_or_right
from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile, parse_json, read_text, split_lines
from vdm_jax.video_io.sandbox import SandboxedDecoder

ROW = '{"file": "a.mp4", "start": 1.5, "end": 4, "captions": ["..."]}'


@dataclasses.dataclass(frozen=True)
class Items:
    """The items of both splits, in the order of the data set.

    Attributes:
      kind: of the data set.
      dropped: files that cannot be used, with their reasons.
      num_bytes: of all files.
      flip: whether clips may be mirrored, as of `Source`.
      reader: what reads them, as of `Task`.
    """

    kind: str
    train: Sequence[Item]
    validation: Sequence[Item]
    dropped: Sequence[Skipped]
    num_bytes: int
    flip: bool
    label_vocabulary: Sequence[str] = ()
    scores: Sequence[str] = ()
    reader: Callable[[ClipFormat, str], Reader] = ItemReader

    def __len__(self) -> int:
        return len(self.train) + len(self.validation) + len(self.dropped)

    def _usable(self) -> list[Item]:
        return [*self.train, *self.validation]

    def digest(self) -> str:
        """Return the sha256 of the items, wherever they are."""
        found = hashlib.sha256(repr((self.num_bytes, self.scores)).encode())
        for item in self._usable():
            content = repr(dataclasses.replace(item, path=""))
            found.update(content.encode("utf-8", "surrogateescape"))
        return found.hexdigest()


def may_flip(labels: Iterable[str], items: Iterable[Item]) -> bool:
    """Return whether clips with these labels and captions may be mirrored."""
    texts = {text for item in items for text in item.captions}
    return not mentions_left_or_right(" ".join([*labels, *texts]))


def folder_items(config: Any, path: Path, shape: ClipFormat) -> Items:
    """Return the items of a folder of videos, in the order of data/folder.py.

    Each is decoded in one pass, so that a long file has several.
    """
    data = config.data
    clip = ClipShape.from_config(config)
    decoder = SandboxedDecoder()
    files, report = folder_index.scan(str(path), clip, data.cache_dir, decoder)
    parts = folder_index.split_files(files, data.validation_fraction, clip)
    values = sorted({file.label for file in files if file.label is not None})
    labels = {value: index for index, value in enumerate(values)}

    def items(file: VideoFile) -> Iterable[Item]:
        ranges = shape.selection.start_ranges(file.segment)
        numbers = [shape.selection.range_numbers(file.segment, *r) for r in ranges]
        label = -1 if file.label is None else labels[file.label]
        for each in passes(numbers, file.info, shape):
            yield Item(
                file.name, file.info.path, frames=(file.start, file.stop),
                ranges=(each.start, min(each.stop, len(ranges))),
                captions=file.captions, label=label,
            )  # fmt: skip

    train, validation = ([i for file in part for i in items(file)] for part in parts)
    num_bytes = sum(file.num_bytes for file in files)
    flip = may_flip(values, [*train, *validation])
    return Items("folder", train, validation, report.skipped, num_bytes, flip, values)


def jsonl_items(path: Path, fraction: float) -> Items:
    """Return the items of a JSONL file: one a line, as ROW, with label and scores too.

    Files are relative to its folder. Those that do not exist are dropped.

    fraction: of the files that is held out.

    Raises:
      UserError: the file cannot be read, or a line is not an item.
    """
    items: list[tuple[Item, Fields]] = []
    dropped = []
    sizes: dict[str, int] = {}
    place = ""
    try:
        for number, line in enumerate(split_lines(read_text(path, MAX_JSONL_BYTES)), 1):
            place = f" line {number}"
            if not line.strip():
                continue
            name, seconds, fields = _parse_row(line)
            file = os.path.normpath(path.parent / name)
            if not os.path.isfile(file):
                dropped.append((name, "no such file"))
                continue
            sizes[file] = os.path.getsize(file)
            items.append((Item(name, file, seconds=seconds), fields))
    except (CorruptFile, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}{place}: {reason}") from error
    return _with_fields("jsonl", path, items, dropped, sum(sizes.values()), fraction)


def _parse_row(line: str) -> tuple[str, tuple[float, float] | None, Fields]:
    """Return file, times and the other fields of a line. Raises CorruptFile."""
    row = parse_json(line)
    if not isinstance(row, dict) or not isinstance(row.get("file"), str):
        raise CorruptFile(f"each line is {ROW}")
    times = row.get("start") or 0.0, row.get("end") or math.inf
    if not all(isinstance(time, int | float) for time in times):
        raise CorruptFile("start and end are seconds")
    if not 0 <= times[0] < times[1]:
        raise CorruptFile(f"start {times[0]} is not below end {times[1]}")
    return row["file"], None if times == (0, math.inf) else times, parse_fields(row)


def tar_items(source: Path, paths: Sequence[Path], fraction: float) -> Items:
    """Return the items of tars in the layout of WebDataset: one a sample.

    fraction: of the samples that is held out.
    """
    items = []
    dropped = []
    for path in paths:
        name = str(path.relative_to(source)) if path != source else path.name
        samples, bad = tars.read(path)
        dropped += [(f"{name}/{key}" if key else name, reason) for key, reason in bad]
        for sample in samples:
            item = Item(f"{name}/{sample.name}", str(path), member=sample.member)
            items.append((item, sample.fields))
    num_bytes = sum(item.member[1] for item, _ in items)
    return _with_fields("webdataset", source, items, dropped, num_bytes, fraction)


def _with_fields(
    kind: str,
    source: Path,
    found: list[tuple[Item, Fields]],
    dropped: list[Skipped],
    num_bytes: int,
    fraction: float,
) -> Items:
    """Return items with captions, label and scores, split by a hash of their names."""
    if not found:
        rest = f"; {dropped[0][0]}: {dropped[0][1]}" if dropped else ""
        raise UserError(f"{source}: nothing in it can be used{rest}")
    values = {f.label for _, f in found if f.label is not None}
    numeric = all(value.isdecimal() for value in values)
    vocabulary = sorted(values, key=int if numeric else str)
    labels = {value: index for index, value in enumerate(vocabulary)}
    scores = sorted({name for _, fields in found for name in fields.scores})
    items = [
        dataclasses.replace(
            item,
            captions=fields.captions,
            label=-1 if fields.label is None else labels[fields.label],
            scores=tuple(fields.scores.get(name, math.nan) for name in scores),
        )
        for item, fields in found
    ]
    names = [*dict.fromkeys(item.name for item in items)]
    held_out = frozenset()
    if fraction and len(names) > 1:
        held_out = folder_index.held_out_names(names, fraction)
    parts = collections.defaultdict(list)
    for item in items:
        parts[item.name in held_out].append(item)
    flip = may_flip(vocabulary, items)
    return Items(
        kind, parts[False], parts[True], dropped, num_bytes, flip, vocabulary, scores
    )


def check_dropped(
    source: Path, dropped: Sequence[Skipped], bad: int, items: int, most: float
) -> None:
    """Raise UserError if more than the fraction `most` of the items are bad.

    dropped: the last of them.
    """
    if bad > most * items:
        name, reason = dropped[-1]
        raise UserError(
            f"{source}: {bad} of {items} files cannot be used, more than "
            f"config.data.max_bad_fraction={most}; the last is {name}: {reason}"
        )
