"""The layout of a folder of videos: which files are videos, their labels and captions.

A folder is one video if it has images and no videos, and its subfolders have neither.
Its images are the frames in natural order. Clips of one frame are different: there each
image is a video of one frame. Hidden files are ignored. A symbolic link to a video,
frame or caption is followed if its target is a file inside the folder. Ignored files
are counted.
"""

import collections
import dataclasses
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

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
SYSTEM_NAMES = {"@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", "lost+found"}

Skipped = tuple[str, str]  # name, reason
Captions = dict[str, tuple[str, ...]]  # name of a video -> its captions


@dataclasses.dataclass(frozen=True)
class Listing:
    """The videos of a folder: names relative to it, in sorted order.

    Attributes:
      skipped: videos that cannot be used, with their reasons.
      ignored: suffix, or another kind -> number of files that were not read.
      unmatched: files of captions.jsonl that do not exist.
      noun: what `videos` are.
    """

    root: Path
    videos: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    ignored: Mapping[str, int]
    unmatched: tuple[str, ...]
    noun: str = "videos"

    @property
    def num_videos(self) -> int:
        return len(self.videos) + len(self.skipped)

    def ignored_files(self) -> str:
        """Return the numbers of ignored files as text, the most frequent kind first."""
        counts = ", ".join(f"{number} {kind}" for kind, number in self.ignored.items())
        return f"ignored files: {counts}" if counts else ""

    def summary_lines(self, most: int = 20) -> list[str]:
        """Return lines of text that name at most ``most`` of the skipped videos."""
        total, skipped = self.num_videos, len(self.skipped)
        lines = [
            f"{self.root}: {total} {self.noun}, {total - skipped} usable, "
            f"{skipped} skipped",
            *(f"  {name}: {reason}" for name, reason in self.skipped[:most]),
        ]
        if skipped > most:
            lines.append(f"  ... and {skipped - most} more")
        if self.ignored:
            lines.append(f"  {self.ignored_files()}")
        return list(map(printable, lines))


def find_videos(
    path: str | os.PathLike, pictures: bool = False
) -> tuple[Listing, Captions]:
    """List the videos below a folder; return the captions of those that can be used.

    Captions are read from ``a.txt`` next to ``a.mp4`` and from captions.jsonl. Raises
    UserError if the path is not a folder, and for an invalid line of captions.jsonl.

    pictures: each image is a video of one frame. One without captions has those of the
    folder of frames that it is in.
    """
    root = Path(path)
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise UserError(f"{root} {what}: pass the folder of the videos")
    root = root.resolve()
    skipped: list[Skipped] = []
    ignored: collections.Counter[str] = collections.Counter()
    files_by_folder = _walk(root, skipped, ignored)
    media_above = {  # folders with media in a subfolder
        parent
        for folder, files in files_by_folder.items()
        if any(file.suffix.lower() in MEDIA for file in files)
        for parent in folder.parents
    }
    from_jsonl = _read_jsonl(root / CAPTIONS_FILE, root)
    captions = {}
    used = {root / CAPTIONS_FILE}
    for folder, files in files_by_folder.items():
        images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
        videos = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
        is_video = images and not videos and folder not in media_above
        if is_video:  # its images are the frames of one video
            used |= {folder, _text_path(folder, True), *images}
        if pictures:
            videos += images
        elif is_video:
            videos = [folder]
        for video in videos:
            name = str(video.relative_to(root))
            used |= {video, _text_path(video, video == folder)}
            try:
                _check_link(video, root)
                texts = _read_captions(video, video == folder, root, from_jsonl)
                if is_video and not texts:
                    texts = _read_captions(folder, True, root, from_jsonl)
            except CorruptFile as error:
                skipped.append((name, str(error)))
            else:
                captions[name] = texts
    for file in itertools.chain(*files_by_folder.values()):
        ignored[file.suffix.lower() or "no suffix"] += file not in used
    return Listing(
        root=root,
        videos=tuple(sorted(captions)),
        skipped=tuple(sorted(skipped)),
        ignored=dict((+ignored).most_common()),
        unmatched=tuple(sorted(name for name in from_jsonl if root / name not in used)),
        noun="pictures and videos" if pictures else "videos",
    ), captions


def _text_path(video: Path, is_folder: bool) -> Path:
    """Return the file of the captions of a video, which is a file or a folder."""
    return video.with_name(f"{video.name if is_folder else video.stem}.txt")


