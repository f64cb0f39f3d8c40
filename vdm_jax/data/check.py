"""Look a folder of videos over before training on it.

``python -m vdm_jax.data check DIR`` prints what training would find: every file is
indexed as training does it and then decoded to its end.
"""

import argparse
import collections
import concurrent.futures
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vdm_jax import runtime, video_io
from vdm_jax.data import folder, layout
from vdm_jax.data.folder import ClipShape, VideoFile
from vdm_jax.errors import UserError, printable
from vdm_jax.files import make_folder, user_path
from vdm_jax.video_io import BadVideo, cache
from vdm_jax.video_io.sandbox import SandboxedDecoder

PREVIEW_FRAMES, SHEET_ROWS = 8, 40  # frames a video and videos in the contact sheet


# Flags that stand for fields of a config: those of configs/folder.py without them.
DEFAULTS = {
    "frames": ("video", 16), "height": ("video", 64), "width": ("video", 64),
    "fps": ("data", 8.0), "stride": ("data", 1), "held_out": ("data", 0.1),
    "max_bad_share": ("data", 0.2), "cache_dir": ("data", ""),
}  # fmt: skip
FIELDS = {
    "fps": "target_fps",
    "held_out": "validation_fraction",
    "max_bad_share": "max_bad_fraction",
}  # of the config, where a flag is called otherwise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``check``."""
    parser.add_argument(
        "dir", nargs="?", type=runtime.path_type,
        help="the folder of videos (default: config.data.path)",
    )  # fmt: skip
    parser.add_argument(
        "--config", metavar="FILE[:VARIANT]",
        help="check for this config of train.py; --config.a.b=value changes a field",
    )  # fmt: skip
    for name in ("frames", "height", "width"):
        parser.add_argument(f"--{name}", type=int, help="of a clip")
    taken = parser.add_mutually_exclusive_group()
    taken.add_argument("--fps", type=float, help="take frames at this rate")
    taken.add_argument("--stride", type=int, help="take one frame in N instead")
    parser.add_argument("--held-out", type=float, help="share of the files to hold out")
    parser.add_argument(
        "--max-bad-share", type=float, help="as config.data.max_bad_fraction"
    )
    parser.add_argument(
        "--cache-dir", type=runtime.path_type, help="as config.data.cache_dir"
    )
    parser.add_argument(
        "--sheet",
        default="data_check.png",
        type=runtime.path_type,
        help="contact sheet to write (replaced if it is there)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead")


def fill_in_defaults(
    arguments: argparse.Namespace, config: Any = None
) -> argparse.Namespace:
    """Fill in what is not given: from the config, else as configs/folder.py has it."""
    given = [name for name in DEFAULTS if getattr(arguments, name) is not None]
    if config is not None:
        for name in given:
            field = f"{DEFAULTS[name][0]}.{FIELDS.get(name, name)}"
            raise UserError(
                f"--{name.replace('_', '-')} goes without --config: beside it, "
                f"--config.{field}={getattr(arguments, name)}"
            )
        if "data" not in config or config.data.source != "folder":
            raise UserError("--config: the check is of config.data.source=folder")
    values = {name: default for name, (_, default) in DEFAULTS.items()}
    if config is not None:
        for name in ("path", "cache_dir"):
            if text := config.data[name]:
                config.data[name] = str(user_path(text, f"config.data.{name}"))
        values = {
            name: config[group][FIELDS.get(name, name)]
            for name, (group, _) in DEFAULTS.items()
        }
        arguments.dir = arguments.dir or config.data.path
    elif "stride" in given:
        values["fps"] = 0.0
    if not arguments.dir:
        raise UserError("give the folder of videos, or --config.data.path=FOLDER")
    values |= {name: getattr(arguments, name) for name in given}
    return argparse.Namespace(**vars(arguments) | values)


