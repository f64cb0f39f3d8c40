"""Does one diffusion transformer make videos of three sizes, and animate a picture?

    python -m experiments.dit.dit [--model=DIR] [--num=N] [--student=DIR ...]

N captions of held-out clips, "a rocket on a dark blue background moves up slowly", with
noise of their own; of some the combination was never trained on. The same captions are
sampled at each size that the model was trained on, from noise, and from the first frame
of the clip. Objects are detected without a network. Wrong variants replace functions of
the library; they and given frames are measured on half as many videos. Each --student
is a distillation, of which every student is measured at the first size, next to the
model in as many steps. Writes OUT/real.json and OUT/dit.json row by row, and a sheet of
each row.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sprite_videos import (
    BATCH,
    Clips,
    Scores,
    Table,
    held_out_clips,
    parser,
)
from vdm_jax import cascade as cascades
from vdm_jax import runs, runtime, sampling
from vdm_jax.cascade import Cascade
from vdm_jax.data import sprite_vocabulary
from vdm_jax.data.sprites import Geometry, Sprites, is_held_out
from vdm_jax.diffusion import guidance
from vdm_jax.errors import UserError
from vdm_jax.metrics import sprite_scores
from vdm_jax.metrics.sprite_detection import detect_sprites
from vdm_jax.networks import dit
from vdm_jax.networks.positions import token_angles
from vdm_jax.runs import TrainedModel
from vdm_jax.sampling import Conditions, Observation, Run, SamplingInputs, Settings

STEPS = (64, 32, 16, 8, 4)  # of the model, next to its students
GUIDANCE_SCALE = 4.0
HEADINGS = {
    "object": "object", "background": "background", "direction": "direction",
    "speed": "speed", "all": "all", "all_unseen": "all, unseen",
    "identity": "identity", "flicker": "flicker", "cut_off": "cut off",
    "given_object": "given object", "given_frame": "given frame",
}  # fmt: skip
SAMPLED = (*list(HEADINGS)[:9],)  # scores of videos that are made from captions alone
ANIMATED = (*HEADINGS,)
UNPROMPTED = (  # nothing says where the object moves
    "object", "background", "identity", "flicker", "cut_off", "given_object",
    "given_frame",
)  # fmt: skip


class Row(NamedTuple):
    """A row of the table; the functions of the library in `replaced` are others."""

    name: str
    sample: Callable[[], np.ndarray]
    scores: tuple[str, ...] = SAMPLED
    replaced: tuple[AbstractContextManager, ...] = ()


def swapped_angles(sizes: tuple[int, ...], splits: tuple[int, ...]) -> jax.Array:
    """Return `rope_angles` where each token has its row as column, and the reverse."""
    frame, row, column = jnp.indices(sizes)
    return token_angles(jnp.stack([frame, column, row], axis=-1), splits)


def at_step_level(denoise: Any, known: jax.Array, strength: jax.Array) -> Any:
    """Return `guidance.clean` whose given frames have the noise level of the step."""

    def conditioned(z, level, cond):
        def same_level(frames, _, cond):
            return denoise(frames, level, cond)

        return CLEAN(same_level, known, strength)(z, level, cond)

    return conditioned


CLEAN = guidance.clean
SWAPPED = mock.patch.object(dit, "rope_angles", swapped_angles)
STEP_LEVEL = mock.patch.object(guidance, "clean", at_step_level)


def sentences(labels: np.ndarray, source: Sprites, seed: int) -> list[str]:
    """Return a caption for each row of labels [n, 4], as those of training."""
    rng, names = np.random.default_rng(seed), source.label_vocabulary
    rows = ([*zip(names, row, strict=True)] for row in labels.tolist())
    return [sprite_vocabulary.caption([v[i] for v, i in row], rng) for row in rows]


def score(
    videos: np.ndarray, labels: np.ndarray, source: Sprites, first: np.ndarray
) -> Scores:
    """Return the scores of HEADINGS of uint8 videos with labels [n, 4].

    first: frames [n, h, w, 3] that they are to begin with.
    """
    found = detect_sprites(videos, source)
    right = sprite_scores.measure(found, source) == labels
    identity = sprite_scores.identity(found)
    return {
        **dict(zip(sprite_scores.NAMES, right.T, strict=True)),
        "all": right.all(1),
        "all_unseen": right.all(1)[is_held_out(labels).any(1)],
        "identity": identity,
        "flicker": sprite_scores.flicker(videos, found.rendering),
        "cut_off": sprite_scores.cut_off(videos, source),
        "given_object": identity & (found.object == labels[:, :1]).all(1),
        "given_frame": (videos[:, 0] == first).all((1, 2, 3)),
    }


def square(videos: np.ndarray) -> np.ndarray:
    """Return the squares in the middle of videos [n, f, h, w, c]."""
    height, width = videos.shape[2:4]
    side = min(height, width)
    y, x = (height - side) // 2, (width - side) // 2
    return videos[:, :, y : y + side, x : x + side]


@dataclasses.dataclass(frozen=True)
class Task:
    """Held-out clips of one size, conditions of their captions, and a model.

    settings: of sampling.
    """

    trained: TrainedModel
    settings: Settings
    source: Sprites
    clips: Clips
    captions: list[str]
    cond: Conditions
    seed: int

    @classmethod
    def make(cls, cascade: Cascade, flags: argparse.Namespace, **settings) -> "Task":
        """Draw the clips, of the same labels at every size, and encode the captions."""
        stage, trained = cascade.stages[0], cascade.load_first()
        frames, height, width, _ = stage.model.video_shape
        source = Sprites(stage.config.data.path, Geometry(frames, height, width))
        clips = held_out_clips(source, flags.num, flags.seed)
        captions = sentences(clips.labels, source, flags.seed)
        cond = cascades.encode_prompts(cascade, captions)[0]
        low, high = stage.model.guidance_range or (1.0, flags.guidance_scale)
        scale = float(np.clip(flags.guidance_scale, low, high))
        changes = {"batch_size": BATCH, "guidance_scale": scale} | settings
        stage = stage.with_settings(**changes)
        how = source, clips, captions, cond, flags.seed
        return cls(trained, stage.settings, *how)

    @property
    def size(self) -> str:
        """48x80."""
        return f"{self.source.geometry.height}x{self.source.geometry.width}"

    def sample(self, observation: Observation | None = None, **settings) -> np.ndarray:
        """Return videos in [-1, 1] of the captions, with other settings."""
        inputs = SamplingInputs(self.cond, observation=observation)
        own = dataclasses.replace(self.settings, **settings)
        model, params = self.trained.model, self.trained.params
        how = len(self.captions), own, inputs, Run(self.seed)
        return sampling.sample(model, params, *how)

    def animate(self, prompt: bool) -> np.ndarray:
        """Return videos in [-1, 1] that begin with the first frame of each clip."""
        known = self.clips.videos / np.float32(127.5) - 1
        mask = np.zeros((*known.shape[:4], 1), bool)
        mask[:, 0] = True
        observation = Observation(known, mask)
        if prompt:
            return self.sample(observation)
        without = dataclasses.replace(self, cond={})
        return without.sample(observation, guidance_scale=1.0)

    def score(self, videos: np.ndarray, names: tuple[str, ...]) -> Scores:
        """Return these scores of uint8 videos, which may be squares of the clips'."""
        height, width = videos.shape[2:4]
        size = dataclasses.replace(self.source.geometry, height=height, width=width)
        source = dataclasses.replace(self.source, geometry=size)
        first = self.clips.videos[:, 0]
        if first.shape != videos[:, 0].shape:
            first = square(self.clips.videos)[:, 0]
        scores = score(videos, self.clips.labels, source, first)
        return {name: scores[name] for name in names}

    def take(self, num: int) -> "Task":
        """Return the task of the first clips."""
        clips = Clips(*(array[:num] for array in self.clips))
        cond = {name: array[:num] for name, array in self.cond.items()}
        return dataclasses.replace(
            self, clips=clips, captions=self.captions[:num], cond=cond
        )

    def references(self) -> Iterator[Row]:
        """Yield the rows of real clips and of chance."""
        clips = self.clips.videos
        noise = np.random.default_rng(0).integers(0, 256, clips.shape, np.uint8)
        yield Row("real", lambda: clips)
        if clips.shape[2] != clips.shape[3]:
            yield Row("real, square crops", lambda: square(clips))
        yield Row("noise", lambda: noise)

    def animations(self) -> Iterator[Row]:
        """Yield the rows whose videos begin with a given frame."""
        yield Row("animated", lambda: self.animate(True), ANIMATED)
        yield Row("animated, no prompt", lambda: self.animate(False), UNPROMPTED)

    def rows_of_steps(self) -> Iterator[Row]:
        """Yield a row for each number of steps but that of the samples."""
        for steps in sorted({*STEPS} - {self.settings.steps}, reverse=True):
            yield Row(f"{steps} steps", lambda n=steps: self.sample(steps=n))

    def wrong_rows(self) -> Iterator[Row]:
        """Yield the rows of wrong variants."""
        yield Row("swapped positions", self.sample, SAMPLED, (SWAPPED,))
        level = "no prompt, level of the step"
        yield Row(level, lambda: self.animate(False), UNPROMPTED, (STEP_LEVEL,))


