"""Checkpoints that survive kill -9, a full disk, bit rot and a bucket that fails.

    checkpoints/
      1200/             a step (vdm_jax/storage.py says what makes it one)
        state-*           the arrays, a file of each process (vdm_jax/shards.py)
        leaves.json       name -> [shape, dtype] of each array
        extra.json        position and fingerprint of the data
        manifest.json     file -> [bytes, crc32] of all of the above
        commit.json       hash of the manifest; written last

Every process writes and checksums its own file. Process 0 merges what they report into
the manifest when all are done, and commits. A kill at any moment leaves a step that is
whole, or one that does not count.
"""

import functools
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from vdm_jax import agreement, buckets, files, manifest, shards
from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile
from vdm_jax.manifest import EXTRA, LEAVES, MANIFEST, STATE, reading_files
from vdm_jax.migration import migrate_path
from vdm_jax.trees import named_leaves

T = TypeVar("T")


class Checkpoints:
    """The newest `keep` numbered checkpoints of one directory, at least 2.

    Every process of a run makes one with the same arguments, and calls its methods in
    the same order; process 0 does the bookkeeping. With `read_only` nothing in the
    directory is changed: commands read a run while it trains.

    directory: of a workdir, whose checkpoints may be in a bucket (`buckets.mirror`).

    Raises:
      UserError (2): it cannot be written, or not all processes see the same directory.
    """

    def __init__(self, directory: str | Path, keep: int = 2, read_only: bool = False):
        self._steps = buckets.open_steps(directory)
        self.keep = keep
        self.read_only = read_only
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        if not read_only:
            owner = on_first_process(self._prepare)
            if jax.process_count() > 1:
                self._check_all_see(owner)

    def __str__(self) -> str:
        return str(self._steps)

    def steps(self) -> list[int]:
        """Return the committed steps in order, verified or not."""
        return sorted(self._committed())

    def _committed(self) -> dict[int, str]:
        with reading_files(self):
            return self._steps.committed()

    def newest_intact(self) -> int | None:
        """Verify the newest steps; return the first that is intact, None without steps.

        Each process verifies a part of the files. Damaged steps are set aside (not with
        `read_only`) and named on stderr.

        Raises:
          UserError (2): a step cannot be read at this moment, or there are only folders
            of a bucket that do not count, as of a copy. Nothing is changed.
          UserError (4): steps were committed and none of them is intact.
        """
        steps = on_first_process(self.steps)
        for step in reversed(steps):
            if (damage := self._damage(step)) is None:
                return step
            on_first_process(functools.partial(self._reject, step, damage))
        on_first_process(lambda: self._check_never_started(steps))
        return None

    def _damage(self, step: int) -> str | None:
        """Return what is wrong with a step; each process reads a part of its files."""
        share = jax.process_index(), jax.process_count()
        folder = on_first_process(lambda: self._folder(step))
        return agreement.together(
            lambda: manifest.find_damage(self._steps, folder, *share),
            lambda damages: next(filter(None, damages), None),
        )

    def checksum(self, step: int) -> str:
        """Return the CRC-32 of a step's manifest, in hexadecimal: it covers all."""
        folder = self._folder(step)
        with reading_files(self._steps.place(folder)):
            return f"{self._steps.size_and_crc(folder, MANIFEST)[1]:08x}"

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
        `wait` or `close`, on every process. It leaves the older steps unchanged.

        Args:
          step: number of finished steps; not yet among `steps()`.
          state: a pytree of arrays with any shardings.
          extra: the same on every process.

        Raises:
          UserError (2): the disk is full, or cannot be written for another reason.
        """
        self.wait()
        if step in (before := on_first_process(self.steps)):
            raise ValueError(f"step {step} is already saved in {self}")
        # Saved flat, a state does not depend on the classes that it is made of.
        named = named_leaves(state)
        leaves = {n: (x.shape, np.dtype(x.dtype).name) for n, x in named.items()}
        size = sum(x.nbytes for x in named.values())
        kept = f"steps {before} are unchanged" if before else "none was saved"
        advice = f"up to {size / 1e6:.1f} MB needed; {kept}; "
        rank, number = jax.process_index(), agreement.next_exchange()
        place = self._steps.place(f"saving-{step}")

        def begin() -> str:
            with files.explain_write_errors(place, advice):
                return self._steps.begin(step)

        folder = on_first_process(begin)
        place = self._steps.place(folder)
        pieces = shards.own_pieces(named, rank)
        own = shards.file_name(rank, jax.process_count())

        def write() -> dict[str, list[int]]:
            with files.explain_write_errors(place, advice):
                return {own: self._steps.write(folder, own, shards.encode(pieces))}

        def commit(written: list[dict[str, list[int]]]) -> None:
            with files.explain_write_errors(place, advice):
                self._commit(folder, step, written, {LEAVES: leaves, EXTRA: extra})

        def run() -> None:
            try:
                agreement.together(write, commit, number)
            except UserError:
                if rank == 0:
                    self._steps.discard(folder)
                raise

        self._pending = self._writer.submit(run)

    def _commit(
        self, folder: str, step: int, written: list[dict], small: dict[str, Any]
    ) -> None:
        """Merge what the processes have written, commit it, delete the oldest steps."""
        contents = {name: manifest.to_json(value) for name, value in small.items()}
        listed = {n: self._steps.write(folder, n, c) for n, c in contents.items()}
        for part in written:
            listed |= part
        content = manifest.to_json(listed)
        self._steps.write(folder, MANIFEST, content)
        self._steps.commit(folder, step, manifest.marker(content))
        for old in sorted(self._steps.committed())[: -self.keep]:
            self._steps.delete(old)

    def check(self) -> None:
        """Raise the error of the save in the background, if it has failed by now."""
        if self._pending is not None and self._pending.done():
            self._settle()

    def wait(self) -> None:
        """Wait until the last save is committed for every process."""
        self._settle()
        on_first_process(lambda: None)

    def close(self) -> None:
        """Finish the save in the background, and free its thread."""
        try:
            self._settle()
        finally:
            self._writer.shutdown()

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
        check_same_arrays(saved, wanted, f"checkpoint {step} of {self}")
        arrays = self._load(step, wanted)
        treedef = jax.tree.structure(abstract_state)
        state = jax.tree.unflatten(treedef, [arrays[name] for name in wanted])
        return state, self.extra(step)

    def arrays(self, step: int) -> dict[str, jax.Array]:
        """Return every array of a step by name, on the first device."""
        return self._load(step, self.leaves(step))

    def _load(self, step: int, wanted: dict[str, Any]) -> dict[str, jax.Array]:
        first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        leaves = self._read(step, LEAVES)
        stored = {migrate_path(name): name for name in leaves}
        targets = {
            stored[name]: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=getattr(x, "sharding", None) or first
            )
            for name, x in wanted.items()
        }
        folder = self._folder(step)
        place = self._steps.place(folder)
        names = [n for n in self._read(step, MANIFEST) if n.startswith(STATE)]
        if any(name.startswith(f"{STATE}/") for name in names):
            arrays = _load_orbax(f"{place}/{STATE}", targets)
        else:
            with _reading_contents(place), reading_files(place):
                content = shards.StoredState(self._steps, folder, leaves, names)
                arrays = content.read(targets)
        return {name: arrays[stored[name]] for name in wanted}

    def _folder(self, step: int) -> str:
        folders = self._committed()
        if step not in folders:
            raise UserError(
                f"there is no checkpoint of step {step} in {self}; there are "
                f"{sorted(folders) or 'none'}"
            )
        return folders[step]

    def _read(self, step: int, name: str) -> Any:
        folder = self._folder(step)
        place = f"{self._steps.place(folder)}/{name}"
        with _reading_contents(place), reading_files(place):
            return files.parse_json(self._steps.read(folder, name))

    def _prepare(self) -> str:
        """Take possession of the directory; return the name of this process."""
        # A restarted pod has the number and the hostname of the one before.
        token = secrets.token_hex(8)
        owner = f"process {os.getpid()} on {socket.gethostname()} ({token})"
        with files.explain_write_errors(str(self)):
            self._steps.prepare(owner, alone=jax.process_count() == 1)
        return owner

    def _check_all_see(self, owner: str) -> None:
        """Raise UserError unless all processes see what process 0 wrote."""
        host = socket.gethostname()

        def look() -> str:
            with reading_files(self):
                if self._steps.owner() == owner:
                    return ""
            return f"process {jax.process_index()} on {host}"

        def check(blind: list[str]) -> None:
            if missing := ", ".join(filter(None, blind)):
                raise UserError(
                    f"{self} is not one directory: what process 0 on {host} wrote "
                    f"there is not seen by {missing}: give a --workdir that all hosts "
                    "mount, or one in a bucket, gs:// or s3://"
                )

        agreement.together(look, check)

    def _reject(self, step: int, damage: str) -> None:
        if self.read_only:
            place = self._steps.place(self._folder(step))
            print(f"checkpoint {place}: {damage}", file=sys.stderr)
        else:
            with files.explain_write_errors(str(self)):
                self._steps.set_aside(step, damage)

    def _check_never_started(self, steps: list[int]) -> None:
        """Raise UserError if there were checkpoints, or are some that do not count."""
        with reading_files(self):
            if not steps and not self._steps.has_set_aside():
                if copies := self._steps.foreign():
                    raise UserError(
                        f"{self} has no committed step, but folders that this run did "
                        f"not begin: {', '.join(copies)}: finish the copy (commit.json "
                        "comes last), or remove them to start over; a run of an "
                        "earlier version has no commit.json: copy it to a disk"
                    )
                return
        raise UserError(
            f"{self} held checkpoints but no usable one is left: put back a copy of "
            "one, or remove the directory to start over",
            status=4,
        )

    def _settle(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


@contextmanager
def _reading_contents(place: str) -> Iterator[None]:
    """Turn a CorruptFile of the block into a UserError."""
    try:
        yield
    except CorruptFile as error:  # it was not verified, or has changed since
        raise UserError(f"{place} is {error}: put back a copy") from error


def _load_orbax(place: str, targets: dict[str, Any]) -> dict[str, jax.Array]:
    """Read the arrays of a step that Orbax saved, as earlier versions did."""
    import logging

    from orbax.checkpoint import v1 as ocp

    # Tracebacks of threads: of several with one error, of which only one is raised.
    for logger, words in (("absl", "_SignalingThread"), ("asyncio", "never retrieved")):
        logging.getLogger(logger).addFilter(
            lambda record, words=words: words not in str(record.msg)
        )
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with reading_files(place), context:
        return ocp.load(place, targets)


def on_first_process(decide: Callable[[], T]) -> T:
    """Call `decide` on process 0 alone, and return its result on every process.

    The result must be JSON. All processes call this together, and all raise a UserError
    of `decide`.
    """
    return agreement.together(lambda: None, lambda _: decide())


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
