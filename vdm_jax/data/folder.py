"""A folder of your own videos as a data set; docs/data.md says how it is laid out.

Every file is indexed once (remembered on disk), not decoded. A file becomes one item or
several: its possible starts are cut into windows about a clip long, so that an epoch
sees all of a long file. What turns out broken later raises BadClip.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence

import numpy as np
from tqdm import tqdm

from vdm_jax import video_io
from vdm_jax.data import layout
from vdm_jax.data.layout import Skipped
from vdm_jax.data.source import BadClip, Clip
from vdm_jax.errors import UserError, printable
from vdm_jax.video_io import BadVideo, VideoInfo, cache
from vdm_jax.video_io.file_types import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from vdm_jax.video_io.sandbox import SandboxedDecoder

MAX_DRAWS = 4  # starts tried before a file with blank stretches counts as unusable


MAX_VALUES = {"frames": 4096, "height": 16384, "width": 16384, "stride": 4096}


@dataclasses.dataclass(frozen=True)
class ClipShape:
    """What a clip is: its size, and how frames are taken for it."""

    frames: int
    height: int
    width: int
    channels: int = 3
    stride: int = 1
    fps: float = 0.0  # 0: by stride
    crop: str = "center"

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    def check(self) -> None:
        """Raise UserError for a value that no folder can serve."""
        for name, most in MAX_VALUES.items():
            if not 1 <= getattr(self, name) <= most:
                raise UserError(f"{name}={getattr(self, name)}: from 1 to {most}")
        if self.channels not in (1, 3):
            raise UserError(
                f"config.video.channels={self.channels}: 3 (colour) or 1 (grey)"
            )
        if not 0 <= self.fps <= 240:
            raise UserError(
                f"target_fps={self.fps}: a frame rate to 240, or 0: the file's"
            )
        if self.fps and self.stride != 1:
            raise UserError(
                f"stride={self.stride} and target_fps={self.fps}: set one of them, "
                "stride=1 or target_fps=0"
            )
        if self.crop not in ("center", "random"):
            raise UserError(f"config.data.crop={self.crop!r}: center or random")


@dataclasses.dataclass(frozen=True)
class VideoFile:
    """One usable video, or a stretch of it."""

    name: str
    num_bytes: int
    info: VideoInfo
    label: str | None
    captions: tuple[str, ...]
    start: int  # frames first .. last - 1 belong to it
    stop: int

    @property
    def segment(self) -> VideoInfo:
        """The index of these frames, to count and choose clips by."""
        return dataclasses.replace(self.info, pts=self.info.pts[self.start : self.stop])


@dataclasses.dataclass(frozen=True)
class ScanReport:
    """What was found in a folder, and what was left out of it and why."""

    root: str
    num_videos: int
    num_usable: int
    skipped: tuple[Skipped, ...]
    unmatched: tuple[str, ...]  # files of captions.jsonl that are not there
    ignored: Mapping[str, int] = dataclasses.field(
        default_factory=dict
    )  # not looked at

    def summary_lines(self, most: int = 20) -> list[str]:
        """For a person to read; at most ``most`` of the dropped by name."""
        lines = [
            f"{self.root}: {self.num_videos} videos found, {self.num_usable} kept, "
            f"{len(self.skipped)} dropped"
        ]
        lines += [
            printable(f"  {name}: {reason}") for name, reason in self.skipped[:most]
        ]
        more = len(self.skipped) - most
        lines += [f"  ... and {more} more"] * (more > 0)
        rest = layout.describe_ignored(self.ignored)
        return lines + [f"  not looked at: {rest}"] * bool(rest)


def scan(
    path: str, shape: ClipShape, store: cache.IndexStore, guard: SandboxedDecoder
) -> tuple[tuple[VideoFile, ...], ScanReport]:
    """Index all videos of a folder, in threads; keep those with room for a clip.

    Raises UserError if none is left.
    """
    shape.check()
    found = layout.find_videos(path)
    captions, dropped, unmatched = layout.read_captions(found)
    dropped = [*found.skipped, *dropped]

    def index(name: str) -> VideoInfo | Skipped:
        try:
            info = store.probe(found.path(name), guard.inspect)
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
                f"{store.folder} cannot be written ({error}): another cache_dir"
            ) from error
    files = []
    for name, result in zip(names, results, strict=True):
        if isinstance(result, tuple):
            dropped.append(result)
        else:
            files.append((name, result))
    guard.close()
    label = layout.folder_labels(found.videos)
    kept = tuple(
        VideoFile(name, _bytes(info.path), info, label.get(name), captions[name],
             start=0, stop=info.frames)
        for name, info in files
    )  # fmt: skip
    report = ScanReport(
        root=str(path),
        num_videos=len(found.videos) + len(found.skipped),
        num_usable=len(kept),
        skipped=tuple(sorted(dropped)),
        unmatched=tuple(unmatched),
        ignored=found.ignored,
    )
    if not kept:
        raise UserError(no_usable_videos_message(report, report.skipped))
    return kept, report


def no_usable_videos_message(report: ScanReport, dropped: Sequence[Skipped]) -> str:
    """One line for a folder of which nothing can be used, with the commonest reason."""
    if report.num_videos:
        return (
            f"{report.root}: none of {report.num_videos} videos can be used; "
            f"{most_common_reason(dropped)}"
        )
    kinds, pictures = (
        ", ".join(sorted(suffix[1:] for suffix in suffixes))
        for suffixes in (VIDEO_SUFFIXES, IMAGE_SUFFIXES)
    )
    rest = layout.describe_ignored(report.ignored)
    return (
        f"{report.root}: no video found ({kinds}, or folders of {pictures} frames)"
        + f"; not looked at: {rest}" * bool(rest)
    )


def most_common_reason(dropped: Sequence[Skipped]) -> str:
    """The commonest reason, by an example."""
    kinds = collections.Counter(reason.split(":")[0] for _, reason in dropped)
    kind, number = kinds.most_common(1)[0]
    name, reason = next(item for item in dropped if item[1].split(":")[0] == kind)
    return f"{number} for the reason of {name}: {reason}"


def _bytes(path: str) -> int:
    if not os.path.isdir(path):
        return os.path.getsize(path)
    with os.scandir(path) as entries:
        return sum(entry.stat().st_size for entry in entries)


def split_files(
    files: Sequence[VideoFile], share: float, shape: ClipShape
) -> tuple[tuple[VideoFile, ...], tuple[VideoFile, ...]]:
    """The training and the held-out files.

    A file is held out by a hash of its name: adding files moves none of the others.
    Each part gets at least one of two files or more, and the held-out one at most twice
    its share, which chance may exceed among a few. A single file is split in time,
    its end held out, where both parts have room for a clip; else all of it trains.
    """
    if not 0 <= share < 1:
        raise UserError(f"config.data.validation_fraction={share}: a share in [0, 1)")
    if not share:
        return tuple(files), ()
    if len(files) == 1:
        return _split_in_time(files[0], share, shape)
    rank = {file.name: _hash(file.name) for file in files}
    ordered = sorted(files, key=lambda file: rank[file.name])
    number = sum(rank[file.name] < share for file in files)
    most = min(math.ceil(2 * share * len(files)), len(files) - 1)  # of a few files
    number = min(max(number, 1), most)
    out = {file.name for file in ordered[:number]}
    train = tuple(file for file in files if file.name not in out)
    return train, tuple(file for file in files if file.name in out)


def _hash(name: str) -> float:
    """Uniform in [0, 1), a function of the name alone."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _split_in_time(file: VideoFile, share: float, shape: ClipShape):
    room = video_io.num_starts(file.info, shape.frames, shape.stride, shape.fps)
    span = file.info.frames - room + 1  # frames that a clip reaches over
    end = min(round(file.info.frames * (1 - share)), file.info.frames - span)
    if end < 1:
        return (file,), ()
    parts = dataclasses.replace(file, last=end), dataclasses.replace(file, first=end)
    try:
        for part in parts:
            video_io.num_starts(part.segment, shape.frames, shape.stride, shape.fps)
    except BadVideo:  # too short for two, or too slow in one of them
        return (file,), ()
    return parts[:1], parts[1:]


