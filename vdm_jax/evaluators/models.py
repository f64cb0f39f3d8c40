"""Evaluation of a model, or of every stage of a cascade: samples against real clips."""

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax import cascade as cascades
from vdm_jax import sampling, video_io
from vdm_jax.cascade import Cascade, CascadeStage
from vdm_jax.errors import UserError
from vdm_jax.evaluators import clips, results, sections, tables
from vdm_jax.evaluators.clips import RealClips
from vdm_jax.evaluators.reports import ReportOptions, write_report
from vdm_jax.files import make_folder
from vdm_jax.image_text import ImageTextModel
from vdm_jax.metrics import attributes, clip_score
from vdm_jax.metrics.attributes import AttributeMetric
from vdm_jax.metrics.perceptual import PerceptualNetworks
from vdm_jax.metrics.reference_sets import DISTORTIONS, reference_sets
from vdm_jax.metrics.tables import Row
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
    image_text: ImageTextModel | None = None,
) -> dict:
    """Measure `num` samples per guidance scale, and return the scores.

    The scores are printed too, and written as a report. A model is a cascade of one
    stage. Samples have the labels, captions and other conditions of held-out clips of
    the first stage's data. The report shows those of the first scale (default: each
    stage's own), which is also sampled in compare_steps. All start from the same noise.
    networks: for network metrics; None is without.
    image_text: for the agreement of a model's samples with their prompts.

    Raises:
      UserError: settings or folders do not fit; data or the text encoder are missing.
    """
    if image_text:
        _check_image_text(image_text, cascade)
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
    captions = _captions(cascade, real.held_out)
    if cascade.text_encoder:
        shown.append(_prompt_grid(last, samples, captions))
    is_model = first is last
    content = {}
    page_tables = []
    for stage in cascade.stages:
        if stage is not first:
            real, baselines = clips.real_clips(stage.config, num), {}
        own = {name: each[stage.name] for name, each in videos.items()}
        metric = None if labels is None else attributes.open_metric(stage.config)
        content[stage.name] = {
            "protocol": results.model_protocol(stage.config, real, num, seed, networks),
            "sample": dataclasses.asdict(stage.settings) | {"step": steps[stage.name]},
            **_measure_stage(own, real, labels, metric, networks, is_model),
        }
        if image_text:
            rows = _text_rows(image_text, own, real.held_out["video"], captions)
            content[stage.name]["text"] = rows
        prefix = "" if is_model else f"{stage.name}: "
        note = metric.note if metric else ""
        page_tables += tables.score_tables(content[stage.name], baselines, prefix, note)
        shown += sections.stage_sections(stage, samples[stage.name], real, prefix)
    _write_sheet(report.out / "samples.png", samples[last.name], captions)
    content = content[first.name] if is_model else {"stages": content}
    name = cascade.path.name
    summary = _summary(cascade, num)
    write_report(report, content, page_tables, shown, name=name, summary=summary)
    return content


def _check_image_text(image_text: ImageTextModel, cascade: Cascade) -> None:
    """Raise UserError unless it can compare the samples with their prompts."""
    first, *others = cascade.stages
    if others or not cascade.text_encoder:
        raise UserError("--image_text needs a single model that takes prompts")
    video = image_text.config.video
    sizes = (video.height, video.width, video.channels)
    if sizes != (own := first.model.video_shape[1:]):
        raise UserError(
            f"--image_text is a model of frames of {sizes}, the samples have {own}"
        )


def _text_rows(
    image_text: ImageTextModel,
    samples: Videos,
    held_out: np.ndarray,
    captions: Sequence[str],
) -> list[Row]:
    """Return how well samples and real clips agree with their prompts, and with others.

    The clips of the last row have the prompts of the clips before them.
    """
    real = image_text.embed_videos(held_out)
    images = {name: image_text.embed_videos(v) for name, v in samples.items()}
    images["held-out real"] = real
    images["held-out real, prompts of others"] = np.roll(real, 1, axis=0)
    return clip_score.score_rows(images, image_text.embed_texts(captions))


def _captions(cascade: Cascade, held_out: Mapping[str, np.ndarray]) -> list[str]:
    """Return the prompts of the samples, or their labels in words, or none."""
    model = cascade.stages[0].model
    if cascade.text_encoder:
        return [str(caption) for caption in held_out["caption"]]
    if "label" in model.batch_arrays and "label" in held_out:
        return [sampling.label_text(model, label) for label in held_out["label"]]
    return []


def _write_sheet(path: Path, videos: np.ndarray, captions: Sequence[str]) -> None:
    shown = sections.NUM_SHOWN
    video_io.write_sheet(path, videos[:shown], labels=captions[:shown], overwrite=True)


def _prompt_grid(
    last: CascadeStage, samples: Videos, prompts: Sequence[str]
) -> page.Section:
    """Return the samples of all stages by prompt. last: the stage of the result."""
    video = last.config.video
    return sections.prompt_grid(prompts, samples, video.frames / video.fps)


def _summary(cascade: Cascade, num: int) -> str:
    frames, height, width, _ = cascade.stages[-1].model.video_shape
    what = f"videos of {frames} frames" if frames > 1 else "pictures"
    return (
        f"{num} {what} of {height}x{width}, {cascades.nfe(cascade)} NFE each, next to "
        f"held-out real {'clips' if frames > 1 else 'pictures'}."
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
    samples: Videos,
    real: RealClips,
    labels: np.ndarray | None,
    metric: AttributeMetric | None,
    networks: PerceptualNetworks | None,
    distorted: bool,
) -> dict[str, Any]:
    """Return the scores of a stage's samples and of real clips, by their kind.

    samples: of every variant; all but the first have no network metrics.
    labels: of the samples and of the real clips, for data with a metric of attributes.
    distorted: whether distorted real clips are measured too, which takes seconds a clip
    with networks.
    """
    name, *others = samples
    held_out = real.held_out["video"]
    sets = reference_sets(samples[name], real.training, held_out)
    if not distorted:
        named = {k: make for k, make in sets.named.items() if k not in DISTORTIONS}
        sets = sets._replace(named=named)
    extra_samples = {name: samples[name] for name in others}
    scores = tables.measure(sets, real.training, networks, extra_samples)
    if metric is None or labels is None:
        return scores
    rows = metric.reference_scores()
    for name, videos in samples.items():
        for part, row in metric.scores(videos, labels, held_out).items():
            rows[", ".join(filter(None, (name, part)))] = row
    return {**scores, "attributes": rows}
