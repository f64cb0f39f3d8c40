"""The rounds of a distillation, and the config of the student of each."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vdm_jax import build
from vdm_jax.data import mixed_sizes
from vdm_jax.diffusion import schedules
from vdm_jax.errors import UserError
from vdm_jax.metrics.attributes import ATTRIBUTE_METRICS
from vdm_jax.model import DiffusionModel
from vdm_jax.runs import TrainedModel

# Pattern of config fields -> whether they may differ when a distillation is resumed.
# The first that matches decides; the rest holds for rounds that have not started.
RESUME_RULES = (
    (r"seed|distill\.(start_steps|guidance_range|sampler|metric|num)", False),
    (r".*", True),
)

# Shortest step, in radians: in float32 the length of a shorter one is lost.
MIN_ANGLE_STEP = 1e-5
# Of t = 1. Above it an error of eps is at most 55 times as large in x.
MIN_EPS_LOGSNR = -8.0


@dataclasses.dataclass(frozen=True)
class Round:
    """One round: the training of a student of `steps` steps.

    number: from 0.
    distills_guidance: the first round of a distillation with guidance. Its student has
      as many steps as the teacher, and learns to replace both branches of guidance.
    time_power: how often its last steps are drawn, see
      `diffusion.distillation.sample_step_index`.
    """

    number: int
    steps: int
    updates: int
    distills_guidance: bool = False
    time_power: float = 1.0

    @property
    def path(self) -> str:
        """Workdir of the student, relative to that of the distillation."""
        return f"rounds/{self.steps:04d}"


def plan_rounds(distill: Any) -> list[Round]:
    """Return the rounds of a config's distill section, in their order."""
    plan = []
    if distill.guidance_range:
        updates = distill.guidance_updates
        plan.append(Round(0, distill.start_steps, updates, distills_guidance=True))
    n = distill.start_steps // 2
    while n >= distill.end_steps:
        # With two steps or one, both ends matter: they are drawn equally often.
        hard = n <= 2
        updates = distill.updates_last_rounds if hard else distill.updates_per_round
        time_power = 1.0 if hard else float(distill.time_power)
        plan.append(Round(len(plan), n, updates, time_power=time_power))
        n //= 2
    return plan


def check(distill: Any, config: Any, teacher: DiffusionModel) -> None:
    """Raise UserError for a distill section that does not fit a teacher or itself.

    Each value is in its range already. config: of the teacher.
    """
    least = 2 if distill.sampler == "stochastic" else 1
    if not least <= distill.end_steps < distill.start_steps:
        raise UserError(
            f"config.distill.end_steps={distill.end_steps}: from {least} to below "
            f"distill.start_steps={distill.start_steps}; a stochastic student of 2 "
            "steps can already take the one step to the data"
        )
    measured = teacher.label_vocabulary and config.data.source in ATTRIBUTE_METRICS
    if distill.metric == "shape_accuracy" and not measured:
        raise UserError(
            "config.distill.metric='shape_accuracy': this teacher has no labels of "
            "moving shapes; set it to r2_to_teacher"
        )
    _check_teacher(distill, config, teacher)
    _check_guidance(distill, teacher)


def _check_teacher(distill: Any, config: Any, teacher: DiffusionModel) -> None:
    # The x and v of eps divide by alpha, which is near 0 at t = 1 of most schedules.
    schedule = teacher.schedule
    has_signal = schedules.logsnr_range(schedule)[0] > MIN_EPS_LOGSNR
    bounded = config.sample.clip_x > 0 or has_signal
    bounded &= distill.loss_weighting in ("snr", "min_snr")
    if teacher.prediction_type == "eps" and not bounded:
        raise UserError(
            f"config.distill.loss_weighting={distill.loss_weighting!r}: this teacher "
            "predicts eps, and its v and x have no bound: set it to snr or min_snr, "
            "and sample.clip_x in the teacher's config.json to the range of its data"
        )
    even = np.allclose(schedule.grid(4), schedule.step_angle(np.arange(4, -1, -1), 4))
    halved = 2 * distill.start_steps
    angles = schedule.step_angle(np.arange(1, halved + 1), halved)
    if not even or np.diff(angles).min() < MIN_ANGLE_STEP:
        raise UserError(
            f"config.distill.start_steps={distill.start_steps}: the teacher's schedule "
            "spaces its steps unevenly in time, or some of them have no length, since "
            "its range of logsnr cuts them off: set it lower, or give another teacher"
        )
    known = config.diffusion.distilled_steps
    if known and distill.start_steps != known:
        raise UserError(
            f"config.distill.start_steps={distill.start_steps}: this teacher is a "
            f"student of {known} steps and knows no others; set start_steps to that"
        )


