"""How often samples show the requested object, by vocabulary and guidance scale.

    python -m experiments.sprite_accuracy.vocabularies [--guidance_scale=S] [--num=N]

N pictures by the captions of held-out stills of each nested vocabulary. The measure
chooses among all objects of the model. Writes OUT/vocabularies.json row by row, and a
sheet of each row; rows that are there are kept, those of other guidance scales too.
"""

import dataclasses
from typing import Any

import numpy as np

from experiments.sprite_videos import ImageModel, Scores, Table, parser
from vdm_jax import runtime, sampling
from vdm_jax.data.sprites import Sprites
from vdm_jax.metrics import sprite_detection, sprite_scores
from vdm_jax.sampling import Run, SamplingInputs

VOCABULARIES = ("everyday", "100", "50", "small")
BATCH = 40
HEADINGS = {"object": "object", "background": "background"}


@dataclasses.dataclass(frozen=True)
class Stills:
    """Captions of held-out stills of a vocabulary, and pictures of them by a model."""

    image: ImageModel
    labels: np.ndarray
    captions: list[str]

    @classmethod
    def draw(cls, image: ImageModel, vocabulary: str, num: int) -> "Stills":
        """Draw stills; "" is the model's own vocabulary."""
        part, rng = image.sprites(1, vocabulary).split(True), np.random.default_rng(0)
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
    flags = parser("sprite_accuracy", 200).parse_args()
    image = ImageModel.read(flags)
    table = Table(
        flags.out, "vocabularies", HEADINGS, num=flags.num, seed=flags.seed,
        steps=image.settings.steps, model=image.trained.checksum,
    )  # fmt: skip
    for vocabulary in VOCABULARIES:
        stills = Stills.draw(image, vocabulary, flags.num)
        table.add(
            f"{vocabulary}, s = {flags.guidance_scale:g}",
            lambda stills=stills: stills.sample(image, flags.seed),
            stills.score,
            stills.captions,
        )


if __name__ == "__main__":
    runtime.run(main)
