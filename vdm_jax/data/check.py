"""Check a folder of videos before training.

``python -m vdm_jax.data check DIR`` reports what training would use: every file is
indexed as in training, and then decoded completely.
"""

import argparse
import collections
import concurrent.futures
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from vdm_jax import runtime, video_io
from vdm_jax.data import folder_index, layout
from vdm_jax.data.clip_shape import ClipShape
from vdm_jax.data.folder_index import VideoFile
from vdm_jax.errors import UserError, printable
from vdm_jax.files import make_folder, user_path
from vdm_jax.video_io import BadVideo, cache
from vdm_jax.video_io.sandbox import SandboxedDecoder

PREVIEW_FRAMES = 8  # per video in the contact sheet
SHEET_ROWS = 40  # videos in the contact sheet


class ConfigField(NamedTuple):
    """The config field of a flag, and its value in configs/folder.py."""

    section: str
    name: str
    default: Any


FIELDS = {
    "num_frames": ConfigField("video", "frames", 16),
    "height": ConfigField("video", "height", 64),
    "width": ConfigField("video", "width", 64),
    "fps": ConfigField("data", "target_fps", 8.0),
    "stride": ConfigField("data", "stride", 1),
    "validation_fraction": ConfigField("data", "validation_fraction", 0.1),
    "max_bad_fraction": ConfigField("data", "max_bad_fraction", 0.2),
    "cache_dir": ConfigField("data", "cache_dir", ""),
}
# Flags of earlier versions -> now.
RETIRED_FLAGS = {
    "--frames": "--num_frames",
    "--held-out": "--validation_fraction",
    "--max-bad-share": "--max_bad_fraction",
    "--cache-dir": "--cache_dir",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``check``."""
    parser.add_argument(
        "dir", nargs="?", type=runtime.path_type,
        help="the folder of videos (default: config.data.path)",
    )  # fmt: skip
    parser.add_argument(
        "--config", metavar="FILE[:VARIANT]",
        help="check for this config of train.py; --config.a.b=value changes a field",
    )  # fmt: skip
    for name in ("num_frames", "height", "width"):
        parser.add_argument(f"--{name}", type=int, help="of a clip")
    selection = parser.add_mutually_exclusive_group()
    selection.add_argument("--fps", type=float, help="frames per second of a clip")
    selection.add_argument("--stride", type=int, help="use every N-th frame instead")
    parser.add_argument(
        "--validation_fraction", type=float, help="fraction of held-out files"
    )
    parser.add_argument(
        "--max_bad_fraction", type=float, help="as config.data.max_bad_fraction"
    )
    parser.add_argument(
        "--cache_dir", type=runtime.path_type, help="as config.data.cache_dir"
    )
    parser.add_argument(
        "--sheet",
        default="data_check.png",
        type=runtime.path_type,
        help="contact sheet to write (an existing file is replaced)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead")


def check_retired_flags(words: Iterable[str]) -> None:
    """Raise UserError with the new name of a retired flag."""
    for word in words:
        old = word.partition("=")[0]
        if old in RETIRED_FLAGS:
            raise UserError(f"{old} is {RETIRED_FLAGS[old]} now")


def fill_in_defaults(
    arguments: argparse.Namespace, config: Any = None
) -> argparse.Namespace:
    """Fill in flags that are not set, from the config or as in configs/folder.py."""
    flags = [name for name in FIELDS if getattr(arguments, name) is not None]
    if config is not None:
        for name in flags:
            field = f"{FIELDS[name].section}.{FIELDS[name].name}"
            raise UserError(
                f"--{name} cannot be used with --config: use "
                f"--config.{field}={getattr(arguments, name)} instead"
            )
        if "data" not in config or config.data.source != "folder":
            raise UserError("--config: check needs config.data.source=folder")
    values = {name: field.default for name, field in FIELDS.items()}
    if config is not None:
        for name in ("path", "cache_dir"):
            if text := config.data[name]:
                config.data[name] = str(user_path(text, f"config.data.{name}"))
        values = {name: config[f.section][f.name] for name, f in FIELDS.items()}
        arguments.dir = arguments.dir or config.data.path
    elif "stride" in flags:
        values["fps"] = 0.0
    if not arguments.dir:
        raise UserError("pass the folder of videos, or --config.data.path=FOLDER")
    values |= {name: getattr(arguments, name) for name in flags}
    return argparse.Namespace(**vars(arguments) | values)


def run(arguments: argparse.Namespace, config: Any = None) -> str:
    """Check a folder; return the text to print.

    config: of train.py; its fields define a clip.

    Raises UserError if no video is usable.
    """
    arguments = fill_in_defaults(arguments, config)
    for name, most in (("validation_fraction", 0.9), ("max_bad_fraction", 1)):
        if not 0 <= getattr(arguments, name) <= most:
            raise UserError(f"{name}={getattr(arguments, name)}: from 0 to {most}")
    shape = ClipShape(
        arguments.num_frames, arguments.height, arguments.width,
        stride=arguments.stride, fps=arguments.fps or 0.0,
    )  # fmt: skip
    make_folder(Path(arguments.sheet).parent)
    cache_dir = arguments.cache_dir or cache.default_folder()
    decoder, store = SandboxedDecoder(), cache.IndexStore(cache_dir)
    files, report = folder_index.scan(arguments.dir, shape, store, decoder)
    files, corrupt, previews, still = _decode(files, shape, decoder)
    decoder.close()
    skipped = sorted([*report.skipped, *corrupt])
    if not files:
        raise UserError(folder_index.no_usable_videos_message(report, skipped))
    fraction = len(skipped) / report.num_videos
    facts = {
        "folder": report.root,
        "videos": report.num_videos,
        "usable": len(files),
        "skipped": [{"file": name, "reason": reason} for name, reason in skipped],
        **_statistics(files, shape, arguments.validation_fraction),
        "rejected": fraction > arguments.max_bad_fraction,
        "without_motion": still,
        "missing": list(report.unmatched),
        "ignored": dict(report.ignored),
        "sheet": str(arguments.sheet),
    }
    text = json.dumps(facts, indent=1)
    if not arguments.json:
        text = _text(facts, shape) + (
            f"\ntraining rejects this folder: {fraction:.2f} of it is skipped, more "
            f"than config.data.max_bad_fraction={arguments.max_bad_fraction}"
        ) * bool(facts["rejected"])
    labels = [_row_label(file) for file in files[:SHEET_ROWS]]
    try:
        video_io.write_sheet(arguments.sheet, previews, labels=labels, overwrite=True)
    except (OSError, UserError) as error:
        print(text)  # it took long to compute
        message = f"--sheet={arguments.sheet} cannot be written: {error}"
        raise UserError(message) from error
    return text


def _decode(files: Iterable[VideoFile], shape: ClipShape, decoder: SandboxedDecoder):
    """Decode every file completely.

    Returns the intact files, (name, reason) of the others, PREVIEW_FRAMES frames of the
    first SHEET_ROWS intact files, and the names of the files without motion.
    """

    def decode(file: VideoFile):
        try:
            return decoder.decode_previews(file.info, shape.size, PREVIEW_FRAMES)
        except BadVideo as error:
            return error.reason

    intact, corrupt, previews, still = [], [], [], []
    files = list(files)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(decode, files)
        progress = tqdm(results, "decoding", len(files), leave=False, disable=None)
        for file, result in zip(files, progress, strict=True):
            if isinstance(result, str):
                corrupt.append((file.name, result))
                continue
            frames, moves = result
            intact.append(file)
            if len(previews) < SHEET_ROWS:
                previews.append(frames)
            if not moves:
                still.append(file.name)
    return intact, corrupt, previews, still


def _statistics(files: list[VideoFile], shape: ClipShape, fraction: float) -> dict:
    """Return statistics of the usable files as plain data."""
    infos = [file.info for file in files]
    train, held_out = folder_index.split_files(files, fraction, shape)
    seconds = [info.duration for info in infos if info.duration]

    def num_clips(part: Iterable[VideoFile]) -> int:
        return sum(len(folder_index.clip_ranges(file, shape)) for file in part)

    return {
        "clips": num_clips(train),
        "held_out_clips": num_clips(held_out),
        "held_out_files": [file.name for file in held_out],
        "containers": _count(info.kind for info in infos),
        "codecs": _count(info.codec for info in infos),
        "fps": _count(f"{info.fps:.4g}" for info in infos if info.fps),
        "without_fps": sum(info.fps is None for info in infos),
        "variable_rate": [file.name for file in files if file.info.variable],
        "frame_selection": _count(
            video_io.describe_frame_selection(info, shape.stride, shape.fps)
            for info in infos
        ),
        "sizes": _count(f"{info.width}x{info.height}" for info in infos),
        "upscaled": [
            file.name
            for file in files
            if file.info.height < shape.height or file.info.width < shape.width
        ],
        "frames": _spread([info.frames for info in infos]),
        "seconds": _spread(seconds) | {"total": round(float(np.sum(seconds)), 2)},
        "labels": _count(file.label for file in files if file.label is not None),
        "without_label": sum(file.label is None for file in files),
        "captioned": sum(bool(file.captions) for file in files),
        "captions": sum(len(file.captions) for file in files),
    }


def _count(values: Iterable[str]) -> dict[str, int]:
    """Return the number of each value, the most frequent first."""
    return dict(collections.Counter(values).most_common())


def _spread(values: list) -> dict[str, float]:
    """Return minimum, median and maximum; {} for no values."""
    if not values:
        return {}
    quantiles = np.percentile(values, [0, 50, 100])
    names = ("min", "median", "max")
    return {n: round(float(q), 2) for n, q in zip(names, quantiles, strict=True)}


def _row_label(file: VideoFile) -> str:
    label = f" [{file.label}]" if file.label else ""
    text = f" {file.captions[0]}" if file.captions else ""
    return printable(f"{file.name}{label}{text}")


def _text(facts: dict, shape: ClipShape) -> str:
    """Return the facts as text."""
    rows = [*_usage_rows(facts, shape), *_format_rows(facts), *_condition_rows(facts)]
    remarks = (
        ("held_out_files", "held out"),
        ("variable_rate", "varying"),
        ("upscaled", "upscaled"),
        ("without_motion", "no motion"),
        ("missing", "missing"),
    )
    rows += [(title, _names(facts[name])) for name, title in remarks if facts[name]]
    if facts["ignored"]:
        rows.append(("ignored", layout.describe_ignored(facts["ignored"])))
    rows.append(("sheet", str(Path(facts["sheet"]))))
    return "\n".join(f"{title:<9} {printable(text)}" for title, text in rows)


def _usage_rows(facts: dict, shape: ClipShape) -> list[tuple[str, str]]:
    return [
        ("videos", f"{facts['videos']} in {facts['folder']}"),
        ("usable", str(facts["usable"])),
        ("skipped", str(len(facts["skipped"]))),
        *(("", f"{item['file']}: {item['reason']}") for item in facts["skipped"]),
        (
            "clips",
            f"{facts['clips']} for training, {facts['held_out_clips']} held out, each "
            f"of {shape.frames} frames of {shape.width}x{shape.height}",
        ),
    ]


def _format_rows(facts: dict) -> list[tuple[str, str]]:
    def spread(name: str) -> str:
        return "{min:g} to {max:g}, median {median:g}".format(**facts[name])

    rows = [
        ("selection", _counts(facts["frame_selection"])),
        ("container", _counts(facts["containers"])),
        ("codec", _counts(facts["codecs"])),
        ("fps", _counts(facts["fps"]) or "no frame rate (folders of frames)"),
        ("size", _counts(facts["sizes"])),
        ("frames", spread("frames")),
    ]
    if facts["seconds"].get("max"):
        total = facts["seconds"]["total"]
        rows.append(("seconds", f"{spread('seconds')}, total {total:g}"))
    return rows


def _condition_rows(facts: dict) -> list[tuple[str, str]]:
    labels = _counts(facts["labels"]) or "none: fewer than two subfolders have videos"
    if facts["labels"] and facts["without_label"]:
        labels += f"; {facts['without_label']} videos without"
    captions = (
        f"{facts['captions']} for {facts['captioned']} of {facts['usable']} videos"
    )
    return [("labels", labels), ("captions", captions)]


def _counts(values: dict[str, int], most: int = 6) -> str:
    """Return the most frequent values with their numbers."""
    items = list(values.items())
    text = ", ".join(f"{value} ({number})" for value, number in items[:most])
    return text + f" and {len(items) - most} more" * (len(items) > most)


def _names(names: list[str], most: int = 3) -> str:
    """Return the number of names and the first of them."""
    text = ", ".join(names[:most])
    return f"{len(names)}: {text}" + ", ..." * (len(names) > most)
