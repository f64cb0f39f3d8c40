"""Evaluation of a model, or of every stage of a cascade: samples against real clips."""

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from vdm_jax import cascade as cascades
from vdm_jax import sampling, video_io
from vdm_jax.cascade import Cascade, CascadeStage
from vdm_jax.data import shapes
from vdm_jax.evaluators import clips, results, sections, tables
from vdm_jax.evaluators.clips import RealClips
from vdm_jax.evaluators.reports import ReportOptions, write_report
from vdm_jax.files import make_folder
from vdm_jax.metrics.attributes import ATTRIBUTE_METRICS
from vdm_jax.metrics.perceptual import PerceptualNetworks
from vdm_jax.metrics.reference_sets import DISTORTIONS, reference_sets
from vdm_jax.report import page
from vdm_jax.runs import TrainedModel

Videos = Mapping[str, np.ndarray]  # uint8 [n, f, h, w, c] by name


def evaluate(
    cascade: Cascade,
    report: ReportOptions,
    *,
    num: int,
    seed: int,
    networks: PerceptualNetworks | None,
    guidance_scales: Sequence[float] = (),
    compare_steps: Collection[int] = (),
) -> dict:
    """Measure `num` samples per guidance scale, and return the scores.

    The scores are printed too, and written as a report. A model is a cascade of one
    stage. Samples have the labels, captions and other conditions of held-out clips of
    the first stage's data. The report shows those of the first scale (default: each
    stage's own), which is also sampled in compare_steps. All start from the same noise.
    networks: for network metrics; None is without.

    Raises:
      UserError: settings or folders do not fit; data or the text encoder are missing.
    """
    variants = _variants(cascade, guidance_scales, compare_steps)
    for stage in (stage for each in variants.values() for stage in each.stages):
        sampling.check_settings(stage.model, num, seed, stage.settings)
    cascade, *_ = variants.values()
    shown = sections.sample_sections(report.sample_folders)
    make_folder(report.out)
    first, last = cascade.stages[0], cascade.stages[-1]
    real = clips.real_clips(first.config, num)
    protocol = results.model_protocol(first.config, real, num, seed, networks)
    baselines = results.read_baseline_reports(report.baseline_reports, protocol)
    videos, steps = _sample(variants, real.held_out, num, seed)
    samples, *_ = videos.values()
    labels = real.held_out.get("label")
    if cascade.text_encoder:
        shown.append(_prompt_grid(last, samples, real.held_out["caption"]))
    is_model = first is last
    content = {}
    page_tables = []
    for stage in cascade.stages:
        if stage is not first:
            real = clips.real_clips(stage.config, num)
            baselines = {}
        own = {name: each[stage.name] for name, each in videos.items()}
        content[stage.name] = {
            "protocol": results.model_protocol(stage.config, real, num, seed, networks),
            "sample": dataclasses.asdict(stage.settings) | {"step": steps[stage.name]},
            **_measure_stage(stage, own, real, labels, networks, is_model),
        }
        prefix = "" if is_model else f"{stage.name}: "
        page_tables += tables.score_tables(content[stage.name], baselines, prefix)
        shown += sections.stage_sections(stage, samples[stage.name], real, prefix)
    sheet = samples[last.name][: sections.NUM_SHOWN]
    video_io.write_sheet(report.out / "samples.png", sheet, overwrite=True)
    content = content[first.name] if is_model else {"stages": content}
    name = cascade.path.name
    summary = _summary(cascade, num)
    write_report(report, content, page_tables, shown, name=name, summary=summary)
    return content


def _prompt_grid(
    last: CascadeStage, samples: Videos, captions: np.ndarray
) -> page.Section:
    """Return the samples of all stages by prompt. last: the stage of the result."""
    video = last.config.video
    prompts = [str(caption) for caption in captions]
    return sections.prompt_grid(prompts, samples, video.frames / video.fps)


def _summary(cascade: Cascade, num: int) -> str:
    frames, height, width, _ = cascade.stages[-1].model.video_shape
    return (
        f"{num} videos of {frames} frames of {height}x{width}, "
        f"{cascades.nfe(cascade)} NFE each, next to held-out real clips."
    )


def _variants(
    cascade: Cascade, guidance_scales: Sequence[float], compare_steps: Collection[int]
) -> dict[str, Cascade]:
    """Return the cascade at each guidance scale, then in fewer steps, by row names."""

    def change(cascade: Cascade, **settings: Any) -> Cascade:
        stages = tuple(stage.with_settings(**settings) for stage in cascade.stages)
        return dataclasses.replace(cascade, stages=stages)

    variants = {} if guidance_scales else {"samples": cascade}
    for scale in guidance_scales:
        off = {"guidance_schedule": "constant"} if scale == 1 else {}
        name = f"samples, guidance_scale {scale:g}"
        variants[name] = change(cascade, guidance_scale=scale, **off)
    first, *_ = variants.values()
    for steps in sorted({*compare_steps} - {first.stages[0].settings.steps})[::-1]:
        variants[f"samples, {steps} steps"] = change(first, steps=steps)
    return variants


def _sample(
    variants: Mapping[str, Cascade],
    held_out: Mapping[str, np.ndarray],
    num: int,
    seed: int,
) -> tuple[dict[str, Videos], dict[str, int]]:
    """Return the videos of each variant by stage, and the training step of each."""
    first, *_ = variants.values()
    cond = clips.conditions(first, held_out)
    videos = {}
    steps = {}

    def note(stage: CascadeStage, trained: TrainedModel, _: np.ndarray) -> None:
        steps[stage.name] = trained.step

    for name, cascade in variants.items():
        started = time.perf_counter()
        with sampling.progress_bar() as progress:
            sampled = cascades.sample(
                cascade, num, cond, seed=seed, progress=progress, on_stage=note
            )
        seconds = time.perf_counter() - started
        print(f"{name}: {num} videos in {seconds:.0f} s", flush=True)
        videos[name] = {stage: sampling.to_uint8(v) for stage, v in sampled.items()}
    return videos, steps


def _measure_stage(
    stage: CascadeStage,
    samples: Videos,
    real: RealClips,
    labels: np.ndarray | None,
    networks: PerceptualNetworks | None,
    distorted: bool,
) -> dict[str, Any]:
    """Return the scores of a stage's samples and of real clips, by their kind.

    samples: of every variant; all but the first have no network metrics.
    labels: of the samples, for data with attributes. distorted: whether distorted real
    clips are measured too, which takes seconds a clip with networks.
    """
    config = stage.config
    name, *others = samples
    sets = reference_sets(samples[name], real.training, real.held_out["video"])
    if not distorted:
        named = {k: make for k, make in sets.named.items() if k not in DISTORTIONS}
        sets = sets._replace(named=named)
    extra_samples = {name: samples[name] for name in others}
    scores = tables.measure(sets, real.training, networks, extra_samples)
    metric = ATTRIBUTE_METRICS.get(config.data.source)
    if metric and labels is not None:
        video = config.video
        stride = config.data.stride
        geometry = shapes.Geometry(video.frames, video.height, video.width, stride)
        rows = metric.reference_scores(geometry)
        for name, videos in samples.items():
            rows[name] = metric.attribute_scores(videos, labels, stride)
        return {**scores, "attributes": rows}
    return scores