def sizes_of(config: Any) -> list[tuple[int, int]]:
    """Return (height, width) of the clips that a model was trained on."""
    if "mixed_sizes" not in config:
        return [(config.video.height, config.video.width)]
    rows = config.mixed_sizes.rows
    return [(h, w) for frames, h, w, _ in rows if frames == config.video.frames]


def students_of(workdir: Path) -> list[Path]:
    """Return the student of each round of a distillation, or the one model there is."""
    if not (workdir / runs.DISTILLATION_FILE).is_file():
        return [workdir]
    return [workdir / each["path"] for each in runs.distillation_rounds(workdir)]


def read_tasks(flags: argparse.Namespace) -> list[Task]:
    """Read the model of the flags, for each of its sizes.

    Raises:
      UserError: no model, or one that was not trained on clips of sprites.
    """
    runtime.configure_jax()
    if flags.num < 2:
        raise UserError(f"--num={flags.num}: 2 or more, an interval needs two")
    config = runs.read_config(flags.model)
    if config.data.source != "sprites" or config.video.frames == 1:
        raise UserError(f"--model={flags.model}: give a run of configs/dit.py")
    steps = {"steps": flags.steps} if flags.steps else {}
    models = [cascades.read_model(flags.model, size) for size in sizes_of(config)]
    return [Task.make(model, flags, **steps) for model in models]


