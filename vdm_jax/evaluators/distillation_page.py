"""results.json and the page of a distillation's evaluation."""

from collections.abc import Sequence

import numpy as np

from vdm_jax import video_io
from vdm_jax.evaluators.distillation_metrics import NOTE, format_shown_cells
from vdm_jax.evaluators.distillation_plan import Evaluation, SamplerSetting
from vdm_jax.evaluators.results import write_results
from vdm_jax.evaluators.sections import environment_section
from vdm_jax.evaluators.tables import BIAS_TITLE
from vdm_jax.metrics.pixel_statistics import BIAS_COLUMNS
from vdm_jax.metrics.tables import BIAS_NOTE, format_cells, format_table
from vdm_jax.report import curves, page

NUM_SHOWN = 12  # videos of a row on the page
CURVES = {
    "position_std": "Position std",
    "frame_fd_ratio": "Frame FD, ratio to the first row",
    "motion_fd_ratio": "Motion FD, ratio to the first row",
    "all_attributes": "Fraction with all attributes right",
}


def write_report(
    evaluation: Evaluation,
    plan: Sequence[SamplerSetting],
    rows: Sequence[dict],
    rounds: Sequence[dict],
    commands: Sequence[str],
) -> None:
    """Print the table; write OUT/results.json and OUT/index.html.

    rows: scores in the order of plan, then those of real clips.
    """
    headings, body = format_shown_cells(rows)
    print(f"\n{format_table(headings, body)}")
    out, scale = evaluation.out, evaluation.guidance_scale
    content = {"rows": rows, "seed": evaluation.seed, "guidance_scale": scale}
    write_results(out, content | {"rounds": rounds})
    bias = format_cells(rows, BIAS_COLUMNS | {"row": ("", "")})
    sections = [
        _video_section(evaluation, plan),
        *_curve_sections(rows),
        page.Table("Students and teacher", headings, body, highlight=(0,), note=NOTE),
        page.Table(BIAS_TITLE, *bias, note=BIAS_NOTE),
        _rounds_table(rounds),
        page.Commands("Commands", commands),
        environment_section(evaluation.teacher, evaluation.seed),
    ]
    last = rounds[-1]["steps"]
    page.write(
        out / "index.html",
        title=f"vdm_jax: {evaluation.workdir.name}",
        summary=f"A teacher and its students down to {last} "
        f"{'steps' if last > 1 else 'step'}, guidance_scale {scale:g}.",
        sections=sections,
    )
    print(f"\nthe report: {out / 'index.html'}")


def _video_section(
    evaluation: Evaluation, plan: Sequence[SamplerSetting]
) -> page.VideoGrids:
    """Return real clips, the reference, students, and the teacher's DDIM."""
    real = evaluation.metrics.clips[:NUM_SHOWN]
    grids = [page.VideoGrid("real clips", real, columns=NUM_SHOWN)]
    shown = [plan[0], *(row for row in plan if row.path)]
    shown += [row for row in plan[1:] if row.sampler == "ddim"]
    for row in shown:
        videos = video_io.read_npz(evaluation.out / "rows" / f"{row.key}.npz")
        grids.append(page.VideoGrid(row.name, videos[:NUM_SHOWN], columns=NUM_SHOWN))
    return page.VideoGrids(
        "From the same noise",
        grids,
        evaluation.teacher.config.video.fps,
        note="Each column has one noise and one label: the teacher, its students, and "
        "the teacher in few steps. The real clips have the labels, not the noise.",
    )


def _curve_sections(rows: Sequence[dict]) -> list[page.Section]:
    """Return curves of scores by NFE, first of students, then of each sampler."""
    sections: list[page.Section] = []
    for key, title in CURVES.items():
        points: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if key in row and "nfe" in row:
                sampler = row["row"].rsplit(",", 1)[0]
                points.setdefault(sampler, []).append((row["nfe"], row[key]))
        order = sorted(points, key=lambda sampler: not sampler.startswith("student"))
        lines = [curves.Line(name, *np.array(sorted(points[name])).T) for name in order]
        if lines:
            curve = page.Curve(f"{title}, by NFE", lines, x_name="NFE", log_x=True)
            sections.append(curve)
    return sections


def _rounds_table(rounds: Sequence[dict]) -> page.Table:
    """Return the table of the finished rounds."""
    cells = [
        [str(r["steps"]), str(r["updates"]), f"{r['loss']:.5f}", f"{r['metric']:.3f}",
         f"{r['seconds']:.0f}"]
        for r in rounds
    ]  # fmt: skip
    headings = ["steps", "updates", "loss", "metric", "seconds"]
    return page.Table("Rounds", headings, cells)
