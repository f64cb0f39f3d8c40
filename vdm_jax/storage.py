"""Where the steps of a run are kept: a folder of a file system, or a bucket.

A step is written into a folder of its own, which does not count before `commit`:

    file system   written as saving-STEP; one atomic rename gives it the name STEP
    bucket        written as STEP; commit.json, put last, makes it count

Both have commit.json, so a folder that is copied to a bucket is committed there too. In
a bucket nothing is renamed and little is deleted: an uncommitted folder is removed only
if it says (begun.json) that it was begun at its own address. Any other may be a copy
that somebody is making; it is named and left, and a step of this number is written as
STEP.2. A damaged step is set aside by a file, bad.json, in it.
"""

import os
import re
import shutil
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

from vdm_jax import files
from vdm_jax.files import fsync

COMMIT, BEGUN, BAD, OWNER = "commit.json", "begun.json", "bad.json", ".owner.json"
CHUNK = 1 << 22  # bytes read at a time
Content = bytes | Iterable[Any]  # or buffers
NUMBER = "0|[1-9][0-9]*"


class Steps(ABC):
    """The folders of the steps of one run, by their names."""

    @abstractmethod
    def prepare(self, owner: str, alone: bool) -> None:
        """Take possession of the place, and remove what a kill has left in it.

        owner: the process that writes from now on.
        alone: no other process of the run looks for this name.
        """

    @abstractmethod
    def owner(self) -> str:
        """Return who wrote here last as `prepare` says, "" if nobody did."""

    @abstractmethod
    def committed(self) -> dict[int, str]:
        """Return the folder of each committed step, verified or not."""

    @abstractmethod
    def has_set_aside(self) -> bool:
        """Return whether a damaged step was set aside here."""

    @abstractmethod
    def foreign(self) -> list[str]:
        """Return the folders of steps that do not count and were begun elsewhere."""

    @abstractmethod
    def begin(self, step: int) -> str:
        """Make a new folder for a step that is to be written; return its name."""

    @abstractmethod
    def write(self, folder: str, name: str, content: Content) -> list[int]:
        """Write a new file; return its bytes and CRC-32. It is durable then."""

    @abstractmethod
    def commit(self, folder: str, step: int, marker: bytes) -> None:
        """Write commit.json; from then on the folder is that of the step.

        Raises OSError if another run has taken the place over (in a bucket).
        """

    @abstractmethod
    def discard(self, folder: str) -> None:
        """Give up a folder that is not committed; errors do not matter."""

    @abstractmethod
    def delete(self, step: int) -> None:
        """Remove a committed step: first that it counts, then its files."""

    @abstractmethod
    def set_aside(self, step: int, damage: str) -> None:
        """Make a damaged step count no more, keep its files, and name it on stderr."""

    @abstractmethod
    def read(self, folder: str, name: str, start=0, length: int | None = None) -> bytes:
        """Return the bytes of a file, or `length` of them from `start`."""

    @abstractmethod
    def chunks(self, folder: str, name: str) -> Iterator[bytes]:
        """Yield the bytes of a file in order."""

    @abstractmethod
    def place(self, folder: str) -> str:
        """Return where a folder is, for messages."""

    def size_and_crc(self, folder: str, name: str) -> list[int]:
        """Return bytes and CRC-32 of a file."""
        return _drain(Counted(self.chunks(folder, name)))


class Counted:
    """Passes buffers on, and counts their bytes and CRC-32.

    CRC-32 finds every change within 32 consecutive bits. It guards against decay, not
    against forgery, and is several times as fast as a cryptographic hash.
    """

    def __init__(self, content: Content):
        self._parts = [content] if isinstance(content, bytes) else content
        self.size = self.crc = 0

    def __iter__(self) -> Iterator[Any]:
        for part in self._parts:
            self.size += len(part)
            self.crc = zlib.crc32(part, self.crc)
            yield part


def _drain(counted: Counted) -> list[int]:
    for _ in counted:
        pass
    return [counted.size, counted.crc]


class LocalSteps(Steps):
    """Steps in a directory that renames atomically, as local disks and NFS do."""

    def __init__(self, directory: str | os.PathLike):
        self.directory = files.user_path(directory, "checkpoints").absolute()

    def __str__(self) -> str:
        return str(self.directory)

    def place(self, folder: str) -> str:
        return str(self.directory / folder)

    def prepare(self, owner: str, alone: bool) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for left in self._names("(saving|deleting)-.*"):
            folder = self.directory / left
            if folder.is_symlink():
                folder.unlink()
            else:
                shutil.rmtree(folder)
        if not alone:
            files.write_json(self.directory / OWNER, {"owner": owner})

    def owner(self) -> str:
        try:
            return files.read_json(self.directory / OWNER)["owner"]
        except FileNotFoundError:
            return ""

    def committed(self) -> dict[int, str]:
        return {int(name): name for name in self._names(NUMBER)}

    def has_set_aside(self) -> bool:
        return bool(self._names("bad-.*"))

    def foreign(self) -> list[str]:
        return []  # a folder with a number for a name counts

    def _names(self, pattern: str) -> list[str]:
        """Return the subdirectories whose names match."""
        try:
            entries = list(os.scandir(self.directory))
        except FileNotFoundError:
            return []
        matching = [e for e in entries if re.fullmatch(pattern, e.name)]
        return [entry.name for entry in matching if entry.is_dir()]

    def begin(self, step: int) -> str:
        folder = self.directory / f"saving-{step}"
        folder.mkdir()  # new, so that no link is followed
        return folder.name

    def write(self, folder: str, name: str, content: Content) -> list[int]:
        counted = Counted(content)
        with (self.directory / folder / name).open("xb") as file:
            for part in counted:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        return [counted.size, counted.crc]

    def commit(self, folder: str, step: int, marker: bytes) -> None:
        self.write(folder, COMMIT, marker)
        fsync(self.directory / folder)
        (self.directory / folder).rename(self.directory / str(step))
        fsync(self.directory)

    def discard(self, folder: str) -> None:
        shutil.rmtree(self.directory / folder, ignore_errors=True)

    def delete(self, step: int) -> None:
        # Renamed first: a kill in between leaves nothing with the name of a step.
        doomed = self.directory / f"deleting-{step}"
        (self.directory / str(step)).rename(doomed)
        shutil.rmtree(doomed)

    def set_aside(self, step: int, damage: str) -> None:
        files.set_aside(self.directory / str(step), damage)

    def read(self, folder: str, name: str, start=0, length: int | None = None) -> bytes:
        path = self.directory / folder / name
        files.check_regular(path)  # reading from a pipe would block
        with path.open("rb") as file:
            file.seek(start)
            return file.read() if length is None else file.read(length)

    def chunks(self, folder: str, name: str) -> Iterator[bytes]:
        path = self.directory / folder / name
        files.check_regular(path)
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
