"""Does ControlVideo follow a clip by its silhouettes or its edges?

    python -m experiments.control_video.control_video [--model=DIR] [--controlnet=DIR]

N held-out clips of 8 frames of moving sprites, and N / 4 of 33 frames, which have key
frames. The controls are the clip's; the prompt names its object on another background.
Variants lack a part of the method. Writes OUT/control_video.json row by row, and a
sheet of each row.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from experiments.sprite_videos import (
    COMMON,
    VOCABULARY,
    Clips,
    ImageModel,
    Scores,
    Table,
    common_scores,
    held_out_clips,
    others,
    parser,
    prompts,
)
from vdm_jax import controls, runtime
from vdm_jax.data.sprite_vocabulary import COLOURS
from vdm_jax.errors import UserError
from vdm_jax.metrics.sprite_detection import detect_sprites
from vdm_jax.sampling import Conditions, Control, SamplingInputs
from vdm_jax.systems import Request, control_video
from vdm_jax.systems.control_video import Options
from vdm_jax.systems.image_model import with_frames

SHORT, LONG = 8, 33  # frames; 33 have nine key frames
KINDS = ("silhouette", "edges")


def reading(**reads: str) -> contextlib.AbstractContextManager:
    """Return a context in which frames read others than the method's.

    reads: row of FRAME_READS in place of that of key frames ("every") or gaps ("ends").
    """

    def replaced(model: Any, frames: int, **network: Any) -> Any:
        if (own := network.get("frame_reads")) in reads:
            network["frame_reads"] = reads[own]
        return with_frames(model, frames, **network)

    return mock.patch.object(control_video, "with_frames", replaced)


def interpolating(
    pairs: Callable[[int, int], np.ndarray],
) -> contextlib.AbstractContextManager:
    """Return a context in which frames have other neighbours than `neighbours`."""
    return mock.patch.object(control_video, "neighbours", pairs)


def misplaced(frames: int, step: int) -> np.ndarray:
    """Return `neighbours` whose means replace the left one, not the frame between.

    So an even step replaces even frames, an odd step odd ones, each by the next frame.
    """
    pairs = np.arange(frames)[:, None].repeat(2, axis=1)
    pairs[step % 2 : -2 : 2, 1] += 2
    return pairs


class Case(NamedTuple):
    """How a row is sampled. patch: returns the context of a variant."""

    frames: int = SHORT
    kind: str = "silhouette"
    scale: float = 1.0  # of the ControlNet
    options: Options = Options(joint_norms=False)
    patch: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


PLAIN = Options(smooth_steps=0, joint_norms=False)
ROWS = {
    "no control": Case(scale=0.0, options=PLAIN),
    "reads own": Case(options=PLAIN, patch=lambda: reading(every="own")),
    "reads first": Case(options=PLAIN, patch=lambda: reading(every="first")),
    "reads every": Case(options=PLAIN),
    "reads every, smoothed": Case(),
    "edges, reads every": Case(kind="edges", options=PLAIN),
    "joint norms": Case(options=Options(smooth_steps=0)),
    "joint norms, smoothed": Case(options=Options()),  # as published
    "smoothed, wrong parity": Case(patch=lambda: interpolating(misplaced)),
    "key frames": Case(LONG, options=PLAIN),
    "key frames read own": Case(
        LONG, options=PLAIN, patch=lambda: reading(every="own")
    ),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """Clips of one length, what is requested of them, and the scores of videos."""

    image: ImageModel
    clips: Clips
    labels: np.ndarray  # int [n, 2], the clip's object on another background

    @classmethod
    def make(cls, image: ImageModel, frames: int, num: int, seed: int) -> "Task":
        """Draw clips and other backgrounds."""
        clips = held_out_clips(image.sprites(frames, VOCABULARY), num, seed)
        background = others(clips.labels[:, 1], len(COLOURS), seed)
        labels = np.stack([clips.labels[:, 0], background], axis=1)
        return cls(image, clips, labels)

    @property
    def sentences(self) -> list[str]:
        """The prompts."""
        return prompts(self.labels, self.image.sprites(1))

    def rendered(self) -> np.ndarray:
        """Return the videos that are requested, uint8 [n, f, h, w, 3]."""
        frames = self.clips.videos.shape[1]
        source = self.image.sprites(frames, VOCABULARY)
        return self.clips.rendered(self.labels, source)

    def sample(self, cond: Conditions, case: Case, seed: int) -> np.ndarray:
        """Return the videos of a row, in [-1, 1]."""
        hints = [
            controls.control_video(video, case.kind, VOCABULARY)
            for video in self.clips.videos
        ]
        inputs = SamplingInputs(
            {**cond, "control_0": np.stack(hints)}, controls=(Control(case.scale),)
        )
        request = Request(len(hints), case.frames, inputs, seed)
        how = self.image.settings, case.options
        return control_video.sample(self.image.trained, request, *how)

    def score(self, videos: np.ndarray) -> Scores:
        """Return the scores of videos."""
        source = self.image.sprites(videos.shape[1], VOCABULARY)
        detected = detect_sprites(videos, source)
        centres = self.clips.centres
        return common_scores(videos, detected, source, self.labels, centres)


def read_controlled(flags: Any) -> tuple[ImageModel, str]:
    """Return the model with its ControlNet, and the checksum of both.

    Raises:
      UserError: a folder that does not fit, or was not trained on KINDS.
    """
    image = ImageModel.read(flags)
    trained = image.trained
    loaded = controls.read(flags.controlnet, trained.model, trained.config)
    for kind in KINDS:
        controls.check_kind(kind, loaded)
    trained = controls.apply(trained, [loaded])
    image = dataclasses.replace(image, trained=trained)
    return image, trained.checksum


def main() -> None:
    """Measure, print, write."""
    flags = parser("control_video", 32, controlnet="models/control").parse_args()
    if flags.num < 8:
        raise UserError(f"--num={flags.num}: 8 or more, a fourth is of {LONG} frames")
    image, checksum = read_controlled(flags)
    table = Table(
        flags.out, "control_video", COMMON, clips=flags.num, seed=flags.seed,
        steps=image.settings.steps, guidance_scale=flags.guidance_scale,
        models=checksum,
    )  # fmt: skip
    for frames, num in ((SHORT, flags.num), (LONG, flags.num // 4)):
        task = Task.make(image, frames, num, flags.seed)
        cond = image.encode(task.sentences)
        real = f"real, {frames} frames"
        table.add(real, task.rendered, task.score, task.sentences)
        for name, case in ROWS.items():
            if case.frames == frames:
                table.add(
                    name,
                    lambda task=task, cond=cond, case=case: task.sample(
                        cond, case, flags.seed
                    ),
                    task.score,
                    task.sentences,
                    [case.patch()],
                )


if __name__ == "__main__":
    runtime.run(main)
