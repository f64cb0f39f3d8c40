"""Checkpoints that survive kill -9, a full disk and bit rot: the one wrapper of Orbax.

    checkpoints/
      1200/             a step: complete, since one rename gave it this name
        state/            the arrays (Orbax)
        leaves.json       name -> [shape, dtype] of each array
        extra.json        position and fingerprint of the data
        manifest.json     file -> [bytes, crc32] of all of the above
      saving-1400/      being written, or left by a kill: removed at the next start
      deleting-1000/    being deleted, likewise
      bad-1100/         damaged: set aside, named on stderr, never used

The file system needs atomic renames within one directory, as local disks and NFS have
them.
"""

import functools
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from vdm_jax import agreement, files, manifest
from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile, fsync
from vdm_jax.manifest import EXTRA, LEAVES, STATE, reading_files
from vdm_jax.migration import migrate_path
from vdm_jax.trees import named_leaves

T = TypeVar("T")

FORBIDDEN = r"[*?\[\\]|[\ud800-\udfff]|(?<=/)gs:/"  # in a path that Orbax restores from
MAX_INNER_PATH = 256  # bytes that Orbax's own names add to the path of a checkpoint


# Tracebacks of threads: of several with one error, of which `result()` raises one.
for _logger, _words in (("absl", "_SignalingThread"), ("asyncio", "never retrieved")):
    logging.getLogger(_logger).addFilter(
        lambda record, words=_words: words not in str(record.msg)
    )


def check_directory(directory: str | os.PathLike) -> Path:
    """Return the absolute path of a directory that can hold checkpoints.

    Orbax finds its files with a pattern made of the whole path. TensorStore takes a
    path as UTF-8, reads a backslash as a slash and removes .. without following links.
    Under such a path everything would seem well, and nothing could be restored.

    Raises:
      UserError: such a path, or one that is too long for Orbax's own names.
    """
    path = files.user_path(directory, "checkpoints").absolute()
    if ".." in path.parts:
        path = Path(os.path.realpath(path))
    if found := re.search(FORBIDDEN, f"{path}/"):
        raise UserError(
            f"checkpoints cannot be kept in {path}, for {found[0]!r}: give a directory "
            "whose path holds none of * ? [ \\ gs:/ and is UTF-8"
        )
    if len(os.fsencode(path)) > os.pathconf("/", "PC_PATH_MAX") - MAX_INNER_PATH:
        raise UserError(f"checkpoints cannot be kept in {path}: give a shorter path")
    return path


