"""Distillation, from a teacher to students of few steps: reads downwards.

Each round starts from the student of the round before, which is its teacher, and leaves
a workdir of its own. `workdir.py` lists the files.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vdm_jax import (
    adapters,
    agreement,
    build,
    data,
    runs,
    sampling,
    settings,
    sharding,
    text,
)
from vdm_jax.checkpoint import on_first_process
from vdm_jax.data.source import Source
from vdm_jax.data.stored_latents import resolve_path
from vdm_jax.distillation import rounds
from vdm_jax.distillation.rounds import Round
from vdm_jax.distillation.students import Distiller
from vdm_jax.distillation.workdir import (
    Row,
    commit_round,
    newest_student,
    open_distillation,
)
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.scalars import read_totals
from vdm_jax.training.captions import CaptionEmbeddings, open_caption_embeddings
from vdm_jax.training.checks import check_config
from vdm_jax.training.run import START_OVER, OpenRun
from vdm_jax.training.stop import PreemptionSignal
from vdm_jax.training.trainer import Trainer


def distill(
    config: Any,
    teacher: str,
    workdir: Path,
    stop: PreemptionSignal | None = None,
    loras: Sequence[tuple[str, float]] = (),
) -> list[Row]:
    """Run the rounds that are not finished; return the rows of rounds.json.

    Every process of a run calls this together.

    Args:
      teacher: workdir of a trained model.
      stop: that of the command, where more than this distillation belongs to it.
      loras: files and scales, applied to the teacher.

    Raises:
      UserError: the config is wrong, and nothing is written; with status 5 if the
        metric of a round dropped by more than config.distill.max_metric_drop.
      SystemExit: as `train_loop` raises it; the same call resumes.
    """
    stop = stop or PreemptionSignal()
    facts = {"workdir": str(workdir)} | runs.config_without_paths(config)
    agreement.check_command("distill", facts)
    settings.check_config(config, settings.DISTILLATION)
    mesh = sharding.mesh_from_config(config.mesh)
    loaded = with_loras(runs.load(teacher, mesh), loras)
    loaded = rounds.with_halving_steps(loaded)
    rounds.check(config.distill, loaded.config, loaded.model)
    plan = rounds.plan_rounds(config.distill)
    configs = rounds.student_configs(config, loaded.config, plan, teacher, workdir)
    student, source, captions = _build_student(config, configs, loaded.config)
    students = [(workdir / r.path, c) for r, c in zip(plan, configs, strict=True)]
    with open_distillation(workdir, config, teacher, loaded.checksum, students) as rows:
        trainer = Trainer(configs[0], student, source, captions, mesh)
        distiller = Distiller(config, loaded, trainer)
        baseline = distiller.evaluate_teacher(workdir, loaded)
        params = newest_student(workdir, rows, mesh) if rows else loaded.params
        del loaded  # frees the memory of its parameters after the first round
        remaining = list(zip(plan, students, strict=True))[len(rows) :]
        for student_round, (path, student_config) in remaining:
            with (
                trainer.open_run(path, student_config, stop, START_OVER) as run,
                stop.handling_signals(),
            ):
                previous = rows[-1]["metric"] if rows else baseline
                params, row = _run_round(run, student_round, params, distiller)
                commit_round(workdir, rows, row, previous, config.distill)
                run.logger.info(
                    f"{student_round.steps} steps: {config.distill.metric} "
                    f"{row['metric']:.3f}, in {student_round.path}"
                )
                on_first_process(run.logger.check)
            if student_round is not plan[-1]:
                stop.exit_if_requested(f"saved {student_round.path}")
    return rows


def with_loras(
    loaded: runs.TrainedModel, files: Sequence[tuple[str, float]]
) -> runs.TrainedModel:
    """Return a teacher with LoRAs. Raises UserError as `adapters.read`."""
    loras = adapters.read(files, loaded.model, loaded.config)
    if loras.text_encoder:
        raise UserError(
            f"--lora={files[0][0]}: it changes the text encoder, and the captions were "
            "embedded without it: give one of the U-Net alone"
        )
    loaded = loras.apply(loaded)
    agreement.check({"checksum of the teacher with --lora": loaded.checksum})
    return loaded


def _run_round(
    run: OpenRun,
    student_round: Round,
    teacher_params: Params,
    distiller: Distiller,
) -> tuple[Params, Row]:
    """Train and evaluate the student of a round.

    Returns its parameters and its row of rounds.json.
    """
    params = distiller.train(run, student_round, teacher_params)
    metric = distiller.evaluate_student(run, student_round, params)
    loss, seconds = read_totals(run.workdir)
    return params, {
        "steps": student_round.steps,
        "updates": student_round.updates,
        "loss": loss,
        "metric": metric,
        "seconds": round(seconds, 3),
        "path": student_round.path,
    }


def _build_student(
    config: Any, configs: Sequence[Any], teacher_config: Any
) -> tuple[DiffusionModel, Source, CaptionEmbeddings | None]:
    """Check the configs of all students; build their model and open their data.

    The encoder of the captions is filled in.
    """
    for each in configs:
        check_config(each)
        resolve_path(each.data)
    first = configs[0]
    student = build.build_model(first)
    source = data.open_source(first)
    captions = open_caption_embeddings(first, source)
    before, now = teacher_config.conditioning, first.conditioning
    if captions is not None and not text.same_text_encoder([before, now]):
        raise UserError(
            f"the teacher is conditioned on text of {before.text_encoder}, and the "
            f"embeddings in {first.data.text_embeddings_dir} are by "
            f"{now.text_encoder} or other weights or layers of it: give those that the "
            "teacher was trained with"
        )
    for each in configs:
        each.conditioning.update(
            text_encoder=now.text_encoder,
            text_encoder_sha256=now.text_encoder_sha256,
            clip_skip=now.clip_skip,
        )
        own = sampling.Settings.from_config(each.sample)
        sampling.check_settings(student, config.distill.num, config.seed, own)
    return student, source, captions
