"""Prepare a data set once: decode and resize its clips into shards.

``python -m vdm_jax.data prepare SRC --out=DIR`` writes shards in the format of
TensorFlow Datasets. The same command continues after a stop, and repairs what is
damaged. Training reads them by --config.data.source=tfds --config.data.path=DIR.
"""

import argparse
import contextlib
import copy
import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vdm_jax import agreement, runtime, settings, video_io
from vdm_jax.clip_shards import shard
from vdm_jax.clip_shards.engines import ENGINES
from vdm_jax.clip_shards.items import ClipFormat, Item
from vdm_jax.clip_shards.records import ENCODINGS
from vdm_jax.clip_shards.shard import Task
from vdm_jax.data import prepare_items, prepare_result, prepare_tfds, prepared, tars
from vdm_jax.data.clip_shape import ClipShape
from vdm_jax.data.prepare_items import Items
from vdm_jax.data.prepare_result import DROPPED, SHEET
from vdm_jax.data.prepared import CLIP_FIELDS, MANIFEST, SPLITS
from vdm_jax.errors import UserError
from vdm_jax.files import cache_folder, make_folder, user_path, write_json

SHARD_BYTES = 256 << 20  # of the files of SRC
MIN_SHARDS, MAX_SHARDS = 16, 512  # so that processes share the work; open files
NOT_COMPARED = ("path", "result")  # entries of the manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``prepare``, but for those of the config."""
    add = parser.add_argument
    add(
        "src", type=runtime.path_type,
        help="a folder of videos or pictures, a JSONL file of them, a tar of "
        "WebDataset, a folder of such tars, or a name or a folder of TFDS",
    )  # fmt: skip
    add("--out", required=True, type=runtime.path_type, help="folder for the shards")
    add(
        "--config", metavar="FILE[:VARIANT]",
        help="prepare for this config of train.py; --config.a.b=value changes a field",
    )  # fmt: skip
    add(
        "--short_side", type=int, default=0,
        help="pixels of the shorter side of the frames, which training resizes and "
        "crops (default: the size of the config)",
    )  # fmt: skip
    add("--encoding", default="raw", choices=ENCODINGS, help="of the frames")
    add(
        "--shards", type=int, default=0,
        help="number of shards of the training part (default: one for each 256 MiB of "
        "SRC, 16 to 512)",
    )  # fmt: skip
    add("--engine", default="local", choices=ENGINES, help="where tasks run")
    add(
        "--workers", type=int, default=len(os.sched_getaffinity(0)),
        help="processes; 0 is none but this one (default: the number of cores)",
    )  # fmt: skip


def run(config: Any, flags: argparse.Namespace) -> str:
    """Prepare a data set; return the text to print.

    Raises:
      UserError: SRC, the config or the folder are wrong, they do not fit what the
        folder holds already, or too many files cannot be used.
    """
    check_config(config, flags)
    shape = clip_format(config, flags.short_side)
    items = find_items(config, flags.src, shape)
    prepare_items.check_dropped(
        flags.src, items.dropped, len(items.dropped), len(items),
        config.data.max_bad_fraction,
    )  # fmt: skip
    manifest = make_manifest(config, flags, items)
    out = make_folder(flags.out)
    with locked(out):
        start(out, manifest)
        tasks = make_tasks(config, flags, items, manifest, shape)
        summaries = write_shards(config, flags, items, tasks)
        prepare_result.write_result(out, manifest, items.dropped, summaries)
    opened = copy.deepcopy(config)
    opened.data.update(source="tfds", path=str(out), tfds_name="")
    prepare_result.write_sheet(out / SHEET, prepared.open_prepared(opened))
    return describe(out, items, summaries)


def check_config(config: Any, flags: argparse.Namespace) -> None:
    """Complete and check a config and the flags. Raises UserError."""
    if {"video", "data"} - set(config):
        raise UserError("--config: a config of train.py, with video and data")
    if flags.shards < 0 or flags.workers < 0 or flags.short_side < 0:
        raise UserError("--shards, --workers, --short_side: 0 or more")
    config.unlock()
    config.data.path = str(flags.src)
    if text := config.data.cache_dir:
        config.data.cache_dir = str(user_path(text, "config.data.cache_dir"))
    settings.check_config(
        config, {name: settings.TRAINING[name] for name in ("video", "data")}
    )


def find_items(config: Any, source: Path, shape: ClipFormat) -> Items:
    """Return the items of SRC.

    Raises:
      UserError: it is not what can be prepared, or nothing in it can be used.
    """
    fraction = config.data.validation_fraction
    if source.suffix == ".jsonl":
        return prepare_items.jsonl_items(source, fraction)
    if prepare_tfds.is_data_set(source):
        return prepare_tfds.tfds_items(config, source)
    if paths := tars.find(source):
        return prepare_items.tar_items(source, paths, fraction)
    return prepare_items.folder_items(config, source, shape)


def clip_format(config: Any, short_side: int) -> ClipFormat:
    """Return how a config's clips are made of files."""
    shape = ClipShape.from_config(config)
    selection = video_io.FrameSelection(shape.frames, shape.stride, shape.fps)
    size = (short_side, short_side) if short_side else shape.size
    return ClipFormat(selection, size, shape.crop == "center" and not short_side)


