"""Two stores on disk: the index of every video, and decoded frames of some.

Both are keyed by path, size and modification time, written whole or not at all, and
checked when read: a damaged entry is deleted and made again. Any number of processes
may share a folder.
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
from vdm_jax.video_io.files import BadVideo
from vdm_jax.video_io.info import VideoInfo

VERSION = "4"  # part of every key: raised when the index or the pixels would change
HEADER = struct.Struct("<8s4I")  # magic, frames, height, width, crc of the crcs
MAGIC = b"VDMfrm1\n"
CACHE_ADVICE = "another config.data.cache_dir or config.data.cache_gib=0 would do, or "
STALE_SECONDS = (
    3600.0  # seconds after which a temporary file belongs to no living process
)


def default_folder() -> Path:
    """The cache of this user."""
    return cache_folder()


def file_key(path: str | os.PathLike, *extra) -> str:
    """Name of what is stored about a file, or about a folder and its content."""
    status = os.stat(path)
    identity = [VERSION, os.path.abspath(path), status.st_size, status.st_mtime_ns]
    if os.path.isdir(path):  # a folder's own time misses a frame that was rewritten
        with os.scandir(path) as entries:
            stats = sorted((e.name, e.stat()) for e in entries if e.is_file())
        identity += [(name, s.st_size, s.st_mtime_ns) for name, s in stats]
    return hashlib.sha256(repr((identity, extra)).encode()).hexdigest()[:40]


class IndexStore:
    """Remembers what ``probe`` found: an index, or why there is none."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder) / "index"

    def probe(
        self, path: str | os.PathLike, probe: Callable[[str], VideoInfo]
    ) -> VideoInfo:
        """The stored index of ``path``; else ``probe`` it. Raises BadVideo."""
        try:
            place = self.folder / f"{file_key(path, probe.__name__)}.json"
        except OSError as error:
            reason = f"cannot be opened ({error.strerror})"
            raise BadVideo(path, reason, lasting=False) from error
        stored = self._load(place)
        if stored is None:
            stored = {}
            try:
                stored["info"] = probe(os.fspath(path)).to_json()
            except BadVideo as error:
                if not error.lasting:
                    raise
                stored["reason"] = error.reason
            text = json.dumps(stored)
            with atomic_write(place, overwrite=True) as temporary:
                temporary.write_text(f"{zlib.crc32(text.encode())}\n{text}")
        if "reason" in stored:
            raise BadVideo(path, stored["reason"])
        return VideoInfo.from_json(stored["info"])

    def _load(self, place: Path) -> dict | None:
        try:
            check, text = place.read_text().split("\n", 1)
            if int(check) == zlib.crc32(text.encode()):
                return json.loads(text)
        except (FileNotFoundError, ValueError):  # none yet, or not what was written
            pass
        return None


class CorruptEntry(Exception):
    """An entry of the frame cache that is not what was written."""


def write_entry(
    path: str | os.PathLike, frames: Iterable[np.ndarray], shape: tuple[int, int, int]
) -> None:
    """Write ``shape`` = (n, h, w) RGB frames, each with its checksum.

    Layout: HEADER, uint32 crc32 of every frame, the frames. Memory stays at one frame.
    """
    number, height, width = shape
    sums = np.zeros(number, "<u4")
    with open(path, "wb") as file:
        file.seek(HEADER.size + sums.nbytes)
        for place, frame in enumerate(frames):
            pixels = frame.tobytes()
            sums[place] = zlib.crc32(pixels)
            file.write(pixels)
        file.seek(0)
        head = zlib.crc32(sums.tobytes())
        file.write(HEADER.pack(MAGIC, number, height, width, head))
        file.write(sums.tobytes())


def read_entry(path: str | os.PathLike, numbers: Sequence[int]) -> np.ndarray:
    """Frames ``numbers`` of an entry, uint8 [f, h, w, 3]. Raises CorruptEntry."""
    with open(path, "rb") as file:
        head = file.read(HEADER.size)
        if len(head) < HEADER.size:
            raise CorruptEntry("header")
        magic, number, height, width, check = HEADER.unpack(head)
        sums = file.read(4 * number)
        frame = height * width * 3
        size = HEADER.size + 4 * number + number * frame
        if (magic, os.fstat(file.fileno()).st_size) != (MAGIC, size):
            raise CorruptEntry("size")
        if zlib.crc32(sums) != check:
            raise CorruptEntry("checksums")
        video = np.empty((len(numbers), height, width, 3), np.uint8)
        for place, which in enumerate(numbers):
            file.seek(HEADER.size + len(sums) + which * frame)
            pixels = file.read(frame)
            if zlib.crc32(pixels) != struct.unpack_from("<I", sums, 4 * which)[0]:
                raise CorruptEntry(f"frame {which}")
            video[place] = np.frombuffer(pixels, np.uint8).reshape(height, width, 3)
    return video


class FrameCache:
    """Whole videos decoded once, at the size they are loaded at, in bounded space.

    The entries of ``folder`` never exceed ``max_bytes`` in all: those not used for the
    longest time go first. (Entries being written come on top until they are complete.)
    """

    def __init__(self, folder: str | os.PathLike, max_bytes: int):
        self.folder, self.max_bytes = Path(folder) / "frames", max_bytes

    @staticmethod
    def entry_bytes(shape: tuple[int, int, int]) -> int:
        """Size on disk of an entry of (n, h, w) frames."""
        number, height, width = shape
        return HEADER.size + 4 * number + number * height * width * 3

    def read(
        self, name: str, numbers: Sequence[int], fill: Callable[[Path], None]
    ) -> np.ndarray:
        """Frames of entry ``name``; ``fill(path)`` writes the entry if it is missing.

        Raises what ``fill`` raises, and CorruptEntry if a fresh entry is damaged again.
        """
        path = self.folder / name
        try:
            video = read_entry(path, numbers)
            with contextlib.suppress(FileNotFoundError):  # evicted meanwhile
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
                with self._lock():  # or two processes would both take the last room
                    self._make_room(temporary.stat().st_size)
                    os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        return video

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with open(self.folder / "lock", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _make_room(self, size: int) -> None:
        """Delete the entries used longest ago until ``size`` more bytes fit."""
        now, entries = time.time(), []
        with os.scandir(self.folder) as found:
            for entry in found:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    if not entry.name.startswith(".") and entry.name != "lock":
                        entries.append((status.st_mtime, status.st_size, entry.path))
                    elif (
                        entry.name.endswith(".tmp")
                        and now - status.st_mtime > STALE_SECONDS
                    ):
                        os.unlink(entry.path)  # left by a kill
        if size > self.max_bytes:
            raise ValueError(f"an entry of {size} bytes in a cache of {self.max_bytes}")
        total = size + sum(entry[1] for entry in entries)
        for _, freed, path in sorted(entries):
            if total <= self.max_bytes:
                return
            Path(path).unlink(missing_ok=True)
            total -= freed
