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
from ml_collections import ConfigDict

from vdm_jax import runtime, settings, video_io
from vdm_jax.data import folder_index
from vdm_jax.data.clip_shape import ClipShape
from vdm_jax.data.folder_index import VideoFile
from vdm_jax.errors import UserError, printable
from vdm_jax.files import make_folder, user_path
from vdm_jax.settings.sections import Data, TopLevel, Video
from vdm_jax.video_io import BadVideo
from vdm_jax.video_io.sandbox import SandboxedDecoder

PREVIEW_FRAMES = 8  # per video in the contact sheet
SHEET_ROWS = 40  # videos in the contact sheet
MOST_SHOWN = 6  # values and names in the text; but every skipped file is named

# What is checked of a config; the defaults are those of configs/folder.py.
SECTIONS = {"": TopLevel(), "video": Video(), "data": Data(target_fps=8.0)}


def default_config() -> ConfigDict:
    """Return what the check reads of configs/folder.py."""
    return settings.compose(SECTIONS)


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
    parser.add_argument(
        "--sheet", default="data_check.png", type=runtime.path_type,
        help="contact sheet to write (an existing file is replaced)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead")


def set_folder(config: Any, folder: Path | None) -> None:
    """Set config.data.path to the folder, and check the config. Raises UserError."""
    if "data" not in config or config.data.get("source") != "folder":
        raise UserError("--config: check needs config.data.source=folder")
    config.data.path = str(folder or config.data.path)
    if not config.data.path:
        raise UserError("pass the folder of videos, or --config.data.path=FOLDER")
    for name in ("path", "cache_dir"):
        if text := config.data[name]:
            config.data[name] = str(user_path(text, f"config.data.{name}"))
    settings.check_config(config, SECTIONS)


def run(config: Any, sheet: Path, as_json: bool = False) -> None:
    """Check the folder of a config; print the facts, write the contact sheet.

    Raises UserError if no video is usable.
    """
    data, shape, decoder = (
        config.data,
        ClipShape.from_config(config),
        SandboxedDecoder(),
    )
    make_folder(sheet.parent)
    files, report = folder_index.scan(data.path, shape, data.cache_dir, decoder)
    files, corrupt, previews, still = _decode(files, shape, decoder)
    decoder.close()
    skipped = sorted([*report.skipped, *corrupt])
    if not files:
        raise UserError(folder_index.no_usable_videos_message(report, skipped))
    fraction, most = len(skipped) / report.num_videos, data.max_bad_fraction
    facts = {
        "folder": str(report.root),
        "videos": report.num_videos,
        "usable": len(files),
        "skipped": [f"{name}: {reason}" for name, reason in skipped],
        **_statistics(files, shape, data.validation_fraction),
        "without_motion": still,
        "missing": list(report.unmatched),
        "ignored": dict(report.ignored),
        "sheet": str(sheet),
    }
    if fraction > most:
        facts["rejected"] = (
            f"training rejects this folder: {fraction:.2f} of it is skipped, more than "
            f"config.data.max_bad_fraction={most}"
        )
    print(json.dumps(facts, indent=1) if as_json else _text(facts))
    labels = [_row_label(file) for file in files[:SHEET_ROWS]]
    video_io.write_sheet(sheet, previews, labels=labels, overwrite=True)


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
    parts = folder_index.split_files(files, fraction, shape)
    ranges = [
        [r for file in part for r in folder_index.clip_ranges(file, shape)]
        for part in parts
    ]
    return {
        "clip": f"{shape.frames} frames of {shape.width}x{shape.height}",
        "clips": len(ranges[0]),
        "held_out_clips": len(ranges[1]),
        "held_out_files": [file.name for file in parts[1]],
        "frame_selection": _count(map(shape.describe, infos)),
        "containers": _count(info.kind for info in infos),
        "codecs": _count(info.codec for info in infos),
        "fps": _count(f"{info.fps:.4g}" if info.fps else "none" for info in infos),
        "variable_rate": [file.name for file in files if file.info.variable],
        "sizes": _count(f"{info.width}x{info.height}" for info in infos),
        "upscaled": [
            file.name
            for file in files
            if file.info.height < shape.height or file.info.width < shape.width
        ],
        "frames": _spread([info.frames for info in infos]),
        "seconds": _spread([info.duration for info in infos if info.duration]),
        "labels": _count(file.label or "none" for file in files),
        "captioned": sum(bool(file.captions) for file in files),
        "captions": sum(len(file.captions) for file in files),
    }


def _count(values: Iterable[str]) -> dict[str, int]:
    """Return the number of each value, the most frequent first."""
    return dict(collections.Counter(values).most_common())


def _spread(values: list) -> dict[str, float]:
    """Return minimum, median, maximum and sum; {} for no values."""
    if not values:
        return {}
    spread = [*np.percentile(values, [0, 50, 100]), sum(values)]
    names = ("min", "median", "max", "total")
    return {n: round(float(v), 2) for n, v in zip(names, spread, strict=True)}


def _row_label(file: VideoFile) -> str:
    label = f" [{file.label}]" if file.label else ""
    text = f" {file.captions[0]}" if file.captions else ""
    return printable(f"{file.name}{label}{text}")


def _text(facts: dict[str, Any]) -> str:
    """Return the facts as text, without those that are zero or empty."""
    lines = []
    for name, value in facts.items():
        first, rows = value, []
        if isinstance(value, dict):
            counts = [f"{key}: {number:g}" for key, number in value.items()]
            first = ", ".join(_shorten(counts))
        elif isinstance(value, list):
            first, rows = len(value), value if name == "skipped" else _shorten(value)
        if value:
            lines += [f"{name.replace('_', ' '):<15} {first}"]
            lines += [f"  {row}" for row in rows]
    return "\n".join(map(printable, lines))


def _shorten(items: list[str]) -> list[str]:
    return items[:MOST_SHOWN] + ["..."] * (len(items) > MOST_SHOWN)
