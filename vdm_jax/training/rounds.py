"""What a distillation is made of: its rounds, and the config of each one's student."""

import dataclasses
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vdm_jax.diffusion import losses, samplers
from vdm_jax.errors import UserError
from vdm_jax.evaluation.evaluate import MEASURES
from vdm_jax.model import Model

# What may differ when a distillation goes on; the first pattern that fits decides.
MAY_CHANGE = (
    ("teacher", True),  # where it lies now
    ("teacher_step", False),
    ("seed", False),
    ("distill.start", False),
    ("distill.guidance", False),
    ("distill.sampler", False),
    ("distill.metric", False),
    ("distill.num", False),
    ("*", True),  # of the rounds to come
)


@dataclasses.dataclass(frozen=True)
class Round:
    """A student of so many steps; `told`: of as many as its teacher has.

    That is the first round of a guided distillation: the student learns the guidance
    weight, both branches in one call.
    """

    number: int
    steps: int
    updates: int
    told: bool = False

    @property
    def path(self) -> str:
        return f"rounds/{self.steps:04d}"


def planned(distill: Any) -> list[Round]:
    """The rounds that a config's distill section asks for."""
    found = []
    if distill.guidance:
        found.append(Round(0, distill.start, distill.told_updates, told=True))
    n = distill.start // 2
    while n >= distill.end:
        updates = distill.last_updates if n <= 2 else distill.updates
        found.append(Round(len(found), n, updates))
        n //= 2
    return found


def check(distill: Any, source: str, teacher: Model) -> None:
    """Raise UserError for a distill section that is wrong or does not fit.

    source: config.data.source of the teacher.
    """
    for name in ("start", "end"):
        n = distill[name]
        if not 1 <= n <= samplers.MAX_STEPS or n & (n - 1):
            raise UserError(
                f"config.distill.{name}={n}: a power of two up to {samplers.MAX_STEPS}"
            )
    if distill.end >= distill.start:
        raise UserError(
            f"config.distill.end={distill.end}: below distill.start={distill.start}"
        )
    least = {"updates": 1, "last_updates": 1, "told_updates": 1, "num": 2}
    for name, low in least.items():
        if distill[name] < low:
            raise UserError(f"config.distill.{name}={distill[name]}: at least {low}")
    if not 0 <= distill.tolerance <= 2:
        raise UserError(f"config.distill.tolerance={distill.tolerance}: from 0 to 2")
    known = {
        "sampler": ("ddim", "stochastic"),
        "weighting": tuple(losses.WEIGHTINGS),
        "metric": ("agreement", *["joint"] * (source in MEASURES)),
    }
    for name, values in known.items():
        if distill[name] not in values:
            raise UserError(
                f"config.distill.{name}={distill[name]!r}: one of {', '.join(values)}"
            )
    if not np.allclose(teacher.schedule.times(4), (1, 0.75, 0.5, 0.25)):
        raise UserError(
            "this teacher's schedule (diffusion.schedule) chooses its steps unevenly "
            "in time: two of them are not one of a student; give a teacher of another"
        )
    weights = tuple(distill.guidance)
    if not weights:
        return
    two = len(weights) == 2 and all(isinstance(w, int | float) for w in weights)
    asked = f"config.distill.guidance={weights}"
    if not two or not 0 <= weights[0] < weights[1] < np.inf:
        raise UserError(
            f"{asked}: () or the lowest and the highest weight w of (1+w) cond - "
            "w uncond, as (0.0, 4.0)"
        )
    if teacher.guidance_range:
        raise UserError(
            f"{asked}: this teacher is a guided student already, told weights from "
            "{:g} to {:g}; set it to ()".format(*teacher.guidance_range)
        )
    if not teacher.guidable:
        raise UserError(
            f"{asked}: this teacher was not trained with conditions that were "
            "sometimes dropped, so nothing can be guided; set it to ()"
        )


def student_config(config: Any, teacher: Any, step: Round, source: str) -> Any:
    """The complete config of a round's student: its teacher's, trained in another way.

    config: of the distillation; teacher: of the first teacher; source: the workdir that
    this student starts from.
    """
    distill = config.distill
    made: Any = ConfigDict(teacher.to_dict())
    made.seed = config.seed + step.number  # other batches and noise in each round
    made.init_from = source
    made.mesh = config.mesh.to_dict()
    made.data.update({k: v for k, v in config.data.items() if v != ""})
    made.network.dropout = 0.0
    if distill.guidance:
        made.conditioning.guidance_range = tuple(map(float, distill.guidance))
    made.diffusion.weighting = distill.weighting
    made.train = config.train.to_dict() | {
        "steps": step.updates,
        "preview_every": 0,
        "validate_every": 0,
    }
    if step.told:
        made.train.learning_rate = distill.told_learning_rate
    told, weight = made.conditioning.guidance_range, 0.0
    if told:  # what the teacher is asked by default, if the student knows it
        weight = float(np.clip(made.sample.guidance, told[0], told[1]))
    made.sample.update(
        steps=step.steps,
        sampler="ddim" if step.told else distill.sampler,
        schedule="",
        corrector=0.0,
        guidance=weight,
        guidance_schedule="constant",
        combine="linear",
    )
    return made.lock()
