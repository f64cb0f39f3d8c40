"""Prepare a data set once: decode and resize its clips into shards.

``python -m vdm_jax.data prepare SRC --out=DIR`` writes shards in the format of
TensorFlow Datasets. The same command continues after a stop, and repairs what is
damaged. Training reads them by --config.data.source=tfds --config.data.path=DIR.
"""

import argparse
import contextlib
import copy
import fcntl
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from vdm_jax import agreement, runtime, settings, video_io
from vdm_jax.clip_shards import shard
from vdm_jax.clip_shards.engines import ENGINES
from vdm_jax.clip_shards.items import ClipFormat, Item
from vdm_jax.clip_shards.records import ENCODINGS, Format
from vdm_jax.clip_shards.shard import Task
from vdm_jax.data import prepare_items, prepared
from vdm_jax.data.clip_shape import ClipShape
from vdm_jax.data.prepare_items import Items
from vdm_jax.data.prepared import CLIP_FIELDS, MANIFEST, SPLITS
from vdm_jax.errors import UserError, printable
from vdm_jax.files import (
    atomic_write,
    cache_folder,
    make_folder,
    user_path,
    write_bytes,
    write_json,
)

SHARD_BYTES = 256 << 20  # of the files of SRC
MIN_SHARDS, MAX_SHARDS = 16, 512  # so that processes share the work; open files
SHEET_ROWS = 20  # clips in the contact sheet
DROPPED, CHECKSUMS, SHEET = "dropped.jsonl", "SHA256SUMS", "contact_sheet.png"
LATER = ("path", "result")  # entries of the manifest that say not what to prepare


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``prepare``, but for those of the config."""
    add = parser.add_argument
    add(
        "src", type=runtime.path_type,
        help="a folder of videos or pictures, a JSONL file of them, a tar of "
        "WebDataset or a folder of such tars",
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
    items = prepare_items.find(config, flags.src, shape)
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
        finish(out, manifest, items, tasks, summaries)
    opened = copy.deepcopy(config)
    opened.data.update(source="tfds", path=str(out), tfds_name="")
    write_sheet(out / SHEET, prepared.open_prepared(opened))
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
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for left in (*out.glob(".*.tmp"), *(out / shard.SUMMARIES).glob(".*.tmp")):
            left.unlink()
        yield
    except BlockingIOError as error:
        raise UserError(
            f"another command is writing {out}: wait for its end"
        ) from error
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
        dict(agreement.flatten({n: v for n, v in each.items() if n not in LATER}))
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


def finish(
    out: Path,
    manifest: dict[str, Any],
    items: Items,
    tasks: list[Task],
    summaries: list[dict[str, Any]],
) -> None:
    """Write what describes the shards, the manifest last."""
    names = [task.path.name for task in tasks]
    sums = [
        f"{each['sha256']}  {n}\n" for n, each in zip(names, summaries, strict=True)
    ]
    sums = "".join(sums).encode()
    write_bytes(out / CHECKSUMS, sums, overwrite=True)
    dropped = [*items.dropped, *(row for each in summaries for row in each["dropped"])]
    rows = [json.dumps({"file": name, "reason": why}) + "\n" for name, why in dropped]
    write_bytes(out / DROPPED, "".join(rows).encode(), overwrite=True)
    clips = {}
    for split in SPLITS:
        own = [each["items"] for each in summaries if each["split"] == split]
        numbers = np.array([*itertools.chain(*own)], np.int64)
        order = np.argsort(numbers, kind="stable")
        clips[split] = len(order)
        with (
            atomic_write(out / prepared.order_file(split), overwrite=True) as path,
            path.open("wb") as file,
        ):
            np.save(file, order.astype(np.uint32))
    write_tfds_metadata(out, manifest, summaries)
    values = np.arange(256) / 127.5 - 1
    pixels = np.sum([each["pixels"] for each in summaries], axis=0)
    mean = np.average(values, weights=pixels)
    variance = np.average((values - mean) ** 2, weights=pixels)
    result = {
        "clips": clips,
        "bytes": sum(each["bytes"] for each in summaries),
        "dropped": len(dropped),
        "mean": float(mean),
        "variance": float(variance),
        "content": hashlib.sha256(sums).hexdigest(),
    }
    write_json(out / MANIFEST, manifest | {"result": result})


def write_tfds_metadata(
    out: Path, manifest: dict[str, Any], summaries: list[dict[str, Any]]
) -> None:
    """Write the files by which TFDS reads the folder."""
    splits = []
    data_dir: Any = out
    for name in SPLITS:
        own = [each for each in summaries if each["split"] == name]
        template = tfds.core.ShardedFileTemplate(
            data_dir=data_dir, dataset_name=shard.NAME, split=name,
            filetype_suffix="array_record",
            template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        )  # fmt: skip
        if own:
            splits.append(
                tfds.core.SplitInfo(
                    name=name,
                    shard_lengths=[len(each["items"]) for each in own],
                    num_bytes=sum(each["bytes"] for each in own),
                    filename_template=template,
                )  # fmt: skip
            )
    record = Format(*(manifest[n] for n in ("encoding", "label_vocabulary", "scores")))
    tfds.folder_dataset.write_metadata(
        data_dir=out, features=record.features, split_infos=splits, check_data=False
    )


def write_sheet(path: Path, source: prepared.Prepared) -> None:
    """Write a contact sheet of clips at equal distances."""
    number = min(SHEET_ROWS, len(source))
    videos, labels = [], []
    for index in np.linspace(0, len(source) - 1, number).astype(int).tolist():
        clip = source.load(index, np.random.default_rng(0), source.shape.frames)
        names = [source.label_vocabulary[0][i] for i in clip.get("label", ()) if i >= 0]
        videos.append(clip["video"])
        labels.append(printable(" ".join([*names, clip["caption"]])))
    video_io.write_sheet(path, videos, labels=labels, overwrite=True)


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
