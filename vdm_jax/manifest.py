"""The files of a checkpoint, and the manifest of their sizes and checksums.

Orbax restores a flipped byte silently and lists steps that are half deleted. A step is
read only if every file is as the manifest says.
"""

import errno
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vdm_jax import files
from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile, fsync

MANIFEST, LEAVES, EXTRA, STATE = "manifest.json", "leaves.json", "extra.json", "state"
CHUNK = 1 << 22  # bytes read at a time
# Errors of opening a file that are due to what is stored. Any other error is due to the
# system at this moment, and says nothing about the bytes.
ABSENT = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is on disk when this returns."""
    path.write_text(json.dumps(value, indent=0), "utf-8")
    fsync(path)


def write_manifest(folder: Path) -> None:
    """Write size and CRC-32 of every file of a folder; all are on disk afterwards."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    manifest = {
        str(path.relative_to(folder)): _size_and_crc(path, durable=True)
        for path in paths
    }
    write_json(folder / MANIFEST, manifest)
    for directory in {path.parent for path in paths} | {folder}:
        fsync(directory)


def find_damage(folder: Path) -> str | None:
    """Return what is wrong with a step; None if every file is as it was written.

    Raises:
      UserError: a file cannot be read, which says nothing about its bytes.
    """
    name = MANIFEST
    try:
        with reading_files(folder), _absence_is_damage():
            manifest = files.read_json(folder / MANIFEST)
            names = manifest if isinstance(manifest, dict) else ()
            if not {LEAVES, EXTRA, STATE} <= {name.split("/")[0] for name in names}:
                return f"{MANIFEST} is not what was written"
            for name, expected in manifest.items():
                found = _size_and_crc(folder / name)
                if found != expected:
                    return f"{name} has size and checksum {found}, not {expected}"
    except CorruptFile as error:
        return f"{name} is {error}"
    return None


@contextmanager
def reading_files(path: Path) -> Iterator[None]:
    """Turn an error of the system in reading within the block into a UserError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        # TensorStore ends its messages with " [tensorstore_spec=...".
        code = files.find_errno(error)
        text, *spec = str(error).split(" [tensors")
        if code is None and not spec:
            raise
        reason = text if code is None else os.strerror(code).lower()
        raise UserError(
            f"{path} cannot be read ({reason}): nothing is changed; the same command "
            "resumes once it can be read"
        ) from error


@contextmanager
def _absence_is_damage() -> Iterator[None]:
    """Turn the error of a file that is not there into a CorruptFile."""
    try:
        yield
    except CorruptFile:
        raise
    except ValueError as error:  # a name with a NUL, or that is not UTF-8
        raise CorruptFile("no name of a file") from error
    except OSError as error:
        if error.errno not in ABSENT:
            raise
        raise CorruptFile(f"missing ({error.strerror})") from error


def _size_and_crc(path: Path, durable: bool = False) -> list[int]:
    """Return bytes and CRC-32 of a file; with `durable` it is on disk afterwards.

    CRC-32 finds every change within 32 consecutive bits. It guards against decay, not
    against forgery, and is several times as fast as a cryptographic hash.
    """
    size = crc = 0
    files.check_regular(path)  # reading from a pipe would block
    with path.open("rb") as file:
        if durable:
            os.fsync(file.fileno())
        while chunk := file.read(CHUNK):
            size += len(chunk)
            crc = zlib.crc32(chunk, crc)
    return [size, crc]
