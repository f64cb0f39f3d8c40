"""Evaluation of a trained model: samples against real clips, a report, results.json."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vdm_jax import cascade as cascades
from vdm_jax import sampling
from vdm_jax.data import shapes
from vdm_jax.evaluators import clips, results, sections, tables
from vdm_jax.evaluators.reports import ReportOptions, write_report
from vdm_jax.files import make_folder
from vdm_jax.metrics.attributes import ATTRIBUTE_METRICS
from vdm_jax.metrics.perceptual import PerceptualNetworks
from vdm_jax.metrics.reference_sets import reference_sets
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

    Writes index.html, results.json and samples.png into report.out, which show the
    samples of the first scale. That scale is also sampled in compare_steps, from the
    same noise. networks are for network metrics, seconds per clip; None is without.

    Raises:
      UserError: settings, sample folders or baseline reports do not fit, or the text
        encoder is missing.
    """
    config, model = trained.config, trained.model
    by_scale, few_steps = _settings(config.sample, guidance_scales, compare_steps)
    for each in (*by_scale.values(), *few_steps.values()):
        sampling.check_settings(model, num, seed, each)
    shown = sections.sample_sections(report.sample_folders, config.data.source)
    make_folder(report.out)
    held_out, training = clips.real_clips(config, num)
    protocol = results.make_protocol(
        num,
        training,
        held_out["video"],
        networks,
        seed=seed,
        **results.data_fields(config),
    )
    others = results.read_baseline_reports(report.baseline_reports, protocol)
    cond = clips.conditions(
        cascades.from_model(model, config, workdir=workdir), held_out
    )
    samples = {
        name: _sample(name, trained, num, each, cond, seed)
        for name, each in (by_scale | few_steps).items()
    }
    (first_name, settings), *_ = by_scale.items()
    first, extra = samples[first_name], {name: samples[name] for name in few_steps}
    sets = reference_sets(first, training, held_out["video"])
    scores = tables.measure(sets, training, networks, extra)
    page_tables = tables.score_tables(scores, others) + tables.check_tables(scores)
    content = {"protocol": protocol, **scores, "sample": dataclasses.asdict(settings)}
    content["guidance_scales"] = [*guidance_scales]
    metric = ATTRIBUTE_METRICS.get(config.data.source)
    if metric and (model.label_vocabulary or model.text_dim):
        geometry = shapes.Geometry(*model.video_shape[:3], config.data.stride)
        rows = content["attributes"] = metric.reference_scores(geometry)
        for name in by_scale:
            rows[f"samples, {name}"] = metric.attribute_scores(
                samples[name], held_out["label"], config.data.stride
            )
        page_tables.insert(0, tables.attribute_table(rows, metric))
    fps, pixels = config.video.fps, scores["pixels"]
    steps = [settings.steps, *(each.steps for each in few_steps.values())]
    shown += sections.training_sections(workdir, fps)
    shown += sections.comparison_sections(first, held_out["video"], training, fps)
    shown += sections.step_sections(steps, pixels[: len(steps)])
    sections.write_sheet(report.out, first)
    frames, height, width, _ = model.video_shape
    write_report(
        report, content, page_tables, shown,
        [sections.environment_section(trained, seed)],
        name=workdir.name,
        summary=f"{num} videos of {frames} frames of {height}x{width}, "
        f"{settings.sampler} in {settings.steps} steps, next to held-out real clips.",
    )  # fmt: skip
    return content


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
    name: str,
    trained: TrainedModel,
    num: int,
    settings: sampling.Settings,
    cond: Conditions,
    seed: int,
) -> np.ndarray:
    """Return samples as uint8 [n, f, h, w, c], with a progress bar."""
    started = time.perf_counter()
    with tqdm(desc=name, unit="step", leave=False, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        videos = sampling.sample(
            trained.model, trained.params, num, settings, sampling.SamplingInputs(cond),
            noise=sampling.NoiseIndex(seed), progress=progress,
        )  # fmt: skip
    seconds = time.perf_counter() - started
    print(f"{name}: {num} videos in {seconds:.0f} s", flush=True)
    return sampling.to_uint8(videos)
