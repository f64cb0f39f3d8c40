"""Rows of a distillation's evaluation: students, and samplers of their teacher."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from vdm_jax.evaluators.distillation_metrics import DistillationMetrics
from vdm_jax.runs import TrainedModel

SAMPLERS = ("ddim", "ancestral", "dpm")  # of the teacher
MAX_STEPS = 64  # of a row
KEY_STEPS = (8, 4)  # rows of these numbers of steps get more videos


@dataclasses.dataclass(frozen=True)
class SamplerSetting:
    """What makes a row: a sampler of the teacher, or a student (path), and steps."""

    sampler: str
    steps: int
    num: int
    path: str = ""

    @property
    def key(self) -> str:
        """Name of the row's files."""
        return f"{'student' if self.path else self.sampler}-{self.steps:04d}"

    @property
    def name(self) -> str:
        """Name of the row in tables."""
        who = "student" if self.path else f"teacher, {self.sampler}"
        return f"{who}, {self.steps} step{'s' * (self.steps > 1)}"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What all rows share."""

    workdir: Path
    out: Path
    teacher: TrainedModel
    guidance_scale: float
    seed: int
    metrics: DistillationMetrics


def plan_rows(
    rounds: Sequence[dict], start_steps: int, num: int, num_key_samples: int
) -> list[SamplerSetting]:
    """Return the rows; the first is the reference, the teacher's DDIM at most steps.

    Args:
      rounds: of `runs.distillation_rounds`.
      start_steps: steps of the teacher in the first round.
      num: videos of a row.
      num_key_samples: videos of the reference, and of students, DDIM and dpm of
        KEY_STEPS steps.
    """
    most = min(start_steps, MAX_STEPS)
    rows = [SamplerSetting("ddim", most, max(num, num_key_samples))]
    for student in sorted(rounds, key=lambda row: -row["steps"]):
        n = student["steps"]
        if n <= MAX_STEPS:
            videos = num_key_samples if n in KEY_STEPS else num
            rows.append(SamplerSetting("", n, videos, path=student["path"]))
    n = most
    while n >= rounds[-1]["steps"]:
        for sampler in SAMPLERS:
            is_key = n in KEY_STEPS and sampler != "ancestral"
            row = SamplerSetting(sampler, n, num_key_samples if is_key else num)
            if row.key != rows[0].key:
                rows.append(row)
        n //= 2
    return rows
