"""Check a folder of videos before training.

``python -m vdm_jax.data check DIR`` reports what training would use: every file is
indexed as in training, and then decoded completely.
"""

import argparse
import collections
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax import runtime, settings, video_io
from vdm_jax.data import folder_index, layout
from vdm_jax.data.clip_shape import ClipShape
from vdm_jax.data.folder_index import VideoFile
from vdm_jax.errors import UserError, printable
from vdm_jax.files import cache_folder, make_folder, user_path
from vdm_jax.settings.sections import Data, TopLevel, Video
from vdm_jax.video_io import BadVideo, cache
from vdm_jax.video_io.sandbox import SandboxedDecoder

PREVIEW_FRAMES = 8  # per video in the contact sheet
SHEET_ROWS = 40  # videos in the contact sheet

# What is checked of a config; the defaults are those of configs/folder.py.
SECTIONS = {"": TopLevel(), "video": Video(), "data": Data(target_fps=8.0)}
# Flag -> section and name of the field that it sets.
FLAGS = {"num_frames": ("video", "frames"), "fps": ("data", "target_fps")}
FLAGS |= {name: ("video", name) for name in ("height", "width")}
FLAGS |= {
    name: ("data", name)
    for name in ("stride", "validation_fraction", "max_bad_fraction", "cache_dir")
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
    for name, (section, field) in FLAGS.items():
        declared = settings.settings_of(SECTIONS[section])[field]
        text = f"as config.{section}.{field}: {declared.metadata['meaning']}"
        kind: Any = declared.type
        parser.add_argument(f"--{name}", type=kind, help=text.replace("%", "%%"))
    parser.add_argument(
        "--sheet", default="data_check.png", type=runtime.path_type,
        help="contact sheet to write (an existing file is replaced)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead")


def fill_in_config(arguments: argparse.Namespace, config: Any = None) -> Any:
    """Return the config, or that of configs/folder.py, with what the flags set."""
    set_flags = {name: getattr(arguments, name) for name in FLAGS}
    set_flags = {name: v for name, v in set_flags.items() if v is not None}
    if config is None:
        config = settings.compose(SECTIONS)
        if "stride" in set_flags:
            config.data.target_fps = 0.0
        for name, value in set_flags.items():
            section, field = FLAGS[name]
            config[section][field] = value
    elif set_flags:
        name, value = next(iter(set_flags.items()))
        raise UserError(
            f"--{name} cannot be used with --config: use "
            f"--config.{'.'.join(FLAGS[name])}={value} instead"
        )
    if "data" not in config or config.data.get("source") != "folder":
        raise UserError("--config: check needs config.data.source=folder")
    config.data.path = str(arguments.dir or config.data.path)
    if not config.data.path:
        raise UserError("pass the folder of videos, or --config.data.path=FOLDER")
    for name in ("path", "cache_dir"):
        if text := config.data[name]:
            config.data[name] = str(user_path(text, f"config.data.{name}"))
    settings.check_config(config, SECTIONS)
    return config


def run(arguments: argparse.Namespace, config: Any = None) -> str:
    """Check a folder; return the text to print.

    config: of train.py; its fields define a clip.

    Raises UserError if no video is usable.
    """
    config = fill_in_config(arguments, config)
    data, shape, sheet = config.data, ClipShape.from_config(config), arguments.sheet
    make_folder(Path(sheet).parent)
    decoder = SandboxedDecoder()
    store = cache.IndexStore(data.cache_dir or cache_folder())
    files, report = folder_index.scan(data.path, shape, store, decoder)
    files, corrupt, previews, still = _decode(files, shape, decoder)
    decoder.close()
    skipped = sorted([*report.skipped, *corrupt])
    if not files:
        raise UserError(folder_index.no_usable_videos_message(report, skipped))
    fraction = len(skipped) / report.num_videos
    facts = {
        "folder": str(report.root),
        "videos": report.num_videos,
        "usable": len(files),
        "skipped": [{"file": name, "reason": reason} for name, reason in skipped],
        **_statistics(files, shape, data.validation_fraction),
        "rejected": fraction > data.max_bad_fraction,
        "without_motion": still,
        "missing": list(report.unmatched),
        "ignored": dict(report.ignored),
        "sheet": str(sheet),
    }
    text = json.dumps(facts, indent=1) if arguments.json else _text(facts, shape)
    if facts["rejected"] and not arguments.json:
        text += (
            f"\ntraining rejects this folder: {fraction:.2f} of it is skipped, more "
            f"than config.data.max_bad_fraction={data.max_bad_fraction}"
        )
    labels = [_row_label(file) for file in files[:SHEET_ROWS]]
    try:
        video_io.write_sheet(sheet, previews, labels=labels, overwrite=True)
    except (OSError, UserError) as error:
        print(text)  # it took long to compute
        raise UserError(f"--sheet={sheet} cannot be written: {error}") from error
    return text


def _decode(files: Sequence[VideoFile], shape: ClipShape, decoder: SandboxedDecoder):
    """Decode every file completely.

    Returns the intact files, (name, reason) of the others, PREVIEW_FRAMES frames of the
    first SHEET_ROWS intact files, and the names of the files without motion.
    """

    def decode(file: VideoFile) -> tuple[np.ndarray, bool]:
        return decoder.decode_previews(file.info, shape.size, PREVIEW_FRAMES)

    intact, corrupt, previews, still = [], [], [], []
    results = folder_index.map_videos(decode, files, "decoding")
    for file, result in zip(files, results, strict=True):
        if isinstance(result, BadVideo):
            corrupt.append((file.name, result.reason))
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


# Titles of the text, and the facts that they show.
COUNTS = {
    "selection": "frame_selection", "container": "containers", "codec": "codecs",
    "fps": "fps", "size": "sizes",
}  # fmt: skip
NAMES = {
    "held out": "held_out_files", "varying": "variable_rate", "upscaled": "upscaled",
    "no motion": "without_motion", "missing": "missing",
}  # fmt: skip


def _text(facts: dict, shape: ClipShape) -> str:
    """Return the facts as text."""
    labels = _counts(facts["labels"]) or "none: fewer than two subfolders have videos"
    if facts["labels"] and facts["without_label"]:
        labels += f"; {facts['without_label']} videos without"
    spread = "{min:g} to {max:g}, median {median:g}"
    rows = [
        ("videos", f"{facts['videos']} in {facts['folder']}"),
        ("usable", str(facts["usable"])),
        ("skipped", str(len(facts["skipped"]))),
        *(("", f"{item['file']}: {item['reason']}") for item in facts["skipped"]),
        (
            "clips",
            f"{facts['clips']} for training, {facts['held_out_clips']} held out, each "
            f"of {shape.frames} frames of {shape.width}x{shape.height}",
        ),
        *((title, _counts(facts[name])) for title, name in COUNTS.items()),
        ("frames", spread.format(**facts["frames"])),
    ]
    if "max" in facts["seconds"]:
        text = (spread + ", total {total:g}").format(**facts["seconds"])
        rows.append(("seconds", text))
    captions = f"{facts['captions']} for {facts['captioned']} of {facts['usable']}"
    rows += [
        ("labels", labels),
        ("captions", f"{captions} videos"),
        *((title, _names(facts[name])) for title, name in NAMES.items()),
        ("ignored", layout.describe_ignored(facts["ignored"])),
        ("sheet", facts["sheet"]),
    ]
    return "\n".join(f"{title:<9} {printable(text)}" for title, text in rows if text)


def _counts(values: dict[str, int], most: int = 6) -> str:
    """Return the most frequent values with their numbers."""
    items = list(values.items())
    text = ", ".join(f"{value} ({number})" for value, number in items[:most])
    return text + f" and {len(items) - most} more" * (len(items) > most)


def _names(names: list[str], most: int = 3) -> str:
    """Return the number of names and the first of them; "" for none."""
    if not names:
        return ""
    return f"{len(names)}: {', '.join(names[:most])}" + ", ..." * (len(names) > most)
