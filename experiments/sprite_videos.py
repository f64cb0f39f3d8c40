"""What studies of videos of sprites share: flags, clips, scores and the table of rows.

A study samples videos by an image model of sprites in several ways, one row each, and
wrong variants of a method as well: functions of the library are replaced in that row.
"""

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vdm_jax import cascade as cascades
from vdm_jax import files, runs, runtime, sampling, video_io
from vdm_jax.cascade import Cascade
from vdm_jax.data.sprite_vocabulary import (
    STILL_TEMPLATES,
    background_words,
    with_article,
)
from vdm_jax.data.sprites import Geometry, Sprites
from vdm_jax.errors import UserError
from vdm_jax.metrics import sprite_scores
from vdm_jax.metrics.sprite_detection import Detections
from vdm_jax.metrics.tables import format_cells, format_table
from vdm_jax.runs import TrainedModel
from vdm_jax.sampling import Conditions, Settings

BATCH = 8  # videos that are sampled at a time
GUIDANCE_SCALE = 5.0  # with which models/sprites is right most often
VOCABULARY = "small"  # of clips and prompts, and that objects are detected among
SHOWN = 4  # videos of a row's sheet
Scores = Mapping[str, np.ndarray]  # of each video; bool where a share is meant
COMMON = {  # key of a row -> heading; each has a 95% interval
    "object": "object", "background": "background", "identity": "identity",
    "trajectory_error": "trajectory error", "flicker": "flicker",
    "warp_error": "warp error",
}  # fmt: skip


def parser(study: str, num: int, **paths: str) -> argparse.ArgumentParser:
    """Return the flags of a study.

    num: default of --num. paths: names of further paths, with their defaults.
    """
    flags = argparse.ArgumentParser(f"python -m experiments.{study}.{study}")
    folder = f"experiments/{study}"
    for name, default in {"model": "models/sprites", **paths, "out": folder}.items():
        flags.add_argument(f"--{name}", type=runtime.path_type, default=default)
    flags.add_argument("--num", type=int, default=num, help="at least 2")
    flags.add_argument("--steps", type=int, help="default: the model's own")
    flags.add_argument("--guidance_scale", type=float, default=GUIDANCE_SCALE)
    flags.add_argument("--seed", type=int, default=0)
    return flags


@dataclasses.dataclass(frozen=True)
class ImageModel:
    """An image model of sprites, and how it is sampled."""

    cascade: Cascade
    trained: TrainedModel
    settings: Settings

    @classmethod
    def read(cls, flags: argparse.Namespace) -> "ImageModel":
        """Read the model of the flags.

        Raises:
          UserError: no model, or one that was not trained on sprites.
        """
        runtime.configure_jax()
        if flags.num < 2:
            raise UserError(f"--num={flags.num}: 2 or more, an interval needs two")
        cascade = cascades.read_model(flags.model)
        stage = cascade.stages[0]
        if stage.config.data.source != "sprites":
            raise UserError(f"--model={flags.model}: give a run of configs/sprites.py")
        changes = {"steps": flags.steps} if flags.steps else {}
        stage = stage.with_settings(
            batch_size=BATCH, guidance_scale=flags.guidance_scale, **changes
        )
        return cls(cascade, cascade.load_first(), stage.settings)

    def sprites(self, frames: int, vocabulary: str = "") -> Sprites:
        """Return the source of clips of the model's size; "" is its own vocabulary."""
        own, *extras = self.trained.config.data.path.split("+")
        geometry = Geometry(frames, *self.trained.model.video_shape[1:3])
        return Sprites(vocabulary or own, geometry, "gradients" in extras)

    def encode(self, sentences: Sequence[str]) -> Conditions:
        """Return the conditions of prompts."""
        return cascades.encode_prompts(self.cascade, sentences)[0]


def prompts(labels: np.ndarray, source: Sprites) -> list[str]:
    """Return "a rocket on a red background" for labels [n, 2 or more]."""
    nouns, backgrounds = source.label_vocabulary[:2]
    return [
        STILL_TEMPLATES[0].format(
            with_article(nouns[noun]), background_words(backgrounds[background])[0]
        )
        for noun, background, *_ in labels.tolist()
    ]


def rows_of(cond: Conditions, number: int) -> Conditions:
    """Return the row of one video; one row is that of all, as of the tokens of ""."""
    return {name: array[number % len(array) :][:1] for name, array in cond.items()}


