"""A run's directory: one owner, one config, its checkpoints and logs, and resuming.

workdir/config.json  checkpoints/  metrics.jsonl  logs/  .lock
"""

import dataclasses
import errno
import fcntl
import fnmatch
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from vdm_jax import agreement, files, migration
from vdm_jax.checkpoint import (
    Checkpoints,
    check_directory,
    check_same_arrays,
    on_first_process,
)
from vdm_jax.errors import UserError
from vdm_jax.files import user_path
from vdm_jax.runs import config_without_paths, read_config_fields
from vdm_jax.training.logging import Logger
from vdm_jax.training.stop import PreemptionSignal

# Config field -> whether it may differ from what the run was started with, or which
# values may take each other's place. The first pattern that fits decides. What may
# change is printed; what may not would make the checkpoint another model's, or its data
# position another stream's.
ResumeRule = bool | Callable[[Any, Any], bool]
RESUME_RULES: tuple[tuple[str, ResumeRule], ...] = (
    ("network.remat", True),
    ("network.dtype", True),
    ("network.dropout", True),
    ("data.path", True),  # the fingerprint looks at the clips themselves
    (
        "data.text_embeddings_dir",
        True,
    ),  # and at these, made by whom the keys' name tells
    ("conditioning.text_encoder*", True),
    ("data.mean", True),
    ("data.variance", True),
    ("data.workers", True),
    ("data.cache_*", True),
    ("data.max_bad_fraction", True),
    ("diffusion.loss_weighting", True),
    ("seed", False),
    ("video.*", False),
    ("data.*", False),
    ("network.*", False),
    ("conditioning.*", False),
    ("diffusion.*", False),
    ("stage.augmentation_time", True),
    ("stage.train_crop", True),
    ("stage.*", False),
    ("train.ema_decay", lambda old, new: bool(old) == bool(new)),  # an average, or none
    ("train.trainable", False),
    ("train.optimizer", False),
    ("*", True),
)


START_OVER = "give another --workdir to start over"


class BatchIterator(Protocol):
    """An endless iterator of batches that can be put back to where it was."""

    def __next__(self) -> Any: ...

    def get_state(self) -> Any:
        """JSON-able; the next batch after `set_state` is the one it stood before."""
        ...

    def set_state(self, state: Any) -> None: ...


@dataclasses.dataclass(frozen=True)
class Run:
    """An open run. `restored` is the step of its newest good checkpoint, or None."""

    workdir: Path
    config: Any  # ConfigDict
    fingerprint: dict[str, Any]
    checkpoints: Checkpoints
    logger: Logger
    stop: PreemptionSignal
    restored_step: int | None

    def resume(
        self,
        abstract_state,
        init: Callable[[Any], Any],
        data: BatchIterator,
        load_params: Callable[[str], Any],
    ):
        """The state to go on with: own checkpoint, else init_from, else fresh; says so.

        Args:
          abstract_state: of the state, with shardings, for `Checkpoints.restore`.
          init: parameters, or None for new ones -> state at step 0.
          data: is put to where it stood.
          load_params: workdir -> its parameters, for config.init_from.

        Raises:
          UserError (2): the checkpoint does not fit.
        """
        other = self.config.init_from
        if self.restored_step is not None:
            state, extra = self.checkpoints.restore(self.restored_step, abstract_state)
            data.set_state(extra["data"])
            unused = f"; init_from={other} is not used" if other else ""
            self.logger.info(
                f"going on from step {self.restored_step} of {self.workdir}{unused}"
            )
            return state
        self.logger.info(
            f"{self.workdir} holds no checkpoint: starting at step 0 with "
            + (f"the parameters of {other}" if other else "new parameters")
        )
        return init(load_params(other) if other else None)

    def save(self, step: int, state, data: BatchIterator) -> None:
        """Save the state and the position of the data, in the background."""
        extra = {"data": data.get_state(), "fingerprint": self.fingerprint}
        self.checkpoints.save(step, state, extra)


