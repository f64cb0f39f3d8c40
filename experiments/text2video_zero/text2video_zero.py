"""Does Text2Video-Zero move what a prompt names as far as it is set to?

    python -m experiments.text2video_zero.text2video_zero [--model=DIR] [--num=N]

N prompts, "a rocket on a yellow background", of pairs that the model was never trained
on, each with noise of its own. The picture of a noise is the first of 8 frames; its
object moves in one of four directions that keeps it in the frame, or is left out if
none does. The objects are detected without a network. Variants lack a part of the
method. Writes OUT/text2video_zero.json row by row, and a sheet of each row.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any
from unittest import mock

import numpy as np

from experiments.sprite_videos import (
    COMMON,
    VOCABULARY,
    ImageModel,
    Scores,
    Table,
    common_scores,
    parser,
    prompts,
    rows_of,
)
from vdm_jax import runtime, sampling
from vdm_jax.data.sprite_vocabulary import COLOURS
from vdm_jax.data.sprites import Sprites, is_held_out
from vdm_jax.metrics.sprite_detection import Detections, detect_sprites
from vdm_jax.metrics.sprite_scores import MIN_EXPLAINED
from vdm_jax.sampling import Conditions, Run, SamplingInputs
from vdm_jax.systems import Request, text2video_zero
from vdm_jax.systems.image_model import with_frames
from vdm_jax.systems.text2video_zero import CANVAS, Options, warp

FRAMES = 8
DIRECTIONS = np.array([(1, 0), (-1, 0), (0, 1), (0, -1)])  # right, left, down, up
# Latents of 16x16 leave an object's place open at the paper's t0 and t1.
OPTIONS = Options(t0=601, t1=681)
STRENGTH = OPTIONS.strength  # 1.5 pixels a frame in 64x64
TOLERANCE = 0.3  # of the displacement that is set
MIN_MOVED = 0.1  # of it; less is no movement
HEADINGS = {
    "direction": "direction", "displacement": f"within {TOLERANCE:.0%}",
    "along": "pixels along",
    **{key: COMMON[key] for key in ("object", "background", "identity", "warp_error")},
}  # fmt: skip


def swapped(z: np.ndarray, motion: tuple[float, float], frames: Any) -> np.ndarray:
    """Return `warp` with x and y of the motion swapped."""
    return warp(z, (motion[1], motion[0]), frames)


def read_own(model: Any, frames: int, *_, **__) -> Any:
    """Return `with_frames` whose frames read themselves alone."""
    return with_frames(model, frames, frame_reads="own")


def kept(z: np.ndarray, eps: np.ndarray, ratio: float) -> np.ndarray:
    """Return z as it is, in place of `renoise`: the noise of t0 stays at t1."""
    return z


def noise_alone(z: np.ndarray, eps: np.ndarray, ratio: float) -> np.ndarray:
    """Return the noise, in place of `renoise`: nothing of the first frame is left."""
    return eps.astype(z.dtype)


PAPER = {"t0": 881, "t1": 941}
# Name of a row -> options that differ, and functions of the system that are replaced.
ROWS: dict[str, tuple[dict[str, Any], Mapping[str, Any]]] = {
    "right": ({}, {}),
    "t0 = 881, t1 = 941": (PAPER, {}),
    "no motion": ({"strength": 0.0}, {}),
    "x and y swapped": ({}, {"warp": swapped}),
    "reads own": ({}, {"with_frames": read_own}),
    "t0 = 881, t1 = 941, reads own": (PAPER, {"with_frames": read_own}),
    "no re-noising": ({}, {"renoise": kept}),
    "noise alone": ({}, {"renoise": noise_alone}),
}


def unseen_pairs(source: Sprites, num: int) -> np.ndarray:
    """Return labels [num, 2] of held-out pairs in a random order, again and again."""
    labels = np.argwhere(np.ones((source.sizes[0], len(COLOURS)), bool))
    pairs = labels[is_held_out(labels)[:, 0]]
    return np.resize(np.random.default_rng(0).permutation(pairs), (num, 2))


def displacements(source: Sprites) -> np.ndarray:
    """Return what is set from the first frame to the last, [4, 2] in pixels."""
    size = np.array([source.geometry.width, source.geometry.height])
    return STRENGTH * (FRAMES - 1) * size / CANVAS * DIRECTIONS


def directions_with_room(first: Detections, source: Sprites) -> np.ndarray:
    """Return a row of DIRECTIONS for each picture, or -1 where none has room.

    A direction has room if its displacement keeps the object inside of the frame. Of
    those that have, it is the one that fewest pictures before took.
    """
    size = np.array([source.geometry.width, source.geometry.height])
    end = first.centre[:, :1] + displacements(source)
    half = first.size[:, :1, None] / 2
    room = ((half <= end) & (end <= size - half)).all(-1)
    room &= first.explained[:, :1] > MIN_EXPLAINED
    taken, chosen = np.zeros(len(DIRECTIONS), int), []
    for each in room:
        free = np.flatnonzero(each)
        direction = int(free[taken[free].argmin()]) if len(free) else -1
        taken[direction] += direction >= 0
        chosen.append(direction)
    return np.array(chosen)


@dataclasses.dataclass(frozen=True)
class Task:
    """Prompts with their noises and the directions that are set."""

    image: ImageModel
    seed: int
    cond: Conditions
    labels: np.ndarray  # int [n, 2]
    directions: np.ndarray  # int [n]; -1: left out

    @classmethod
    def make(cls, image: ImageModel, num: int, seed: int) -> "Task":
        """Sample the pictures, and choose directions that have room."""
        source = image.sprites(1, VOCABULARY)
        labels = unseen_pairs(source, num)
        cond = image.encode(prompts(labels, source))
        trained, inputs = image.trained, SamplingInputs(cond)
        how = num, image.settings, inputs, Run(seed)
        pictures = sampling.sample(trained.model, trained.params, *how)
        found = detect_sprites(sampling.to_uint8(pictures), source)
        return cls(image, seed, cond, labels, directions_with_room(found, source))

    @property
    def kept(self) -> np.ndarray:
        """The numbers of the videos that are made."""
        return np.flatnonzero(self.directions >= 0)

    @property
    def sentences(self) -> list[str]:
        """The prompts of these."""
        return prompts(self.labels[self.kept], self.image.sprites(1, VOCABULARY))

    def sample(self, options: Options) -> np.ndarray:
        """Return the videos, in [-1, 1]."""
        videos = []
        for number in self.kept.tolist():
            inputs = SamplingInputs(rows_of(self.cond, number))
            request = Request(1, FRAMES, inputs, self.seed, first_video=number)
            x, y = DIRECTIONS[self.directions[number]].tolist()
            moved = dataclasses.replace(options, motion=(float(x), float(y)))
            how = request, self.image.settings, moved
            videos.append(text2video_zero.sample(self.image.trained, *how))
        return np.concatenate(videos)

    def score(self, videos: np.ndarray) -> Scores:
        """Return the scores of the videos."""
        source = self.image.sprites(FRAMES, VOCABULARY)
        return score(videos, source, self.labels[self.kept], self.directions[self.kept])


def score(
    videos: np.ndarray, source: Sprites, labels: np.ndarray, directions: np.ndarray
) -> Scores:
    """Return the scores of videos, whose directions are rows of DIRECTIONS.

    The displacement is that from the first frame's centre to the last one's; where one
    of them shows no object it is wrong.
    """
    detected = detect_sprites(videos, source)
    wanted = displacements(source)[directions]
    length = np.linalg.norm(wanted, axis=1)
    net = detected.centre[:, -1] - detected.centre[:, 0]
    along = (net * DIRECTIONS[directions]).sum(1)
    shown = (detected.explained[:, [0, -1]] > MIN_EXPLAINED).all(1)
    heading = (net @ DIRECTIONS.T).argmax(1)
    near = np.linalg.norm(net - wanted, axis=1) <= TOLERANCE * length
    scores = {
        "direction": shown & (heading == directions) & (along > MIN_MOVED * length),
        "displacement": shown & near,
        "along": along,
    }
    return scores | common_scores(videos, detected, source, labels)


def main() -> None:
    """Measure, print, write."""
    flags = parser("text2video_zero", 64).parse_args()
    image = ImageModel.read(flags)
    task = Task.make(image, flags.num, flags.seed)
    table = Table(
        flags.out, "text2video_zero", HEADINGS, prompts=flags.num, seed=flags.seed,
        steps=image.settings.steps, guidance_scale=flags.guidance_scale,
        model=image.trained.checksum,
    )  # fmt: skip
    for name, (changes, replaced) in ROWS.items():
        options = dataclasses.replace(OPTIONS, **changes)
        table.add(
            name,
            lambda options=options: task.sample(options),
            task.score,
            task.sentences,
            [mock.patch.object(text2video_zero, *each) for each in replaced.items()],
        )


if __name__ == "__main__":
    runtime.run(main)
