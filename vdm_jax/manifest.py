"""The manifest of a step: size and CRC-32 of its files, and the marker with its hash.

A step is read only if every file is as the manifest says, and the manifest as the
marker says. (Steps of earlier versions have no marker.)
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from vdm_jax import files
from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile
from vdm_jax.storage import COMMIT, Steps

MANIFEST, LEAVES, EXTRA, STATE = "manifest.json", "leaves.json", "extra.json", "state"
READERS = 8  # files that are verified at the same time
# Errors of opening a file that are due to what is stored. Any other error is due to the
# system at this moment, and says nothing about the bytes.
ABSENT = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip


def to_json(value: Any) -> bytes:
    """Return a value as the JSON of a checkpoint."""
    return json.dumps(value, indent=0).encode()


def marker(manifest: bytes) -> bytes:
    """Return the content of commit.json."""
    return to_json({"manifest": hashlib.sha256(manifest).hexdigest()})


def find_damage(steps: Steps, folder: str, rank: int = 0, count: int = 1) -> str | None:
    """Return what is wrong with a step; None if every file is as it was written.

    rank, count: this process and the number of those that verify a part each.

    Raises:
      UserError: a file cannot be read, which says nothing about its bytes.
    """
    with reading_files(steps.place(folder)):
        if damage := _damage_of(steps, folder, MANIFEST, None):
            return damage
        content = steps.read(folder, MANIFEST)
        try:
            manifest = files.parse_json(content)
        except CorruptFile as error:
            return f"{MANIFEST} is {error}"
        names = manifest if isinstance(manifest, dict) else ()
        if not {LEAVES, EXTRA, STATE} <= {_kind(name) for name in names}:
            return f"{MANIFEST} is not what was written"
        if damage := _damage_of_marker(steps, folder, content):
            return damage
        share = sorted(manifest.items())[rank::count]
        with ThreadPoolExecutor(READERS, "verify") as readers:
            damages = readers.map(lambda i: _damage_of(steps, folder, *i), share)
            return next(filter(None, damages), None)


def _kind(name: str) -> str:
    """Return STATE for a file of arrays; those of Orbax are in a folder."""
    return STATE if name.startswith((f"{STATE}/", f"{STATE}-")) else name


def _damage_of_marker(steps: Steps, folder: str, manifest: bytes) -> str | None:
    try:
        if steps.read(folder, COMMIT) != marker(manifest):
            return f"{COMMIT} is not that of {MANIFEST}"
    except FileNotFoundError:  # a step of an earlier version
        return None
    return None


def _damage_of(steps: Steps, folder: str, name: str, expected: Any) -> str | None:
    """Return how a file differs from its size and checksum, or that it is absent."""
    try:
        with _absence_is_damage():
            found = steps.size_and_crc(folder, name)
    except CorruptFile as error:
        return f"{name} is {error}"
    if expected in (None, found):
        return None
    return f"{name} has size and checksum {found}, not {expected}"


@contextmanager
def reading_files(place: Any) -> Iterator[None]:
    """Turn an error of the system in reading within the block into a UserError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        # TensorStore ends its messages with " [tensorstore_spec=...".
        code = files.find_errno(error)
        text, *spec = str(error).split(" [tensors")
        if code is None and not spec and not isinstance(error, OSError):
            raise
        reason = text if code is None else os.strerror(code).lower()
        raise UserError(
            f"{place} cannot be read ({reason}): nothing is changed; the same command "
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
    except FileNotFoundError as error:
        raise CorruptFile("missing") from error
    except OSError as error:
        if error.errno not in ABSENT:
            raise
        raise CorruptFile(f"missing ({error.strerror})") from error
