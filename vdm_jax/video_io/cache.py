"""Two caches on disk: the index of every video, and the decoded frames of some.

Entries are keyed by path, size and modification time, written atomically, and verified
when read. A corrupt entry is written again. Processes may share a folder.
"""

import contextlib
import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.files import STALE_SECONDS, CorruptFile, StrPath, atomic_write, write_bytes
from vdm_jax.video_io.file_types import BadVideo
from vdm_jax.video_io.info import VideoInfo

VERSION = "6"  # part of every key; raise it if the index, the pixels or a file change
Shape = tuple[int, int, int]  # frames, height, width
CRC_BYTES = 4
CACHE_ADVICE = (
    "config.data.cache_dir chooses it and config.data.cache_gib=0 stores no frames; "
)


def file_key(path: StrPath, *extra) -> str:
    """Return the name of the entry of a file, or of a folder and its content."""
    status = os.stat(path)
    identity = [VERSION, os.path.abspath(path), status.st_size, status.st_mtime_ns]
    if os.path.isdir(path):  # rewriting a frame does not change the folder's time
        stats = sorted((e.name, e.stat()) for e in os.scandir(path) if e.is_file())
        identity += [(name, s.st_size, s.st_mtime_ns) for name, s in stats]
    return hashlib.sha256(repr((identity, extra)).encode()).hexdigest()[:40]


def stored_index(
    folder: StrPath, path: StrPath, inspect: Callable[[str], VideoInfo]
) -> VideoInfo:
    """Return the index of a video that a cache folder holds, else call ``inspect``.

    The reason why a video has no index is stored too. Raises BadVideo.
    """
    try:
        entry = Path(folder) / "index" / f"{file_key(path)}.json"
    except OSError as error:
        reason = f"cannot be opened ({error.strerror})"
        raise BadVideo(path, reason, lasting=False) from error
    stored: dict[str, Any] | None = _read_stored(entry)
    if stored is None:
        try:
            stored = {"info": inspect(os.fspath(path)).to_json()}
        except BadVideo as error:
            if not error.lasting:
                raise
            stored = {"reason": error.reason}
        text = json.dumps(stored).encode()
        content = b"%d\n%s" % (zlib.crc32(text), text)
        write_bytes(entry, content, overwrite=True, advice=CACHE_ADVICE)
    if "reason" in stored:
        raise BadVideo(path, stored["reason"])
    return VideoInfo.from_json(stored["info"])


def _read_stored(entry: Path) -> dict | None:
    """Return the content of an index file; None if it is missing or corrupt."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError):
        checksum, text = entry.read_bytes().split(b"\n", 1)
        if int(checksum) == zlib.crc32(text):
            return json.loads(text)
    return None


def entry_bytes(shape: Shape) -> int:
    """Return the size on disk of an entry of the frame cache."""
    frames, height, width = shape
    return frames * (height * width * 3 + CRC_BYTES)


def write_entry(path: StrPath, frames: Iterable[np.ndarray]) -> None:
    """Write RGB frames of one size, each followed by its CRC-32.

    Only one frame at a time is held in memory.
    """
    with open(path, "wb") as file:
        for frame in frames:
            pixels = frame.tobytes()
            file.write(pixels + zlib.crc32(pixels).to_bytes(CRC_BYTES, "little"))


def read_entry(path: StrPath, shape: Shape, numbers: Sequence[int]) -> np.ndarray:
    """Read frames of an entry as uint8 [f, h, w, 3]. Raises CorruptFile."""
    video = np.empty((len(numbers), *shape[1:], 3), np.uint8)
    frame_bytes = video[0].size
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size != entry_bytes(shape):
            raise CorruptFile("of another size than its frames")
        for i, number in enumerate(numbers):
            file.seek(number * (frame_bytes + CRC_BYTES))
            pixels, crc = file.read(frame_bytes), file.read(CRC_BYTES)
            if zlib.crc32(pixels) != int.from_bytes(crc, "little"):
                raise CorruptFile(f"corrupt at frame {number}")
            video[i] = np.frombuffer(pixels, np.uint8).reshape(video.shape[1:])
    return video


class FrameCache:
    """Stores whole decoded videos at the size of the clips, in bounded disk space.

    After a new entry is complete, the least recently used ones above ``max_bytes`` are
    deleted. What another process is writing is not counted.
    """

    def __init__(self, folder: StrPath, max_bytes: int):
        self.folder = Path(folder) / "frames"
        self.max_bytes = max_bytes

    def read(
        self,
        name: str,
        shape: Shape,
        numbers: Sequence[int],
        fill: Callable[[Path], None],
    ) -> np.ndarray:
        """Read frames of entry ``name``; ``fill(path)`` writes a missing entry.

        Raises the errors of ``fill``, and CorruptFile if a new entry is corrupt.
        """
        path = self.folder / name
        # It may be missing, corrupt, or evicted just now.
        with contextlib.suppress(FileNotFoundError, CorruptFile):
            video = read_entry(path, shape, numbers)
            os.utime(path)
            return video
        with atomic_write(path, overwrite=True, advice=CACHE_ADVICE) as temporary:
            fill(temporary)
            video = read_entry(temporary, shape, numbers)
        self._evict()
        return video

    def _evict(self) -> None:
        """Delete the least recently used entries above ``max_bytes``."""
        stale = time.time() - STALE_SECONDS
        entries = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if path.suffix != ".tmp" or status.st_mtime < stale:
                    entries.append((status.st_mtime, status.st_size, path))
        free = self.max_bytes
        for _, size, path in sorted(entries, reverse=True):
            free -= size
            if free < 0:
                path.unlink(missing_ok=True)
