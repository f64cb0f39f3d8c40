"""How a folder of videos is read: which files are videos, their labels, their captions.

A folder that holds pictures, and neither a video nor a subfolder with videos or
pictures, is one video, its frames in natural order. Hidden files are left alone. One
rule holds for symbolic links to videos, frames and captions: what a link leads to is
read if it is a file inside the folder. What is not read is counted.

Names are UTF-8 in every locale; a byte that is not stands in them as Python's
surrogateescape has it.
"""

import collections
import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vdm_jax.errors import UserError, printable
from vdm_jax.files import (
    CorruptFile,
    parse_json,
    read_text,
    split_lines,
    why_invalid_text,
)
from vdm_jax.video_io.file_types import IMAGE_SUFFIXES, VIDEO_SUFFIXES

MAX_CAPTION_BYTES = 1 << 20  # of one sidecar file: several thousand sentences
MAX_JSONL_BYTES = 1 << 30  # of all captions: ten million sentences
CAPTIONS_FILE = "captions.jsonl"
MEDIA = VIDEO_SUFFIXES | IMAGE_SUFFIXES
# Of file managers, archivers and network disks: as if they were hidden.
SYSTEM_NAMES = frozenset(
    ["@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", "lost+found"]
)

Skipped = tuple[str, str]  # name, reason


@dataclasses.dataclass(frozen=True)
class Listing:
    """What lies in a folder: names relative to it, in sorted order."""

    root: Path
    videos: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    ignored: Mapping[str, int]  # suffix, or what else they are -> files not looked at

    def path(self, name: str) -> str:
        """The file, or folder of frames, of a name."""
        name = os.fsdecode(name.encode("utf-8", "surrogateescape"))
        return os.path.normpath(self.root / name)


def find_videos(path: str | os.PathLike) -> Listing:
    """Find the videos below a folder. Raises UserError if it is none."""
    root = Path(path)
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise UserError(f"{root} {what}: give the folder that holds the videos")
    root = root.resolve()
    skipped: list[Skipped] = []

    def unreadable(error: OSError) -> None:
        skipped.append((_relative(root, str(error.filename)), str(error.strerror)))

    places: dict[str, list[str]] = {}  # folder -> the files in it
    others: collections.Counter[str] = collections.Counter()
    for place, folders, files in os.walk(root, onerror=unreadable):
        hidden = [name for name in (*folders, *files) if _is_hidden(name)]
        others["hidden"] += len(hidden)
        visible = sorted({*folders} - {*hidden})
        links = [name for name in visible if os.path.islink(os.path.join(place, name))]
        for name in links:
            reason = "symlink to a folder: not followed"
            skipped.append((_relative(root, os.path.join(place, name)), reason))
        folders[:] = [name for name in visible if name not in links]
        places[place] = sorted({*files} - {*hidden})
        others["empty folder"] += not folders and not files
    branches = {  # folders with media somewhere below them
        str(parent)
        for place, files in places.items()
        if any(_suffix(name) in MEDIA for name in files)
        for parent in Path(place).parents
    }
    videos, read = [], {str(root / CAPTIONS_FILE)}
    for place, files in places.items():
        for name in _candidates(files, leaf=place not in branches):
            path = os.path.normpath(os.path.join(place, name))
            found = _relative(root, path)
            reason = _bad_link(root, path)
            if reason:
                skipped.append((found, reason))
            else:
                videos.append(found)
            read |= {path, str(_sidecar(Path(path)))}
        if place in read:  # frames of one video
            files = [name for name in files if _suffix(name) not in IMAGE_SUFFIXES]
        for name in files:
            others[_suffix(name) or "no suffix"] += (
                os.path.join(place, name) not in read
            )
    return Listing(root, tuple(sorted(videos)), tuple(sorted(skipped)), +others)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_NAMES


def _candidates(files: list[str], leaf: bool) -> list[str]:
    """Videos among the files of one folder; "." if the folder itself is one."""
    videos = [name for name in files if _suffix(name) in VIDEO_SUFFIXES]
    frames = any(_suffix(name) in IMAGE_SUFFIXES for name in files)
    return ["."] if frames and leaf and not videos else videos


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _relative(root: Path, path: str) -> str:
    name = Path(os.path.relpath(path, root)).as_posix()
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def _bad_link(root: Path, path: str | os.PathLike) -> str | None:
    """Why a path must not be followed: it, or a frame in it, links out of the root."""
    inside = os.scandir(path) if os.path.isdir(path) else ()
    for place in [path, *(entry.path for entry in inside)]:
        if os.path.islink(place):
            if not os.path.exists(place):
                return "broken symlink"
            if not Path(place).resolve().is_relative_to(root):
                return "symlink that leaves the folder"
    return None


def describe_ignored(others: Mapping[str, int]) -> str:
    """The files that were not looked at, the most frequent kind first."""
    counted = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number} {printable(kind)}" for kind, number in counted)


