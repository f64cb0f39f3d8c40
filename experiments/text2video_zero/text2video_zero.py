"""Does Text2Video-Zero move what a prompt names as far as it is set to?

    python -m experiments.text2video_zero.text2video_zero [--model=DIR] [--num=N]

N prompts, "a rocket on a yellow background", of pairs that the model was never trained
on, in four directions: 4 N videos of 8 frames, each of its own noise. The objects are
detected without a network. Variants lack a part of the method. Writes
OUT/text2video_zero.json row by row, and a sheet of each row.
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
    Table,
    common_scores,
    parser,
    prompts,
)
from vdm_jax import runtime
from vdm_jax.data.sprite_vocabulary import COLOURS
from vdm_jax.data.sprites import Sprites, is_held_out
from vdm_jax.errors import UserError
from vdm_jax.metrics.sprite_detection import detect_sprites
from vdm_jax.metrics.sprite_scores import MIN_EXPLAINED
from vdm_jax.sampling import Conditions, SamplingInputs
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
    "along": "pixels along", "with_room": "with room",
    "displacement_with_room": f"with room, within {TOLERANCE:.0%}",
    **{key: COMMON[key] for key in ("object", "background", "identity", "warp_error")},
}  # fmt: skip


def swapped(z: np.ndarray, motion: tuple[float, float], frames: Any) -> np.ndarray:
    """Return `warp` with x and y of the motion swapped."""
    return warp(z, (motion[1], motion[0]), frames)


def read_own(model: Any, frames: int, **_) -> Any:
    """Return `with_frames` whose frames read themselves alone."""
    return with_frames(model, frames, frame_reads="own")


def kept(z: np.ndarray, eps: np.ndarray, ratio: float) -> np.ndarray:
    """Return z as it is, in place of `renoise`: the noise of t0 stays at t1."""
    return z


def noise_alone(z: np.ndarray, eps: np.ndarray, ratio: float) -> np.ndarray:
    """Return the noise, in place of `renoise`: nothing of the first frame is left."""
    return eps.astype(z.dtype)


# Name of a row -> options that differ, and functions of the system that are replaced.
ROWS: dict[str, tuple[dict[str, Any], Mapping[str, Any]]] = {
    "right": ({}, {}),
    "t0 = 881, t1 = 941": ({"t0": 881, "t1": 941}, {}),  # the paper's
    "no motion": ({"strength": 0.0}, {}),
    "x and y swapped": ({}, {"warp": swapped}),
    "reads own": ({}, {"with_frames": read_own}),
    "no re-noising": ({}, {"renoise": kept}),
    "noise alone": ({}, {"renoise": noise_alone}),
}


def unseen_pairs(source: Sprites, num: int) -> np.ndarray:
    """Return labels [num, 2] of held-out pairs in a random order.

    Raises:
      UserError: there are not so many.
    """
    labels = np.argwhere(np.ones((source.sizes[0], len(COLOURS)), bool))
    pairs = labels[is_held_out(labels)[:, 0]]
    if num > len(pairs):
        raise UserError(f"--num={num}: {VOCABULARY} has {len(pairs)} held-out pairs")
    return np.random.default_rng(0).permutation(pairs)[:num]


def sample(image: ImageModel, cond: Conditions, flags, options: Options) -> np.ndarray:
    """Return the videos of all prompts to the right, then to the left, ..."""
    videos = []
    for number, motion in enumerate(DIRECTIONS.astype(float).tolist()):
        request = Request(
            flags.num, FRAMES, SamplingInputs(cond), flags.seed,
            first_video=number * flags.num,
        )  # fmt: skip
        x, y = motion
        moved = dataclasses.replace(options, motion=(x, y))
        made = text2video_zero.sample(image.trained, request, image.settings, moved)
        videos.append(made)
    return np.concatenate(videos)


def score(videos: np.ndarray, source: Sprites, labels: np.ndarray):
    """Return the scores of videos, whose directions are those of `sample`.

    The displacement is that from the first frame's centre to the last one's; where one
    of them shows no object it is wrong. A video has room if the displacement that is
    set keeps the object of its first frame inside of the frame.
    """
    detected = detect_sprites(videos, source)
    number = np.arange(len(DIRECTIONS)).repeat(len(labels))
    size = np.array([source.geometry.width, source.geometry.height])
    wanted = STRENGTH * (FRAMES - 1) * size / CANVAS * DIRECTIONS[number]
    length = np.linalg.norm(wanted, axis=1)
    net = detected.centre[:, -1] - detected.centre[:, 0]
    along = (net * DIRECTIONS[number]).sum(1)
    shown = (detected.explained[:, [0, -1]] > MIN_EXPLAINED).all(1)
    heading = (net @ DIRECTIONS.T).argmax(1)
    near = np.linalg.norm(net - wanted, axis=1) <= TOLERANCE * length
    half = detected.size[:, :1] / 2
    end = detected.centre[:, 0] + wanted
    room = shown & ((half <= end) & (end <= size - half)).all(1)
    scores = {
        "direction": shown & (heading == number) & (along > MIN_MOVED * length),
        "displacement": shown & near,
        "along": along,
        "with_room": room,
        "displacement_with_room": (shown & near)[room],
    }
    every = np.tile(labels, (len(DIRECTIONS), 1))
    return scores | common_scores(videos, detected, source, every)


def main() -> None:
    """Measure, print, write."""
    flags = parser("text2video_zero", 16).parse_args()
    image = ImageModel.read(flags)
    source = image.sprites(FRAMES, VOCABULARY)
    labels = unseen_pairs(source, flags.num)
    sentences = prompts(labels, source)
    cond = image.encode(sentences)
    table = Table(
        flags.out, "text2video_zero", HEADINGS, prompts=flags.num, seed=flags.seed,
        steps=image.settings.steps, guidance_scale=flags.guidance_scale,
        model=image.trained.checksum,
    )  # fmt: skip
    for name, (changes, replaced) in ROWS.items():
        options = dataclasses.replace(OPTIONS, **changes)
        table.add(
            name,
            lambda options=options: sample(image, cond, flags, options),
            lambda videos: score(videos, source, labels),
            sentences * len(DIRECTIONS),
            [mock.patch.object(text2video_zero, *each) for each in replaced.items()],
        )


if __name__ == "__main__":
    runtime.run(main)
