"""The stages of a cascade, trained sequentially.

WORKDIR/text          embeddings of the captions
        STAGE/        a run
        cascade.toml  lists the stages for `sample.py --cascade`
"""

import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vdm_jax import agreement, build, cascade, cascade_file, files, runs, text
from vdm_jax.checkpoint import Checkpoints, on_first_process
from vdm_jax.errors import UserError
from vdm_jax.training.checks import check_batch_memory, check_config
from vdm_jax.training.run import START_OVER, config_changes
from vdm_jax.training.stop import EXIT_STATUS, RESTART
from vdm_jax.training.train import build_from_config, train


def train_cascade(
    stages: Sequence[str],
    config_of: Callable[[str], Any],
    workdir: Path,
    time_limit: float | None = None,
) -> None:
    """Train the stages that are not trained yet; the same call resumes.

    Every process of a run calls this together. Where the configs are conditioned on
    text and name no embeddings, WORKDIR/text holds them.

    Args:
      config_of: name of a stage -> its config.

    Raises:
      UserError: the config of a stage is wrong, differs from the one it was started
        with, or does not take the videos of the stage before it. Nothing is trained
        then. The clips of a stage are compared with those it was started with when it
        is trained.
      SystemExit: as `train` raises it.
    """
    started = time.monotonic()
    configs = {name: config_of(name).unlock() for name in stages}
    facts = {"workdir": str(workdir), "stages": list(stages)}
    facts |= {n: runs.config_without_paths(config) for n, config in configs.items()}
    agreement.check_command("train --cascade", facts)
    _check(configs, workdir)
    for name, config in configs.items():
        place = workdir / name
        if finished_steps(place) >= config.train.steps:
            print(f"{name}: trained", flush=True)
            continue
        print(f"{name}: training in {place}", flush=True)
        seconds = remaining_time(time_limit, started)
        train(config, place, seconds, is_last=name == stages[-1])
    on_first_process(lambda: write_cascade_file({name: {} for name in stages}, workdir))


def _check(configs: dict[str, Any], workdir: Path) -> None:
    """Raise UserError unless all stages can be trained or resumed in this workdir.

    Fields that configs leave open are filled in.
    """
    holds_run = (workdir / "checkpoints").exists()
    if holds_run or (workdir / runs.DISTILLATION_FILE).exists():
        raise UserError(
            f"{workdir} is the workdir of one model or a distillation: {START_OVER}"
        )
    for config in configs.values():
        check_config(config)
        check_batch_memory(config)
        if config.conditioning.text_dim and not config.data.text_embeddings_dir:
            config.data.text_embeddings_dir = str(workdir / "text")
    cascade.check_shapes_chain(
        [(name, build.build_model(config)) for name, config in configs.items()]
    )
    encoders = []
    for name, config in configs.items():
        build_from_config(config)
        encoders.append(config.conditioning)
        if finished_steps(place := workdir / name):
            on_first_process(
                lambda at=place, c=config: config_changes(at, c, START_OVER)
            )
            encoders.append(runs.read_config(place).conditioning)
    if not text.same_text_encoder(encoders):
        raise UserError(
            f"{workdir}: the stages were started with text of different encoders or of "
            "different weights of one, or their configs name such: give the embeddings "
            f"that they were started with, or {START_OVER}"
        )


def remaining_time(time_limit: float | None, started: float) -> float | None:
    """Return the seconds that remain of a time limit, the same on all processes.

    started: time.monotonic() at the start. Raises SystemExit if none remain.
    """
    if not time_limit:
        return None
    seconds = on_first_process(lambda: time_limit - (time.monotonic() - started))
    if seconds <= 0:
        print("the time limit has passed; the same command resumes", flush=True)
        raise SystemExit(EXIT_STATUS[RESTART])
    return seconds


def finished_steps(workdir: Path) -> int:
    """Return the steps that a run has finished, 0 before the first checkpoint."""
    if not (workdir / "checkpoints").is_dir():
        return 0
    return Checkpoints(workdir / "checkpoints", read_only=True).latest() or 0


def write_cascade_file(stages: dict[str, dict[str, float]], workdir: Path) -> None:
    """Write the file by which `sample.py --cascade` finds the stages.

    A file that exists is kept as it is, since a user may have changed it; the stages
    that it lacks are appended.

    stages: name -> settings of sampling.

    Raises:
      UserError: the file cannot be read, or lacks a stage that is not at the end.
    """
    path, new = workdir / cascade_file.CASCADE_FILE, cascade_file.to_toml(stages)
    if path.exists():
        try:
            before = files.read_text(path)
            names = [str(table["name"]) for table in tomllib.loads(before)["stage"]]
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as bad:
            raise UserError(
                f"{path} names no stages ({bad}): correct or delete it; the same "
                "command then writes a new one, all stages are done"
            ) from bad
        lacking = {name: stages[name] for name in stages if name not in names}
        if not lacking:
            return
        if [*names, *lacking] != list(stages) or "[[stage]]" not in before:
            raise UserError(
                f"{path} lacks {', '.join(lacking)}: insert it in its place, or delete "
                "the file; the same command then writes a new one, all stages are done"
            )
        new = before.rstrip() + "\n\n" + cascade_file.to_toml(lacking)
    files.write_bytes(path, new.encode(), overwrite=True)