def _check_guidance(distill: Any, teacher: DiffusionModel) -> None:
    scales = tuple(distill.guidance_range)
    if not scales:
        return
    field = f"config.distill.guidance_range={scales}"
    if scales[0] >= scales[1]:
        raise UserError(f"{field}: the lowest scale first, then the highest")
    if teacher.guidance_range or not teacher.supports_cfg:
        raise UserError(
            f"{field}: this teacher is a student with guidance already, or was trained "
            "without dropping its conditions; set it to ()"
        )


def with_halving_steps(teacher: TrainedModel) -> TrainedModel:
    """Return a teacher whose steps halve: one on a discrete schedule is changed.

    It samples on "trailing" timesteps and ends at the data. With the others a student
    would start at another noise level than its teacher (Lin et al. 2023, section 3.4).
    The network knows all timesteps.
    """
    schedule = teacher.model.schedule
    if not isinstance(schedule, schedules.Discrete):
        return teacher
    config: Any = ConfigDict(teacher.config.to_dict())
    config.discrete = dataclasses.asdict(schedule) | {
        "timestep_spacing": "trailing", "set_alpha_to_one": True, "skip_last": False,
    }  # fmt: skip
    return teacher._replace(config=config, model=build.build_model(config))


def student_configs(
    config: Any, teacher: Any, plan: Sequence[Round], origin: str, workdir: Path
) -> list[Any]:
    """Return the complete config of the student of every round.

    config: of the distillation. teacher, origin: config and workdir of the teacher.
    """
    configs = []
    for each in plan:
        configs.append(student_config(config, teacher, each, origin))
        origin = str(workdir / each.path)  # the next one starts from this student
    return configs


def student_config(config: Any, teacher: Any, each: Round, init_from: str) -> Any:
    """Return the config of a round's student: its teacher's, with another training.

    config: of the distillation. teacher: of the first teacher. init_from: workdir of
    the model that this student starts from.
    """
    distill = config.distill
    student: Any = ConfigDict(teacher.to_dict())
    if "mixed_sizes" in student:  # clips of the first size are distilled on
        student = mixed_sizes.at_size(student, student.mixed_sizes.rows[0])
    # Every round has batches and noise of its own.
    student.seed = (config.seed + each.number) % 2**32
    student.init_from, student.init_checksum = init_from, ""
    student.mesh = config.mesh.to_dict()
    for field, value in config.data.items():
        if value or field == "workers":
            student.data[field] = value
    if "dropout" in student.network:  # some kinds of network have none
        student.network.dropout = 0.0
    if distill.guidance_range:
        student.conditioning.guidance_range = tuple(map(float, distill.guidance_range))
    student.diffusion.loss_weighting = distill.loss_weighting
    student.diffusion.distilled_steps = 0 if each.distills_guidance else each.steps
    own = dict(steps=each.updates, sample_every=0, eval_every=0)
    student.train = config.train.to_dict() | own
    if each.distills_guidance:
        student.train.learning_rate = distill.guidance_lr
    # The teacher's default, within the student's range; 1 where it has none.
    low, high = student.conditioning.guidance_range or (1.0, 1.0)
    student.sample.update(
        steps=each.steps,
        sampler="ddim" if each.distills_guidance else distill.sampler,
        sampling_schedule="",
        langevin_delta=0.0,
        guidance_scale=float(np.clip(student.sample.guidance_scale, low, high)),
        guidance_schedule="constant",
        cfg_mode="linear",
    )
    return student.lock()