class Checkpoints:
    """The newest `keep` numbered checkpoints of one directory, at least 2.

    Every process of a run makes one with the same arguments, and calls its methods in
    the same order; process 0 does the bookkeeping. With `read_only` nothing in the
    directory is changed: commands read a run while it trains.
    """

    def __init__(self, directory: str | Path, keep: int = 2, read_only: bool = False):
        self.directory = check_directory(directory)
        self.keep = keep
        self.read_only = read_only
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        if not read_only:
            on_first_process(self._prepare)

    def steps(self) -> list[int]:
        """Return the committed steps in order, verified or not."""
        return sorted(map(int, self._names(r"0|[1-9][0-9]*")))

    def _names(self, pattern: str) -> list[str]:
        """Return the subdirectories whose names match."""
        with reading_files(self.directory):
            try:
                entries = list(os.scandir(self.directory))
            except FileNotFoundError:
                return []
            matching = [e for e in entries if re.fullmatch(pattern, e.name)]
            return [entry.name for entry in matching if entry.is_dir()]

    def newest_intact(self) -> int | None:
        """Verify the newest steps; return the first that is intact, None without steps.

        Damaged ones are set aside as bad-STEP (not with `read_only`) and named on
        stderr.

        Raises:
          UserError (2): a step cannot be read at this moment. Nothing is changed.
          UserError (4): steps were committed and none of them is intact.
        """
        return on_first_process(self._verify)

    def leaves(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return shape and dtype of every array of a step, by today's name."""
        return {
            migrate_path(name): jax.ShapeDtypeStruct(tuple(shape), dtype)
            for name, (shape, dtype) in self._read(step, LEAVES).items()
        }

    def extra(self, step: int) -> dict[str, Any]:
        """Return what was saved along with the state of a step."""
        return self._read(step, EXTRA)

    def save(self, step: int, state, extra: dict[str, Any]) -> None:
        """Write `state`, and `extra` as JSON, in the background.

        It returns when the arrays are copied to the host; the state may then be donated
        or overwritten. A later error is raised by the next call of `save`, `check`,
        `wait` or `close`. It leaves the older steps unchanged.

        Args:
          step: number of finished steps; not yet among `steps()`.
          state: a pytree of arrays with any shardings.
          extra: the same on every process.

        Raises:
          UserError (2): the disk is full, or cannot be written for another reason.
        """
        self.wait()
        if step in self.steps():
            raise ValueError(f"step {step} is already saved in {self.directory}")
        folder = self.directory / f"saving-{step}"
        # Saved flat, a state does not depend on the classes that it is made of.
        named = named_leaves(state)
        leaves = {n: (x.shape, np.dtype(x.dtype).name) for n, x in named.items()}
        size = sum(x.nbytes for x in named.values())
        writing = functools.partial(self._writing, folder, size)

        def begin() -> None:
            with writing():
                folder.mkdir()  # new, so that no link is followed
                manifest.write_json(folder / LEAVES, leaves)
                manifest.write_json(folder / EXTRA, extra)

        on_first_process(begin)
        with writing():
            response = ocp.save_async(str(folder / STATE), named)

        def commit() -> None:
            with writing():
                response.result()  # on all processes: it contains a barrier
                if jax.process_index() == 0:
                    self._commit(folder, step)

        self._pending = self._writer.submit(commit)

    def check(self) -> None:
        """Raise the error of the save in the background, if it has failed by now."""
        if self._pending is not None and self._pending.done():
            self._settle()

    def wait(self) -> None:
        """Wait until the last save is committed for every process."""
        self._settle()
        on_first_process(lambda: None)

    def close(self) -> None:
        """Finish the save in the background, without waiting for other processes."""
        try:
            self._settle()
        finally:
            self._writer.shutdown()
            if not self.read_only and jax.process_index() == 0:
                for left in self._names("saving-.*"):  # of a save that failed
                    shutil.rmtree(self.directory / left, ignore_errors=True)

    def restore(self, step: int, abstract_state) -> tuple[Any, dict[str, Any]]:
        """Return the state as it was saved, with the given shardings, and its extra.

        Args:
          step: one that `newest_intact` returned.
          abstract_state: a pytree of jax.ShapeDtypeStruct, each with the sharding of
            the array to return, on any mesh; without one it is placed on the first
            device. A dict, as {"ema": ...}, selects parts of the state, and only these
            are read. Anything else must list every array.

        Raises:
          UserError (2): no such step; an array is missing or left over, or differs in
            shape or dtype. Nothing is cast.
        """
        saved = self.leaves(step)
        if isinstance(abstract_state, dict):
            parts = {str(key) for key in abstract_state}
            saved = {n: x for n, x in saved.items() if n.split("/")[0] in parts}
        wanted = named_leaves(abstract_state)
        check_same_arrays(saved, wanted, f"checkpoint {self.directory / str(step)}")
        arrays = self._load(step, wanted)
        treedef = jax.tree.structure(abstract_state)
        state = jax.tree.unflatten(treedef, [arrays[name] for name in wanted])
        return state, self.extra(step)

    def arrays(self, step: int) -> dict[str, jax.Array]:
        """Return every array of a step by name, on the first device."""
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
        except CorruptFile as error:  # it was not verified, or has changed since
            raise UserError(f"{path} is {error}: put back a copy") from error

    def _prepare(self) -> None:
        """Make the directory, and remove what a kill has left in it."""
        with files.explain_write_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            for left in self._names("(saving|deleting)-.*"):
                folder = self.directory / left
                if folder.is_symlink():
                    folder.unlink()
                else:
                    shutil.rmtree(folder)

    def _verify(self) -> int | None:
        steps = self.steps()
        for step in reversed(steps):
            folder = self.directory / str(step)
            damage = manifest.find_damage(folder)
            if damage is None:
                return step
            if self.read_only:
                print(f"checkpoint {folder}: {damage}", file=sys.stderr)
            else:
                files.set_aside(folder, damage)
        if steps or self._names("bad-.*"):
            raise UserError(
                f"{self.directory} held checkpoints but no usable one is left: put "
                "back a copy of one, or remove the directory to start over",
                status=4,
            )
        return None

    def _commit(self, folder: Path, step: int) -> None:
        """Write the manifest, give the step its name, and delete the oldest steps."""
        manifest.write_manifest(folder)
        folder.rename(self.directory / str(step))
        fsync(self.directory)
        for old in self.steps()[: -self.keep]:
            # Renamed first: a kill in between leaves nothing with the name of a step.
            doomed = self.directory / f"deleting-{old}"
            (self.directory / str(old)).rename(doomed)
            shutil.rmtree(doomed)

    def _settle(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    @contextmanager
    def _writing(self, folder: Path, size: int) -> Iterator[None]:
        """Report a save of `size` bytes that fails inside of the block; remove it."""
        before = self.steps()
        kept = f"steps {before} are unchanged" if before else "none was saved"
        advice = f"up to {size / 1e6:.1f} MB needed; {kept}; "
        try:
            with files.explain_write_errors(folder, advice):
                yield
        except UserError:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def on_first_process(decide: Callable[[], T]) -> T:
    """Call `decide` on process 0 alone, and return its result on every process.

    The result must be JSON. All processes call this together, and all raise a UserError
    of `decide`.
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


def check_same_arrays(saved, wanted, what: str) -> None:
    """Raise UserError if two trees differ in the name, shape or dtype of any array.

    The message names `what` and the first five of them.
    """
    here, there = (
        {n: f"{np.dtype(x.dtype).name}{[*x.shape]}" for n, x in named_leaves(t).items()}
        for t in (wanted, saved)
    )
    found = agreement.differences(here, there)
    differing = [f"{name}: here {a}, there {b}" for name, a, b in found]
    if differing:
        raise UserError(
            f"{what} holds another model or optimiser; {len(differing)} arrays differ: "
            + "; ".join(differing[:5])
        )
