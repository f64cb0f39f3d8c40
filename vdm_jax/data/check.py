"""Check a folder of videos, or of pictures, before training.

``python -m vdm_jax.data check DIR`` reports what training would use: every file is
indexed as in training, and then decoded completely.
"""

import collections
import json
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax import settings, video_io
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
MOST_VALUES = 6  # of a fact of the files, in the text

# What is checked of a config; the defaults are those of configs/folder.py.
SECTIONS = {"": TopLevel(), "video": Video(), "data": Data(target_fps=8.0)}


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
    data = config.data
    shape = ClipShape.from_config(config)
    decoder = SandboxedDecoder()
    make_folder(sheet.parent)
    indexed, report = folder_index.scan(data.path, shape, data.cache_dir, decoder)

    def decode(file: VideoFile) -> tuple[np.ndarray, bool]:
        previews = 1 if shape.frames == 1 else PREVIEW_FRAMES
        return decoder.decode_previews(file.info, shape.size, previews)

    files = []
    previews = []
    moving = {}
    skipped = [*report.skipped]
    results = folder_index.map_videos(decode, indexed, "decoding")
    for file, result in zip(indexed, results, strict=True):
        if isinstance(result, BadVideo):
            skipped.append((file.name, result.reason))
            continue
        frames, moving[file.name] = result
        files.append(file)
        if len(previews) < SHEET_ROWS:
            previews.append(frames)
    decoder.close()
    if not files:
        raise UserError(folder_index.no_usable_videos_message(report, skipped))
    parts = folder_index.split_files(files, data.validation_fraction, shape)
    fraction = len(skipped) / report.num_videos
    most = data.max_bad_fraction
    facts = {
        "folder": str(report.root),
        "videos": report.num_videos,
        "usable": len(files),
        "skipped": [f"{name}: {reason}" for name, reason in sorted(skipped)],
        "clip": f"{shape.frames} frames of {shape.width}x{shape.height}",
        "files": [
            _facts_of_file(file, shape, part=name, moves=moving[file.name])
            for name, part in zip(("training", "held out"), parts, strict=True)
            for file in part
        ],
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
    labels = [printable(" ".join((f.name, *f.captions[:1]))) for f in files]
    video_io.write_sheet(sheet, previews, labels=labels[:SHEET_ROWS], overwrite=True)


def _facts_of_file(file: VideoFile, shape: ClipShape, **more) -> dict[str, Any]:
    info = file.segment
    return {
        "file": file.name,
        **more,
        "clips": len(folder_index.clip_ranges(file, shape)),
        "selection": shape.describe(info),
        "container": info.kind,
        "codec": info.codec,
        "fps": f"{info.fps:.4g}" if info.fps else "none",
        "rate_varies": info.variable,
        "size": f"{info.width}x{info.height}",
        "upscaled": info.height < shape.height or info.width < shape.width,
        "frames": info.frames,
        "seconds": round(info.duration or 0.0, 2),
        "label": file.label or "none",
        "captions": len(file.captions),
    }


def _text(facts: dict[str, Any]) -> str:
    """Return the facts as text, a summary of the files first."""
    rows = facts.pop("files")
    summary = {
        name: _summary([row[name] for row in rows])
        for name in rows[0]
        if name != "file"
    }
    return as_text(summary | facts)


def as_text(facts: dict[str, Any]) -> str:
    """Return facts as text, one a line, without empty ones."""
    lines = []
    for name, value in facts.items():
        items = value if isinstance(value, list) else []
        if isinstance(value, dict):
            value = ", ".join(f"{key}: {number}" for key, number in value.items())
        if value:
            lines += [f"{name.replace('_', ' '):<12} {len(items) or value}"]
            lines += [f"  {item}" for item in items]
    return "\n".join(map(printable, lines))


def _summary(values: list) -> dict[Any, int] | str:
    """Return the numbers of the most frequent values; of numbers the range and sum."""
    if type(values[0]) in (int, float):
        return f"{min(values)} to {max(values)}, {sum(values):g} in total"
    return dict(collections.Counter(values).most_common(MOST_VALUES))
