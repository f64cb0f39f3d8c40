"""The layout of a folder of videos: which files are videos, their labels and captions.

A folder with images, without videos, and without videos or images in its subfolders, is
one video: its images are the frames in natural order. Hidden files are ignored. A
symbolic link to a video, frame or caption is followed if its target is a file inside
the folder. Ignored files are counted.

Names are UTF-8 in every locale. Other bytes are decoded with Python's surrogateescape.
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
    check_regular,
    parse_json,
    read_text,
    split_lines,
    why_invalid_text,
)
from vdm_jax.video_io.file_types import IMAGE_SUFFIXES, VIDEO_SUFFIXES

MAX_CAPTION_BYTES = 1 << 20  # per caption file: several thousand sentences
MAX_JSONL_BYTES = 1 << 30  # of captions.jsonl: ten million sentences
CAPTIONS_FILE = "captions.jsonl"
MEDIA = VIDEO_SUFFIXES | IMAGE_SUFFIXES
# Made by file managers, archivers and network disks. They count as hidden.
SYSTEM_NAMES = frozenset(
    ["@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", "lost+found"]
)

Skipped = tuple[str, str]  # name, reason


@dataclasses.dataclass(frozen=True)
class Listing:
    """The videos of a folder: names relative to it, in sorted order.

    Attributes:
      skipped: videos that cannot be used, with their reasons.
      ignored: suffix, or another kind -> number of files that were not read.
      unmatched: files of captions.jsonl that do not exist.
    """

    root: Path
    videos: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    ignored: Mapping[str, int]
    unmatched: tuple[str, ...] = ()

    @property
    def num_videos(self) -> int:
        return len(self.videos) + len(self.skipped)

    def path(self, name: str) -> str:
        """Return the file, or the folder of frames, of a name."""
        name = os.fsdecode(name.encode("utf-8", "surrogateescape"))
        return os.path.normpath(self.root / name)

    def summary_lines(self, most: int = 20) -> list[str]:
        """Return lines of text that name at most ``most`` of the skipped videos."""
        total, skipped = self.num_videos, len(self.skipped)
        lines = [
            f"{self.root}: {total} videos, {total - skipped} usable, {skipped} skipped",
            *(f"  {name}: {reason}" for name, reason in self.skipped[:most]),
        ]
        lines += [f"  ... and {skipped - most} more"] * (skipped > most)
        ignored = describe_ignored(self.ignored)
        lines += [f"  ignored files: {ignored}"] * bool(ignored)
        return list(map(printable, lines))


def find_videos(path: str | os.PathLike) -> Listing:
    """List the videos below a folder. Raises UserError if it is not a folder."""
    root = Path(path)
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise UserError(f"{root} {what}: pass the folder of the videos")
    root = root.resolve()
    skipped: list[Skipped] = []
    ignored: collections.Counter[str] = collections.Counter()
    files_by_folder = _walk(root, skipped, ignored)
    media_above = {  # folders with media in a subfolder
        str(parent)
        for folder, files in files_by_folder.items()
        if any(_suffix(name) in MEDIA for name in files)
        for parent in Path(folder).parents
    }
    videos, read = [], {str(root / CAPTIONS_FILE)}
    for folder, files in files_by_folder.items():
        for file in _candidates(files, is_leaf=folder not in media_above):
            path = os.path.normpath(os.path.join(folder, file))
            if reason := _why_bad_link(root, path):
                skipped.append((_relative(root, path), reason))
            else:
                videos.append(_relative(root, path))
            read |= {path, str(_caption_file(Path(path)))}
        if folder in read:  # its images are the frames of one video
            files = [name for name in files if _suffix(name) not in IMAGE_SUFFIXES]
        for name in files:
            if os.path.join(folder, name) not in read:
                ignored[_suffix(name) or "no suffix"] += 1
    return Listing(root, tuple(sorted(videos)), tuple(sorted(skipped)), +ignored)


def _walk(
    root: Path, skipped: list[Skipped], ignored: collections.Counter[str]
) -> dict[str, list[str]]:
    """Return the visible files of every folder below the root.

    Adds unreadable folders and linked folders to ``skipped``, and counts hidden files
    and empty folders in ``ignored``.
    """

    def unreadable(error: OSError) -> None:
        skipped.append((_relative(root, str(error.filename)), str(error.strerror)))

    files_by_folder: dict[str, list[str]] = {}
    for folder, subfolders, files in os.walk(root, onerror=unreadable):
        hidden = {name for name in (*subfolders, *files) if _is_hidden(name)}
        ignored["hidden"] += len(hidden)
        subfolders[:] = sorted({*subfolders} - hidden)
        for path in (os.path.join(folder, name) for name in subfolders):
            if os.path.islink(path):
                reason = "symlink to a folder: not followed"
                skipped.append((_relative(root, path), reason))
        files_by_folder[folder] = sorted({*files} - hidden)
        ignored["empty folder"] += not subfolders and not files
    return files_by_folder


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_NAMES


def _candidates(files: list[str], is_leaf: bool) -> list[str]:
    """Return the videos among the files of a folder; "." if it is a video itself."""
    videos = [name for name in files if _suffix(name) in VIDEO_SUFFIXES]
    images = any(_suffix(name) in IMAGE_SUFFIXES for name in files)
    return ["."] if images and is_leaf and not videos else videos


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _relative(root: Path, path: str) -> str:
    name = Path(os.path.relpath(path, root)).as_posix()
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def _why_bad_link(root: Path, path: str | os.PathLike) -> str | None:
    """Return why a path, or a frame in it, is a link that must not be followed."""
    content = os.scandir(path) if os.path.isdir(path) else ()
    for link in [path, *(entry.path for entry in content)]:
        if os.path.islink(link):
            if not os.path.exists(link):
                return "broken symlink"
            if not Path(link).resolve().is_relative_to(root):
                return "symlink that leaves the folder"
    return None


def describe_ignored(ignored: Mapping[str, int]) -> str:
    """Return the numbers of ignored files as text, the most frequent kind first."""
    counts = sorted(ignored.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number} {printable(kind)}" for kind, number in counts)


def folder_labels(names: Iterable[str]) -> dict[str, str]:
    """Return the label of each name: its first-level subfolder, in printable form.

    The result is empty unless at least two subfolders contain videos. Videos in the
    root have no label. A subfolder that is itself a video counts as in the root.
    """
    first = {name: printable(name.split("/")[0]) for name in names if "/" in name}
    return first if len(set(first.values())) > 1 else {}


def read_captions(
    listing: Listing,
) -> tuple[dict[str, tuple[str, ...]], list[Skipped], list[str]]:
    """Read captions from ``a.txt`` next to ``a.mp4`` and from captions.jsonl.

    Returns captions by name, the videos whose caption file cannot be read, and the
    files of captions.jsonl that do not exist. Raises UserError for an invalid line of
    captions.jsonl.
    """
    path = listing.root / CAPTIONS_FILE
    try:
        lines = _read_lines(path, MAX_JSONL_BYTES, listing.root)
    except (OSError, CorruptFile) as error:
        raise UserError(f"{path}: {_reason(error)}") from error
    from_jsonl = _parse_jsonl(path, lines)
    captions, skipped = {}, []
    for name in listing.videos:
        path = _caption_file(Path(listing.path(name)))
        try:
            # If the root is a video, the file next to it is outside of the data.
            is_root = name == "."
            lines = (
                [] if is_root else _read_lines(path, MAX_CAPTION_BYTES, listing.root)
            )
        except (OSError, CorruptFile) as error:
            skipped.append((name, f"caption {path.name}: {_reason(error)}"))
            continue
        captions[name] = (*_stripped(lines), *from_jsonl.pop(name, ()))
    skipped_names = {name for name, _ in skipped}
    return captions, skipped, sorted(set(from_jsonl) - skipped_names)


def read_all_captions(path: str | os.PathLike) -> tuple[list[str], list[Skipped]]:
    """Read the captions of a folder of videos, a captions.jsonl or a text file.

    Returns the captions, and the videos whose captions cannot be read. Raises UserError
    if there are no captions.
    """
    path, skipped = Path(path), []
    rule = (
        f"pass a folder of videos with a.txt next to a.mp4, a {CAPTIONS_FILE}, or a "
        "text file with one caption per line"
    )
    if path.is_dir():
        captions, skipped, _ = read_captions(find_videos(path))
    else:
        try:
            lines = split_lines(read_text(path, MAX_JSONL_BYTES))
        except (OSError, CorruptFile) as error:
            raise UserError(f"{path}: {_reason(error)}: {rule}") from error
        is_jsonl = path.suffix == ".jsonl"
        captions = _parse_jsonl(path, lines) if is_jsonl else {"": _stripped(lines)}
    texts = [text for several in captions.values() for text in several]
    if not texts:
        raise UserError(f"{path} has no captions: {rule}")
    return texts, skipped


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _caption_file(video: Path) -> Path:
    """Return the path of the captions of a video file or a folder of frames."""
    stem = video.name if video.is_dir() else video.stem
    return video.parent / f"{stem}.txt"


def _read_lines(path: Path, limit: int, root: Path) -> list[str]:
    """Return the lines of a file below root; [] if there is none.

    Raises CorruptFile for a link that must not be followed and for what is no text,
    OSError.
    """
    if reason := _why_bad_link(root, path):
        raise CorruptFile(reason)
    if not path.exists():
        return []
    check_regular(path)
    return split_lines(read_text(path, limit))


def _stripped(lines: Iterable[str]) -> list[str]:
    return [line.strip() for line in lines if line.strip()]


def _parse_jsonl(path: Path, lines: Iterable[str]) -> dict[str, list[str]]:
    """Return captions by file from one JSON object per line.

    A line is {"file": "a.mp4", "caption": "..."} or has "captions": [...].
    """
    captions: dict[str, list[str]] = {}
    rule = '{"file": "a.mp4", "caption": "..."} or "captions": ["...", ...]'
    for number, line in enumerate(lines, start=1):
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
        captions.setdefault(name, []).extend(_stripped(texts))
    return captions


def _entry_captions(entry: Any) -> list[str] | None:
    """Return the captions of a line of captions.jsonl; None if it is invalid."""
    if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
        return None
    one, several = entry.get("caption"), entry.get("captions")
    texts = [] if one is None else [one]
    if several is not None or not texts:  # null counts as absent
        if not isinstance(several, list):
            return None
        texts += several
    return texts if all(isinstance(text, str) for text in texts) else None
