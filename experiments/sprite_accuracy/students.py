"""How often students of few steps show the requested object, next to their teacher.

    python -m experiments.sprite_accuracy.students [--students=DIR] [--num=N]

DIR is a distillation of --model by configs/distill_sprites.py. All rows have the same
captions, noise and guidance scale. Writes OUT/students.json row by row, and a sheet of
each row; rows that are there are kept.
"""

import argparse

from experiments.sprite_accuracy.vocabularies import HEADINGS, Stills
from experiments.sprite_videos import ImageModel, Table, parser
from vdm_jax import runtime

TEACHER_STEPS, STEPS = 64, (8, 4)


def main() -> None:
    """Measure, print, write."""
    flags = parser("sprite_accuracy", 400, students="runs/sprites_distilled")
    flags = flags.parse_args()
    teacher = ImageModel.read(flags)
    stills = Stills.draw(teacher, "", flags.num)
    table = Table(
        flags.out, "students", HEADINGS, num=flags.num, seed=flags.seed,
        guidance_scale=flags.guidance_scale, model=teacher.trained.checksum,
    )  # fmt: skip
    models: dict[str, tuple[argparse.Namespace, dict[str, int]]] = {
        f"teacher, {TEACHER_STEPS}": (flags, {"steps": TEACHER_STEPS})
    }
    for steps in STEPS:
        values = vars(flags) | {"model": flags.students / "rounds" / f"{steps:04d}"}
        models[f"student, {steps}"] = argparse.Namespace(**values), {}
        models[f"teacher, {steps}"] = flags, {"steps": steps}
    for name, (given, changes) in models.items():

        def sample(given=given, changes=changes):
            return stills.sample(ImageModel.read(given), flags.seed, **changes)

        table.add(name, sample, stills.score, stills.captions)


if __name__ == "__main__":
    runtime.run(main)
