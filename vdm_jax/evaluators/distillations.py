"""Evaluation of a distillation: quality of its students by the number of NFE.

Students are compared with samplers of the undistilled teacher, from the same labels and
noise. Each row is stored when it is finished, so that an interrupted command resumes:

    OUT/rows/student-0008.json, .npz  ...  results.json  index.html
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax import build, data, files, migration, runs, sampling, video_io
from vdm_jax.data import pipeline
from vdm_jax.errors import UserError
from vdm_jax.evaluators import distillation_page
from vdm_jax.evaluators.clips import stack_videos
from vdm_jax.evaluators.distillation_metrics import DistillationMetrics, format_row
from vdm_jax.evaluators.distillation_plan import (
    Evaluation,
    SamplerSetting,
    plan_rows,
)
from vdm_jax.files import make_folder
from vdm_jax.manifest import reading_files
from vdm_jax.runs import TrainedModel


def evaluate(
    workdir: Path,
    out: Path,
    *,
    num: int,
    num_key_samples: int,
    overrides: dict[str, Any],
    guidance_scale: float | None,
    seed: int,
    commands: Sequence[str],
) -> list[dict]:
    """Sample and measure every row; print the table, write the report, return rows.

    overrides are sampling settings of every row. guidance_scale is that of students and
    teacher; None is the config's.

    Raises:
      UserError: the distillation or its teacher cannot be read, or settings do not fit.
    """
    teacher, start_steps, rounds = _read_distillation(workdir)
    plan = plan_rows(rounds, start_steps, num, num_key_samples)
    config = runs.read_config(workdir)
    scale = config.sample.guidance_scale if guidance_scale is None else guidance_scale
    scale = float(scale)
    settings = [
        _settings(workdir, row, teacher.config, scale, overrides) for row in plan
    ]
    student = build.build_model(config)
    for row, each in zip(plan, settings, strict=True):
        model = student if row.path else teacher.model
        sampling.check_settings(model, row.num, seed, each)
    make_folder(out / "rows")
    most = max(row.num for row in plan)
    source = data.open_source(config)
    held_out = pipeline.held_out_batch(config, source, most)
    labels = held_out.get("label") if teacher.model.label_vocabulary else None
    metrics = DistillationMetrics(held_out["video"], labels, config.data.source)
    evaluation = Evaluation(workdir, out, teacher, scale, seed, metrics)

    rows = []
    for row, each in zip(plan, settings, strict=True):
        scores, videos = _measure_row(evaluation, row, each)
        rows.append(scores)
        print(format_row(scores), flush=True)
        if row is plan[0]:
            metrics.reference = videos
    clips = pipeline.fixed_clips(config, source.split(False), most)
    rows.append(metrics.real_row(stack_videos(clips)))
    distillation_page.write_report(evaluation, plan, rows, rounds, commands)
    return rows


def _read_distillation(workdir: Path) -> tuple[TrainedModel, int, list[dict]]:
    """Return the teacher, its steps in the first round, and the finished rounds."""
    path = workdir / runs.DISTILLATION_FILE
    stored = migration.rename(runs.read_json(path, dict))
    match stored:
        case {"teacher": str(), "checksum": str(), "distill": {"start_steps": int()}}:
            pass
        case _:
            raise UserError(f"{path} is not what distill.py wrote; put back a copy")
    rounds = runs.distillation_rounds(workdir)
    teacher = runs.load(stored["teacher"])
    if teacher.checksum != stored["checksum"]:
        raise UserError(
            f"{stored['teacher']} is not, or not any more, the teacher of {workdir}: "
            "put it back, to compare its students with it"
        )
    return teacher, stored["distill"]["start_steps"], rounds


def _settings(
    workdir: Path,
    row: SamplerSetting,
    teacher_config: Any,
    guidance_scale: float,
    overrides: dict[str, Any],
) -> sampling.Settings:
    """Return the sampling settings of a row.

    A student has its own. The teacher has constant linear guidance, no corrector, and
    of its own settings only the clipping.
    """
    own = teacher_config.sample
    changes: dict[str, Any] = {"sampler": row.sampler, "langevin_delta": 0.0}
    # By default dpm takes other noise levels than the students.
    schedule = teacher_config.diffusion.schedule if row.sampler == "dpm" else ""
    changes["sampling_schedule"] = schedule
    if row.path:
        own, changes = runs.read_config(workdir / row.path).sample, {}
    return dataclasses.replace(
        sampling.Settings.from_config(own),
        steps=row.steps,
        guidance_scale=guidance_scale,
        guidance_schedule="constant",
        cfg_mode="linear",
        **changes,
        **overrides,
    )


def _measure_row(
    evaluation: Evaluation, row: SamplerSetting, settings: sampling.Settings
) -> tuple[dict, np.ndarray]:
    """Return scores and videos of a row, from its files or sampled now."""
    teacher, labels = evaluation.teacher, evaluation.metrics.labels
    trained = runs.load(evaluation.workdir / row.path) if row.path else teacher
    origin = {
        "sampler_setting": dataclasses.asdict(row),
        "settings": dataclasses.asdict(settings),
        "seed": evaluation.seed,
        "teacher": teacher.checksum,
        "parameters": trained.checksum,
    }
    path = evaluation.out / "rows" / f"{row.key}.json"
    if (stored := _read_row(path, origin)) is not None:
        return stored

    def sample(count: int, settings: sampling.Settings) -> np.ndarray:
        cond = {} if labels is None else {"label": labels[:count]}
        return sampling.sample(
            trained.model, trained.params, count, settings, cond=cond,
            seed=evaluation.seed,
        )  # fmt: skip

    batch = min(settings.batch_size, row.num)
    sample(batch, dataclasses.replace(settings, steps=1))  # compiles, before timing
    started = time.perf_counter()
    videos = sampling.to_uint8(sample(row.num, settings))
    seconds = (time.perf_counter() - started) / row.num
    nfe = sampling.nfe(trained.model, settings)
    scores = {"row": row.name, "nfe": nfe, "seconds": seconds}
    scores |= evaluation.metrics(videos)
    path.unlink(missing_ok=True)  # scores are never stored next to other videos
    video_io.write_npz(path.with_suffix(".npz"), videos, overwrite=True)
    files.write_json(path, {"scores": scores, "origin": origin})
    return scores, videos


def _read_row(path: Path, origin: dict) -> tuple[dict, np.ndarray] | None:
    """Return stored scores and videos of this origin; None if absent or damaged."""
    arrays, origin = path.with_suffix(".npz"), json.loads(json.dumps(origin))
    if path.is_file() and arrays.is_file():
        with contextlib.suppress(files.CorruptFile), reading_files(path.parent):
            match files.read_json(path):
                case {"origin": stored, "scores": dict(scores)} if stored == origin:
                    return scores, video_io.read_npz(arrays)
    return None
