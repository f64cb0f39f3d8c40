"""What a distillation is made of: its rounds, and the config of each one's student."""

import dataclasses
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vdm_jax.diffusion import losses, samplers
from vdm_jax.errors import UserError
from vdm_jax.metrics.by_source import ATTRIBUTE_METRICS
from vdm_jax.model import DiffusionModel

# What may differ when a distillation goes on; the first pattern that fits decides.
RESUME_RULES = (
    ("seed", False),
    ("distill.start_steps", False),
    ("distill.guidance", False),
    ("distill.sampler", False),
    ("distill.metric", False),
    ("distill.num", False),
    ("*", True),  # of the rounds to come
)


MIN_ANGLE_STEP = (
    1e-5  # of a step, in radians: in float32 a shorter one has lost its length
)


@dataclasses.dataclass(frozen=True)
class Round:
    """A student of so many steps; `told`: of as many as its teacher has.

    That is the first round of a guided distillation: the student learns the guidance
    weight, both branches in one call. late: how often its last steps are drawn.
    """

    number: int
    steps: int
    updates: int
    distills_guidance: bool = False
    time_power: float = 1.0

    @property
    def path(self) -> str:
        return f"rounds/{self.steps:04d}"


def plan_rounds(distill: Any) -> list[Round]:
    """The rounds that a config's distill section asks for."""
    found = []
    if distill.guidance:
        found.append(
            Round(
                0, distill.start_steps, distill.guidance_updates, distills_guidance=True
            )
        )
    n = distill.start_steps // 2
    while n >= distill.end_steps:
        hard = n <= 2  # to draw the first step less often would not do
        updates = distill.updates_last_rounds if hard else distill.updates_per_round
        late = 1.0 if hard else float(distill.time_power)
        found.append(Round(len(found), n, updates, time_power=late))
        n //= 2
    return found


def check(distill: Any, config: Any, teacher: DiffusionModel) -> None:
    """Raise UserError for a distill section that is wrong or does not fit.

    config: the teacher's.
    """
    for name in ("start", "end"):
        n = distill[name]
        if not 1 <= n <= samplers.MAX_STEPS or n & (n - 1):
            raise UserError(
                f"config.distill.{name}={n}: a power of two up to {samplers.MAX_STEPS}"
            )
    least = 2 if distill.sampler == "stochastic" else 1
    if not least <= distill.end_steps < distill.start_steps:
        raise UserError(
            f"config.distill.end_steps={distill.end_steps}: from {least} to below distill.start_steps="
            f"{distill.start_steps}; a stochastic student of 2 steps knows the one to the "
            "data already"
        )
    least = {
        "updates_per_round": 1, "updates_last_rounds": 1, "guidance_updates": 1,
        "num": 2,
    }  # fmt: skip
    for name, low in least.items():
        if distill[name] < low:
            raise UserError(f"config.distill.{name}={distill[name]}: at least {low}")
    if not 1 <= distill.time_power <= 4:
        raise UserError(f"config.distill.time_power={distill.time_power}: from 1 to 4")
    if not 0 <= distill.max_metric_drop <= 2:
        raise UserError(
            f"config.distill.max_metric_drop={distill.max_metric_drop}: from 0 to 2"
        )
    measured = config.data.source in ATTRIBUTE_METRICS and bool(
        teacher.label_vocabulary
    )
    known = {
        "sampler": ("ddim", "stochastic"),
        "loss_weighting": tuple(losses.WEIGHTINGS),
        "metric": ("r2_to_teacher", *["shape_accuracy"] * measured),
    }
    for name, values in known.items():
        if distill[name] not in values:
            raise UserError(
                f"config.distill.{name}={distill[name]!r}: one of {', '.join(values)}"
            )
    _check_teacher(distill, config, teacher)
    _check_guidance(distill, teacher)


def _check_teacher(distill: Any, config: Any, teacher: DiffusionModel) -> None:
    if (
        teacher.prediction_type == "eps"
    ):  # its x and v divide by alpha, which is next to 0
        if distill.loss_weighting not in ("snr", "min_snr"):
            raise UserError(
                f"config.distill.loss_weighting={distill.loss_weighting!r} of a teacher with an "
                "eps output, whose v has no bound: snr or min_snr"
            )
        if not config.sample.clip_x > 0:
            raise UserError(
                "this teacher has an eps output and sample.clip_x=0, and its x has "
                "no bound: set the threshold in its config.json to its data's range"
            )
    if not np.allclose(teacher.schedule.sampling_times(4), (1, 0.75, 0.5, 0.25)):
        raise UserError(
            "this teacher's schedule (diffusion.schedule) chooses its steps unevenly "
            "in time: two of them are not one of a student; give a teacher of another"
        )
    angles = teacher.schedule.angle(np.linspace(0, 1, 2 * distill.start_steps + 1)[1:])
    if np.diff(angles).min() < MIN_ANGLE_STEP:
        raise UserError(
            f"config.distill.start_steps={distill.start_steps}: some of the steps along this "
            "teacher's schedule have no length, where it is held to its range of "
            "logsnr; a smaller start, or a teacher of a wider range"
        )
    known = config.diffusion.distilled_steps
    if known and distill.start_steps != known:
        raise UserError(
            f"config.distill.start_steps={distill.start_steps}: this teacher is a student of "
            f"{known} steps and knows no others; set start to that"
        )


def _check_guidance(distill: Any, teacher: DiffusionModel) -> None:
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
    if not teacher.supports_cfg:
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
    # Other batches and noise in each round.
    made.seed = (config.seed + step.number) % 2**32
    made.init_from = source
    made.mesh = config.mesh.to_dict()
    for field, value in config.data.items():
        if value or field == "workers":
            made.data[field] = value
    made.network.dropout = 0.0
    if distill.guidance:
        made.conditioning.guidance_range = tuple(map(float, distill.guidance))
    made.diffusion.loss_weighting = distill.loss_weighting
    made.diffusion.distilled_steps = 0 if step.distills_guidance else step.steps
    made.train = config.train.to_dict() | {
        "steps": step.updates,
        "sample_every": 0,
        "eval_every": 0,
    }
    if step.distills_guidance:
        made.train.learning_rate = distill.guidance_lr
    told, weight = made.conditioning.guidance_range, 0.0
    if told:  # what the teacher is asked by default, if the student knows it
        weight = float(np.clip(made.sample.guidance, told[0], told[1]))
    made.sample.update(
        steps=step.steps,
        sampler="ddim" if step.distills_guidance else distill.sampler,
        sampling_schedule="",
        langevin_delta=0.0,
        guidance=weight,
        guidance_schedule="constant",
        cfg_mode="linear",
    )
    return made.lock()
