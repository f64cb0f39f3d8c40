"""Runs in a bucket: gs://BUCKET/PATH or s3://BUCKET/PATH, by the library obstore.

The bucket has what resuming and sampling need, config.json and checkpoints/. A folder
of the user's caches stands for the run on a machine: `mirror` makes it. It has a copy
of the config, and what the run logs there.
"""

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from vdm_jax import files
from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile
from vdm_jax.storage import (
    BAD,
    BEGUN,
    COMMIT,
    NUMBER,
    OWNER,
    Content,
    Counted,
    LocalSteps,
    Steps,
)

BUCKET_FILE = "bucket.json"  # of a workdir: {"address": of its run in a bucket}
PART = 1 << 24  # bytes of one request to a bucket; S3 takes 10,000 for an object
RETRY: Any = {"max_retries": 1000, "retry_timeout": timedelta(minutes=3)}
ADDRESS = re.compile(r"(gs|s3)://[^/\s?#]+(/[^/\s?#]+)+/?")


class Bucket:
    """The objects under an address gs://BUCKET/PATH or s3://BUCKET/PATH.

    Requests that fail are repeated for 3 minutes. Credentials and endpoints come from
    the environment and the machine, as the library obstore reads them.
    """

    def __init__(self, address: str, store: Any = None):
        self.address = address.rstrip("/")
        self._store = store or _open_store(self.address)

    def put(self, name: str, content: Content) -> None:
        """Write an object; it is there whole, or not at all."""
        from obstore import put

        parts = content if isinstance(content, bytes) else iter(content)
        with _one_line_errors():
            put(self._store, name, parts, chunk_size=PART)

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Return the bytes of an object. Raises FileNotFoundError without one."""
        return b"".join(self.chunks(name, start, length))

    def chunks(
        self, name: str, start: int = 0, length: int | None = None
    ) -> Iterator[bytes]:
        """Yield the bytes of an object in order, each time by a request of its own."""
        from obstore import get, get_range

        with _one_line_errors():
            if length is None:
                whole = get(self._store, name)
                size = whole.meta["size"]
                if size <= PART:
                    yield bytes(whole.bytes())
                    return
            else:
                size = start + length
            for first in range(start, size, PART):
                end = min(first + PART, size)
                yield bytes(get_range(self._store, name, start=first, end=end))

    def names(self, prefix: str) -> list[str]:
        """Return the names of the objects in a folder and below."""
        from obstore import list as list_objects

        with _one_line_errors():
            pages = list_objects(self._store, prefix)
            return sorted(each["path"] for page in pages for each in page)

    def remove(self, names: list[str]) -> None:
        """Remove objects."""
        from obstore import delete

        with _one_line_errors():
            delete(self._store, names)


def _open_store(address: str) -> Any:
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise UserError(f"{address}: pip install obstore, which reads it") from error
    with _one_line_errors():
        return from_url(address, retry_config=RETRY)


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn an error of the library, a page of text, into an OSError of one line."""
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError:
        raise
    except (BaseError, OSError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise OSError(lines[0].strip()[:400]) from error


class BucketSteps(Steps):
    """Steps in a bucket, which has no rename and no lock."""

    def __init__(self, bucket: Bucket, folder: str = "checkpoints"):
        self._bucket, self._folder = bucket, folder
        self._owner = ""

    def __str__(self) -> str:
        return f"{self._bucket.address}/{self._folder}"

    def place(self, folder: str) -> str:
        return f"{self}/{folder}"

    def _name(self, folder: str, name: str = "") -> str:
        return f"{self._folder}/{folder}/{name}"

    def _put_json(self, name: str, value: Any) -> None:
        self._bucket.put(name, json.dumps(value).encode())

    def _listing(self) -> dict[str, set[str]]:
        """Return the files of each folder of a step."""
        found: dict[str, set[str]] = {}
        for name in self._bucket.names(f"{self._folder}/"):
            folder, _, rest = name.removeprefix(f"{self._folder}/").partition("/")
            if rest and re.fullmatch(rf"({NUMBER})(\.[0-9]+)?", folder):
                found.setdefault(folder, set()).add(rest)
        return found

    def prepare(self, owner: str, alone: bool) -> None:
        # The name comes first: until it is there, another run may still commit.
        self._owner = owner
        self._put_json(f"{self._folder}/{OWNER}", {"owner": owner})
        for folder, is_ours in self._uncommitted().items():
            if is_ours:
                self._remove(folder)
            else:
                print(
                    f"{self.place(folder)} is not committed and not of this run (a "
                    "copy that is not finished?): it is left as it is",
                    file=sys.stderr, flush=True,
                )  # fmt: skip

    def foreign(self) -> list[str]:
        return [folder for folder, ours in self._uncommitted().items() if not ours]

    def _uncommitted(self) -> dict[str, bool]:
        """Return the folders that do not count, and whether each was begun here."""
        return {
            folder: BEGUN in names and self._begun_here(folder)
            for folder, names in self._listing().items()
            if COMMIT not in names and BAD not in names
        }

    def _begun_here(self, folder: str) -> bool:
        begun = files.parse_json(self._bucket.get(self._name(folder, BEGUN)))
        return begun == {"address": self.place(folder)}

    def owner(self) -> str:
        try:
            return files.parse_json(self._bucket.get(f"{self._folder}/{OWNER}"))[
                "owner"
            ]
        except FileNotFoundError:
            return ""

    def committed(self) -> dict[int, str]:
        folders = self._folders()
        return {step: names[-1] for step, names in folders.items()}

    def _folders(self) -> dict[int, list[str]]:
        """Return the committed folders of each step, those written last at the end."""
        steps: dict[int, list[tuple[int, str]]] = {}
        for folder, names in self._listing().items():
            if COMMIT in names and BAD not in names:
                step, _, number = folder.partition(".")
                steps.setdefault(int(step), []).append((int(number or 1), folder))
        return {step: [name for _, name in sorted(f)] for step, f in steps.items()}

    def has_set_aside(self) -> bool:
        return any(BAD in names for names in self._listing().values())

    def begin(self, step: int) -> str:
        folder, number, taken = str(step), 1, self._listing()
        while folder in taken:
            number += 1
            folder = f"{step}.{number}"
        self._put_json(self._name(folder, BEGUN), {"address": self.place(folder)})
        return folder

    def write(self, folder: str, name: str, content: Content) -> list[int]:
        counted = Counted(content)
        small = isinstance(content, bytes)  # one request
        self._bucket.put(
            self._name(folder, name), b"".join(counted) if small else counted
        )
        return [counted.size, counted.crc]

    def commit(self, folder: str, step: int, marker: bytes) -> None:
        self._check_owner()
        self._bucket.put(self._name(folder, COMMIT), marker)
        # Who took the run over in between may have removed files of this step. Then it
        # is damaged, and no older one may be deleted for it.
        self._check_owner()

    def _check_owner(self) -> None:
        if (owner := self.owner()) != self._owner:
            raise OSError(f"{owner} has taken the run over: stop one of the two")

    def discard(self, folder: str) -> None:
        pass  # the bucket may be failing; the next start removes it

    def _remove(self, folder: str) -> None:
        names = self._bucket.names(self._name(folder))
        begun = self._name(folder, BEGUN)  # last: what is left is known as ours
        self._bucket.remove([name for name in names if name != begun])
        self._bucket.remove([begun])

    def delete(self, step: int) -> None:
        for folder in self._folders()[step]:
            self._put_json(self._name(folder, BEGUN), {"address": self.place(folder)})
            self._bucket.remove([self._name(folder, COMMIT)])
            self._remove(folder)

    def set_aside(self, step: int, damage: str) -> None:
        folder = self.committed()[step]
        self._put_json(self._name(folder, BAD), {"damage": damage})
        print(
            f"{self.place(folder)}: {damage}; set aside by {BAD} in it",
            file=sys.stderr, flush=True,
        )  # fmt: skip

    def read(self, folder: str, name: str, start=0, length: int | None = None) -> bytes:
        return self._bucket.get(self._name(folder, name), start, length)

    def chunks(self, folder: str, name: str) -> Iterator[bytes]:
        return self._bucket.chunks(self._name(folder, name))


# --- workdirs of runs in a bucket -----------------------------------------------------


def mirror(address: str) -> Path:
    """Return the folder of this machine that stands for a run in a bucket.

    The bucket has what resuming and sampling need: config.json and the checkpoints. The
    folder, of the user's caches, has a copy of the config, and what the run logs here.

    Raises:
      UserError: not an address gs://BUCKET/PATH or s3://BUCKET/PATH, or the bucket
        cannot be read.
    """
    if not ADDRESS.fullmatch(address) or {".", ".."} & {*address.split("/")}:
        raise UserError(f"{address}: give gs://BUCKET/PATH or s3://BUCKET/PATH")
    address = address.rstrip("/")
    folder = files.cache_folder() / "runs" / address.replace("://", "/")
    config = folder / "config.json"
    try:
        content = Bucket(address).get(config.name)
    except FileNotFoundError:  # a new run
        content = None
    except OSError as error:
        raise UserError(f"{address} cannot be read ({error})") from error
    files.write_json(folder / BUCKET_FILE, {"address": address})
    if content is None:
        config.unlink(missing_ok=True)  # of a run that is no longer there
    else:
        files.write_bytes(config, content, overwrite=True)
    return folder


def address_of(workdir: Path) -> str | None:
    """Return the address of the run for which a folder stands; None without a bucket.

    Raises:
      UserError: the file that names it is damaged.
    """
    path = workdir / BUCKET_FILE
    if not path.is_file():
        return None
    try:
        return files.read_json(path)["address"]
    except (CorruptFile, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: remove it") from error


def open_steps(directory: str | os.PathLike) -> Steps:
    """Return the steps of a directory, or of the bucket of its workdir."""
    local = LocalSteps(directory)
    if address := address_of(local.directory.parent):
        return BucketSteps(Bucket(address), local.directory.name)
    return local


def publish(path: Path) -> None:
    """Copy a file of a workdir to its bucket, if it has one.

    Raises:
      UserError: the bucket cannot be written.
    """
    if address := address_of(path.parent):
        with files.explain_write_errors(f"{address}/{path.name}"):
            Bucket(address).put(path.name, path.read_bytes())