def run(arguments: argparse.Namespace, config: Any = None) -> str:
    """Check a folder; return the text to print. Raises UserError if nothing is kept.

    config: of train.py, whose fields then say what a clip is.
    """
    arguments = fill_in_defaults(arguments, config)
    for name, most in (("held_out", 0.9), ("max_bad_share", 1)):
        if not 0 <= getattr(arguments, name) <= most:
            raise UserError(f"{name}={getattr(arguments, name)}: from 0 to {most}")
    shape = ClipShape(
        arguments.frames, arguments.height, arguments.width,
        stride=arguments.stride, fps=arguments.fps or 0.0,
    )  # fmt: skip
    make_folder(Path(arguments.sheet).parent)
    place = arguments.cache_dir or cache.default_folder()
    guard = SandboxedDecoder()
    files, report = folder.scan(arguments.dir, shape, cache.IndexStore(place), guard)
    files, broken, previews, still = _decode(files, shape, guard)
    guard.close()
    dropped = sorted([*report.skipped, *broken])
    if not files:
        raise UserError(folder.no_usable_videos_message(report, dropped))
    share = len(dropped) / report.num_videos
    facts = {
        "folder": report.root,
        "found": report.num_videos,
        "kept": len(files),
        "dropped": [{"file": name, "reason": reason} for name, reason in dropped],
        **_facts(files, shape, arguments.held_out),
        "refused": share > arguments.max_bad_share,
        "still": still,
        "not_there": list(report.unmatched),
        "not_looked_at": dict(report.ignored),
        "sheet": str(arguments.sheet),
    }
    text = json.dumps(facts, indent=1)
    if not arguments.json:
        text = _text(facts, shape) + (
            f"\ntraining refuses this folder: {share:.2f} of it are dropped, more than "
            f"config.data.max_bad_fraction={arguments.max_bad_share}"
        ) * bool(facts["refused"])
    labels = [_caption(file) for file in files[:SHEET_ROWS]]
    try:
        video_io.write_sheet(arguments.sheet, previews, labels=labels, overwrite=True)
    except (OSError, UserError) as error:
        print(text)  # which took its time
        wrong = f"--sheet={arguments.sheet} cannot be written: {error}"
        raise UserError(wrong) from error
    return text


def _decode(files: Iterable[VideoFile], shape: ClipShape, guard: SandboxedDecoder):
    """Decode every file to its end.

    Returns the sound files, (name, reason) of the others, PREVIEWS frames of the first
    ROWS sound files, and the names of those in which nothing moves.
    """

    def survey(file: VideoFile):
        try:
            return guard.decode_previews(file.info, shape.size, PREVIEW_FRAMES)
        except BadVideo as error:
            return error.reason

    sound, broken, previews, still = [], [], [], []
    files = list(files)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(survey, files)
        progress = tqdm(results, "decoding", len(files), leave=False, disable=None)
        for file, result in zip(files, progress, strict=True):
            if isinstance(result, str):
                broken.append((file.name, result))
                continue
            sound.append(file)
            if len(previews) < SHEET_ROWS:
                previews.append(result[0])
            if not result[1]:
                still.append(file.name)
    return sound, broken, previews, still


