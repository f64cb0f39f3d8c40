"""Sections of a report's page: samples, training, real clips."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vdm_jax import scalars, video_io
from vdm_jax.cascade import CascadeStage
from vdm_jax.evaluators.clips import (
    INFO,
    RealClips,
    read_sample_info,
    read_samples,
    samples_folder,
)
from vdm_jax.files import CorruptFile
from vdm_jax.metrics.pixel_statistics import nearest_training
from vdm_jax.report import curves, page

NUM_SHOWN = 16  # videos in a grid of the page
NEAREST_NOTE = (
    "Left: a sample; right: its nearest training clip by the root mean square of pixel "
    "differences (0 is a copy, black to white is 2). The closest pair comes first. A "
    "model trained on little data memorises some clips: where both look the same, the "
    "sample is memorised."
)
TRAINING_PREVIEWS = 5  # of those written during training, from the first to the last


def sample_sections(folders: Sequence[Path]) -> list[page.Section]:
    """Return sections of folders that sample.py wrote.

    Samples of a cascade are shown by prompt, those of models side by side.

    Raises:
      UserError: a folder was not written by sample.py.
    """
    shown, grids = [], []
    for folder in map(samples_folder, folders):
        videos, info = read_samples(folder), read_sample_info(folder)
        if "stages" in info:
            shown.append(prompt_section(folder, info, videos))
        else:
            command, fps = info["command"], info["fps"]
            grids.append(page.VideoGrid(command, videos[:NUM_SHOWN], fps))
    if grids:
        note = "Samples of equal seed and labels start from the same noise."
        shown.append(page.VideoGrids("Samples side by side", grids, note=note))
    return shown


def prompt_section(folder: Path, info: dict, videos: np.ndarray) -> page.Section:
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
        if (folder.parent / name / INFO).is_file()
        and read_sample_info(folder.parent / name)["command"] == info["command"]
    }
    seconds = videos.shape[1] / info["fps"]
    prompts = info.get("labels", [""] * len(videos))
    return prompt_grid(prompts, stages | {last: videos}, seconds)


def prompt_grid(
    prompts: Sequence[str], stages: Mapping[str, np.ndarray], seconds: float
) -> page.Section:
    """Return prompts with their videos of the stages, which last so many seconds.

    Pictures of one stage stand side by side, each above its prompt.
    """
    prompts = prompts[:NUM_SHOWN]
    shown = [*stages.values()]
    if len(shown) == 1 and shown[0].shape[1] == 1:
        pictures = [
            page.VideoGrid(prompt, shown[0][i : i + 1], 1.0, columns=1)
            for i, prompt in enumerate(prompts)
        ]
        return page.VideoGrids("Prompts", pictures)
    grids = []
    for name, videos in stages.items():
        _, frames, height, width, _ = videos.shape
        caption = f"{name}: {frames} x {height} x {width}"
        grids.append(page.VideoGrid(caption, videos, frames / seconds))
    note = "Frames, height and width are those of each stage's output."
    title = "Prompts, stage by stage"
    return page.PromptGrid(title, prompts, grids, note=note)


def stage_sections(
    stage: CascadeStage, samples: np.ndarray, real: RealClips, prefix: str
) -> list[page.Section]:
    """Return the sections of a stage, whose titles start with the prefix."""
    fps = stage.config.video.fps
    shown = training_sections(stage.workdir, fps)
    shown += comparison_sections(samples, real.held_out["video"], real.training, fps)
    return [dataclasses.replace(each, title=prefix + each.title) for each in shown]


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
    number = min(TRAINING_PREVIEWS, len(paths))
    grids = []
    for index in np.linspace(0, len(paths) - 1, number).round().astype(int):
        try:
            videos = video_io.read_npz(paths[index])
        except (CorruptFile, OSError) as error:
            print(f"{paths[index]} is left out: {error}", file=sys.stderr)
            continue
        step = int(paths[index].stem.removeprefix("step-"))
        grids.append(page.VideoGrid(f"step {step}", videos, fps, columns=2))
    if grids:
        note = "All previews start from the same noise and labels."
        sections.append(page.VideoGrids("Samples during training", grids, note=note))
    return sections


def comparison_sections(
    samples: np.ndarray, real: np.ndarray, training: np.ndarray, fps: float
) -> list[page.Section]:
    """Return samples next to real clips, and next to their nearest training clips.

    Small models memorise some clips of real footage, which the pairs show, the closest
    first.
    """
    samples = samples[:NUM_SHOWN]
    grids = [
        page.VideoGrid("real clips", real[:NUM_SHOWN], fps),
        page.VideoGrid("samples", samples, fps),
    ]
    index, distance = nearest_training(samples, training)
    pairs = []
    for i in np.argsort(distance, kind="stable"):
        pair = np.stack([samples[i], training[index[i]]])
        pairs.append(page.VideoGrid(f"distance {distance[i]:.3f}", pair, fps, 2))
    return [
        page.VideoGrids("Real clips and samples", grids),
        page.VideoGrids("Nearest training clips", pairs, note=NEAREST_NOTE),
    ]
