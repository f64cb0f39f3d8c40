"""Evaluation of a trained model: samples against real clips, a report, results.json."""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax import sampling
from vdm_jax.data import shapes
from vdm_jax.evaluators import clips, results, sections, tables
from vdm_jax.evaluators.reports import ReportOptions, progress_bar, write_report
from vdm_jax.files import make_folder
from vdm_jax.metrics.attributes import ATTRIBUTE_METRICS, AttributeMetric
from vdm_jax.metrics.perceptual import PerceptualNetworks
from vdm_jax.metrics.reference_sets import reference_sets
from vdm_jax.metrics.tables import Row
from vdm_jax.runs import TrainedModel
from vdm_jax.sampling import Conditions


def evaluate(
    trained: TrainedModel,
    workdir: Path,
    report: ReportOptions,
    *,
    num: int,
    guidance_scales: Sequence[float],
    seed: int,
    networks: PerceptualNetworks | None,
    compare_steps: Sequence[int] = (),
) -> dict:
    """Measure `num` samples per guidance scale; print, write the report, return.

    index.html, results.json and samples.png in report.out show samples of the first
    scale. It is also sampled in compare_steps, from the same noise. networks are for
    network metrics, seconds per clip; None is without.

    Raises:
      UserError: settings or folders do not fit, or the text encoder is missing.
    """
    config, model = trained.config, trained.model
    by_scale, few_steps = _settings(config.sample, guidance_scales, compare_steps)
    for each in (*by_scale.values(), *few_steps.values()):
        sampling.check_settings(model, num, seed, each)
    shown = sections.sample_sections(report.sample_folders, config.data.source)
    make_folder(report.out)
    held_out, training = clips.real_clips(config, num)
    real, fps = held_out["video"], config.video.fps
    fields = results.data_fields(config)
    protocol = results.make_protocol(num, training, real, networks, seed=seed, **fields)
    others = results.read_baseline_reports(report.baseline_reports, protocol)
    cond = clips.model_conditions(model, config, workdir, held_out)
    samples = _sample(trained, num, by_scale | few_steps, cond, seed)
    (name, settings), *_ = by_scale.items()
    first, few = samples[name], {name: samples[name] for name in few_steps}
    sets = reference_sets(first, training, real)
    scores = tables.measure(sets, training, networks, few)
    page_tables = tables.score_tables(scores, others) + tables.check_tables(scores)
    content = {"protocol": protocol, **scores, "sample": dataclasses.asdict(settings)}
    content["guidance_scales"] = [*guidance_scales]
    metric = ATTRIBUTE_METRICS.get(config.data.source)
    if metric and (model.label_vocabulary or model.text_dim):
        named = {f"samples, {name}": samples[name] for name in by_scale}
        rows = _attribute_rows(metric, config, named, held_out["label"])
        content["attributes"] = rows
        page_tables.insert(0, tables.attribute_table(rows, metric))
    shown += sections.training_sections(workdir, fps)
    shown += sections.comparison_sections(first, real, training, fps)
    steps = [each.steps for each in (settings, *few_steps.values())]
    shown += sections.step_sections(steps, scores["pixels"][: len(steps)])
    sections.write_sheet(report.out, first)
    frames, height, width, _ = model.video_shape
    environment = sections.environment_section(trained, seed)
    write_report(
        report, content, page_tables, shown, [environment], name=workdir.name,
        summary=f"{num} videos of {frames} frames of {height}x{width}, "
        f"{settings.sampler} in {settings.steps} steps, next to held-out real clips.",
    )  # fmt: skip
    return content


def _attribute_rows(
    metric: AttributeMetric,
    config: Any,
    samples: Mapping[str, np.ndarray],
    labels: np.ndarray,
) -> dict[str, Row]:
    """Return attribute scores of real and distorted clips, then of samples."""
    video, stride = config.video, config.data.stride
    geometry = shapes.Geometry(video.frames, video.height, video.width, stride)
    rows = metric.reference_scores(geometry)
    for name, videos in samples.items():
        rows[name] = metric.attribute_scores(videos, labels, stride)
    return rows


def _settings(
    config: Any, guidance_scales: Sequence[float], compare_steps: Sequence[int]
) -> tuple[dict[str, sampling.Settings], dict[str, sampling.Settings]]:
    """Return settings by guidance scale, and few-step settings, by row name."""
    own = sampling.Settings.from_config(config)
    by_scale = {}
    for scale in guidance_scales:
        schedule = own.guidance_schedule if scale != 1 else "constant"
        by_scale[f"guidance_scale {scale:g}"] = dataclasses.replace(
            own, guidance_scale=scale, guidance_schedule=schedule
        )
    first, *_ = by_scale.values()
    few_steps = {
        f"samples, {steps} steps": dataclasses.replace(first, steps=steps)
        for steps in sorted({*compare_steps} - {own.steps}, reverse=True)
    }
    return by_scale, few_steps


def _sample(
    trained: TrainedModel,
    num: int,
    settings: Mapping[str, sampling.Settings],
    cond: Conditions,
    seed: int,
) -> dict[str, np.ndarray]:
    """Return samples uint8 [n, f, h, w, c] by each of the settings, by name."""
    inputs, noise = sampling.SamplingInputs(cond), sampling.NoiseIndex(seed)
    samples = {}
    for name, each in settings.items():
        started = time.perf_counter()
        with progress_bar() as progress:
            videos = sampling.sample(
                trained.model, trained.params, num, each, inputs, noise=noise,
                progress=functools.partial(progress, name),
            )  # fmt: skip
        seconds = time.perf_counter() - started
        print(f"{name}: {num} videos in {seconds:.0f} s", flush=True)
        samples[name] = sampling.to_uint8(videos)
    return samples
