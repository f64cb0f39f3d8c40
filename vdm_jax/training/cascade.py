"""The stages of a cascade, trained sequentially.

WORKDIR/text          embeddings of the captions
        STAGE/        a run
        cascade.toml  lists the stages for `sample.py --cascade`
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vdm_jax import agreement, build, cascade_file, files, runs, text
from vdm_jax.checkpoint import Checkpoints, on_first_process
from vdm_jax.errors import UserError
from vdm_jax.model import check_shapes_chain
from vdm_jax.training.checks import check_config
from vdm_jax.training.run import START_OVER, config_changes
from vdm_jax.training.stop import PreemptionSignal
from vdm_jax.training.train import build_from_config, train


def train_cascade(
    stages: Sequence[str],
    config_of: Callable[[str], Any],
    workdir: Path,
    stop: PreemptionSignal | None = None,
) -> None:
    """Train the stages that are not trained yet; the same call resumes.

    Every process of a run calls this together. Where the configs are conditioned on
    text and name no embeddings, WORKDIR/text holds them.

    Args:
      config_of: name of a stage -> its config.
      stop: that of the command.

    Raises:
      UserError: the config of a stage is wrong, differs from the one it was started
        with, or does not take the videos of the stage before it. Nothing is trained
        then. The clips of a stage are compared with those it was started with when it
        is trained.
      SystemExit: as `train` raises it.
    """
    stop = stop or PreemptionSignal()
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
        train(config, place, stop)
        if name != stages[-1]:
            stop.exit_if_requested(f"saved {name}")
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
    models, encoders = [], []
    for name, config in configs.items():
        check_config(config)
        models.append((name, build.build_model(config)))
    check_shapes_chain(models)
    for name, config in configs.items():
        if config.conditioning.text_dim and not config.data.text_embeddings_dir:
            config.data.text_embeddings_dir = str(workdir / "text")
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


def finished_steps(workdir: Path) -> int:
    """Return the steps that a run has finished, 0 before the first checkpoint."""
    return Checkpoints(workdir / "checkpoints", read_only=True).newest_intact() or 0


def write_cascade_file(stages: dict[str, dict[str, float]], workdir: Path) -> None:
    """Write the file by which `sample.py --cascade` finds the stages.

    A file that exists is kept as it is, since a user may have changed it.

    stages: name -> settings of sampling.

    Raises:
      UserError: a file that exists does not name all stages.
    """
    path = workdir / cascade_file.CASCADE_FILE
    if not path.exists():
        return files.write_bytes(path, cascade_file.to_toml(stages).encode())
    try:
        tables = cascade_file.read_tables(path)
        lacking = set(stages) - {str(table["name"]) for table in tables}
        bad = f"it lacks {', '.join(sorted(lacking))}" if lacking else ""
    except (UserError, LookupError, TypeError) as error:
        bad = f"it names no stages ({error})"
    if bad:
        raise UserError(
            f"{path} is kept, but {bad}: correct or delete it; the same command then "
            "writes a new one, all stages are done"
        )
