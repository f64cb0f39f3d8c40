"""The index of a folder of videos: usable files, skipped files, and their split.

Of each file the times of its frames are read, and its first frames. They are cached on
disk.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from vdm_jax.data import layout
from vdm_jax.data.layout import Listing, Skipped
from vdm_jax.errors import UserError
from vdm_jax.files import cache_folder
from vdm_jax.video_io import BadVideo, FrameSelection, VideoInfo, cache
from vdm_jax.video_io.sandbox import SandboxedDecoder

Item = TypeVar("Item")
Result = TypeVar("Result")


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

    def frame_numbers(self, first: int, clip: FrameSelection) -> np.ndarray:
        """Return the numbers of the frames of the clip that starts at ``first``."""
        return clip.frame_numbers(self.segment, first - self.start) + self.start


def scan(
    path: str, clip: FrameSelection, cache_dir: str, decoder: SandboxedDecoder
) -> tuple[tuple[VideoFile, ...], Listing]:
    """Index all videos of a folder; return the usable ones, and all with reasons.

    A video is usable if it holds a clip. For clips of one frame each image is a video.
    cache_dir: "" is the user's cache folder.

    Raises UserError if none is.
    """
    listing, captions = layout.find_videos(path, pictures=clip.frames == 1)
    labels = layout.folder_labels(listing.videos)
    folder = cache_dir or cache_folder()

    def index(name: str) -> VideoFile:
        path = os.path.normpath(listing.root / name)
        info = cache.stored_index(folder, path, decoder.inspect)
        clip.num_starts(info)
        size = _num_bytes(info.path)
        label = labels.get(name)
        return VideoFile(name, size, info, label, captions[name], 0, info.frames)

    files = []
    skipped = [*listing.skipped]
    results = map_videos(index, listing.videos, "indexing")
    for name, result in zip(listing.videos, results, strict=True):
        if isinstance(result, BadVideo):
            skipped.append((name, result.reason))
        else:
            files.append(result)
    decoder.close()
    usable = tuple(file.name for file in files)
    report = dataclasses.replace(listing, videos=usable, skipped=tuple(sorted(skipped)))
    if not files:
        raise UserError(no_usable_videos_message(report, report.skipped))
    return tuple(files), report


def map_videos(
    function: Callable[[Item], Result], items: Sequence[Item], title: str
) -> Iterator[Result | BadVideo]:
    """Yield the result for each item, or its BadVideo; threads, a progress bar."""

    def result(item: Item) -> Result | BadVideo:
        try:
            return function(item)
        except BadVideo as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(result, items)
        yield from tqdm(results, title, len(items), leave=False, disable=None)


def no_usable_videos_message(report: Listing, skipped: Sequence[Skipped]) -> str:
    """Return one line for a folder without usable videos: the most common reason."""
    if report.num_videos:
        return (
            f"{report.root}: none of {report.num_videos} {report.noun} can be used; "
            f"{most_common_reason(skipped)}"
        )
    suffixes = " ".join(sorted(layout.MEDIA))
    message = f"{report.root}: no {report.noun} found, nor folders of frames "
    message += f"({suffixes})"
    return "; ".join(filter(None, [message, report.ignored_files()]))


def most_common_reason(skipped: Sequence[Skipped]) -> str:
    """Return the most common reason, its number and an example."""
    kinds = collections.Counter(reason.split(":")[0] for _, reason in skipped)
    kind, number = kinds.most_common(1)[0]
    name, reason = next(item for item in skipped if item[1].split(":")[0] == kind)
    return f"{number} for the same reason as {name}: {reason}"


def _num_bytes(path: str) -> int:
    is_folder = os.path.isdir(path)  # of frames
    files = [entry.path for entry in os.scandir(path)] if is_folder else [path]
    return sum(map(os.path.getsize, files))


def split_files(
    files: Sequence[VideoFile], fraction: float, clip: FrameSelection
) -> tuple[tuple[VideoFile, ...], tuple[VideoFile, ...]]:
    """Return the training and the held-out files.

    A hash of its name decides whether a file is held out, so that adding files moves no
    other. Of two files or more each part gets at least one, and at most twice the
    fraction is held out (chance may exceed it among few files). A single file is split
    in time: its end is held out if both segments hold a clip.

    fraction: config.data.validation_fraction.
    """
    if not fraction:
        return tuple(files), ()
    if len(files) == 1:
        return _split_in_time(files[0], fraction, clip)
    names = held_out_names([file.name for file in files], fraction)
    train = tuple(file for file in files if file.name not in names)
    return train, tuple(file for file in files if file.name in names)


def held_out_names(names: Sequence[str], fraction: float) -> frozenset[str]:
    """Return those of two or more different names that `split_files` holds out."""
    hashes = sorted(map(_hash, names))
    number = sum(value < fraction for value in hashes)
    most = min(math.ceil(2 * fraction * len(names)), len(names) - 1)
    highest = hashes[min(max(number, 1), most) - 1]
    return frozenset(name for name in names if _hash(name) <= highest)


def _hash(name: str) -> float:
    """Return a number in [0, 1), uniform and a function of the name alone."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _split_in_time(file: VideoFile, fraction: float, clip: FrameSelection):
    """Return the training and the held-out segment of one file."""
    frames = file.info.frames
    end = min(round(frames * (1 - fraction)), frames - clip.span(file.info))
    parts = dataclasses.replace(file, stop=end), dataclasses.replace(file, start=end)
    try:
        for part in parts:
            clip.num_starts(part.segment)
    except BadVideo:  # a segment is too short, or its frame rate is too low
        return (file,), ()
    return parts[:1], parts[1:]


def clip_ranges(file: VideoFile, clip: FrameSelection) -> list[tuple[int, int]]:
    """Return ranges [low, high) of first frames that cover all starts of clips once.

    Each range is about one clip long. It is one item of the data set.
    """
    ranges = clip.start_ranges(file.segment)
    return [(file.start + low, file.start + high) for low, high in ranges]