@contextmanager
def open_run(
    workdir: str | Path,
    config,
    fingerprint: dict[str, Any],
    time_limit: float | None = None,
    advice: str = "give another --workdir and --config.init_from={workdir}",
    abstract_state: Any = None,
) -> Iterator[Run]:
    """Own a workdir for the length of a with block. All processes call it together.

    Args:
      config: complete, as it will be written to config.json.
      fingerprint: of the data (`data.fingerprint`); a resumed run must have the same.
      time_limit: seconds from now after which `fit` saves and leaves with status 42.
      instead: what a refusal advises besides keeping to what the run was begun with.
      abstract_state: the state that will be asked for, to compare with the checkpoint.

    Raises:
      UserError (2): not a directory, in use, or begun with a config, data or a state
        that do not fit. Nothing is changed then.
      UserError (4): its checkpoints are all damaged.
    """
    workdir = user_path(workdir, "workdir").absolute()
    agreement.check({"data": fingerprint} | config_without_paths(config))
    with ExitStack() as stack:
        on_first_process(lambda: stack.enter_context(lock_workdir(workdir)))
        agreement.check({"the owner that the workdir names": _owner(workdir)})
        checkpoints = Checkpoints(
            workdir / "checkpoints", keep=config.train.keep_checkpoints
        )
        stack.callback(checkpoints.close)
        restored_step = checkpoints.latest()
        resuming = restored_step is not None
        changes = on_first_process(
            lambda: config_changes(workdir, config, advice) if resuming else []
        )
        if resuming:
            extra = checkpoints.extra(restored_step)
            _check_fingerprint(
                migration.migrate_fingerprint(extra["fingerprint"]),
                fingerprint,
                workdir,
                advice,
            )
            if abstract_state is not None:
                saved = checkpoints.leaves(restored_step)
                check_same_arrays(
                    saved, abstract_state, f"checkpoint {restored_step} of {workdir}"
                )
        on_first_process(lambda: str(files.make_folder(workdir / "checkpoints")))
        if changes or not resuming:
            path, fields = workdir / "config.json", config.to_dict()
            on_first_process(lambda: files.write_json(path, fields, indent=2))
        logger = Logger(workdir, restored_step or 0)
        for change in changes:
            logger.info(f"changed since the run was begun: {change}")
        yield Run(
            workdir,
            config,
            fingerprint,
            checkpoints,
            logger,
            PreemptionSignal(time_limit),
            restored_step,
        )


@contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Lock the directory; the system lets go of it when the process ends, any how."""
    workdir = check_directory(workdir)
    lock = workdir / ".lock"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # Without O_NOFOLLOW a link of this name would have its target overwritten.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(lock, flags, 0o666)
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be used ({error.strerror}"
            f"{': .lock is a link' if error.errno == errno.ELOOP else ''}): give a "
            "directory that can be written"
        ) from error
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            owner = os.read(handle, 200).decode(errors="replace").strip()
            raise UserError(
                f"{workdir} is in use by {owner or 'another process'}: stop that run "
                "first, or give another --workdir"
            ) from error
        except OSError as error:
            raise UserError(
                f"{workdir} cannot be locked ({error.strerror}): give a directory of "
                "a file system that has locks"
            ) from error
        with files.explain_write_errors(lock):
            os.ftruncate(handle, 0)
            os.write(
                handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode()
            )
            os.fsync(handle)  # the other processes read it, from other machines too
        yield
    finally:
        os.close(handle)  # and with it the lock


def _owner(workdir: Path) -> str:
    """Who owns it, as this process sees it: all see the same in one shared folder."""
    try:
        return (workdir / ".lock").read_text(errors="replace").strip()
    except OSError as error:
        return f"nobody ({error.strerror})"


def config_changes(workdir: Path, config: Any, advice: str) -> list[str]:
    """What of a config changed since a run was begun, as lines.

    instead: what a refusal advises besides keeping to what the run was begun with.

    Raises:
      UserError: a change of what cannot, or a config.json that cannot be read.
    """
    after = json.loads(json.dumps(config.to_dict()))
    sections = {name for name, value in after.items() if isinstance(value, dict)}
    before = read_config_fields(workdir / "config.json", sections)
    return compare_configs(before, after, workdir, advice)


def compare_configs(
    before: dict, after: dict, workdir: Path, advice: str, rules=RESUME_RULES
) -> list[str]:
    """Changes as lines; raises UserError for the first that is not allowed."""
    old, new = dict(agreement.flatten(before)), dict(agreement.flatten(after))
    changes = []
    for name in {**old, **new}:
        a, b = old.get(name, "absent"), new.get(name, "absent")
        if a == b:
            continue
        allowed = next(may for p, may in rules if fnmatch.fnmatchcase(name, p))
        if callable(allowed):
            allowed = allowed(a, b)
        if not allowed and name in old and name in new:
            raise UserError(
                f"config.{name}={b!r}, but {workdir} was begun with {a!r}: keep that, "
                f"or {advice.format(workdir=workdir)}"
            )
        changes.append(f"config.{name} {a!r} -> {b!r}")
    return changes


def _check_fingerprint(before: dict, after: dict, workdir: Path, advice: str) -> None:
    after = json.loads(json.dumps(after))
    for name in {**before, **after}:
        a, b = before.get(name), after.get(name)
        if a != b:
            raise UserError(
                f"the data changed: {name} is {b!r}, but {workdir} was begun with "
                f"{a!r}: go on with the same data, or " + advice.format(workdir=workdir)
            )