def flags_of(study: str) -> argparse.ArgumentParser:
    """Return the flags of a study of this folder."""
    flags = parser("dit", 96, model="runs/dit")
    flags.prog = f"python -m experiments.dit.{study}"
    flags.set_defaults(guidance_scale=GUIDANCE_SCALE)
    return flags


def main() -> None:
    """Measure, print, write."""
    parsed = flags_of("dit")
    parsed.add_argument(
        "--student", type=runtime.path_type, action="append", default=[],
        help="folder of a distillation, or of a student; may be repeated",
    )  # fmt: skip
    flags = parsed.parse_args()
    tasks = read_tasks(flags)
    first, fewer = tasks[0], [task.take(max(2, flags.num // 2)) for task in tasks]
    rows = [(task, row) for task in tasks for row in task.references()]
    measure(Table(flags.out, "real", HEADINGS, seed=flags.seed), rows)
    rows = [(task, Row("samples", task.sample)) for task in tasks]
    rows += [(task, row) for task in fewer for row in task.animations()]
    rows += [(task, row) for task in fewer for row in task.wrong_rows()]
    rows += [(first, row) for row in first.rows_of_steps()]
    for workdir in flags.student:
        for folder in students_of(workdir):
            student = Task.make(cascades.read_model(folder), flags)
            steps = f"{student.settings.steps} steps"
            rows.append((student, Row(f"{workdir.name}, {steps}", student.sample)))
    table = Table(
        flags.out, "dit", HEADINGS, seed=flags.seed, steps=first.settings.steps,
        guidance_scale=flags.guidance_scale, model=first.trained.checksum,
    )  # fmt: skip
    measure(table, rows)


def measure(table: Table, rows: list[tuple[Task, Row]]) -> None:
    """Add rows to a table."""
    for task, row in rows:
        table.add(
            f"{task.size}, {row.name}",
            row.sample,
            lambda videos, task=task, row=row: task.score(videos, row.scores),
            task.captions,
            row.replaced,
        )


if __name__ == "__main__":
    runtime.run(main)
