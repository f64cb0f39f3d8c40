"""Two caches on disk: the index of every video, and the decoded frames of some.

Entries are keyed by path, size and modification time, written atomically, and verified
when read. A corrupt entry is deleted and written again. Processes may share a folder.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from vdm_jax.files import atomic_write, cache_folder, explain_write_errors
from vdm_jax.video_io.file_types import BadVideo
from vdm_jax.video_io.info import VideoInfo

VERSION = "4"  # part of every key; raise it if the index or the pixels change
HEADER = struct.Struct("<8s4I")  # magic, frames, height, width, crc of the crcs
MAGIC = b"VDMfrm1\n"
CACHE_ADVICE = "use another config.data.cache_dir or config.data.cache_gib=0, or "
STALE_SECONDS = 3600.0  # older temporary files were left by killed processes


def default_folder() -> Path:
    """Return the cache folder of this user."""
    return cache_folder()


def file_key(path: str | os.PathLike, *extra) -> str:
    """Return the name of the entry of a file, or of a folder and its content."""
    status = os.stat(path)
    identity = [VERSION, os.path.abspath(path), status.st_size, status.st_mtime_ns]
    if os.path.isdir(path):  # rewriting a frame does not change the folder's time
        with os.scandir(path) as entries:
            stats = sorted((e.name, e.stat()) for e in entries if e.is_file())
        identity += [(name, s.st_size, s.st_mtime_ns) for name, s in stats]
    return hashlib.sha256(repr((identity, extra)).encode()).hexdigest()[:40]


class IndexStore:
    """Stores the result of ``probe``: the index of a video, or why there is none."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder) / "index"

    def probe(
        self, path: str | os.PathLike, probe: Callable[[str], VideoInfo]
    ) -> VideoInfo:
        """Return the stored index of ``path``, else call ``probe``. Raises BadVideo."""
        try:
            entry = self.folder / f"{file_key(path, probe.__name__)}.json"
        except OSError as error:
            reason = f"cannot be opened ({error.strerror})"
            raise BadVideo(path, reason, lasting=False) from error
        stored = self._load(entry)
        if stored is None:
            stored = {}
            try:
                stored["info"] = probe(os.fspath(path)).to_json()
            except BadVideo as error:
                if not error.lasting:
                    raise
                stored["reason"] = error.reason
            text = json.dumps(stored)
            with atomic_write(entry, overwrite=True) as temporary:
                temporary.write_text(f"{zlib.crc32(text.encode())}\n{text}")
        if "reason" in stored:
            raise BadVideo(path, stored["reason"])
        return VideoInfo.from_json(stored["info"])

    def _load(self, entry: Path) -> dict | None:
        try:
            checksum, text = entry.read_text().split("\n", 1)
            if int(checksum) == zlib.crc32(text.encode()):
                return json.loads(text)
        except (FileNotFoundError, ValueError):  # missing or corrupt
            pass
        return None


class CorruptEntry(Exception):
    """An entry of the frame cache whose bytes are not what was written."""


def write_entry(
    path: str | os.PathLike, frames: Iterable[np.ndarray], shape: tuple[int, int, int]
) -> None:
    """Write RGB frames of ``shape`` = (n, h, w), each with its checksum.

    Layout: HEADER, uint32 crc32 of every frame, the frames. Only one frame at a time
    is held in memory.
    """
    count, height, width = shape
    checksums = np.zeros(count, "<u4")
    with open(path, "wb") as file:
        file.seek(HEADER.size + checksums.nbytes)
        for i, frame in enumerate(frames):
            pixels = frame.tobytes()
            checksums[i] = zlib.crc32(pixels)
            file.write(pixels)
        file.seek(0)
        crc = zlib.crc32(checksums.tobytes())
        file.write(HEADER.pack(MAGIC, count, height, width, crc))
        file.write(checksums.tobytes())


def read_entry(path: str | os.PathLike, numbers: Sequence[int]) -> np.ndarray:
    """Read frames of an entry as uint8 [f, h, w, 3]. Raises CorruptEntry."""
    with open(path, "rb") as file:
        header = file.read(HEADER.size)
        if len(header) < HEADER.size:
            raise CorruptEntry("header")
        magic, count, height, width, crc = HEADER.unpack(header)
        checksums = file.read(4 * count)
        frame_bytes = height * width * 3
        size = HEADER.size + 4 * count + count * frame_bytes
        if (magic, os.fstat(file.fileno()).st_size) != (MAGIC, size):
            raise CorruptEntry("size")
        if zlib.crc32(checksums) != crc:
            raise CorruptEntry("checksums")
        video = np.empty((len(numbers), height, width, 3), np.uint8)
        for i, number in enumerate(numbers):
            file.seek(HEADER.size + len(checksums) + number * frame_bytes)
            pixels = file.read(frame_bytes)
            if zlib.crc32(pixels) != struct.unpack_from("<I", checksums, 4 * number)[0]:
                raise CorruptEntry(f"frame {number}")
            video[i] = np.frombuffer(pixels, np.uint8).reshape(height, width, 3)
    return video


class FrameCache:
    """Stores whole decoded videos at the size of the clips, in bounded disk space.

    The entries of ``folder`` take at most ``max_bytes``. The least recently used ones
    are deleted first. Entries being written are not counted until they are complete.
    """

    def __init__(self, folder: str | os.PathLike, max_bytes: int):
        self.folder, self.max_bytes = Path(folder) / "frames", max_bytes

    @staticmethod
    def entry_bytes(shape: tuple[int, int, int]) -> int:
        """Return the size on disk of an entry of (n, h, w) frames."""
        count, height, width = shape
        return HEADER.size + 4 * count + count * height * width * 3

    def read(
        self, name: str, numbers: Sequence[int], fill: Callable[[Path], None]
    ) -> np.ndarray:
        """Read frames of entry ``name``; ``fill(path)`` writes a missing entry.

        Raises the errors of ``fill``, and CorruptEntry if a new entry is corrupt.
        """
        path = self.folder / name
        try:
            video = read_entry(path, numbers)
            with contextlib.suppress(FileNotFoundError):  # evicted in the meantime
                os.utime(path)
            return video
        except FileNotFoundError:
            pass
        except CorruptEntry:
            path.unlink(missing_ok=True)
        thread = f"{os.getpid()}-{threading.get_ident()}"
        temporary = self.folder / f".{name}.{thread}.tmp"
        with explain_write_errors(path, CACHE_ADVICE):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                fill(temporary)
                video = read_entry(temporary, numbers)
                with self._lock():  # two processes must not both take the last space
                    self._evict_for(temporary.stat().st_size)
                    os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        return video

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with open(self.folder / "lock", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _evict_for(self, size: int) -> None:
        """Delete the least recently used entries until ``size`` more bytes fit."""
        now, entries = time.time(), []
        with os.scandir(self.folder) as listing:
            for entry in listing:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    if not entry.name.startswith(".") and entry.name != "lock":
                        entries.append((status.st_mtime, status.st_size, entry.path))
                    elif (
                        entry.name.endswith(".tmp")
                        and now - status.st_mtime > STALE_SECONDS
                    ):
                        os.unlink(entry.path)
        if size > self.max_bytes:
            raise ValueError(f"an entry of {size} bytes in a cache of {self.max_bytes}")
        total = size + sum(entry[1] for entry in entries)
        for _, freed, path in sorted(entries):
            if total <= self.max_bytes:
                return
            Path(path).unlink(missing_ok=True)
            total -= freed
