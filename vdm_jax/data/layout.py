"""How a folder of videos is read: which files are videos, their labels, their captions.

A folder that holds png or jpg files, no video and no subfolder is one video, its frames
in natural order. Hidden files are left alone; a symbolic link may point anywhere inside
the folder and nowhere else.
"""

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path

from vdm_jax.errors import UserError
from vdm_jax.video_io.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES

MAX_CAPTION_BYTES = 1 << 20  # of one sidecar file: several thousand sentences
CAPTIONS = "captions.jsonl"

Dropped = tuple[str, str]  # name, reason


@dataclasses.dataclass(frozen=True)
class Found:
    """What lies in a folder: names relative to it, in sorted order."""

    root: Path
    videos: tuple[str, ...]
    skipped: tuple[Dropped, ...]

    def path(self, name: str) -> str:
        """The file, or folder of frames, of a name."""
        return os.path.normpath(self.root / name)


def find(path: str | os.PathLike) -> Found:
    """Find the videos below a folder. Raises UserError if it is none."""
    root = Path(path)
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise UserError(f"{root} {what}: give the folder that holds the videos")
    root = root.resolve()
    videos, skipped = [], []

    def unreadable(error: OSError) -> None:
        skipped.append((_relative(root, str(error.filename)), str(error.strerror)))

    for place, folders, files in os.walk(root, onerror=unreadable):
        visible = [name for name in folders if not name.startswith(".")]
        links = [name for name in visible if os.path.islink(os.path.join(place, name))]
        for name in links:
            reason = "symlink to a folder: not followed"
            skipped.append((_relative(root, os.path.join(place, name)), reason))
        folders[:] = sorted(set(visible) - set(links))
        for name in _candidates(files, leaf=not visible):
            path = os.path.join(place, name)
            reason = _bad_link(root, path)
            if reason:
                skipped.append((_relative(root, path), reason))
            else:
                videos.append(_relative(root, path))
    return Found(root, tuple(sorted(videos)), tuple(sorted(skipped)))


def _candidates(files: list[str], leaf: bool) -> list[str]:
    """Videos among the files of one folder; "." if the folder itself is one."""
    files = [name for name in files if not name.startswith(".")]
    videos = [name for name in files if _suffix(name) in VIDEO_SUFFIXES]
    frames = any(_suffix(name) in IMAGE_SUFFIXES for name in files)
    return ["."] if frames and leaf and not videos else videos


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _relative(root: Path, path: str) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _bad_link(root: Path, path: str) -> str | None:
    """Why a path must not be followed: it, or a frame in it, links out of the root."""
    inside = os.scandir(path) if os.path.isdir(path) else ()
    for place in [path, *(entry.path for entry in inside)]:
        if os.path.islink(place):
            if not os.path.exists(place):
                return "broken symlink"
            if not Path(place).resolve().is_relative_to(root):
                return "symlink that leaves the folder"
    return None


def labels(names: Iterable[str]) -> dict[str, str]:
    """The label of each name: its first-level subfolder.

    Empty unless at least two subfolders hold videos. What lies in the root has no
    label, and that includes a subfolder that is itself a video (its frames).
    """
    first = {name: name.split("/")[0] for name in names if "/" in name}
    return first if len(set(first.values())) > 1 else {}


def captions(
    found: Found,
) -> tuple[dict[str, tuple[str, ...]], list[Dropped], list[str]]:
    """Captions by name, from ``a.txt`` beside ``a.mp4`` and from captions.jsonl.

    Returns the captions, the videos whose sidecar cannot be read with the reason, and
    the files that captions.jsonl names but the folder lacks. Raises UserError for a
    line of captions.jsonl that is not what docs/data.md says.
    """
    listed = _jsonl(found.root / CAPTIONS)
    texts, dropped = {}, []
    for name in found.videos:
        path = Path(found.path(name))
        stem = path.name if path.is_dir() else path.stem
        try:
            # the root as one video has no place beside it that belongs to the data
            beside = _sidecar(path.parent / f"{stem}.txt") if name != "." else []
        except (OSError, ValueError) as error:
            dropped.append((name, f"caption {stem}.txt: {error}"))
            continue
        texts[name] = (*beside, *listed.pop(name, ()))
    taken = {name for name, _ in dropped}
    return texts, dropped, sorted(set(listed) - taken)


def every_caption(path: str | os.PathLike) -> tuple[list[str], list[Dropped]]:
    """All captions of a folder of videos, of a captions.jsonl or of a file of lines.

    And the videos whose captions cannot be read. UserError where there is no caption.
    """
    path = Path(path)
    dropped: list[Dropped] = []
    rule = (
        f"give a folder of videos with a.txt beside a.mp4, {CAPTIONS}, or a text file "
        "with one caption a line"
    )
    if path.is_dir():
        by_name, dropped, _ = captions(find(path))
    elif path.suffix == ".jsonl":
        by_name = _jsonl(path)
    else:
        try:
            by_name = {path.name: _lines(path)}
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{path}: {reason}: {rule}") from error
    texts = [text for found in by_name.values() for text in found]
    if not texts:
        raise UserError(f"{path} has no captions: {rule}")
    return texts, dropped


def _sidecar(path: Path) -> list[str]:
    """One caption a line; empty lines do not count. ValueError: too long, not UTF-8."""
    if not path.is_file():
        return []
    if path.stat().st_size > MAX_CAPTION_BYTES:
        raise ValueError(f"larger than {MAX_CAPTION_BYTES} bytes")
    return _lines(path)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _jsonl(path: Path) -> dict[str, list[str]]:
    """{"file": "a.mp4", "caption": "..."} or "captions": [...], one object a line."""
    listed: dict[str, list[str]] = {}
    if not path.is_file():
        return listed
    rule = '{"file": "a.mp4", "caption": "..."} or "captions": ["...", ...]'
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path} line {number}: not JSON ({error})") from error
        texts = entry.get("captions") if isinstance(entry, dict) else None
        if isinstance(entry, dict) and "caption" in entry:
            texts = [entry["caption"], *(texts or [])]
        if (
            not isinstance(texts, list)
            or not isinstance(entry.get("file"), str)
            or not all(isinstance(text, str) for text in texts)
        ):
            raise UserError(f"{path} line {number}: each line is {rule}")
        name = Path(os.path.normpath(entry["file"])).as_posix()
        kept = [text.strip() for text in texts if text.strip()]
        listed.setdefault(name, []).extend(kept)
    return listed