def _facts(files: list[VideoFile], shape: ClipShape, share: float) -> dict:
    """Numbers about the files that are kept, as plain data."""
    infos = [file.info for file in files]
    train, out = folder.split_files(files, share, shape)
    rates = [f"{info.fps:.4g}" for info in infos if info.fps]
    seconds = [info.duration for info in infos if info.duration]
    captioned = [file for file in files if file.captions]
    return {
        "clips": sum(len(folder.clip_ranges(file, shape)) for file in train),
        "held_out_clips": sum(len(folder.clip_ranges(file, shape)) for file in out),
        "held_out_files": [file.name for file in out],
        "containers": _count(info.kind for info in infos),
        "codecs": _count(info.codec for info in infos),
        "fps": _count(rates),
        "without_clock": sum(info.fps is None for info in infos),
        "variable_rate": [f.name for f in files if f.info.variable],
        "taken": _count(
            video_io.describe_frame_selection(info, shape.stride, shape.fps)
            for info in infos
        ),
        "sizes": _count(f"{info.width}x{info.height}" for info in infos),
        "enlarged": [
            file.name
            for file in files
            if file.info.height < shape.height or file.info.width < shape.width
        ],
        "frames": _spread([info.frames for info in infos]),
        "seconds": _spread(seconds) | {"total": round(float(np.sum(seconds)), 2)},
        "labels": _count(file.label for file in files if file.label is not None),
        "without_label": sum(file.label is None for file in files),
        "captioned": len(captioned),
        "captions": sum(len(file.captions) for file in files),
    }


def _count(values: Iterable[str]) -> dict[str, int]:
    """Most frequent first."""
    return dict(collections.Counter(values).most_common())


def _spread(values: list) -> dict[str, float]:
    if not values:
        return {}
    low, middle, high = np.percentile(values, [0, 50, 100])
    return {
        "least": round(float(low), 2),
        "median": round(float(middle), 2),
        "most": round(float(high), 2),
    }


def _caption(file: VideoFile) -> str:
    label = f" [{file.label}]" if file.label else ""
    text = f" {file.captions[0]}" if file.captions else ""
    return printable(f"{file.name}{label}{text}")


def _text(facts: dict, shape: ClipShape) -> str:
    """The facts for a person to read."""

    def counts(name: str, most: int = 6) -> str:
        items = list(facts[name].items())
        shown = ", ".join(f"{value} ({number})" for value, number in items[:most])
        return shown + f" and {len(items) - most} more" * (len(items) > most)

    def names(name: str, most: int = 3) -> str:
        shown = ", ".join(facts[name][:most])
        return f"{len(facts[name])}: {shown}" + ", ..." * (len(facts[name]) > most)

    def spread(name: str) -> str:
        return "{least:g} to {most:g}, median {median:g}".format(**facts[name])

    rows = [
        ("found", f"{facts['found']} videos in {facts['folder']}"),
        ("kept", str(facts["kept"])),
        ("dropped", str(len(facts["dropped"]))),
        *(("", f"{item['file']}: {item['reason']}") for item in facts["dropped"]),
        (
            "clips",
            f"{facts['clips']} to train on, {facts['held_out_clips']} held out; each "
            f"{shape.frames} frames of {shape.width}x{shape.height}",
        ),
        ("taken", counts("taken")),
        ("kind", counts("containers")),
        ("codec", counts("codecs")),
        ("fps", counts("fps") or "no clock (folders of frames)"),
        ("size", counts("sizes")),
        ("frames", spread("frames")),
    ]
    if facts["seconds"].get("most"):
        total = facts["seconds"]["total"]
        rows.append(("seconds", f"{spread('seconds')}, in all {total:g}"))
    labelled = counts("labels") or "none: fewer than two subfolders hold videos"
    unlabelled = f"; {facts['without_label']} videos without" * bool(facts["labels"])
    rows.append(("labels", labelled + unlabelled * bool(facts["without_label"])))
    rows.append(
        (
            "captions",
            f"{facts['captioned']} of {facts['kept']} videos have one, "
            f"{facts['captions']} in all",
        )
    )
    remarks = (
        ("held_out_files", "held out"),
        ("variable_rate", "varying"),
        ("enlarged", "enlarged"),
        ("still", "no motion"),
        ("not_there", "not there"),
    )
    rows += [(title, names(name)) for name, title in remarks if facts[name]]
    if facts["not_looked_at"]:
        rows.append(("no video", layout.describe_ignored(facts["not_looked_at"])))
    rows.append(("sheet", str(Path(facts["sheet"]))))
    return "\n".join(f"{title:<9} {printable(text)}" for title, text in rows)
