"""results.json and the page of a distillation's evaluation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vdm_jax.evaluators.reports import ReportOptions, write_report
from vdm_jax.evaluators.tables import BIAS_TITLE
from vdm_jax.metrics.pixel_statistics import BIAS_COLUMNS
from vdm_jax.metrics.tables import BIAS_NOTE, Row, format_cells
from vdm_jax.report import curves, page
from vdm_jax.runs import TrainedModel
from vdm_jax.sampling import Conditions

COLUMNS = {
    "nfe": ("NFE", ",d"),
    "videos": ("videos", ",d"),
    "object": ("object", ".3f"),
    "background": ("background", ".3f"),
    "all_attributes": ("all attributes", ".3f"),
    "all_attributes_interval": ("95%", ".3f"),
    "template_mse": ("template mse", ".3f"),
    "position_std": ("position std", ".3f"),
    "position_std_error": ("±", ".3f"),
    "frame_fd": ("frame FD", ".3f"),
    "frame_fd_error": ("±", ".3f"),
    "frame_fd_ratio": ("ratio", ".2f"),
    "motion_fd": ("motion FD", ".3f"),
    "motion_fd_error": ("±", ".3f"),
    "motion_fd_ratio": ("ratio", ".2f"),
    "rmse_to_teacher": ("RMSE to teacher", ".3f"),
    "seconds": ("s / video", ".3f"),
}
NOTE = (
    "The first row is the reference of the others. Ratios are to its distances with as "
    "many videos. RMSE to teacher is the root mean square difference from its video of "
    "the same number, which starts from the same noise. ± is the standard error over "
    "draws of the row's videos. Frechet distances are comparable at equal numbers of "
    "videos only. NFE is the number of function evaluations: guidance calls the "
    "teacher twice per step, a guidance-distilled student once. Seconds exclude "
    "compilation."
)
NUM_SHOWN = 12  # videos of a row on the page
CURVES = {
    "position_std": "Position std",
    "frame_fd_ratio": "Frame FD, ratio to the first row",
    "motion_fd_ratio": "Motion FD, ratio to the first row",
    "all_attributes": "Fraction with all attributes right",
    "object": "Fraction with the right object",
}


class SamplerSetting(NamedTuple):
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
    def line(self) -> str:
        """Name of the rows of all numbers of steps."""
        return "student" if self.path else f"teacher, {self.sampler}"

    @property
    def name(self) -> str:
        """Name of the row in tables."""
        return f"{self.line}, {self.steps} step{'s' * (self.steps > 1)}"


class Evaluation(NamedTuple):
    """What all rows share. held_out is a batch of real clips, cond its conditions."""

    workdir: Path
    report: ReportOptions
    teacher: TrainedModel
    guidance_scale: float
    seed: int
    held_out: Mapping[str, np.ndarray]
    cond: Conditions


def write_page(
    evaluation: Evaluation,
    videos: Mapping[SamplerSetting, np.ndarray],
    rows: Sequence[Row],
    rounds: Sequence[dict],
) -> None:
    """Print the tables; write OUT/results.json and OUT/index.html.

    videos: of every row, in order. rows: their scores, then those of real clips.
    """
    workdir, report, teacher, scale, seed, held_out, _ = evaluation
    cells = format_cells(rows, COLUMNS)
    tables = [
        page.Table("Students and teacher", *cells, highlight=(0,), note=NOTE),
        page.Table(BIAS_TITLE, *format_cells(rows, BIAS_COLUMNS), note=BIAS_NOTE),
    ]
    first, *others = videos
    shown = [first, *(row for row in others if row.path)]
    shown += [row for row in others if row.sampler == "ddim"]
    named = {"real clips": held_out["video"]} | {row.name: videos[row] for row in shown}
    fps = teacher.config.video.fps
    same_noise = page.VideoGrids(
        "From the same noise",
        [page.VideoGrid(k, v[:NUM_SHOWN], fps, NUM_SHOWN) for k, v in named.items()],
        note="Each column has one noise and one label: the teacher, its students, and "
        "the teacher in few steps. The real clips have the labels, not the noise.",
    )
    write_report(
        report, {"rows": rows, "seed": seed, "guidance_scale": scale, "rounds": rounds},
        tables, [same_noise, *_curves([*videos], rows)],
        name=workdir.name, summary=f"A teacher and its students down to "
        f"{rounds[-1]['steps']} steps, guidance_scale {scale:g}.",
    )  # fmt: skip


def _curves(plan: Sequence[SamplerSetting], rows: Sequence[Row]) -> list[page.Section]:
    """Return curves of scores by NFE, first of students, then of each sampler."""
    sections: list[page.Section] = []
    for key, title in CURVES.items():
        points: dict[str, list] = {row.line: [] for row in plan if row.path}
        for setting, row in zip(plan, rows, strict=False):  # without the real clips
            if key in row:
                points.setdefault(setting.line, []).append((row["nfe"], row[key]))
        lines = [curves.Line(k, *np.array(sorted(v)).T) for k, v in points.items() if v]
        if lines:
            sections.append(page.Curve(f"{title}, by NFE", lines, True, "NFE"))
    return sections
