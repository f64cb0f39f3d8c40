"""How often students of few steps show the requested object, next to their teacher.

    python -m experiments.sprite_accuracy.students [--students=DIR] [--num=N]

DIR is a distillation of --model by configs/distill_sprites.py. All rows have the same
captions, noise and guidance scale. Writes OUT/students.json row by row, and a sheet of
each row; rows that are there are kept.
"""

import argparse
import dataclasses
from typing import Any

import numpy as np

from experiments.sprite_videos import ImageModel, Scores, Table, parser
from vdm_jax import runtime, sampling
from vdm_jax.data.sprites import Sprites
from vdm_jax.metrics import sprite_detection, sprite_scores
from vdm_jax.sampling import Run, SamplingInputs

TEACHER_STEPS, STEPS = 64, (16, 8, 4)
BATCH = 40
HEADINGS = {"object": "object", "background": "background"}


@dataclasses.dataclass(frozen=True)
class Stills:
    """Captions of held-out stills, and pictures of them by models."""

    image: ImageModel
    labels: np.ndarray
    captions: list[str]

    @classmethod
    def draw(cls, image: ImageModel, num: int) -> "Stills":
        """Draw stills of the model's vocabulary."""
        part, rng = image.sprites(1).split(True), np.random.default_rng(0)
        items = rng.integers(len(part), size=num).tolist()
        stills: list[Any] = [part.load(item, rng, 1) for item in items]
        labels = np.stack([still["label"] for still in stills])
        return cls(image, labels, [still["caption"] for still in stills])

    def sample(self, model: ImageModel, seed: int, **changes: Any) -> np.ndarray:
        """Return pictures by a model, from the same noise for a seed.

        model: one that reads the same text. changes: other settings of it.
        """
        settings = dataclasses.replace(model.settings, batch_size=BATCH, **changes)
        inputs = SamplingInputs(self.image.encode(self.captions))
        trained = model.trained
        num = len(self.captions)
        how = trained.model, trained.params, num, settings, inputs, Run(seed)
        return sampling.sample(*how)

    def score(self, videos: np.ndarray) -> Scores:
        """Return whether object and background are the right ones."""
        source: Sprites = self.image.sprites(1)
        detected = sprite_detection.detect_sprites(videos, source)
        right = sprite_scores.measure(detected, source) == self.labels
        return dict(zip(HEADINGS, right.T, strict=True))


def main() -> None:
    """Measure, print, write."""
    flags = parser("sprite_accuracy", 400, students="runs/sprites_distilled")
    flags = flags.parse_args()
    teacher = ImageModel.read(flags)
    stills = Stills.draw(teacher, flags.num)
    table = Table(
        flags.out, "students", HEADINGS, num=flags.num, seed=flags.seed,
        guidance_scale=flags.guidance_scale, model=teacher.trained.checksum,
    )  # fmt: skip
    models: dict[str, tuple[ImageModel, dict[str, int]]] = {
        f"teacher, {TEACHER_STEPS}": (teacher, {"steps": TEACHER_STEPS})
    }
    for steps in STEPS:
        values = vars(flags) | {"model": flags.students / "rounds" / f"{steps:04d}"}
        student = ImageModel.read(argparse.Namespace(**values))
        models[f"student, {steps}"] = student, {}
        models[f"teacher, {steps}"] = teacher, {"steps": steps}
    for name, (model, changes) in models.items():

        def sample(model=model, changes=changes) -> np.ndarray:
            return stills.sample(model, flags.seed, **changes)

        table.add(name, sample, stills.score, stills.captions)


if __name__ == "__main__":
    runtime.run(main)
