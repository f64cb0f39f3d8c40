"""The sections of a config of distill.py."""

from dataclasses import dataclass

from vdm_jax.settings.declaration import setting
from vdm_jax.settings.sections import (
    MANY,
    MAX_SCALE,
    WEIGHTINGS,
    Files,
    Mesh,
    Seeded,
    Updates,
)

POWERS_OF_TWO = tuple(2**n for n in range(11))


@dataclass(frozen=True)
class Distill:
    """The rounds of a distillation, each of which halves the steps."""

    start_steps: int = setting(
        1024,
        "steps of the teacher, a power of two; it takes half as many of a stochastic "
        "sampler, whose steps are double",
        choices=POWERS_OF_TWO,
    )
    end_steps: int = setting(8, "a power of two", choices=POWERS_OF_TWO)
    guidance_range: tuple[float, float] | tuple[()] = setting(
        (), "the lowest and the highest scale of the student; () is none", 1, MAX_SCALE
    )
    sampler: str = setting("ddim", "of the students", choices=("ddim", "stochastic"))
    loss_weighting: str = setting("snr_plus_one", "of the loss", choices=WEIGHTINGS)
    guidance_updates: int = setting(50_000, "to learn both branches in one", 1, MANY)
    guidance_lr: float = setting(1e-4, "learning rate of these updates", 0, 10)
    updates_per_round: int = setting(50_000, "updates of other rounds", 1, MANY)
    updates_last_rounds: int = setting(100_000, "of those to 2 steps and 1", 1, MANY)
    time_power: float = setting(
        1.0,
        "training times are u^time_power for uniform u: above 1 the last steps, whose "
        "errors no later one corrects, are trained more often",
        1,
        4,
    )
    metric: str = setting(
        "r2_to_teacher",
        "of videos of the teacher's noise: r2 is 1 for equal videos, 0 for their mean; "
        "shape_accuracy is for moving shapes",
        choices=("r2_to_teacher", "shape_accuracy"),
    )
    num: int = setting(256, "videos for the metric", 2, MANY)
    max_metric_drop: float = setting(0.1, "in a round, before a stop", 0, 2)


@dataclass(frozen=True)
class DistillationData(Files):
    """What may differ from the teacher's data; where it is '' or 0 it does not."""

    batch_size: int = setting(128, "clips over all devices", 0, 2**20)


DISTILLATION = {
    "": Seeded(), "distill": Distill(), "data": DistillationData(),
    # The learning rate falls to 0 within each round.
    "train": Updates("adam", 1e-4, 0, "linear", end_lr_fraction=0.0, ema_decay=0.0),
    "mesh": Mesh(),
}  # fmt: skip
