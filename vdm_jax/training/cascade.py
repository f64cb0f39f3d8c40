"""The stages of a cascade, trained one after the other.

WORKDIR/text          embeddings of the captions (training)
        STAGE/        a run
        cascade.toml  names the stages for `sample.py --cascade`
"""

import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vdm_jax import agreement, build, cascade, files, runs, text
from vdm_jax.checkpoint import Checkpoints, on_first_process
from vdm_jax.errors import UserError
from vdm_jax.files import atomic_write
from vdm_jax.training.checks import check_batch_memory, check_config
from vdm_jax.training.run import START_OVER, config_changes
from vdm_jax.training.stop import EXIT_STATUS, RESTART
from vdm_jax.training.train import build_from_config, train

Settings = Callable[[str], Any]  # a stage's name to its config


def train_cascade(
    stages: Sequence[str],
    config_of: Settings,
    workdir: Path,
    time_limit: float | None = None,
) -> None:
    """Train what is not trained yet; the same call goes on where it stood.

    Where the configs ask for text and name no embeddings, those are in WORKDIR/text.
    Every process of a run calls this together. Raises as `train` does, and UserError
    before anything is trained if the config of any stage is wrong, or not the one that
    it was begun with, or if it does not take what the one before makes. (The clips of a
    stage are compared with those that it was begun with at its turn.)
    """
    started = time.monotonic()
    configs = {name: config_of(name).unlock() for name in stages}
    agreement.check(
        {"command": "train --cascade", "workdir": str(workdir), "stages": list(stages)}
        | agreement.environment()
        | {name: runs.config_without_paths(config) for name, config in configs.items()}
    )
    if (workdir / "checkpoints").exists() or (
        workdir / runs.DISTILLATION_FILE
    ).exists():
        raise UserError(f"{workdir} is one model's or a distillation's: {START_OVER}")
    for config in configs.values():  # all of them before the first takes its hours
        check_config(config)
        check_batch_memory(config)
        if config.conditioning.text_dim and not config.data.text_embeddings_dir:
            config.data.text_embeddings_dir = str(workdir / "text")
    cascade.check_shapes_chain(
        [(name, build.build_model(c)) for name, c in configs.items()]
    )
    told = []
    for name, config in configs.items():
        build_from_config(config)
        told.append(config.conditioning)
        if finished_steps(place := workdir / name):
            on_first_process(
                lambda at=place, c=config: config_changes(at, c, START_OVER)
            )
            told.append(runs.read_config(place).conditioning)
    if not text.same_text_encoder(told):
        raise UserError(
            f"{workdir}: the stages were begun, or their configs ask, with text of "
            "different encoders or of different weights of one: give the embeddings "
            f"that they were begun with, or {START_OVER}"
        )
    for name, config in configs.items():
        place = workdir / name
        if finished_steps(place) >= config.train.steps:
            print(f"{name}: trained", flush=True)
            continue
        print(f"{name}: training in {place}", flush=True)
        seconds = remaining_time(time_limit, started)
        train(config, place, seconds, more=name != stages[-1])
    on_first_process(lambda: write_cascade_file({name: {} for name in stages}, workdir))


def remaining_time(time_limit: float | None, started: float) -> float | None:
    """Seconds of a time limit that remain; SystemExit where none does, on all hosts."""
    if not time_limit:
        return None
    seconds = on_first_process(lambda: time_limit - (time.monotonic() - started))
    if seconds <= 0:
        print("the time limit has passed; the same command goes on", flush=True)
        raise SystemExit(EXIT_STATUS[RESTART])
    return seconds


def finished_steps(workdir: Path) -> int:
    """Steps that a run has finished, 0 for one that has not begun."""
    if not (workdir / "checkpoints").is_dir():
        return 0
    return Checkpoints(workdir / "checkpoints", read_only=True).latest() or 0


def write_cascade_file(stages: dict[str, dict[str, float]], workdir: Path) -> None:
    """The file by which `sample.py --cascade` finds the stages.

    What stands there already, which a person may have changed, stays as it is.
    """
    path, new = workdir / cascade.CASCADE_FILE, cascade.to_toml(stages)
    if path.exists():
        try:
            before = files.read_text(path)
            said = [str(table["name"]) for table in tomllib.loads(before)["stage"]]
        except (
            tomllib.TOMLDecodeError,
            RecursionError,
            files.CorruptFile,
            OSError,
            KeyError,
            TypeError,
        ) as bad:
            raise UserError(
                f"{path} names no stages ({bad}): mend or delete it; the same command "
                "then writes it anew, all stages are done"
            ) from bad
        lacking = {name: stages[name] for name in stages if name not in said}
        if not lacking:
            return
        if [*said, *lacking] != list(stages) or "[[stage]]" not in before:
            raise UserError(
                f"{path} lacks {', '.join(lacking)}: put it in its place, or delete "
                "the file; the same command then writes it anew, all stages are done"
            )
        new = before.rstrip() + "\n\n" + cascade.to_toml(lacking)
    with atomic_write(path, overwrite=True) as temporary:
        temporary.write_text(new)
