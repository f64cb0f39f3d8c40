"""Sections of a report's page: samples, training, steps, real clips, environment."""

import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

from vdm_jax import scalars, video_io
from vdm_jax.errors import UserError
from vdm_jax.evaluators.clips import (
    SAMPLES,
    read_sample_info,
    read_samples,
    real_clips,
    samples_folder,
)
from vdm_jax.files import CorruptFile
from vdm_jax.metrics.pixel_statistics import nearest_training
from vdm_jax.report import curves, page
from vdm_jax.runs import TrainedModel, read_config

NUM_SHOWN = 16  # videos in a grid of the page
NEAREST_NOTE = (
    "Left: a sample; right: its nearest training clip by the root mean square of pixel "
    "differences (0 is a copy, black to white is 2). The closest pair comes first. A "
    "model trained on little data memorises some clips: where both look the same, the "
    "sample is memorised."
)
TRAINING_PREVIEWS = 5  # of those written during training, from the first to the last


def sample_sections(folders: Sequence[Path], source: str) -> list[page.Section]:
    """Return sections of folders that sample.py wrote.

    source: the data source of the evaluated model. Samples of the same source, such as
    those of a teacher and its students, are shown in one section. Samples of another
    source are shown next to its real clips. Samples of a cascade are shown by prompt.

    Raises:
      UserError: a folder was not written by sample.py.
    """
    prompts, sections, same_source = [], [], []
    for folder in map(samples_folder, folders):
        if not (folder / SAMPLES).is_file():
            raise UserError(f"{folder} holds no {SAMPLES}: give a --out of sample.py")
        videos = read_samples(folder)
        info = read_sample_info(folder)
        if "stages" in info:
            prompts.append(prompt_section(folder, info, videos))
            continue
        grid = page.VideoGrid(info["command"], videos[:NUM_SHOWN])
        config = read_config(Path(info["workdir"]))
        if config.data.source == source:
            same_source.append(grid)
            fps = info["fps"]
            continue
        title = f"Samples of {info['workdir']}"
        sections.append(page.VideoGrids(title, [grid], info["fps"]))
        held_out, training = real_clips(config, len(videos))
        sections += comparison_sections(
            videos, held_out["video"], training, config.video.fps, f"{title}: "
        )
    if same_source:
        note = "Samples of equal seed and labels start from the same noise."
        first = page.VideoGrids("Samples side by side", same_source, fps, note=note)
        sections.insert(0, first)
    return prompts + sections


def prompt_section(folder: Path, info: dict, videos: np.ndarray) -> page.PromptGrid:
    """Return the prompts of a cascade with the videos of every stage that is stored.

    Args:
      folder: of the last stage, as OUT/STAGE of `sample.py --cascade`.
      info: of `read_sample_info`.
      videos: [n, f, h, w, c] of the last stage, one per prompt.
    """
    *earlier, last = info["stages"]
    stages = {
        name: read_samples(folder.parent / name)
        for name in earlier
        if (folder.parent / name / SAMPLES).is_file()
        and read_sample_info(folder.parent / name)["command"] == info["command"]
    }
    seconds = videos.shape[1] / info["fps"]
    prompts = info.get("labels", [""] * len(videos))
    return prompt_grid(prompts, stages | {last: videos}, seconds)


def prompt_grid(
    prompts: Sequence[str], stages: Mapping[str, np.ndarray], seconds: float
) -> page.PromptGrid:
    """Return prompts with their videos of the stages, which last so many seconds."""
    grids = []
    for name, videos in stages.items():
        _, frames, height, width, _ = videos.shape
        caption = f"{name}: {frames} x {height} x {width}"
        grids.append(page.VideoGrid(caption, videos))
    note = "Frames, height and width are those of each stage's output."
    title = "Prompts, stage by stage"
    return page.PromptGrid(title, prompts[:NUM_SHOWN], grids, seconds, note=note)


def training_sections(workdir: Path, fps: float) -> list[page.Section]:
    """Return the loss curve of a run, and previews from one noise during training."""
    if not (workdir / "metrics.jsonl").is_file():
        return []
    sections: list[page.Section] = [
        page.Curve(
            "Loss",
            curves.loss_lines(scalars.read_scalars(workdir)),
            note="Training loss, and loss on held-out clips in four bands of the log "
            "signal-to-noise ratio: the lower the band, the more noise.",
        )
    ]
    paths = sorted((workdir / "samples").glob("step-*.npz"))
    if not paths:
        return sections
    number = min(TRAINING_PREVIEWS, len(paths))
    grids = []
    for index in np.linspace(0, len(paths) - 1, number).round():
        path = paths[int(index)]
        try:
            videos = video_io.read_npz(path)
        except (CorruptFile, OSError) as error:
            print(f"{path} is left out: {error}", file=sys.stderr)
            continue
        step = int(path.stem.removeprefix("step-"))
        grids.append(page.VideoGrid(f"step {step}", videos, columns=2))
    note = "All previews start from the same noise and labels."
    sections.append(page.VideoGrids("Samples during training", grids, fps, note=note))
    return sections


def step_sections(steps: Sequence[int], rows: Sequence[dict]) -> list[page.Section]:
    """Return curves of distances by sampling steps; none for one number of steps.

    rows: of the pixel table, one per entry of steps.
    """
    if len(steps) < 2:
        return []
    titles = {"frame_fd": "Frame FD by steps", "motion_fd": "Motion FD by steps"}
    note = "Lower is closer to real clips. All start from the same noise and labels."
    sections: list[page.Section] = []
    for key, title in titles.items():
        line = curves.Line("samples", np.array(steps), np.array([r[key] for r in rows]))
        sections.append(page.Curve(title, [line], True, "steps", note=note))
    return sections


def comparison_sections(
    samples: np.ndarray,
    real: np.ndarray,
    training: np.ndarray,
    fps: float,
    title_prefix: str = "",
) -> list[page.Section]:
    """Return samples next to real clips, and next to their nearest training clips.

    Small models memorise some clips of real footage, which the pairs show, the closest
    first.
    """
    samples = samples[:NUM_SHOWN]
    grids = [
        page.VideoGrid("real clips", real[:NUM_SHOWN]),
        page.VideoGrid("samples", samples),
    ]
    index, distance = nearest_training(samples, training)
    pairs = [
        page.VideoGrid(
            f"distance {distance[i]:.3f}", np.stack([samples[i], training[index[i]]]), 2
        )
        for i in np.argsort(distance, kind="stable")
    ]
    nearest = f"{title_prefix}Nearest training clips"
    return [
        page.VideoGrids(f"{title_prefix}Real clips and samples", grids, fps),
        page.VideoGrids(nearest, pairs, fps, note=NEAREST_NOTE),
    ]


def write_sheet(out: Path, samples: np.ndarray) -> None:
    """Write OUT/samples.png of the first samples."""
    video_io.write_sheet(out / "samples.png", samples[:NUM_SHOWN], overwrite=True)


def environment_section(trained: TrainedModel, seed: int) -> page.Table:
    """Return machine, versions, size and step of the model, and the seed."""
    count = sum(leaf.size for leaf in jax.tree.leaves(trained.params))
    step = str(trained.step) if trained.step >= 0 else "a shipped model"
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "optax"))
    rows = {
        "Machine": f"{jax.device_count()} x {jax.devices()[0].device_kind}, "
        f"{platform.machine()}",
        "Versions": f"Python {platform.python_version()}, {versions}",
        "Parameters": f"{count:,}",
        "Step": step,
        "Seed": str(seed),
    }
    return page.Table("Environment", ["", ""], list(rows.items()))
