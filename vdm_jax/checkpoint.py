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
file system: local disks, NFS and the like, but not gs:// paths, which have none.
"""

import errno
import json
import logging
import os
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

from vdm_jax.errors import UserError

T = TypeVar("T")

MANIFEST, LEAVES, EXTRA, STATE = "manifest.json", "leaves.json", "extra.json", "state"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CHUNK = 1 << 22


def _worth_saying(record: logging.LogRecord) -> bool:
    """Orbax tells every save in twenty lines, and an error in a traceback a thread.

    The error itself is raised by `result()`.
    """
    return "orbax" not in record.pathname or (
        record.levelno > logging.INFO and "_SignalingThread" not in str(record.msg)
    )


logging.getLogger("absl").addFilter(_worth_saying)


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
        if "://" in str(directory):
            raise UserError(
                f"checkpoints cannot be kept in {directory}: give a directory of a "
                "mounted file system that all processes share"
            )
        self.directory = Path(directory).absolute()
        self.keep = keep
        self.read_only = read_only
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        if not read_only:
            on_first_process(self._prepare)

    def steps(self) -> list[int]:
        """Steps that were committed, verified or not, in order."""
        names = [p.name for p in self.directory.glob("*") if p.is_dir()]
        return sorted(int(name) for name in names if name.isdecimal())

    def latest(self) -> int | None:
        """The newest step that verifies; None if no step was ever committed here.

        Damaged ones are set aside as bad-STEP and named on stderr.

        Raises:
          UserError (4): steps were committed here and none of them verifies.
        """
        return on_first_process(self._latest)

    def leaves(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Name, shape and dtype of every array of a step, in the order of its tree."""
        saved = json.loads(self._read(step, LEAVES))
        return {
            name: jax.ShapeDtypeStruct(tuple(shape), dtype)
            for name, (shape, dtype) in saved.items()
        }

    def extra(self, step: int) -> dict[str, Any]:
        """What was saved beside the state of a step."""
        return json.loads(self._read(step, EXTRA))

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
          UserError (2): the disk is full.
        """
        self.wait()
        if step in self.steps():
            raise ValueError(f"step {step} is already saved in {self.directory}")
        folder = self.directory / f"saving-{step}"
        named = dict(_named(state))
        leaves = {n: (x.shape, np.dtype(x.dtype).name) for n, x in named.items()}
        with self._explaining_no_space(step, named):
            folder.mkdir(exist_ok=True)
            if jax.process_index() == 0:
                _write_json(folder / LEAVES, leaves)
                _write_json(folder / EXTRA, extra)
            response = ocp.save_async(str(folder / STATE), named)

        def commit() -> None:
            with self._explaining_no_space(step, named):
                response.result()  # of all processes: Orbax has a barrier in it
                if jax.process_index() == 0:
                    self._commit(folder, step)

        named = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in named.items()}
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
        check_fit(saved, wanted, f"checkpoint {self.directory / str(step)}")
        arrays = self._load(step, wanted)
        treedef = jax.tree.structure(abstract_state)
        state = jax.tree.unflatten(treedef, [arrays[name] for name in wanted])
        return state, self.extra(step)

    def arrays(self, step: int) -> dict[str, jax.Array]:
        """Every array of a step by name, on the first device: to look at or compare."""
        return self._load(step, self.leaves(step))

    def _load(self, step: int, wanted: dict[str, Any]) -> dict[str, jax.Array]:
        first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        targets = {
            name: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=getattr(x, "sharding", None) or first
            )
            for name, x in wanted.items()
        }
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            return dict(ocp.load(str(self.directory / str(step) / STATE), targets))

    def _read(self, step: int, name: str) -> str:
        if step not in self.steps():
            raise UserError(
                f"there is no checkpoint of step {step} in {self.directory}; there are "
                f"{self.steps() or 'none'}"
            )
        return (self.directory / str(step) / name).read_text()

    def _prepare(self) -> None:
        """Make the directory, and clear what a kill has left in it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for pattern in ("saving-*", "deleting-*"):
            for left in self.directory.glob(pattern):
                shutil.rmtree(left)

    def _latest(self) -> int | None:
        steps = self.steps()
        for step in reversed(steps):
            damage = _damage(self.directory / str(step))
            if damage is None:
                return step
            self._set_aside(step, damage)
        if steps or any(self.directory.glob("bad-*")):
            raise UserError(
                f"{self.directory} held checkpoints but no usable one is left: put "
                "back a copy of one, or remove the directory to start afresh",
                status=4,
            )
        return None

    def _set_aside(self, step: int, damage: str) -> None:
        print(f"checkpoint {self.directory / str(step)}: {damage}", file=sys.stderr)
        if self.read_only:
            return
        target = self.directory / f"bad-{step}"
        again = 2
        while target.exists():
            target = self.directory / f"bad-{step}.{again}"
            again += 1
        (self.directory / str(step)).rename(target)
        print(f"set aside as {target}; using the one before", file=sys.stderr)

    def _commit(self, folder: Path, step: int) -> None:
        """Checksums, then the name that makes it a step, then the old ones go."""
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        manifest = {
            str(path.relative_to(folder)): _size_and_crc(path, sync=True)
            for path in files
        }
        _write_json(folder / MANIFEST, manifest)
        for directory in {path.parent for path in files} | {folder}:
            _sync(directory)
        folder.rename(self.directory / str(step))
        _sync(self.directory)
        for old in self.steps()[: -self.keep]:
            # Renamed first: a kill in the middle leaves nothing that looks like a step.
            doomed = self.directory / f"deleting-{old}"
            (self.directory / str(old)).rename(doomed)
            shutil.rmtree(doomed)

    def _settle(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    @contextmanager
    def _explaining_no_space(self, step: int, named: dict[str, Any]) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # tensorstore raises a ValueError
            reason = _no_space(error)
            if reason is None:
                raise
            free = shutil.disk_usage(self.directory).free
            need = sum(x.size * x.dtype.itemsize for x in named.values())
            kept = [old for old in self.steps() if old != step]
            shutil.rmtree(self.directory / f"saving-{step}", ignore_errors=True)
            raise UserError(
                f"step {step} could not be saved in {self.directory} ({reason}): up to "
                f"{need / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free; steps "
                f"{kept or 'none'} are as they were; make room and run again"
            ) from error


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


def check_fit(saved, wanted, what: str) -> None:
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
    """What is wrong with a committed step; None if every file is as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name, entry in manifest.items():
        try:
            found = _size_and_crc(folder / name)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found != entry:
            return f"{name} is damaged: size and checksum {found} instead of {entry}"
    return None


def _size_and_crc(path: Path, sync: bool = False) -> list[int]:
    """Bytes and CRC-32 of a file, which with `sync` is on disk when this returns.

    CRC-32 finds every change of up to 32 bits in a row; it guards against decay, not
    against forgery, and is several times as fast as a cryptographic hash.
    """
    size = crc = 0
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        while chunk := file.read(CHUNK):
            size += len(chunk)
            crc = zlib.crc32(chunk, crc)
    return [size, crc]


def _write_json(path: Path, value) -> None:
    with path.open("w") as file:
        json.dump(value, file, indent=0)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _no_space(error: Exception) -> str | None:
    """The system's words, if the error is that a file could not grow."""
    for code in NO_SPACE:
        if f"os_error_code='{code}'" in str(error) or (
            isinstance(error, OSError) and error.errno == code
        ):
            return os.strerror(code).lower()
    return None
