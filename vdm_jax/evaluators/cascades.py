"""Evaluation of a cascade: the videos of every stage against real clips of its size."""

import dataclasses
import time

import numpy as np

from vdm_jax import cascade as cascades
from vdm_jax import data, sampling
from vdm_jax.cascade import Cascade, CascadeStage
from vdm_jax.data import pipeline
from vdm_jax.evaluators import clips, results, sections, tables
from vdm_jax.evaluators.reports import ReportOptions, progress_bar, write_report
from vdm_jax.evaluators.tables import Scores
from vdm_jax.files import make_folder
from vdm_jax.metrics.attributes import ATTRIBUTE_METRICS
from vdm_jax.metrics.perceptual import PerceptualNetworks
from vdm_jax.metrics.reference_sets import ReferenceSets, reference_sets
from vdm_jax.metrics.tables import Row
from vdm_jax.sampling import Conditions


def evaluate(
    cascade: Cascade,
    report: ReportOptions,
    *,
    num: int,
    seed: int,
    networks: PerceptualNetworks | None,
) -> dict:
    """Sample `num` videos and measure every stage; print, write the report, return.

    The videos have the captions and labels of held-out clips of the first stage's data.
    The rows of a stage are its videos and as many held-out clips of its own data.

    Raises:
      UserError: settings do not fit; data or text encoder are missing.
    """
    first, last = cascade.stages[0], cascade.stages[-1]
    for stage in cascade.stages:
        sampling.check_settings(stage.model, num, seed, stage.settings)
    make_folder(report.out)
    source = data.open_source(first.config)
    held_out = pipeline.held_out_batch(first.config, source, num)
    videos = sample(cascade, num, clips.conditions(cascade, held_out), seed)
    scores, attributes, protocols, shown = {}, {}, {}, []
    if cascade.text_encoder:
        prompts = [str(caption) for caption in held_out["caption"]]
        seconds = last.config.video.frames / last.config.video.fps
        shown.append(sections.prompt_grid(prompts, videos, seconds))
    for stage in cascade.stages:
        real, training = clips.real_clips(stage.config, num)
        own, config = videos[stage.name], stage.config
        protocols[stage.name] = results.make_protocol(
            num, training, real["video"], networks, seed=seed,
            **results.data_fields(config),
        )  # fmt: skip
        sets = reference_sets(own, training, real["video"])
        for kind, rows in measure_stage(stage, sets, training, networks).items():
            scores.setdefault(kind, []).extend(rows)
        if "label" in held_out:
            attributes |= attribute_rows(stage, own, real["video"], held_out["label"])
        shown += sections.comparison_sections(
            own, real["video"], training, config.video.fps, f"{stage.name}: "
        )
    content = {"protocols": protocols, **scores}
    content["sample"] = {s.name: dataclasses.asdict(s.settings) for s in cascade.stages}
    page_tables = tables.score_tables(scores)
    if attributes:
        metric = ATTRIBUTE_METRICS[first.config.data.source]
        content["attributes"] = attributes | {"chance": metric.chance()}
        page_tables.insert(0, tables.attribute_table(content["attributes"], metric))
    sections.write_sheet(report.out, videos[last.name])
    frames, height, width, _ = last.model.video_shape
    write_report(
        report, content, page_tables, shown, name=cascade.path.name,
        summary=f"{num} videos of {len(cascade.stages)} stages, in the end {frames} "
        f"frames of {height}x{width}, {cascades.nfe(cascade)} NFE each, next to "
        "held-out real clips.",
    )  # fmt: skip
    return content


def sample(
    cascade: Cascade, num: int, cond: Conditions, seed: int
) -> dict[str, np.ndarray]:
    """Return uint8 videos [n, f, h, w, c] of every stage, with a progress bar."""
    started = time.perf_counter()
    with progress_bar() as progress:
        videos = cascades.sample(cascade, num, cond, seed=seed, progress=progress)
    seconds, nfe = time.perf_counter() - started, cascades.nfe(cascade)
    print(f"{num} videos in {seconds:.0f} s, {nfe} NFE each", flush=True)
    return {name: sampling.to_uint8(each) for name, each in videos.items()}


def measure_stage(
    stage: CascadeStage,
    sets: ReferenceSets,
    training: np.ndarray,
    networks: PerceptualNetworks | None,
) -> Scores:
    """Return the rows of a stage's videos and of real clips, without distorted ones."""
    print(f"{stage.name}:", flush=True)
    named = {name: sets.named[name] for name in ("samples", "held-out real")}
    scores = tables.measure(sets._replace(named=named), training, networks)
    names = _row_names(stage)
    return {
        kind: [row | {"row": name} for row, name in zip(rows, names, strict=True)]
        for kind, rows in scores.items()
    }


def attribute_rows(
    stage: CascadeStage, videos: np.ndarray, real: np.ndarray, labels: np.ndarray
) -> dict[str, Row]:
    """Return attribute scores of a stage's videos, and of real clips of equal labels.

    The dict is empty for data without attributes.
    """
    config = stage.config.data
    if config.source not in ATTRIBUTE_METRICS:
        return {}
    score = ATTRIBUTE_METRICS[config.source].attribute_scores
    sets = zip(_row_names(stage), (videos, real), strict=True)
    return {name: score(each, labels, config.stride) for name, each in sets}


def _row_names(stage: CascadeStage) -> tuple[str, str]:
    return stage.name, f"{stage.name}, real clips"
