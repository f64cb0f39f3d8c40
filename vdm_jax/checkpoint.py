"""Checkpoints that outlive kill -9, a full disk and bit rot: the one wrapper of Orbax.

    checkpoints/
      1200/             a step: complete, since it got this name by one rename
        state/            the arrays (Orbax)
        leaves.json       name -> [shape, dtype] of each array
        extra.json        what goes with them: data position, fingerprint
        manifest.json     file -> [bytes, crc32], of everything above
      saving-1400/      being written, or left by a kill: removed at the next start
      deleting-1000/    on its way out, likewise
      bad-1100/         was damaged: set aside, named on stderr, never offered

Orbax alone restores a flipped byte silently and lists half-deleted steps; the manifest
and the renames are here for that. Only renames inside one directory are asked of the
file system: local disks, NFS and the like.
"""

import errno
import json
import logging
import os
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from vdm_jax import files
from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile, fsync
from vdm_jax.migration import migrate_path

T = TypeVar("T")

MANIFEST, LEAVES, EXTRA, STATE = "manifest.json", "leaves.json", "extra.json", "state"
CHUNK = 1 << 22
# Errors in opening a file that come of what stands there. Any other is the system's at
# this moment and says nothing about the bytes.
ABSENT = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip
PATTERN = r"[*?\[\\]|[\ud800-\udfff]|(?<=/)gs:/"  # what a path of Orbax's cannot hold
INSIDE = 256  # bytes that Orbax's own names in a checkpoint add to a path, at most


def _worth_saying(record: logging.LogRecord) -> bool:
    """Orbax tells every save in twenty lines, and an error in a traceback a thread.

    The error itself is raised by `result()`.
    """
    return "orbax" not in record.pathname or (
        record.levelno > logging.INFO and "_SignalingThread" not in str(record.msg)
    )


logging.getLogger("absl").addFilter(_worth_saying)
logging.getLogger("asyncio").addFilter(
    lambda record: "never retrieved" not in str(record.msg)  # one was, and is raised
)


def check_directory(directory: str | os.PathLike) -> Path:
    """The absolute path of a directory, if checkpoints can be kept in it.

    Orbax finds its files with a pattern made of the whole path, and TensorStore takes a
    path as UTF-8, reads a backslash as a slash and removes .. without looking at links.
    Where a path holds such, all would seem well and nothing could be restored.

    Raises UserError for it, and for a path that leaves no room for Orbax's own names.
    """
    path = files.user_path(directory, "checkpoints").absolute()
    if ".." in path.parts:
        path = Path(os.path.realpath(path))
    if found := re.search(PATTERN, f"{path}/"):
        raise UserError(
            f"checkpoints cannot be kept in {path}, for {found[0]!r}: give a directory "
            "whose path holds none of * ? [ \\ gs:/ and is UTF-8"
        )
    if len(os.fsencode(path)) > os.pathconf("/", "PC_PATH_MAX") - INSIDE:
        raise UserError(f"checkpoints cannot be kept in {path}: give a shorter path")
    return path


