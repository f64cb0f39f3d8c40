"""The workdir of a run: its lock, its config, its checkpoints and logs, and resuming.

WORKDIR/config.json  checkpoints/  metrics.jsonl  logs/  .lock
"""

import errno
import fcntl
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from vdm_jax import agreement, buckets, files, migration
from vdm_jax.checkpoint import (
    Checkpoints,
    check_same_arrays,
    on_first_process,
)
from vdm_jax.data.pipeline import Batches
from vdm_jax.errors import UserError
from vdm_jax.files import user_path
from vdm_jax.runs import config_without_paths, read_config_fields
from vdm_jax.training.logging import Logger
from vdm_jax.training.stop import PreemptionSignal

ResumeRule = bool | Callable[[Any, Any], bool]  # or (old, new) -> bool
# Pattern of config fields -> whether they may differ from what the run was started
# with. The first that matches decides. An allowed change is printed. Any other would
# make the checkpoint one of another model, or its data position one of another stream.
RESUME_RULES: tuple[tuple[str, ResumeRule], ...] = (
    (r"network\.(remat|dtype|dropout)", True),
    (r"video\.fps", True),  # of the files written
    # The fingerprint covers the clips, the embeddings with their encoder, and the
    # autoencoder.
    (r"data\.(path|\w+_dir|mean|variance)|codec\.(path|tile)", True),
    (r"data\.(workers|cache_.*|max_bad_fraction)", True),
    (r"conditioning\.text_encoder.*", True),
    (r"diffusion\.loss_weighting", True),
    (r"stage\.(augmentation_time|train_crop)", True),
    (r"seed|task|train\.(trainable|optimizer)", False),
    (r"autoencoder\.(\w+_weight|critic_start)", True),
    (r"(video|data|codec|network|conditioning|diffusion|stage)\..*", False),
    # An average may become longer, but it neither begins nor ends.
    (r"train\.ema_decay", lambda old, new: bool(old) == bool(new)),
    (r"(train|mesh|sample)\..*|init_.*", True),
    (r".*", False),  # such as a section of a condition
)

CONTINUE_ELSEWHERE = "give another --workdir and --config.init_from={workdir}"
START_OVER = "give another --workdir to start over"


class OpenRun(NamedTuple):
    """An open run.

    restored_step: the step of its newest good checkpoint, or None.
    """

    workdir: Path
    config: Any  # ConfigDict
    fingerprint: dict[str, Any]
    checkpoints: Checkpoints
    logger: Logger
    stop: PreemptionSignal
    restored_step: int | None

    def resume(self, abstract_state, init: Callable[[], Any], data: Batches):
        """Return the state to train from, and log where it comes from.

        It comes from the run's own checkpoint; without one, from config.init_from;
        without that, from new parameters.

        Args:
          abstract_state: shapes with shardings, for `Checkpoints.restore`.
          init: returns the state of step 0.
          data: its position is restored too.

        Raises:
          UserError (2): the checkpoint does not fit.
        """
        other = self.config.init_from
        step = self.restored_step
        if step is None:
            self.logger.info(
                f"{self.workdir} holds no checkpoint: starting at step 0 with "
                + (f"the parameters of {other}" if other else "new parameters")
            )
            return init()
        state, extra = self.checkpoints.restore(step, abstract_state)
        data.set_state(extra["data"])
        unused = f"; init_from={other} is not used" if other else ""
        self.logger.info(f"resuming from step {step} of {self.workdir}{unused}")
        return state

    def save(self, step: int, state, data: Batches) -> None:
        """Save the state and the position of the data, in the background."""
        extra = {"data": data.get_state(), "fingerprint": self.fingerprint}
        self.checkpoints.save(step, state, extra)