def folder_labels(names: Iterable[str]) -> dict[str, str]:
    """The label of each name: its first-level subfolder, as it can be shown.

    Empty unless at least two subfolders hold videos. What lies in the root has no
    label, and that includes a subfolder that is itself a video (its frames).
    """
    first = {name: printable(name.split("/")[0]) for name in names if "/" in name}
    return first if len(set(first.values())) > 1 else {}


def read_captions(
    found: Listing,
) -> tuple[dict[str, tuple[str, ...]], list[Skipped], list[str]]:
    """Captions by name, from ``a.txt`` beside ``a.mp4`` and from captions.jsonl.

    Returns the captions, the videos whose sidecar cannot be read with the reason, and
    the files that captions.jsonl names but the folder lacks. Raises UserError for a
    line of captions.jsonl that is not what docs/data.md says.
    """
    path = found.root / CAPTIONS_FILE
    listed = {}
    try:
        if _is_readable(found.root, path):
            listed = _jsonl(path)
    except CorruptFile as error:
        raise UserError(f"{path}: {error}") from error
    texts, dropped = {}, []
    for name in found.videos:
        path = _sidecar(Path(found.path(name)))
        try:
            # the root as one video has no place beside it that belongs to the data
            beside = _sidecar_captions(found.root, path) if name != "." else []
        except (OSError, CorruptFile) as error:
            reason = getattr(error, "strerror", None) or error
            dropped.append((name, f"caption {path.name}: {reason}"))
            continue
        texts[name] = (*beside, *listed.pop(name, ()))
    taken = {name for name, _ in dropped}
    return texts, dropped, sorted(set(listed) - taken)


def read_all_captions(path: str | os.PathLike) -> tuple[list[str], list[Skipped]]:
    """All captions of a folder of videos, of a captions.jsonl or of a file of lines.

    And the videos whose captions cannot be read. UserError where there is no caption.
    """
    path = Path(path)
    dropped: list[Skipped] = []
    rule = (
        f"give a folder of videos with a.txt beside a.mp4, {CAPTIONS_FILE}, or a text file "
        "with one caption a line"
    )
    if path.is_dir():
        by_name, dropped, _ = read_captions(find_videos(path))
    elif path.suffix == ".jsonl":
        by_name = _jsonl(path)
    else:
        try:
            by_name = {path.name: _lines(path, MAX_JSONL_BYTES)}
        except (OSError, CorruptFile) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{path}: {reason}: {rule}") from error
    texts = [text for found in by_name.values() for text in found]
    if not texts:
        raise UserError(f"{path} has no captions: {rule}")
    return texts, dropped


def _sidecar(video: Path) -> Path:
    """Where the captions of a video file, or of a folder of frames, stand beside it."""
    stem = video.name if video.is_dir() else video.stem
    return video.parent / f"{stem}.txt"


def _sidecar_captions(root: Path, path: Path) -> list[str]:
    """The captions of a sidecar file, if there is one. Raises CorruptFile, OSError."""
    return _lines(path, MAX_CAPTION_BYTES) if _is_readable(root, path) else []


def _is_readable(root: Path, path: Path) -> bool:
    """Whether a data folder has this file; CorruptFile if it is none to read."""
    if reason := _bad_link(root, path):
        raise CorruptFile(reason)
    if path.exists() and not path.is_file():
        raise CorruptFile("not a regular file")
    return path.exists()


def _lines(path: Path, limit: int) -> list[str]:
    """One caption a line; empty lines do not count."""
    return [row.strip() for row in split_lines(read_text(path, limit)) if row.strip()]


def _jsonl(path: Path) -> dict[str, list[str]]:
    """{"file": "a.mp4", "caption": "..."} or "captions": [...], one object a line."""
    listed: dict[str, list[str]] = {}
    rule = '{"file": "a.mp4", "caption": "..."} or "captions": ["...", ...]'
    try:
        rows = split_lines(read_text(path, MAX_JSONL_BYTES))
    except (OSError, CorruptFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: {reason}") from error
    for number, line in enumerate(rows, start=1):
        if not line.strip():
            continue
        try:
            entry = parse_json(line)
        except CorruptFile as error:
            raise UserError(f"{path} line {number}: {error}") from error
        texts = _entry_captions(entry)
        if texts is None:
            raise UserError(f"{path} line {number}: each line is {rule}")
        for text in texts:
            if reason := why_invalid_text(text):
                raise UserError(f"{path} line {number}: a caption {reason}")
        name = Path(os.path.normpath(entry["file"])).as_posix()
        kept = [text.strip() for text in texts if text.strip()]
        listed.setdefault(name, []).extend(kept)
    return listed


def _entry_captions(entry: Any) -> list[str] | None:
    """The captions of a line of captions.jsonl; None if it is no such line."""
    if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
        return None
    one, several = entry.get("caption"), entry.get("captions")
    texts = [] if one is None else [one]
    if several is not None or not texts:  # null is as good as absent
        if not isinstance(several, list):
            return None
        texts += several
    return texts if all(isinstance(text, str) for text in texts) else None