def clip_ranges(file: VideoFile, shape: ClipShape) -> list[tuple[int, int]]:
    """Ranges of starts, about a clip long each, that cover the file's starts once."""
    room = video_io.num_starts(file.segment, shape.frames, shape.stride, shape.fps)
    span = file.stop - file.start - room + 1
    number = -(-room // span)
    edges = [file.start + room * i // number for i in range(number + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


@dataclasses.dataclass
class _Store:
    """Frames of files, from the cache or by seeking; shared by both parts."""

    size: tuple[int, int]
    frames: cache.FrameCache
    guard: SandboxedDecoder
    cached: dict[str, str]  # names of the files that are decoded once -> entry
    bad: dict[str, str] = dataclasses.field(default_factory=dict)  # found while loading

    def read(self, file: VideoFile, numbers: list[int]) -> np.ndarray:
        """Frames uint8 [f, H, W, 3] that cover the size. Raises BadVideo, OSError."""
        if file.name not in self.cached:
            return self.guard.read_frames(file.info, numbers, self.size)
        return self.frames.read(
            self.cached[file.name],
            numbers,
            lambda place: self.guard.fill_entry(file.info, self.size, place),
        )


class Folder:
    """The source: see data/source.py for the protocol.

    Attributes beyond it: ``report`` (found, kept, dropped), ``files`` of this part.
    """

    name = "folder"

    def __init__(
        self,
        parts,
        shape: ClipShape,
        report: ScanReport,
        store: "_Store",
        held_out=False,
    ):
        self._parts, self._shape, self._store = parts, shape, store
        self.report, self.files = report, parts[held_out]
        every = parts[0] + parts[1]
        values = tuple(sorted({file.label for file in every if file.label is not None}))
        self.label_vocabulary = (values,) if values else ()
        texts = " ".join([*values, *(c for file in every for c in file.captions)])
        self.flip = not re.search(r"(?<![a-z])(left|right)", texts, re.IGNORECASE)
        self._items, names = [], []
        for file in self.files:
            cut = clip_ranges(file, shape)
            self._items += [(file, *window) for window in cut]
            numbered = [f"{file.name} [{i + 1}]" for i in range(len(cut))]
            names += [file.name] if len(cut) == 1 else numbered
        self.names = tuple(names)
        self.sizes = tuple(file.bytes for file, _, _ in self._items)

    def __len__(self) -> int:
        return len(self._items)

    def split(self, held_out: bool) -> "Folder":
        """The held-out part, or the training part."""
        return Folder(self._parts, self._shape, self.report, self._store, held_out)

    def load(self, index: int, rng: np.random.Generator, frames: int) -> Clip:
        """A clip that starts at random in window ``index``. Raises BadClip."""
        file, low, high = self._items[index]
        bad = self._store.bad
        if file.name in bad:
            raise BadClip(self.names[index], bad[file.name])
        try:
            video = self._draw(file, low, high, rng, frames)
        except BadVideo as error:
            bad[file.name] = error.reason
            raise BadClip(self.names[index], error.reason) from error
        if video is None:
            raise BadClip(self.names[index], "constant: blank wherever it was opened")
        if self._shape.channels == 1:
            video = video_io.to_gray(video)
        captions = file.captions
        text = captions[int(rng.integers(len(captions)))] if captions else ""
        clip = Clip(video=np.ascontiguousarray(video), caption=text)
        if self.label_vocabulary:
            values = self.label_vocabulary[0]
            known = file.label is not None
            label = values.index(file.label) if known else -1
            clip["label"] = np.array([label], np.int32)
        return clip

    def _clip(self, file: VideoFile, start: int) -> np.ndarray:
        """Numbers of the frames of the clip that starts at frame ``start``."""
        shape, first = self._shape, file.start
        chosen = video_io.clip_frames(
            file.segment, start - first, shape.frames, shape.stride, shape.fps
        )
        return chosen + first

    def _draw(
        self,
        file: VideoFile,
        low: int,
        high: int,
        rng: np.random.Generator,
        frames: int,
    ) -> np.ndarray | None:
        """Frames from a random start, cropped; None if all draws are blank."""
        shape = self._shape
        for _ in range(MAX_DRAWS):
            if frames == 1:  # any frame within reach of the window's clips
                numbers = rng.integers(low, self._clip(file, high - 1)[-1] + 1, size=1)
            else:
                numbers = self._clip(file, int(rng.integers(low, high)))[:frames]
            video = self._store.read(file, numbers.tolist())
            random = rng if shape.crop == "random" else None
            video = video_io.crop(video, shape.size, random)
            if not video_io.is_flat(video):
                return video
        return None


def _choose_cached_files(
    files: Sequence[VideoFile], shape: ClipShape, budget: int
) -> dict[str, str]:
    """Cache keys of the files to decode once: the dearest to seek in, while they fit.

    Chosen once for all, so that a data set larger than the cache does not chase its own
    entries out of it. The others are read by seeking.
    """
    infos = {file.name: file.info for file in files}

    def seek_cost(name: str) -> float:
        info = infos[name]
        room = video_io.num_starts(info, shape.frames, shape.stride, shape.fps)
        return video_io.seek_cost(info, info.frames - room + 1)

    chosen = {}
    for name in sorted(infos, key=lambda name: (-seek_cost(name), name)):
        info = infos[name]
        cover = video_io.cover_size(info.height, info.width, shape.size)
        budget -= cache.FrameCache.entry_bytes((info.frames, *cover))
        if budget < 0:
            break
        chosen[name] = cache.file_key(info.path, shape.size)
    return chosen


def open_folder(config) -> Folder:
    """The source for a config: config.data.path is the folder.

    Raises:
      UserError: no such folder, nothing usable in it, settings that cannot be served.
    """
    data, video = config.data, config.video
    if not data.path:
        raise UserError("config.data.path is empty: --config.data.path=FOLDER")
    shape = ClipShape(
        video.frames, video.height, video.width, video.channels,
        data.stride, data.target_fps or 0.0, data.crop,
    )  # fmt: skip
    folder = data.cache_dir or cache.default_folder()
    guard = SandboxedDecoder()
    files, report = scan(data.path, shape, cache.IndexStore(folder), guard)
    if len(report.skipped) > data.max_bad_fraction * report.num_videos:
        raise UserError(
            f"{data.path}: {len(report.skipped)} of {report.num_videos} videos cannot be "
            f"used, more than config.data.max_bad_fraction={data.max_bad_fraction}; "
            f"{most_common_reason(report.skipped)}; `python -m vdm_jax.data check` names all"
        )
    frames = cache.FrameCache(folder, int(data.cache_gib * 2**30))
    cached = _choose_cached_files(files, shape, frames.max_bytes)
    store = _Store(shape.size, frames, guard, cached)
    return Folder(
        split_files(files, data.validation_fraction, shape), shape, report, store
    )
