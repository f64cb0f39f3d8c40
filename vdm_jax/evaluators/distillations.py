"""Evaluation of a distillation: quality of its students by the number of NFE.

Students are compared with samplers of the undistilled teacher, from the same conditions
and noise. Each row is stored when it is finished, so that an interrupted command
resumes:

    OUT/rows/student-0008.json, .npz  ...  results.json  index.html
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax import build, data, files, migration, runs, sampling, video_io
from vdm_jax.data import pipeline
from vdm_jax.distillation.rounds import with_halving_steps
from vdm_jax.errors import UserError
from vdm_jax.evaluators import clips
from vdm_jax.evaluators.distillation_page import Evaluation, SamplerSetting, write_page
from vdm_jax.evaluators.reports import ReportOptions
from vdm_jax.files import make_folder
from vdm_jax.manifest import reading_files
from vdm_jax.metrics import attributes
from vdm_jax.metrics.frechet import frechet_of_features
from vdm_jax.metrics.pixel_statistics import grouped_features, pixel_distances
from vdm_jax.metrics.tables import Row
from vdm_jax.metrics.video_arrays import to_float64
from vdm_jax.runs import TrainedModel
from vdm_jax.sampling import Settings

SAMPLERS = ("ddim", "ancestral", "dpm")  # of the teacher
MAX_STEPS = 64  # of a row
KEY_STEPS = (8, 4)  # rows of these numbers of steps get more videos


def evaluate(
    workdir: Path,
    report: ReportOptions,
    *,
    num: int,
    num_key_samples: int,
    overrides: dict[str, Any],
    guidance_scale: float | None,
    seed: int,
) -> list[Row]:
    """Sample and measure every row; print the table, write the report, return rows.

    overrides are sampling settings of every row. guidance_scale is that of students and
    teacher; None is the config's.

    Raises:
      UserError: the distillation or its teacher cannot be read, or settings do not fit.
    """
    teacher, start_steps, rounds = _read_distillation(workdir)
    plan = plan_rows(rounds, start_steps, num, num_key_samples)
    config = runs.read_config(workdir)
    if guidance_scale is None:
        guidance_scale = float(config.sample.guidance_scale)
    overrides = overrides | {"guidance_scale": guidance_scale}
    settings = [_settings(workdir, row, teacher.config, overrides) for row in plan]
    student = build.build_model(config)
    for row, each in zip(plan, settings, strict=True):
        model = student if row.path else teacher.model
        sampling.check_settings(model, row.num, seed, each)
    make_folder(report.out / "rows")
    most = max(row.num for row in plan)
    source = data.open_videos(config)
    held_out = pipeline.held_out_batch(config, source, most)
    cascade = clips.model_cascade(teacher.model, teacher.config, workdir)
    cond = clips.conditions(cascade, held_out)
    evaluation = Evaluation(
        workdir, report, teacher, guidance_scale, seed, held_out, cond
    )
    rows, videos = [], {}
    for row, each in zip(plan, settings, strict=True):
        scores, videos[row] = _measure_row(evaluation, row, each, videos.get(plan[0]))
        rows.append(scores)
        print(f"{row.name}: {scores['seconds']:.3f} s a video", flush=True)
    training = clips.training_clips(config, source, most)
    rows.append(_real_row(training, held_out["video"], teacher.config))
    write_page(evaluation, videos, rows, rounds)
    return rows


def _read_distillation(workdir: Path) -> tuple[TrainedModel, int, list[dict]]:
    """Return the teacher, its steps in the first round, and the finished rounds."""
    path = workdir / runs.DISTILLATION_FILE
    stored = migration.rename(runs.read_json(path, dict))
    match stored:
        case {"teacher": str(), "checksum": str(), "distill": {"start_steps": int()}}:
            rounds = runs.distillation_rounds(workdir)
        case _:
            raise UserError(f"{path} is not what distill.py wrote; put back a copy")
    teacher = with_halving_steps(runs.load(stored["teacher"]))
    if teacher.checksum != stored["checksum"]:
        raise UserError(
            f"{stored['teacher']} is not, or not any more, the teacher of {workdir}: "
            "put it back, to compare its students with it"
        )
    return teacher, stored["distill"]["start_steps"], rounds


def plan_rows(
    rounds: Sequence[dict], start_steps: int, num: int, num_key_samples: int
) -> list[SamplerSetting]:
    """Return the rows; the first is the reference, the teacher's DDIM at most steps.

    Args:
      rounds: of `runs.distillation_rounds`.
      start_steps: steps of the teacher in the first round.
      num: videos of a row.
      num_key_samples: videos of the reference, and of students, DDIM and dpm of
        KEY_STEPS steps.
    """
    most = min(start_steps, MAX_STEPS)
    rows = [SamplerSetting("ddim", most, max(num, num_key_samples))]
    for student in sorted(rounds, key=lambda row: -row["steps"]):
        n = student["steps"]
        if n <= MAX_STEPS:
            videos = num_key_samples if n in KEY_STEPS else num
            rows.append(SamplerSetting("", n, videos, path=student["path"]))
    n = most
    while n >= rounds[-1]["steps"]:
        for sampler in SAMPLERS:
            is_key = n in KEY_STEPS and sampler != "ancestral"
            row = SamplerSetting(sampler, n, num_key_samples if is_key else num)
            if row.key != rows[0].key:
                rows.append(row)
        n //= 2
    return rows


def _settings(
    workdir: Path, row: SamplerSetting, teacher_config: Any, overrides: dict[str, Any]
) -> Settings:
    """Return the sampling settings of a row.

    A student has its own. The teacher has constant linear guidance, no corrector, and
    of its own settings only the clipping.
    """
    changes = {"guidance_schedule": "constant", "cfg_mode": "linear"} | overrides
    changes["steps"] = row.steps
    if row.path:
        own = Settings.from_config(runs.read_config(workdir / row.path).sample)
        return dataclasses.replace(own, **changes)
    # By default dpm takes other noise levels than the students.
    schedule = teacher_config.diffusion.schedule if row.sampler == "dpm" else ""
    changes |= {"sampling_schedule": schedule, "langevin_delta": 0.0}
    own = Settings.from_config(teacher_config.sample)
    return dataclasses.replace(own, sampler=row.sampler, **changes)


def _measure_row(
    evaluation: Evaluation,
    row: SamplerSetting,
    settings: Settings,
    reference: np.ndarray | None,
) -> tuple[Row, np.ndarray]:
    """Return scores and videos of a row, from its files or sampled now."""
    workdir, report, teacher, _, seed, held_out, cond = evaluation
    trained = runs.load(workdir / row.path) if row.path else teacher
    origin = {
        "sampler_setting": row._asdict(),
        "settings": dataclasses.asdict(settings),
        "seed": seed,
        "teacher": teacher.checksum,
        "parameters": trained.checksum,
    }
    path = report.out / "rows" / f"{row.key}.json"
    if (stored := _read_row(path, origin)) is not None:
        return stored

    def sample(count: int, settings: Settings) -> np.ndarray:
        own = {name: array[:count] for name, array in cond.items()}
        return sampling.sample(
            trained.model, trained.params, count, settings,
            sampling.SamplingInputs(own), sampling.Run(seed),
        )  # fmt: skip

    batch = min(settings.batch_size, row.num)
    sample(batch, dataclasses.replace(settings, steps=1))  # compiles, before timing
    started = time.perf_counter()
    videos = sampling.to_uint8(sample(row.num, settings))
    seconds = (time.perf_counter() - started) / row.num
    nfe = sampling.nfe(trained.model, settings)
    scores: Row = {"row": row.name, "nfe": nfe, "seconds": seconds}
    if reference is None:
        reference = videos
    scores |= row_scores(videos, reference, held_out, teacher.config)
    path.unlink(missing_ok=True)  # scores are never stored next to other videos
    video_io.write_npz(path.with_suffix(".npz"), videos, overwrite=True)
    files.write_json(path, {"scores": scores, "origin": origin})
    return scores, videos


def _read_row(path: Path, origin: dict) -> tuple[dict, np.ndarray] | None:
    """Return stored scores and videos of this origin; None if absent or damaged."""
    arrays = path.with_suffix(".npz")
    origin = json.loads(json.dumps(origin))
    if path.is_file() and arrays.is_file():
        with contextlib.suppress(files.CorruptFile), reading_files(path.parent):
            match files.read_json(path):
                case {"origin": stored, "scores": dict(scores)} if stored == origin:
                    return scores, video_io.read_npz(arrays)
    return None


def row_scores(
    videos: np.ndarray,
    reference: np.ndarray,
    held_out: Mapping[str, np.ndarray],
    config: Any,
) -> Row:
    """Return the scores of videos uint8 [n, f, h, w, c] of the clips held_out.

    Frechet distances are to as many of these clips, ratios to the distances of as many
    videos of the reference, which has the same conditions and noise.

    config: of the teacher.
    """
    n = len(videos)
    scores = {}
    metric = attributes.open_metric(config)
    if metric and "label" in held_out:
        scores |= metric.scores(videos, held_out["label"][:n])[""]
        scores.pop("clips", None)  # "videos" says it
    reference = reference[:n]
    own, first, real = map(grouped_features, (videos, reference, held_out["video"][:n]))
    scores |= pixel_distances(own, real)
    for name in real:
        distance = frechet_of_features(first[name], real[name])
        scores[f"{name}_ratio"] = scores[name] / distance
    difference = to_float64(videos) - to_float64(reference)
    rmse = float(np.sqrt(np.square(difference).mean()))
    return {"videos": n, **scores, "rmse_to_teacher": rmse}


def _real_row(videos: np.ndarray, real: np.ndarray, config: Any) -> Row:
    """Return the row of training clips, the best that as many videos can reach."""
    row: Row = {"row": "real clips", "videos": len(videos)}
    if metric := attributes.open_metric(config):
        row |= metric.unlabelled_scores(videos)
    return row | pixel_distances(*map(grouped_features, (videos, real)))
