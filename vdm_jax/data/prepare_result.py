"""What describes a prepared folder. It is written when all shards are there."""

import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vdm_jax import video_io
from vdm_jax.clip_shards import shard
from vdm_jax.clip_shards.records import Format
from vdm_jax.data import prepared
from vdm_jax.data.layout import Skipped
from vdm_jax.data.prepared import MANIFEST, SPLITS
from vdm_jax.errors import printable
from vdm_jax.files import atomic_write, write_bytes, write_json

SHEET_ROWS = 20  # clips in the contact sheet
DROPPED, CHECKSUMS, SHEET = "dropped.jsonl", "SHA256SUMS", "contact_sheet.png"


def write_result(
    out: Path,
    manifest: dict[str, Any],
    dropped: Sequence[Skipped],
    summaries: list[dict[str, Any]],
) -> None:
    """Write what describes the shards, the manifest last."""
    lines = [f"{each['sha256']}  {each['name']}\n" for each in summaries]
    sums = "".join(lines).encode()
    write_bytes(out / CHECKSUMS, sums, overwrite=True)
    rows = [*dropped, *(row for each in summaries for row in each["dropped"])]
    lines = [json.dumps({"file": name, "reason": why}) + "\n" for name, why in rows]
    write_bytes(out / DROPPED, "".join(lines).encode(), overwrite=True)
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
        "dropped": len(rows),
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
