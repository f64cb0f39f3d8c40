"""Evaluation of a trained model: samples against real clips, a report, results.json."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vdm_jax import sampling, video_io
from vdm_jax.evaluators import results, sections, tables
from vdm_jax.evaluators.clips import real_clips
from vdm_jax.evaluators.options import ReportOptions
from vdm_jax.files import make_folder
from vdm_jax.metrics import protocol as protocols
from vdm_jax.metrics.by_source import ATTRIBUTE_METRICS
from vdm_jax.metrics.perceptual import PerceptualNetworks
from vdm_jax.report import page
from vdm_jax.runs import TrainedModel


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
      UserError: settings, sample folders or baseline reports do not fit.
    """
    config = trained.config
    by_scale, few_steps = _settings(config.sample, guidance_scales, compare_steps)
    for each in (*by_scale.values(), *few_steps.values()):
        sampling.check_settings(trained.model, num, seed, each)
    shown = sections.sample_sections(report.sample_folders, config.data.source)
    make_folder(report.out)
    held_out, training = real_clips(config, num)
    protocol = results.evaluation_protocol(
        config, training, held_out["video"], num, seed, networks
    )
    others = results.read_baseline_reports(report.baseline_reports, protocol)

    def sample(name: str, settings: sampling.Settings) -> np.ndarray:
        return _sample(name, trained, num, settings, held_out, seed)

    samples = {s: sample(f"guidance_scale {s:g}", by_scale[s]) for s in by_scale}
    extra = {name: sample(name, s) for name, s in few_steps.items()}
    first, settings = samples[guidance_scales[0]], by_scale[guidance_scales[0]]
    page_tables, scores = tables.measure_tables(
        first, training, held_out["video"], networks, others, extra_samples=extra
    )
    content = {"protocol": protocol, **scores, "sample": dataclasses.asdict(settings)}
    content["guidance_scales"] = [*guidance_scales]
    if attributes := _attributes(trained, samples, held_out):
        content["attributes"], table = attributes
        page_tables.insert(0, table)
    tables.print_tables(page_tables)
    print(f"\n{protocols.describe(protocol)}")
    results.write_results(report.out, content)

    fps, rows = config.video.fps, scores["pixels"]
    steps = [settings.steps, *(s.steps for s in few_steps.values())]
    shown += sections.training_sections(workdir, fps)
    shown += sections.comparison_sections(first, held_out["video"], training, fps)
    shown += [*sections.step_sections(steps, rows[: len(steps)]), *page_tables]
    environment = sections.environment_section(trained, seed)
    shown += [page.Commands("Commands", report.commands), environment]
    _write_page(report.out, workdir, first, settings, shown)
    return content


def _attributes(
    trained: TrainedModel,
    samples: Mapping[float, np.ndarray],
    held_out: Mapping[str, np.ndarray],
) -> tuple[dict, page.Table] | None:
    """Return attribute scores and their table; None for data without attributes."""
    metric = ATTRIBUTE_METRICS.get(trained.config.data.source)
    if metric is None or not trained.model.label_vocabulary:
        return None
    shape = trained.model.video_shape
    rows = tables.attribute_rows(shape, metric, samples, held_out["label"])
    return rows, tables.attribute_table(rows, metric)


def _settings(
    config: Any, guidance_scales: Sequence[float], compare_steps: Sequence[int]
) -> tuple[dict[float, sampling.Settings], dict[str, sampling.Settings]]:
    """Return settings by guidance scale, and few-step settings by row name."""
    own = sampling.Settings.from_config(config)
    unguided = dataclasses.replace(own, guidance_schedule="constant")
    by_scale = {
        scale: dataclasses.replace(
            own if scale != 1 else unguided, guidance_scale=scale
        )
        for scale in guidance_scales
    }
    first = by_scale[guidance_scales[0]]
    few_step_settings = {
        f"samples, {steps} steps": dataclasses.replace(first, steps=steps)
        for steps in sorted({*compare_steps} - {own.steps}, reverse=True)
    }
    return by_scale, few_step_settings


def _sample(
    name: str,
    trained: TrainedModel,
    num: int,
    settings: sampling.Settings,
    held_out: Mapping[str, np.ndarray],
    seed: int,
) -> np.ndarray:
    """Return samples as uint8 [n, f, h, w, c], with a progress bar."""
    # The held-out clips' own conditions: distances would else include the labels'.
    cond = {name: held_out[name] for name in trained.model.batch_arrays}
    started = time.perf_counter()
    with tqdm(desc=name, unit="step", leave=False, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        videos = sampling.sample(
            trained.model, trained.params, num, settings, cond=cond, seed=seed,
            progress=progress,
        )  # fmt: skip
    seconds = time.perf_counter() - started
    print(f"{name}: {num} videos in {seconds:.0f} s", flush=True)
    return sampling.to_uint8(videos)


def _write_page(
    out: Path,
    workdir: Path,
    samples: np.ndarray,
    settings: sampling.Settings,
    page_sections: Sequence[page.Section],
) -> None:
    """Write OUT/index.html and OUT/samples.png; print the path of the page."""
    sheet = samples[: sections.NUM_SHOWN]
    video_io.write_sheet(out / "samples.png", sheet, overwrite=True)
    num, frames, height, width, _ = samples.shape
    page.write(
        out / "index.html",
        title=f"vdm_jax: {workdir.name}",
        summary=f"{num} videos of {frames} frames of {height}x{width}, "
        f"{settings.sampler} in {settings.steps} steps, next to held-out real clips.",
        sections=page_sections,
    )
    print(f"\nthe report: {out / 'index.html'}")