def _read_captions(
    video: Path, is_folder: bool, root: Path, from_jsonl: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    """Return the captions of a video: next to it, then of captions.jsonl.

    Raises CorruptFile as `_read_lines`.
    """
    # If the root is a video, the file next to it is outside of the data.
    lines = [] if video == root else _read_lines(_text_path(video, is_folder), root)
    return (*_stripped(lines), *from_jsonl.get(str(video.relative_to(root)), ()))


def _walk(
    root: Path, skipped: list[Skipped], ignored: collections.Counter[str]
) -> dict[Path, list[Path]]:
    """Return the visible files of every folder below the root.

    Adds unreadable folders and linked folders to ``skipped``, and counts hidden files
    and empty folders in ``ignored``.
    """

    def skip(path: str, reason: str | None) -> None:
        skipped.append((os.path.relpath(path, root), str(reason)))

    files_by_folder = {}
    walk = os.walk(root, onerror=lambda error: skip(error.filename, error.strerror))
    for folder, subfolders, files in walk:
        names = {*subfolders, *files}
        hidden = SYSTEM_NAMES & names | {name for name in names if name[0] == "."}
        ignored["hidden"] += len(hidden)
        subfolders[:] = sorted({*subfolders} - hidden)
        for path in (os.path.join(folder, name) for name in subfolders):
            if os.path.islink(path):
                skip(path, "symlink to a folder: not followed")
        files_by_folder[Path(folder)] = [
            Path(folder, name) for name in sorted({*files} - hidden)
        ]
        ignored["empty folder"] += not subfolders and not files
    return files_by_folder


def _check_link(path: Path, root: Path) -> None:
    """Raise CorruptFile if a path, or a frame in it, is a link out of the root."""
    for link in [path, *(path.iterdir() if path.is_dir() else ())]:
        if link.is_symlink():
            if not link.exists():
                raise CorruptFile("broken symlink")
            if not link.resolve().is_relative_to(root):
                raise CorruptFile("symlink that leaves the folder")


def folder_labels(names: Iterable[str]) -> dict[str, str]:
    """Return the label of each name: its first-level subfolder, in printable form.

    The result is empty unless at least two subfolders contain videos. Videos in the
    root have no label. A subfolder that is itself a video counts as in the root.
    """
    first = {name: printable(name.split("/")[0]) for name in names if "/" in name}
    return first if len(set(first.values())) > 1 else {}


def read_all_captions(path: str | os.PathLike) -> tuple[list[str], Sequence[Skipped]]:
    """Read the captions of a folder of videos, a captions.jsonl or a text file.

    Returns the captions, and the videos that are skipped. Raises UserError if there are
    no captions.
    """
    path = Path(path)
    skipped = ()
    rule = f"pass a folder of videos, a {CAPTIONS_FILE}, or a text file of captions"
    if path.is_dir():
        # With the folder's images as pictures, and as the frames of videos.
        both = [find_videos(path, pictures) for pictures in (False, True)]
        skipped = tuple(sorted({item for found, _ in both for item in found.skipped}))
        captions = both[1][1] | both[0][1]
    elif path.suffix == ".jsonl":
        captions = _read_jsonl(path)
    else:
        try:
            captions = {"": _stripped(_read_lines(path, limit=MAX_JSONL_BYTES))}
        except CorruptFile as error:
            raise UserError(f"{error}: {rule}") from error
    texts = [*dict.fromkeys(itertools.chain.from_iterable(captions.values()))]
    if not texts:
        raise UserError(f"{path} has no captions: {rule}")
    return texts, skipped


def _read_lines(
    path: Path, root: Path | None = None, limit: int = MAX_CAPTION_BYTES
) -> list[str]:
    """Return the lines of a file of captions.

    root: the folder that a link must not leave, and that may lack the file. Raises
    CorruptFile, whose message begins with the file's name, or its path without a root.
    """
    try:
        if root:
            _check_link(path, root)
            if not path.exists():
                return []
        check_regular(path)
        return split_lines(read_text(path, limit))
    except (OSError, CorruptFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise CorruptFile(f"{path.name if root else path}: {reason}") from error


def _stripped(lines: Iterable[str]) -> list[str]:
    return [line.strip() for line in lines if line.strip()]


def _read_jsonl(path: Path, root: Path | None = None) -> dict[str, list[str]]:
    """Return captions by file from one JSON object per line. Raises UserError."""
    captions: dict[str, list[str]] = {}
    place = f"{root}: " if root else ""
    try:
        for number, line in enumerate(_read_lines(path, root, MAX_JSONL_BYTES), 1):
            place = f"{path} line {number}: "
            if line.strip():
                name, texts = _parse_entry(line)
                captions.setdefault(name, []).extend(_stripped(texts))
    except CorruptFile as error:
        raise UserError(f"{place}{error}") from error
    return captions


def _parse_entry(line: str) -> tuple[str, list[str]]:
    """Return the file and the captions of a line of captions.jsonl.

    A line is {"file": "a.mp4", "caption": "..."} or has "captions": [...]. Raises
    CorruptFile.
    """
    entry = parse_json(line)
    fields = entry if isinstance(entry, dict) else {}
    values = [fields[key] for key in ("caption", "captions") if key in fields]
    lists = [value if isinstance(value, list) else [value] for value in values]
    texts = [text for value in lists for text in value if text is not None]
    if not values or not all(isinstance(s, str) for s in [fields.get("file"), *texts]):
        rule = '{"file": "a.mp4", "caption": "..."} or "captions": ["...", ...]'
        raise CorruptFile(f"each line is {rule}")
    if reasons := list(filter(None, map(why_invalid_text, texts))):
        raise CorruptFile(f"a caption {reasons[0]}")
    return os.path.normpath(fields["file"]), texts