class Checkpoints:
    """The numbered checkpoints of one directory, newest `keep` of them.

    Every process of a run makes one, with the same arguments, and calls its methods in
    the same order; process 0 does the bookkeeping. With `read_only`, for verbs that
    look at a run which may still be training, nothing in the directory is changed.
    """

    def __init__(self, directory: str | Path, keep: int = 2, read_only: bool = False):
        if keep < 2:
            raise UserError(
                f"train.keep_checkpoints={keep}: at least 2, so that there is one to "
                "fall back on when the newest is damaged"
            )
        self.directory = check_directory(directory)
        self.keep = keep
        self.read_only = read_only
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        if not read_only:
            on_first_process(self._prepare)

    def steps(self) -> list[int]:
        """Steps that were committed, verified or not, in order."""
        return sorted(map(int, self._names(r"0|[1-9][0-9]*")))

    def _names(self, pattern: str) -> list[str]:
        """The directories here whose names match; none where there is no directory."""
        with reading_files(self.directory):
            try:
                entries = list(os.scandir(self.directory))
            except FileNotFoundError:
                return []
            return [e.name for e in entries if re.fullmatch(pattern, e.name)
                    and e.is_dir()]  # fmt: skip

    def latest(self) -> int | None:
        """The newest step that verifies; None if no step was ever committed here.

        Damaged ones are set aside as bad-STEP and named on stderr.

        Raises:
          UserError (2): one cannot be read at this moment. Nothing is changed.
          UserError (4): steps were committed here and none of them verifies.
        """
        return on_first_process(self._latest)

    def leaves(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return shape and dtype of every array of a step, by today's name."""
        saved = self._read(step, LEAVES)
        return {
            migrate_path(name): jax.ShapeDtypeStruct(tuple(shape), dtype)
            for name, (shape, dtype) in saved.items()
        }

    def extra(self, step: int) -> dict[str, Any]:
        """What was saved beside the state of a step."""
        return self._read(step, EXTRA)

    def save(self, step: int, state, extra: dict[str, Any]) -> None:
        """Write `state`, and `extra` as JSON, in the background.

        Returns once the arrays are copied to the host, after which the state may be
        donated or overwritten. What goes wrong later is raised by the next call of
        `save`, `check`, `wait` or `close`; the steps before it stay as they were.

        Args:
          step: finished steps; not yet among `steps()`.
          state: a pytree of arrays, sharded in any way.
          extra: the same on every process.

        Raises:
          UserError (2): the disk is full, or cannot be written for another reason.
        """
        self.wait()
        if step in self.steps():
            raise ValueError(f"step {step} is already saved in {self.directory}")
        folder = self.directory / f"saving-{step}"
        named = dict(_named(state))
        leaves = {n: (x.shape, np.dtype(x.dtype).name) for n, x in named.items()}
        writing = self._writing(step, sum(x.nbytes for x in named.values()))

        def begin() -> None:
            with writing():
                folder.mkdir()  # new, so that no link is followed
                _write_json(folder / LEAVES, leaves)
                _write_json(folder / EXTRA, extra)

        on_first_process(begin)
        with writing():
            response = ocp.save_async(str(folder / STATE), named)

        def commit() -> None:
            with writing():
                response.result()  # of all processes: Orbax has a barrier in it
                if jax.process_index() == 0:
                    self._commit(folder, step)

        self._pending = self._writer.submit(commit)

    def check(self) -> None:
        """Raise what went wrong with the save in the background, if that is known."""
        if self._pending is not None and self._pending.done():
            self._settle()

    def wait(self) -> None:
        """Until the last save is committed for every process."""
        self._settle()
        on_first_process(lambda: None)

    def close(self) -> None:
        """Finish the save in the background; without waiting for other processes."""
        self._settle()
        self._writer.shutdown()

    def restore(self, step: int, abstract_state) -> tuple[Any, dict[str, Any]]:
        """The state as it was saved, laid out as asked, and its extra.

        Args:
          step: one that `latest` has offered.
          abstract_state: pytree of jax.ShapeDtypeStruct, each with the sharding that
            the array shall have, on whatever mesh; without one it goes to the first
            device. A dict asks for some parts of the state, as in {"ema": ...}, and
            only these are read; anything else must account for every array.

        Raises:
          UserError (2): no such step; an array is missing or left over, or differs in
            shape or dtype. Nothing is cast.
        """
        saved = self.leaves(step)
        if isinstance(abstract_state, dict):
            parts = {str(key) for key in abstract_state}
            saved = {n: x for n, x in saved.items() if n.split("/")[0] in parts}
        wanted = dict(_named(abstract_state))
        check_same_arrays(saved, wanted, f"checkpoint {self.directory / str(step)}")
        arrays = self._load(step, wanted)
        treedef = jax.tree.structure(abstract_state)
        state = jax.tree.unflatten(treedef, [arrays[name] for name in wanted])
        return state, self.extra(step)

    def arrays(self, step: int) -> dict[str, jax.Array]:
        """Every array of a step by name, on the first device: to look at or compare."""
        return self._load(step, self.leaves(step))

    def _load(self, step: int, wanted: dict[str, Any]) -> dict[str, jax.Array]:
        first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        stored = {migrate_path(name): name for name in self._read(step, LEAVES)}
        targets = {
            stored[name]: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=getattr(x, "sharding", None) or first
            )
            for name, x in wanted.items()
        }
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        place = self.directory / str(step) / STATE
        with reading_files(place), context:
            arrays = ocp.load(str(place), targets)
        return {name: arrays[stored[name]] for name in wanted}

    def _read(self, step: int, name: str) -> Any:
        if step not in self.steps():
            raise UserError(
                f"there is no checkpoint of step {step} in {self.directory}; there are "
                f"{self.steps() or 'none'}"
            )
        path = self.directory / str(step) / name
        try:
            with reading_files(path):
                return files.read_json(path)
        except CorruptFile as error:  # since it was verified, or it was not
            raise UserError(f"{path} is {error}: put back a copy") from error

    def _prepare(self) -> None:
        """Make the directory, and clear what a kill has left in it."""
        with files.explain_write_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            for left in self._names("(saving|deleting)-.*"):
                remove(self.directory / left)

    def _latest(self) -> int | None:
        steps = self.steps()
        for step in reversed(steps):
            damage = _damage(self.directory / str(step))
            if damage is None:
                return step
            if self.read_only:
                folder = self.directory / str(step)
                print(f"checkpoint {folder}: {damage}", file=sys.stderr)
            else:
                files.set_aside(self.directory / str(step), damage)
        if steps or self._names("bad-.*"):
            raise UserError(
                f"{self.directory} held checkpoints but no usable one is left: put "
                "back a copy of one, or remove the directory to start afresh",
                status=4,
            )
        return None

    def _commit(self, folder: Path, step: int) -> None:
        """Checksums, then the name that makes it a step, then the old ones go."""
        written = sorted(p for p in folder.rglob("*") if p.is_file())
        manifest = {
            str(path.relative_to(folder)): _size_and_crc(path, durable=True)
            for path in written
        }
        _write_json(folder / MANIFEST, manifest)
        for directory in {path.parent for path in written} | {folder}:
            fsync(directory)
        folder.rename(self.directory / str(step))
        fsync(self.directory)
        for old in self.steps()[: -self.keep]:
            # Renamed first: a kill in the middle leaves nothing that looks like a step.
            doomed = self.directory / f"deleting-{old}"
            (self.directory / str(old)).rename(doomed)
            shutil.rmtree(doomed)

    def _settle(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _writing(self, step: int, size: int):
        """Contexts in which what cannot be written is told and removed."""
        before = [old for old in self.steps() if old != step]
        folder = self.directory / f"saving-{step}"
        advice = f"up to {size / 1e6:.1f} MB needed for step {step}; " + (
            f"steps {before} are as they were; " if before else "none was saved; "
        )

        @contextmanager
        def context() -> Iterator[None]:
            try:
                with files.explain_write_errors(folder, advice):
                    yield
            except UserError:
                shutil.rmtree(folder, ignore_errors=True)
                raise

        return context


@contextmanager
def reading_files(path: Path) -> Iterator[None]:
    """Turn the system's refusal to read inside the block into a UserError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        code, (text, *told) = files.find_errno(error), str(error).split(" [tensors")
        if code is None and not told:
            raise
        reason = text if code is None else os.strerror(code).lower()
        raise UserError(
            f"{path} cannot be read ({reason}): nothing is changed; the same command "
            "goes on once it can be"
        ) from error


def remove(folder: Path) -> None:
    """Remove a directory and all in it, or a link to one."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def on_first_process(decide: Callable[[], T]) -> T:
    """`decide()` on process 0 alone; its JSON-able result reaches every process.

    A UserError of it is raised by all. All processes must call this together.
    """
    if jax.process_count() == 1:
        return decide()
    answer = b""
    if jax.process_index() == 0:
        try:
            outcome: dict[str, Any] = {"value": decide()}
        except UserError as error:
            outcome = {"error": str(error), "status": error.status}
        answer = json.dumps(outcome).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(answer))))
    text = np.frombuffer(answer.ljust(size), np.uint8)
    text = np.asarray(multihost_utils.broadcast_one_to_all(text), np.uint8)
    outcome = json.loads(text.tobytes())
    if "error" in outcome:
        raise UserError(outcome["error"], outcome["status"])
    return outcome["value"]


