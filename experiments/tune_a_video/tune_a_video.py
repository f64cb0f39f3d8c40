"""Does Tune-A-Video change the object of a clip and keep its motion?

    python -m experiments.tune_a_video.tune_a_video [--model=DIR] [--num=N]

Each of N held-out clips of 8 frames of moving sprites is tuned on with its caption
(configs/tune_a_video.py:sprites, --updates each), then edited by the sentence of
another object on the same background. Variants lack a part of the method. Tuned runs
are kept in --workdir. Writes OUT/tune_a_video.json row by row, and a sheet of each row.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from configs import tune_a_video
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
    rows_of,
)
from vdm_jax import runs, runtime, sampling
from vdm_jax.files import make_folder
from vdm_jax.metrics.sprite_detection import detect_sprites
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.sampling import Run, SamplingInputs
from vdm_jax.systems.image_model import with_frames
from vdm_jax.training.cascade import finished_steps
from vdm_jax.training.train import train

FRAMES = 8
AIM = 3.0  # pixels of trajectory error
HEADINGS = {  # the first is what the method is for
    "joint": f"object, within {AIM:.0f} pixels", **COMMON,
    "near": f"within {AIM:.0f} pixels",
}  # fmt: skip


def tune(
    flags: argparse.Namespace, checksum: str, clip: np.ndarray,
    captions: tuple[str, str], number: int, reads: str,
) -> tuple[DiffusionModel, Params]:  # fmt: skip
    """Return the model tuned on a clip, and tune it unless that is done.

    checksum: of the image model. captions: of the clip and of its edit. number: of the
    clip. reads: row of FRAME_READS.
    """
    runs_of = f"{checksum}-{flags.seed}-{reads}-{flags.updates}"
    run = (flags.workdir / runs_of / f"{number:02d}").absolute()
    if finished_steps(run) < flags.updates:
        frames = make_folder(run.with_name(f"{number:02d}_frames"))
        for i, frame in enumerate(clip):  # a video would have lost some of the pixels
            Image.fromarray(frame).save(frames / f"{i:03d}.png")
        config: Any = tune_a_video.get_config("sprites").unlock()
        config.init_from = str(flags.model)
        caption, edited = captions
        config.data.update(path=str(frames), caption=caption, edited_caption=edited)
        config.network.frame_reads = reads
        config.train.update(
            steps=flags.updates, checkpoint_every=50, keep_checkpoints=2, sample_every=0
        )
        train(config.lock(), run)
    loaded = runs.load(run)
    return loaded.model, loaded.params


class Edits:
    """The clips and their edits, one by one."""

    def __init__(self, flags: argparse.Namespace, image: ImageModel):
        self.flags, self.image = flags, image
        source = image.sprites(FRAMES, VOCABULARY)
        self.clips: Clips = held_out_clips(source, flags.num, flags.seed)
        pairs = self.clips.labels[:, :2]
        edited = others(pairs[:, 0], source.sizes[0], flags.seed)
        self.labels = np.stack([edited, pairs[:, 1]], axis=1)
        self.captions, self.sentences = (
            prompts(labels, source) for labels in (pairs, self.labels)
        )
        self.cond = image.encode(self.sentences)

    def rendered(self) -> np.ndarray:
        """Return the clips with the other objects, uint8 [n, f, h, w, 3]."""
        source = self.image.sprites(FRAMES, VOCABULARY)
        return self.clips.rendered(self.labels, source)

    def tuned(self, number: int, reads: str) -> tuple[DiffusionModel, Params]:
        """Return the model tuned on a clip."""
        clip, checksum = self.clips.videos[number], self.image.trained.checksum
        captions = self.captions[number], self.sentences[number]
        return tune(self.flags, checksum, clip, captions, number, reads)

    def inflated(
        self, number: int, joint_norms: bool = False
    ) -> tuple[DiffusionModel, Params]:
        """Return the model before it is tuned: that of pictures, on a video.

        The new attention over the frames adds nothing at its start.
        """
        model, params = self.image.trained.model, self.image.trained.params
        fields = {"frame_reads": "previous", "joint_norms": joint_norms}
        return with_frames(model, FRAMES, **fields), params

    def sample(
        self,
        model_of: Callable[[int], tuple[DiffusionModel, Params]],
        inverts: bool = True,
    ) -> np.ndarray:
        """Return the edits of all clips, in [-1, 1].

        model_of: from a clip's number. inverts: start from the clip's inversion.
        """
        edits = []
        for number, clip in enumerate(self.clips.videos):
            model, params = model_of(number)
            inputs = SamplingInputs(rows_of(self.cond, number))
            how = 1, self.image.settings, inputs
            run = Run(self.flags.seed, first_video=number)
            if inverts:
                video = model.normalize(clip[None])
                made = sampling.edit_by_inversion(model, params, video, *how, run)
            else:
                made = sampling.sample(model, params, *how, run)
            edits.append(made)
        return np.concatenate(edits)

    def score(self, videos: np.ndarray) -> Scores:
        """Return the scores of videos."""
        source = self.image.sprites(FRAMES, VOCABULARY)
        detected = detect_sprites(videos, source)
        centres = self.clips.centres
        scores = common_scores(videos, detected, source, self.labels, centres)
        near = scores["trajectory_error"] <= AIM
        return scores | {"near": near, "joint": scores["object"] & near}


def main() -> None:
    """Tune, edit, measure, print, write."""
    flags = parser("tune_a_video", 8, workdir="runs/tune_a_video")
    flags.add_argument("--updates", type=int, default=300, help="of each clip")
    flags.set_defaults(guidance_scale=2.0)
    flags = flags.parse_args()
    image = ImageModel.read(flags)
    edits = Edits(flags, image)
    table = Table(
        flags.out, "tune_a_video", HEADINGS, clips=flags.num, updates=flags.updates,
        seed=flags.seed, steps=image.settings.steps,
        guidance_scale=flags.guidance_scale, model=image.trained.checksum,
    )  # fmt: skip
    table.columns = {"n": ("n", "d"), "joint_count": ("right", "d")} | table.columns
    tuned = functools.partial(edits.tuned, reads="previous")
    own = functools.partial(edits.tuned, reads="own")
    joint = functools.partial(edits.inflated, joint_norms=True)
    rows = {
        "real": edits.rendered,
        "no tuning": lambda: edits.sample(edits.inflated),
        "no tuning, joint norms": lambda: edits.sample(joint),
        "no tuning, no inversion": lambda: edits.sample(edits.inflated, inverts=False),
        "tuned": lambda: edits.sample(tuned),
        "tuned, no inversion": lambda: edits.sample(tuned, inverts=False),
        "tuned, reads own": lambda: edits.sample(own),
    }
    for name, sample in rows.items():
        table.add(name, sample, edits.score, edits.sentences)


if __name__ == "__main__":
    runtime.run(main)