def make_manifest(config: Any, flags: argparse.Namespace, items: Items) -> dict:
    """Return the content of prepared.json, but for its result.

    Raises:
      UserError: more shards than items.
    """
    video = config.video
    counts = {split: len(getattr(items, split)) for split in SPLITS}
    return {
        "version": prepared.VERSION,
        "source": items.kind,
        "path": str(flags.src.absolute()),
        "seed": config.seed,
        "encoding": flags.encoding,
        "video": [video.frames, video.height, video.width],
        "short_side": flags.short_side,
        "data": {name: config.data[name] for name in (*CLIP_FIELDS, "crop")},
        "label_vocabulary": list(items.label_vocabulary),
        "scores": list(items.scores),
        "flip": items.flip,
        "items": counts,
        "digest": items.digest(),
        "shards": num_shards(flags.shards, items.num_bytes, counts),
    }


def num_shards(wanted: int, num_bytes: int, counts: dict[str, int]) -> dict[str, int]:
    """Return the number of shards of each split, in proportion to its items.

    wanted: of the training part; 0 chooses by the bytes of the files.

    Raises:
      UserError: more are wanted than there are items.
    """
    train, held_out = counts["train"], counts["validation"]
    if wanted > train:
        raise UserError(
            f"--shards={wanted}: SRC has {train} items for training, so at most "
            f"{train} shards"
        )
    number = min(max(num_bytes // SHARD_BYTES, MIN_SHARDS), MAX_SHARDS, train)
    number = wanted or number
    few = min(max(1, round(number * held_out / train)), held_out)
    return {"train": number, "validation": few}


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other commands from writing a folder, and remove what killed ones left.

    Raises UserError if one is writing it.
    """
    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            reason = f"another command is writing {out}: wait for its end"
            raise UserError(reason) from error
        except OSError:  # a file system without locks
            print(f"{out} cannot be locked: write it by one command", file=sys.stderr)
        for left in (*out.glob(".*.tmp"), *(out / shard.SUMMARIES).glob(".*.tmp")):
            left.unlink()
        yield
    finally:
        os.close(folder)


def start(out: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest of a new folder, or compare it with that of an older one.

    Raises:
      UserError: the folder has clips of something else, or other files.
    """
    if not prepared.is_prepared(str(out)):
        if other := next(out.iterdir(), None):
            raise UserError(
                f"{out} has other files ({other.name}): give a new folder as --out"
            )
        write_json(out / MANIFEST, manifest)
        return
    stored = prepared.read_manifest(out)
    before, now = (
        dict(
            agreement.flatten({n: v for n, v in each.items() if n not in NOT_COMPARED})
        )
        for each in (stored, manifest)
    )
    for name, a, b in agreement.differences(before, now):
        raise UserError(
            f"{out} was started with another {name}, {a!r:.60} and not {b!r:.60}: give "
            "that, or another --out"
        )


def make_tasks(
    config: Any,
    flags: argparse.Namespace,
    items: Items,
    manifest: dict[str, Any],
    shape: ClipFormat,
) -> list[Task]:
    """Return the tasks of all shards.

    The items of a split are permuted by the seed; the shards have equal parts, whose
    sizes differ by at most 1.
    """
    tasks = []
    for number, split in enumerate(SPLITS):
        own: Sequence[Item] = getattr(items, split)
        rng = np.random.default_rng((config.seed, number))
        count = manifest["shards"][split]
        for i, part in enumerate(np.array_split(rng.permutation(len(own)), count or 1)):
            if len(part):
                tasks.append(
                    Task(
                        str(flags.out.absolute()),
                        split,
                        i,
                        count,
                        [(k, own[k]) for k in part.tolist()],
                        shape,
                        flags.encoding,
                        items.label_vocabulary,
                        items.scores,
                        config.data.cache_dir or str(cache_folder()),
                        items.reader,
                    )  # fmt: skip
                )
    return tasks


def write_shards(
    config: Any, flags: argparse.Namespace, items: Items, tasks: list[Task]
) -> list[dict[str, Any]]:
    """Write all shards; return their summaries, in order.

    Raises UserError if more than config.data.max_bad_fraction of the items are bad.
    """
    make_folder(flags.out / shard.SUMMARIES)
    summaries: dict[tuple[int, int], dict] = {}
    bad, clips = len(items.dropped), 0
    engine = ENGINES[flags.engine](flags.workers)
    results = engine.map(shard.write, tasks)
    with (
        contextlib.closing(results),
        tqdm(results, "preparing", len(tasks), unit="shard", disable=None) as bar,
    ):
        for summary in bar:
            summaries[SPLITS.index(summary["split"]), summary["number"]] = summary
            clips += len(summary["items"])
            bad += summary["bad"]
            bar.set_postfix(clips=clips, bad=bad)
            if summary["bad"]:
                prepare_items.check_dropped(
                    flags.src, summary["dropped"], bad, len(items),
                    config.data.max_bad_fraction,
                )  # fmt: skip
    if not clips:
        raise UserError(f"{flags.src} has no clip that can be used")
    return [summaries[key] for key in sorted(summaries)]


def describe(out: Path, items: Items, summaries: list[dict[str, Any]]) -> str:
    """Return what was prepared, as text."""
    clips = sum(len(each["items"]) for each in summaries)
    size = sum(each["bytes"] for each in summaries)
    dropped = len(items.dropped) + sum(len(each["dropped"]) for each in summaries)
    return (
        f"{clips} clips in {len(summaries)} shards, {size / 1e6:.1f} MB; {dropped} "
        f"dropped ({out / DROPPED})\n"
        f"train with --config.data.source=tfds --config.data.path={out}"
    )