def _named(tree) -> Iterator[tuple[str, Any]]:
    """Arrays by name, a/b/c: saved flat, a state outlives the classes it is made of."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def check_same_arrays(saved, wanted, what: str) -> None:
    """Raise UserError if two trees differ in the name, shape or dtype of any array.

    It names `what` and the first five that do.
    """
    saved, wanted = dict(_named(saved)), dict(_named(wanted))

    def describe(leaves: dict[str, Any], name: str) -> str:
        leaf = leaves.get(name)
        if leaf is None:
            return "absent"
        return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"

    differing = [
        f"{name}: here {describe(wanted, name)}, there {describe(saved, name)}"
        for name in {**wanted, **saved}
        if describe(wanted, name) != describe(saved, name)
    ]
    if differing:
        raise UserError(
            f"{what} holds another model or optimiser; {len(differing)} arrays differ: "
            + "; ".join(differing[:5])
        )


def _damage(folder: Path) -> str | None:
    """What is wrong with a committed step; None if every file is as it was written.

    Raises UserError if one cannot be read, which says nothing about its bytes.
    """
    name = MANIFEST
    try:
        with reading_files(folder):
            manifest = _present(lambda: files.read_json(folder / MANIFEST))
            if not _is_manifest(manifest):
                return f"{MANIFEST} is not what was written"
            for name, entry in manifest.items():
                found = _present(lambda name=name: _size_and_crc(folder / name))
                if found != entry:
                    return f"{name} has size and checksum {found} instead of {entry}"
    except CorruptFile as error:
        return f"{name} is {error}"
    return None


def _present(read: Callable[[], T]) -> T:
    """What is read; CorruptFile if there is no such file."""
    try:
        return read()
    except CorruptFile:
        raise
    except ValueError as error:  # a name with a NUL, or that is not UTF-8
        raise CorruptFile("no name of a file") from error
    except OSError as error:
        if error.errno not in ABSENT:
            raise
        raise CorruptFile(f"missing ({error.strerror})") from error


def _is_manifest(found: Any) -> bool:
    """Whether it speaks of all parts of a checkpoint."""
    return isinstance(found, dict) and {LEAVES, EXTRA, STATE} <= {
        name.split("/")[0] for name in found
    }


def _write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=0), "utf-8")
    fsync(path)


def _size_and_crc(path: Path, durable: bool = False) -> list[int]:
    """Bytes and CRC-32 of a file, which with `durable` is on disk when this returns.

    CRC-32 finds every change of up to 32 bits in a row; it guards against decay, not
    against forgery, and is several times as fast as a cryptographic hash.
    """
    size = crc = 0
    with path.open("rb") as file:
        if durable:
            os.fsync(file.fileno())
        while chunk := file.read(CHUNK):
            size += len(chunk)
            crc = zlib.crc32(chunk, crc)
    return [size, crc]
