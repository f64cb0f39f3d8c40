"""The index of a folder of videos: usable files, skipped files, and their split.

Files are indexed, not decoded. The index of each file is cached on disk.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from vdm_jax import video_io
from vdm_jax.data import layout
from vdm_jax.data.clip_shape import ClipShape
from vdm_jax.data.layout import Skipped
from vdm_jax.errors import UserError, printable
from vdm_jax.video_io import BadVideo, VideoInfo, cache
from vdm_jax.video_io.file_types import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from vdm_jax.video_io.sandbox import SandboxedDecoder


@dataclasses.dataclass(frozen=True)
class VideoFile:
    """One usable video, or a segment of it: the frames start .. stop - 1."""

    name: str
    num_bytes: int
    info: VideoInfo
    label: str | None
    captions: tuple[str, ...]
    start: int
    stop: int

    @property
    def segment(self) -> VideoInfo:
        """The index of the segment's frames alone."""
        return dataclasses.replace(self.info, pts=self.info.pts[self.start : self.stop])


@dataclasses.dataclass(frozen=True)
class ScanReport:
    """Counts of a folder: videos, usable ones, and skipped ones with their reasons.

    Attributes:
      unmatched: files of captions.jsonl that do not exist.
      ignored: suffix, or another kind -> number of files that were not read.
    """

    root: str
    num_videos: int
    num_usable: int
    skipped: tuple[Skipped, ...]
    unmatched: tuple[str, ...]
    ignored: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def summary_lines(self, most: int = 20) -> list[str]:
        """Return lines of text that name at most ``most`` of the skipped videos."""
        lines = [
            f"{self.root}: {self.num_videos} videos, {self.num_usable} usable, "
            f"{len(self.skipped)} skipped"
        ]
        lines += [
            printable(f"  {name}: {reason}") for name, reason in self.skipped[:most]
        ]
        more = len(self.skipped) - most
        lines += [f"  ... and {more} more"] * (more > 0)
        ignored = layout.describe_ignored(self.ignored)
        return lines + [f"  ignored files: {ignored}"] * bool(ignored)


def scan(
    path: str, shape: ClipShape, store: cache.IndexStore, decoder: SandboxedDecoder
) -> tuple[tuple[VideoFile, ...], ScanReport]:
    """Index all videos of a folder; return the usable ones and a report.

    A video is usable if it holds a clip of ``shape``. Raises UserError if none is.
    """
    shape.check()
    listing = layout.find_videos(path)
    captions, skipped, unmatched = layout.read_captions(listing)
    skipped = [*listing.skipped, *skipped]

    def index(name: str) -> VideoInfo | Skipped:
        try:
            info = store.probe(listing.path(name), decoder.inspect)
            video_io.num_starts(info, shape.frames, shape.stride, shape.fps)
            return info
        except BadVideo as error:
            return name, error.reason

    names = list(captions)
    threads = min(8, os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        results = pool.map(index, names)
        try:
            results = list(
                tqdm(results, "indexing", len(names), leave=False, disable=None)
            )
        except OSError as error:
            raise UserError(
                f"{store.folder} cannot be written ({error}): use another cache_dir"
            ) from error
    decoder.close()
    labels, files = layout.folder_labels(listing.videos), []
    for name, result in zip(names, results, strict=True):
        if isinstance(result, tuple):
            skipped.append(result)
            continue
        files.append(
            VideoFile(
                name, _num_bytes(result.path), result, labels.get(name),
                captions[name], start=0, stop=result.frames,
            )
        )  # fmt: skip
    report = ScanReport(
        root=str(path),
        num_videos=len(listing.videos) + len(listing.skipped),
        num_usable=len(files),
        skipped=tuple(sorted(skipped)),
        unmatched=tuple(unmatched),
        ignored=listing.ignored,
    )
    if not files:
        raise UserError(no_usable_videos_message(report, report.skipped))
    return tuple(files), report


def no_usable_videos_message(report: ScanReport, skipped: Sequence[Skipped]) -> str:
    """Return one line for a folder without usable videos: the most common reason."""
    if report.num_videos:
        return (
            f"{report.root}: none of {report.num_videos} videos can be used; "
            f"{most_common_reason(skipped)}"
        )
    videos, images = (
        ", ".join(sorted(suffix[1:] for suffix in suffixes))
        for suffixes in (VIDEO_SUFFIXES, IMAGE_SUFFIXES)
    )
    ignored = layout.describe_ignored(report.ignored)
    return (
        f"{report.root}: no videos found ({videos}, or folders of {images} frames)"
        + f"; ignored files: {ignored}" * bool(ignored)
    )


def most_common_reason(skipped: Sequence[Skipped]) -> str:
    """Return the most common reason, its number and an example."""
    kinds = collections.Counter(reason.split(":")[0] for _, reason in skipped)
    kind, number = kinds.most_common(1)[0]
    name, reason = next(item for item in skipped if item[1].split(":")[0] == kind)
    return f"{number} for the same reason as {name}: {reason}"


def _num_bytes(path: str) -> int:
    if not os.path.isdir(path):
        return os.path.getsize(path)
    with os.scandir(path) as entries:
        return sum(entry.stat().st_size for entry in entries)


def split_files(
    files: Sequence[VideoFile], fraction: float, shape: ClipShape
) -> tuple[tuple[VideoFile, ...], tuple[VideoFile, ...]]:
    """Return the training and the held-out files.

    A hash of its name decides whether a file is held out, so that adding files moves no
    other. Of two files or more each part gets at least one, and at most twice the
    fraction is held out (chance may exceed it among few files). A single file is split
    in time: its end is held out if both segments hold a clip.

    fraction: config.data.validation_fraction.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"config.data.validation_fraction={fraction}: in [0, 1)")
    if not fraction:
        return tuple(files), ()
    if len(files) == 1:
        return _split_in_time(files[0], fraction, shape)
    rank = {file.name: _hash(file.name) for file in files}
    ordered = sorted(files, key=lambda file: rank[file.name])
    number = sum(rank[file.name] < fraction for file in files)
    most = min(math.ceil(2 * fraction * len(files)), len(files) - 1)
    number = min(max(number, 1), most)
    held_out = {file.name for file in ordered[:number]}
    train = tuple(file for file in files if file.name not in held_out)
    return train, tuple(file for file in files if file.name in held_out)


def _hash(name: str) -> float:
    """Return a number in [0, 1), uniform and a function of the name alone."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _split_in_time(file: VideoFile, fraction: float, shape: ClipShape):
    """Return the training and the held-out segment of one file."""
    num_starts = video_io.num_starts(file.info, shape.frames, shape.stride, shape.fps)
    span = file.info.frames - num_starts + 1  # of a clip, in frames
    end = min(round(file.info.frames * (1 - fraction)), file.info.frames - span)
    if end < 1:
        return (file,), ()
    parts = dataclasses.replace(file, stop=end), dataclasses.replace(file, start=end)
    try:
        for part in parts:
            video_io.num_starts(part.segment, shape.frames, shape.stride, shape.fps)
    except BadVideo:  # a segment is too short, or its frame rate is too low
        return (file,), ()
    return parts[:1], parts[1:]


def clip_ranges(file: VideoFile, shape: ClipShape) -> list[tuple[int, int]]:
    """Return ranges [low, high) of first frames that cover all starts of clips once.

    Each range is about one clip long. It is one item of the data set.
    """
    num_starts = video_io.num_starts(
        file.segment, shape.frames, shape.stride, shape.fps
    )
    span = file.stop - file.start - num_starts + 1
    number = -(-num_starts // span)
    edges = [file.start + num_starts * i // number for i in range(number + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))
