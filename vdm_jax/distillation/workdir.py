"""The workdir of a distillation: its owner, its files and its finished rounds.

WORKDIR/distill.json  the config, and the path and checksum of the teacher
        teacher.npz   videos of the first teacher, to compare students with
        rounds.json   a row for every finished round
        rounds/0064/  a run: config.json, checkpoints/, metrics.jsonl, samples/
"""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from vdm_jax import files, migration, runs
from vdm_jax.checkpoint import on_first_process
from vdm_jax.distillation.rounds import RESUME_RULES
from vdm_jax.errors import UserError
from vdm_jax.model import Params
from vdm_jax.training.run import (
    START_OVER,
    compare_configs,
    config_changes,
    lock_workdir,
)

REFERENCE_FILE = "teacher.npz"
EXIT_METRIC_DROP = 5  # exit status: the metric of a round dropped more than it may

Row = dict[str, Any]
Students = Sequence[tuple[Path, Any]]  # workdir and config of every round


@contextlib.contextmanager
def open_distillation(
    workdir: Path, config: Any, teacher: str, checksum: str, students: Students
) -> Iterator[list[Row]]:
    """Lock the workdir and yield the rows of the rounds that are finished.

    Every process of a run calls this together.

    Args:
      checksum: of the teacher's parameters.

    Raises:
      UserError: the workdir is in use, is another model's, or was started with a config
        or a teacher that do not fit. Nothing is changed then.
    """

    def begin() -> tuple[list[Row], list[str]]:
        if (workdir / "config.json").is_file():  # before a lock is written next to it
            raise UserError(f"{workdir} holds a model already: give another --workdir")
        stack.enter_context(lock_workdir(workdir))
        return _begin(workdir, config, teacher, checksum, students)

    with contextlib.ExitStack() as stack:
        rows, changes = on_first_process(begin)
        if jax.process_index() == 0:
            for change in changes:
                print(f"changed since it was started: {change}", flush=True)
            if rows:
                print(f"{len(rows)} rounds of {workdir} are done", flush=True)
        yield rows


def _begin(
    workdir: Path, config: Any, teacher: str, checksum: str, students: Students
) -> tuple[list[Row], list[str]]:
    """Return finished rounds and changes of the config, and write distill.json."""
    path = workdir / runs.DISTILLATION_FILE
    origin = {"teacher": teacher, "checksum": checksum}
    fields = json.loads(json.dumps(config.to_dict()))
    rows, damage = _read_rows(workdir)
    changes = []
    if rows or any((workdir / "rounds").glob("*/checkpoints/[0-9]*")):
        before = migration.rename(runs.read_json(path, dict))
        if before.get("checksum") != checksum and not rows:
            raise UserError(
                f"--teacher={teacher} is not, or not any more, the teacher that "
                f"{workdir} was started with ({before.get('teacher')}): {START_OVER}"
            )
        # The teacher of the first round stays on record.
        origin.update({k: before[k] for k in origin if rows and k in before})
        before = {k: v for k, v in before.items() if k not in origin}
        changes = compare_configs(before, fields, workdir, START_OVER, RESUME_RULES)
        for place, student_config in students[len(rows) : len(rows) + 1]:
            if any((place / "checkpoints").glob("[0-9]*")):
                # Refused now, before the new config is on record.
                config_changes(place, student_config, START_OVER)
    else:
        (workdir / REFERENCE_FILE).unlink(missing_ok=True)  # of another teacher
    if damage:
        files.set_aside(workdir / runs.ROUNDS_FILE, damage)
    files.write_json(path, origin | fields, indent=2)
    return rows, changes


def _read_rows(workdir: Path) -> tuple[list[Row], str]:
    """Return the rows of rounds.json, and what is wrong with the file, or ""."""
    if not (workdir / runs.ROUNDS_FILE).is_file():
        return [], ""
    try:
        return runs.distillation_rounds(workdir), ""
    except UserError as error:
        if isinstance(error.__cause__, OSError):  # the bytes may be good
            raise
        return [], f"damaged, so that the rounds are evaluated again ({error})"


def newest_student(workdir: Path, rows: list[Row], mesh: Mesh) -> Params:
    """Return the parameters of the last finished student.

    A round whose last checkpoint is damaged is not finished: its row is removed from
    `rows`, and the round resumes from the checkpoint before.
    """
    while rows:
        student = runs.load(workdir / rows[-1]["path"], mesh)
        if student.step >= rows[-1]["updates"]:
            return student.params
        print(
            f"{rows[-1]['path']} is at step {student.step} of {rows[-1]['updates']}: "
            "the round resumes from there",
            file=sys.stderr,
        )
        rows.pop()
    raise UserError(
        f"the last checkpoint of {workdir}'s first round is damaged: delete "
        f"{runs.ROUNDS_FILE} there to resume the round"
    )


def commit_round(
    workdir: Path, rows: list[Row], row: Row, previous_metric: float, distill: Any
) -> None:
    """Append the row of a finished round to `rows` and to rounds.json.

    Raises:
      UserError (5): its metric dropped by more than distill.max_metric_drop.
    """
    metric = row["metric"]
    if not previous_metric - metric <= distill.max_metric_drop:  # NaN is refused too
        raise UserError(
            f"{row['steps']} steps: {distill.metric} fell from {previous_metric:.3f} "
            f"to {metric:.3f}, by more than "
            f"config.distill.max_metric_drop={distill.max_metric_drop}: raise the "
            "updates of the round, which then resumes, or max_metric_drop",
            status=EXIT_METRIC_DROP,
        )

    path = workdir / runs.ROUNDS_FILE
    on_first_process(lambda: files.write_json(path, [*rows, row]))
    rows.append(row)
