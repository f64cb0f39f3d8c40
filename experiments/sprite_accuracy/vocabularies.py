"""How often samples show the requested object, by vocabulary and guidance scale.

    python -m experiments.sprite_accuracy.vocabularies [--model=DIR] [--num=N]

N pictures by the captions of held-out stills of each nested vocabulary, at each
guidance scale. The measure chooses among all objects of the model. Writes
OUT/vocabularies.json row by row, and a sheet of each row; rows that are there are kept.
"""

import dataclasses
from typing import Any

import numpy as np

from experiments.sprite_videos import ImageModel, Table, parser
from vdm_jax import runtime, sampling
from vdm_jax.data.sprites import Sprites
from vdm_jax.metrics import sprite_detection, sprite_scores
from vdm_jax.sampling import Run, SamplingInputs

VOCABULARIES = ("everyday", "100", "50", "small")
BATCH = 40
SCALES = (5.0, 7.0, 10.0)
HEADINGS = {"object": "object", "background": "background"}


def held_out_captions(source: Sprites, num: int) -> tuple[np.ndarray, list[str]]:
    """Return labels [num, 2] and captions of held-out stills."""
    part, rng = source.split(True), np.random.default_rng(0)
    items = rng.integers(len(part), size=num).tolist()
    stills: list[Any] = [part.load(item, rng, 1) for item in items]
    return np.stack([s["label"] for s in stills]), [s["caption"] for s in stills]


def main() -> None:
    """Measure, print, write."""
    flags = parser("sprite_accuracy", 200).parse_args()
    image = ImageModel.read(flags)
    table = Table(
        flags.out, "vocabularies", HEADINGS, num=flags.num, seed=flags.seed,
        steps=image.settings.steps, model=image.trained.checksum,
    )  # fmt: skip
    source = image.sprites(1)
    for scale in SCALES:
        settings = dataclasses.replace(
            image.settings, guidance_scale=scale, batch_size=BATCH
        )
        for vocabulary in VOCABULARIES:
            labels, captions = held_out_captions(
                image.sprites(1, vocabulary), flags.num
            )

            def sample(captions=captions, settings=settings) -> np.ndarray:
                return sampling.sample(
                    image.trained.model, image.trained.params, flags.num, settings,
                    SamplingInputs(image.encode(captions)), Run(flags.seed),
                )  # fmt: skip

            def score(videos, labels=labels) -> dict[str, np.ndarray]:
                detected = sprite_detection.detect_sprites(videos, source)
                right = sprite_scores.measure(detected, source) == labels
                return dict(zip(HEADINGS, right.T, strict=True))

            table.add(f"{vocabulary}, s = {scale:g}", sample, score, captions)


if __name__ == "__main__":
    runtime.run(main)