def others(values: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Return for each value [n] another one below `number`, drawn uniformly."""
    steps = np.random.default_rng(seed).integers(1, number, len(values))
    return (values + steps) % number


class Clips(NamedTuple):
    """Moving clips of the held-out part.

    videos: uint8 [n, f, h, w, 3]. labels: int [n, 4]. centres: [n, f, 2] in pixels.
    sizes: [n], longer sides of the objects.
    """

    videos: np.ndarray
    labels: np.ndarray
    centres: np.ndarray
    sizes: np.ndarray

    def rendered(self, labels: np.ndarray, source: Sprites) -> np.ndarray:
        """Return the clips with other objects and backgrounds, labels [n, 2]."""
        rng = np.random.default_rng(0)  # only photographs are drawn
        places = zip(labels.tolist(), self.sizes.tolist(), self.centres, strict=True)
        clips = [
            source.render(number, size, centres, source.background(value, rng))
            for (number, value), size, centres in places
        ]
        return np.stack(clips)


def held_out_clips(source: Sprites, num: int, seed: int) -> Clips:
    """Return `num` random clips of the held-out part."""
    part, rng = source.split(True), np.random.default_rng(seed)
    items = rng.integers(len(part), size=num).tolist()
    frames = source.geometry.frames
    clips: list[Any] = [part.load(item, rng, frames) for item in items]
    places = [
        part.draw_place(
            clip["label"], np.random.default_rng((part.seed + part.held_out, item))
        )
        for clip, item in zip(clips, items, strict=True)
    ]
    videos, labels = (np.stack([c[key] for c in clips]) for key in ("video", "label"))
    sizes, centres = zip(*places, strict=True)
    return Clips(videos, labels, np.stack(centres), np.array(sizes))


def common_scores(
    videos: np.ndarray,
    detected: Detections,
    source: Sprites,
    labels: np.ndarray,
    centres: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return the scores of COMMON of each video.

    labels: object and background that were requested, [n, 2]. centres: the path that
    was, [n, f, 2] in pixels.
    """
    right = sprite_scores.measure(detected, source)[:, :2] == labels
    scores: dict[str, np.ndarray] = {"object": right[:, 0], "background": right[:, 1]}
    scores["identity"] = sprite_scores.identity(detected)
    if centres is not None:
        scores["trajectory_error"] = sprite_scores.trajectory_error(detected, centres)
    scores["flicker"] = sprite_scores.flicker(videos, detected.rendering)
    scores["warp_error"] = sprite_scores.warp_error(videos, detected)
    return scores


def summary(scores: Scores) -> dict[str, Any]:
    """Return shares with Wilson's intervals, and means with 1.96 standard errors.

    Scores without videos are left out.
    """
    row: dict[str, Any] = {}
    for name, values in scores.items():
        if not (n := len(values)):
            continue
        row[name] = mean = float(values.mean())
        if values.dtype == bool:
            row[f"{name}_count"] = int(values.sum())
            interval = sprite_scores.wilson_interval(mean, n)
        else:
            half = 1.96 * float(values.std(ddof=1)) / n**0.5
            interval = mean - half, mean + half
        row[f"{name}_interval"] = interval
    return row


class Table:
    """The rows of a study, kept in OUT/NAME.json, and a sheet of videos of each.

    Rows that are there are not measured again.
    """

    def __init__(self, out: Path, study: str, headings: Mapping[str, str], **setting):
        """Read the rows. setting: what they are comparable by.

        Raises:
          UserError: a damaged file, or one of another setting.
        """
        self.file = out / f"{study}.json"
        self.content: dict[str, Any] = {"setting": setting, "rows": []}
        if self.file.is_file():
            self.content = runs.read_json(self.file, dict)
        if self.content["setting"] != setting:
            raise UserError(
                f"{self.file} has rows of {self.content['setting']}, not {setting}: "
                "move it away, or give another --out"
            )
        self.columns = {"n": ("n", "d")}
        for key, heading in headings.items():
            self.columns |= {key: (heading, ".3f"), f"{key}_interval": ("95%", ".3f")}
        self.columns["seconds"] = ("seconds", ".0f")

    def add(
        self,
        name: str,
        sample: Callable[[], np.ndarray],
        score: Callable[[np.ndarray], Scores],
        labels: Sequence[str],
        patches: Sequence[contextlib.AbstractContextManager] = (),
    ) -> None:
        """Measure a row unless it is there; write it and its sheet, print the table.

        Args:
          sample: returns videos [n, f, h, w, c], uint8 or in [-1, 1].
          score: from videos as uint8.
          labels: of all videos, for the sheet.
          patches: contexts in which the videos are sampled.
        """
        rows = self.content["rows"]
        if name in [row["row"] for row in rows]:
            return
        jax.clear_caches()  # a compiled program does not depend on what is replaced
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            videos = sample()
        if videos.dtype != np.uint8:
            videos = sampling.to_uint8(videos)
        row = {"row": name, "n": len(videos), **summary(score(videos))}
        rows.append(row | {"seconds": time.monotonic() - started})
        shown = np.linspace(0, len(videos) - 1, min(SHOWN, len(videos))).astype(int)
        sheet = self.file.with_name(f"{video_io.slug(name)}.png")
        texts = [labels[int(i)] for i in shown]
        video_io.write_sheet(sheet, videos[shown], labels=texts, overwrite=True)
        files.write_json(self.file, self.content)
        print(format_table(*format_cells(rows, self.columns)), flush=True)