@contextmanager
def open_run(
    workdir: str | Path,
    config,
    fingerprint: dict[str, Any],
    stop: PreemptionSignal | None = None,
    abstract_state: Any = None,
    advice: str = CONTINUE_ELSEWHERE,
) -> Iterator[OpenRun]:
    """Open a workdir for the duration of a with block. All processes call it together.

    Args:
      config: complete, as it will be written to config.json.
      fingerprint: of the data. A resumed run must have the same.
      stop: that of the command, by default one of this run alone.
      abstract_state: shapes of the state, to compare with the checkpoint.
      advice: what a refusal suggests next to keeping what the run was started with.

    Raises:
      UserError (2): not a directory, in use, or started with a config, data or a state
        that do not fit. Config, logs and intact checkpoints are unchanged then.
      UserError (4): its checkpoints are all damaged.
    """
    workdir = user_path(workdir, "workdir").absolute()
    agreement.check({"data": fingerprint} | config_without_paths(config))
    with ExitStack() as stack:
        on_first_process(lambda: stack.enter_context(lock_workdir(workdir)))
        agreement.check({"bucket of the run": buckets.address_of(workdir)})
        folder = workdir / "checkpoints"
        checkpoints = Checkpoints(folder, keep=config.train.keep_checkpoints)
        stack.callback(checkpoints.close)
        step = checkpoints.newest_intact()
        changes = []
        if step is not None:
            changes = on_first_process(lambda: config_changes(workdir, config, advice))
            before = checkpoints.extra(step)["fingerprint"]
            _check_fingerprint(before, fingerprint, workdir, advice)
            if abstract_state is not None:
                what = f"checkpoint {step} of {workdir}"
                check_same_arrays(checkpoints.leaves(step), abstract_state, what)
        if changes or step is None:
            path = workdir / "config.json"
            fields = config.to_dict()
            on_first_process(lambda: _write_config(path, fields))
        logger = Logger(workdir, step or 0)
        if buckets.address_of(workdir):
            logger.info(f"checkpoints and config: {checkpoints}; logs: {workdir}")
        for change in changes:
            logger.info(f"changed since the run was started: {change}")
        stop = stop or PreemptionSignal()
        yield OpenRun(workdir, config, fingerprint, checkpoints, logger, stop, step)


@contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Lock a directory, which is made if need be, for the duration of a with block.

    The system releases the lock when the process ends, even by a kill.

    Raises:
      UserError: it cannot be made, written or locked, or another process has the lock.
    """
    lock = workdir / ".lock"
    with ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            # O_NOFOLLOW: otherwise the target of a link of this name is overwritten.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.fdopen(os.open(lock, flags, 0o666), "rb+", buffering=0)
            stack.enter_context(file)  # closing it releases the lock
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = lock.read_text(errors="replace").strip() or "another process"
            raise UserError(
                f"{workdir} is in use by {owner}: stop that run first, or give another "
                "--workdir"
            ) from error
        except OSError as error:
            link = ": .lock is a link" if error.errno == errno.ELOOP else ""
            raise UserError(
                f"--workdir={workdir} cannot be used ({error.strerror}{link}): give a "
                "directory that can be written, of a file system that has locks"
            ) from error
        with files.explain_write_errors(lock):
            file.truncate(0)
            file.write(f"{_own_name()}\n".encode())
            os.fsync(file)
        yield


def _write_config(path: Path, fields: dict[str, Any]) -> None:
    files.write_json(path, fields, indent=2)
    buckets.publish(path)


def _own_name() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def config_changes(workdir: Path, config: Any, advice: str) -> list[str]:
    """Return the changes of a config since its run was started, as lines.

    advice: what a refusal suggests apart from keeping what the run was started with.

    Raises:
      UserError: a change that is not allowed, or a config.json that cannot be read.
    """
    after = json.loads(json.dumps(config.to_dict()))
    sections = {name for name, value in after.items() if isinstance(value, dict)}
    before = read_config_fields(workdir / "config.json", sections)
    return compare_configs(before, after, workdir, advice)


def compare_configs(
    before: dict, after: dict, workdir: Path, advice: str, rules=RESUME_RULES
) -> list[str]:
    """Return the changes as lines; raise UserError for the first that is not allowed.

    Fields that only one of the two has may always differ.
    """
    old, new = dict(agreement.flatten(before)), dict(agreement.flatten(after))
    changes = []
    for name, a, b in agreement.differences(old, new):
        allowed = next(may for p, may in rules if re.fullmatch(p, name))
        if callable(allowed):
            allowed = allowed(a, b)
        if not allowed and name in old and name in new:
            raise UserError(
                f"config.{name}={b!r}, but {workdir} was started with {a!r}: keep "
                f"that, or {advice.format(workdir=workdir)}"
            )
        changes.append(f"config.{name} {a!r} -> {b!r}")
    return changes


def _check_fingerprint(before: dict, after: dict, workdir: Path, advice: str) -> None:
    before = migration.migrate_fingerprint(before)
    if "codec" in after:  # earlier runs did not record it
        before = {"codec": after["codec"]} | before
    for name, a, b in agreement.differences(before, json.loads(json.dumps(after))):
        raise UserError(
            f"the data changed: {name} is {b!r}, but {workdir} was started with {a!r}: "
            f"give the same data, or {advice.format(workdir=workdir)}"
        )
