"""A distillation, measured: quality against the number of network calls.

Its students beside samplers of the undistilled teacher, all from the same labels and
the same noise. Each row is kept as it is finished: the same command goes on.

    OUT/rows/student-0008.json, .npz  ...  results.json  index.html
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax import build, data, files, runs, sampling, video_io
from vdm_jax.checkpoint import reading_files
from vdm_jax.data import pipeline
from vdm_jax.errors import UserError
from vdm_jax.evaluators.models import environment_section, stack_videos, write_results
from vdm_jax.files import make_folder
from vdm_jax.metrics import frechet, pixel_statistics
from vdm_jax.metrics.by_source import ATTRIBUTE_METRICS
from vdm_jax.metrics.tables import BIAS_NOTE, format_cells, format_table
from vdm_jax.metrics.video_arrays import group_by_video, to_float64
from vdm_jax.report import curves, page

SAMPLERS = ("ddim", "ancestral", "dpm")  # of the teacher
MAX_STEPS = 64  # steps of a row
KEY_STEPS = (8, 4)  # steps of the rows that more videos are made for
PAGE_VIDEOS = 12  # videos of a row on the page


@dataclasses.dataclass(frozen=True)
class SamplerSetting:
    """A row: a sampler of the teacher, or one of the students (path)."""

    sampler: str
    steps: int
    num: int
    path: str = ""

    @property
    def key(self) -> str:
        """Name of its files."""
        return f"{'student' if self.path else self.sampler}-{self.steps:04d}"

    @property
    def name(self) -> str:
        """What a person reads."""
        who = "student" if self.path else f"teacher, {self.sampler}"
        return f"{who}, {self.steps} step{'s' * (self.steps > 1)}"


def plan_rows(
    rounds: Sequence[dict], start: int, num: int, num_key_rows: int
) -> list[SamplerSetting]:
    """The rows, the reference first: the teacher's DDIM at the most steps of a row."""
    most = min(start, MAX_STEPS)
    arms = [SamplerSetting("ddim", most, max(num, num_key_rows))]
    for row in sorted(rounds, key=lambda row: -row["steps"]):
        n = row["steps"]
        if n <= MAX_STEPS:
            arms.append(
                SamplerSetting(
                    "", n, num_key_rows if n in KEY_STEPS else num, path=row["path"]
                )
            )
    n = most
    while n >= rounds[-1]["steps"]:
        for sampler in SAMPLERS:
            decides = n in KEY_STEPS and sampler != "ancestral"
            arm = SamplerSetting(sampler, n, num_key_rows if decides else num)
            if arm.key != arms[0].key:
                arms.append(arm)
        n //= 2
    return arms


def evaluate(
    workdir: Path,
    out: Path,
    *,
    num: int,
    num_key_rows: int,
    overrides: dict[str, Any],
    guidance_scale: float | None,
    seed: int,
    commands: Sequence[str],
) -> list[dict]:
    """Make and measure every row; print the table, write the report, return the rows.

    num: videos of a row; deciding: of the reference and the rows of DECIDING steps.
    asked: settings of sampling that hold for every row. guidance_scale: of
    the students and of both branches of the teacher; None for their own.
    """
    begun = runs.read_json(workdir / runs.DISTILLATION_FILE, dict)
    match begun:
        case {"teacher": str(), "checksum": str(), "distill": {"start": int()}}:
            pass
        case _:
            raise UserError(
                f"{workdir / runs.DISTILLATION_FILE} is not what distill.py wrote; put "
                "back a copy"
            )
    rounds = runs.distillation_rounds(workdir)
    teacher = runs.load(begun["teacher"])
    if teacher.checksum != begun["checksum"]:
        raise UserError(
            f"{begun['teacher']} is not, or not any more, the teacher of {workdir}: "
            "put it back, to measure its students beside it"
        )
    arms = plan_rows(rounds, begun["distill"]["start_steps"], num, num_key_rows)
    config = runs.read_config(workdir)
    scale = float(
        config.sample.guidance_scale if guidance_scale is None else guidance_scale
    )
    settings = [
        _settings(workdir, arm, teacher.config, scale, overrides) for arm in arms
    ]
    student = build.build_model(config)
    for arm, each in zip(arms, settings, strict=True):
        sampling.check_settings(
            student if arm.path else teacher.model, arm.num, seed, each
        )
    folder = make_folder(out / "rows")
    most = max(arm.num for arm in arms)
    source = data.open_source(config)
    kept = pipeline.held_out_batch(config, source, most)
    labels = kept.get("label") if teacher.model.label_vocabulary else None
    measure = DistillationMetrics(kept["video"], labels, config.data.source)

    rows = []
    for arm, each in zip(arms, settings, strict=True):
        loaded = runs.load(workdir / arm.path) if arm.path else teacher
        origin = {
            "arm": dataclasses.asdict(arm),
            "settings": dataclasses.asdict(each),
            "seed": seed,
            "teacher": teacher.checksum,
            "parameters": loaded.checksum,
        }
        row, videos = _row(folder, arm, origin, loaded, each, labels, measure, seed)
        rows.append(row)
        print(_line(row), flush=True)
        if arm is arms[0]:
            measure.reference = videos
    clips = pipeline.fixed_clips(config, source.split(False), most)
    rows.append(measure.real(stack_videos(clips)))
    _write(workdir, out, arms, rows, measure, teacher, rounds, scale, seed, commands)
    return rows


def _settings(
    workdir, arm: SamplerSetting, teacher, scale: float, overrides
) -> sampling.Settings:
    """How a row is sampled: the teacher plainly, of its own settings only clipping."""
    if arm.path:
        own = runs.read_config(workdir / arm.path).sample
        how = {}
    else:
        own = teacher.sample
        # The students' own levels, of which dpm would choose others.
        levels = teacher.diffusion.schedule if arm.sampler == "dpm" else ""
        how = {
            "sampler": arm.sampler,
            "sampling_schedule": levels,
            "langevin_delta": 0.0,
        }
    return dataclasses.replace(
        sampling.Settings.from_config(own),
        steps=arm.steps,
        guidance_scale=scale,
        guidance_schedule="constant",
        cfg_mode="linear",
        **how,
        **overrides,
    )


def _row(folder, arm: SamplerSetting, origin, loaded, settings, labels, measure, seed):
    """(figures, videos) of a row: kept ones, or made now."""
    path, arrays = folder / f"{arm.key}.json", folder / f"{arm.key}.npz"
    origin = json.loads(json.dumps(origin))
    if path.is_file() and arrays.is_file():
        with (
            contextlib.suppress(files.CorruptFile),
            reading_files(folder),
        ):  # made again then
            match files.read_json(path):
                case {"origin": kept, "figures": dict(figures)} if kept == origin:
                    return figures, video_io.read_npz(arrays)
    asked = None if labels is None else labels[: arm.num]

    def made(count: int, settings: sampling.Settings) -> np.ndarray:
        cond = {} if asked is None else {"label": asked[:count]}
        return sampling.sample(
            loaded.model, loaded.params, count, settings, cond=cond, seed=seed
        )

    batch = min(settings.batch_size, arm.num)
    made(batch, dataclasses.replace(settings, steps=1))  # compiled before it is timed
    started = time.perf_counter()
    videos = sampling.to_uint8(made(arm.num, settings))
    seconds = (time.perf_counter() - started) / arm.num
    calls = sampling.nfe(loaded.model, settings)
    figures = {"row": arm.name, "nfe": calls, "seconds": seconds}
    figures |= measure(videos)
    path.unlink(missing_ok=True)  # figures never stand beside other videos
    video_io.write_npz(arrays, videos, overwrite=True)
    files.write_json(path, {"figures": figures, "origin": origin})
    return figures, videos


class DistillationMetrics:
    """Figures of videos that have the labels and the noise of the reference.

    Frechet distances are to held-out clips of the same labels; ratios are to the
    distances of as many videos of the reference.
    """

    def __init__(self, real: np.ndarray, labels: np.ndarray | None, source: str):
        self.clips, self.labels = real, labels
        self.attributes = ATTRIBUTE_METRICS.get(source) if labels is not None else None
        self.reference: np.ndarray | None = None  # its videos, once they are made

    def _distances(self, videos: np.ndarray, errors: bool = True) -> dict[str, float]:
        found, n = {}, len(videos)
        for name, features in FEATURES.items():
            a, b = features(videos), features(self.clips[:n])
            if errors:
                a, b = (group_by_video(x, n) for x in (a, b))
                found |= frechet.distance_scores(name, a, b)
            else:
                found[name] = frechet.frechet_of_features(a, b)
        return found

    def __call__(self, videos: np.ndarray) -> dict[str, float]:
        n = len(videos)
        found: dict[str, float] = {"videos": n}
        if self.attributes:
            assert self.labels is not None
            found |= self.attributes.attribute_scores(videos, self.labels[:n])
        found |= self._distances(videos)
        first = videos if self.reference is None else self.reference[:n]
        beside = self._distances(first, errors=False)
        off = to_float64(videos) - to_float64(first)
        found |= {f"{name}_ratio": found[name] / beside[name] for name in beside}
        return found | {"rmse_to_teacher": float(np.sqrt(np.square(off).mean()))}

    def real(self, clips: np.ndarray) -> dict[str, Any]:
        """Training clips, as many as the reference: as near as these can be."""
        found: dict[str, Any] = {"row": "real clips", "videos": len(clips)}
        if self.attributes:
            row = self.attributes.attribute_scores(clips, np.full_like(self.labels, -1))
            found |= {
                key: row[key]
                for key in ("template_mse", "position_std", "position_std_error")
            }
        return found | self._distances(clips)


FEATURES = {
    "frame_fd": pixel_statistics.pixel_features,
    "motion_fd": pixel_statistics.motion_features,
}
COLUMNS = {
    "row": ("", ""),
    "nfe": ("nfe", ",d"),
    "videos": ("videos", ",d"),
    "all_attributes": ("all four", ".3f"),
    "template_mse": ("fit error", ".3f"),
    "position_std": ("position_std", ".3f"),
    "position_std_error": ("±", ".3f"),
    "frame_fd": ("frame FD", ".3f"),
    "frame_fd_error": ("±", ".3f"),
    "frame_fd_ratio": ("ratio", ".2f"),
    "motion_fd": ("motion FD", ".3f"),
    "motion_fd_error": ("±", ".3f"),
    "motion_fd_ratio": ("ratio", ".2f"),
    "rmse_to_teacher": ("from the teacher", ".3f"),
    "seconds": ("s a video", ".3f"),
}
NOTE = (
    "The first row is what all others are held against: ratios are to its distances "
    "with as many videos, 'from the teacher' is the root mean square to its video of "
    "the same number, which starts from the same noise. ± is a standard error by the "
    "chance of the row's videos. Frechet distances compare at equal numbers of videos "
    "only. Calls are of the network: "
    "guidance asks the teacher twice a step, a guided student once. Seconds are "
    "without compiling."
)


def format_shown_cells(rows: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """Headings and formatted cells, of the columns that any row has."""
    shown = {k: v for k, v in COLUMNS.items() if any(k in row for row in rows)}
    return format_cells(rows, shown)


def _line(row: dict) -> str:
    """What is said when a row is finished."""
    parts = [
        f"{heading} {row[key]:{form}}"
        for key, (heading, form) in COLUMNS.items()
        if key in row and heading not in ("", "±")
    ]
    return f"{row['row']}: " + ", ".join(parts)


def _curves(rows: Sequence[dict], key: str) -> list[curves.Line]:
    """A figure against calls: the students first, then each sampler of the teacher."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if key in row and "nfe" in row:
            who = row["row"].rsplit(",", 1)[0]
            lines.setdefault(who, []).append((row["nfe"], row[key]))
    order = sorted(lines, key=lambda who: not who.startswith("student"))
    return [curves.Line(who, *np.array(sorted(lines[who])).T) for who in order]


def _write(
    workdir, out, arms, rows, measure, teacher, rounds, scale, seed, commands
) -> None:
    """results.json, and the page: rows of videos from the same noise, curves, table."""
    headings, body = format_shown_cells(rows)
    print(f"\n{format_table(headings, body)}")
    results = {"rows": rows, "seed": seed, "guidance_scale": scale, "rounds": rounds}
    write_results(out, results)
    config = teacher.config
    films = [
        page.VideoGrid("real clips", measure.clips[:PAGE_VIDEOS], columns=PAGE_VIDEOS)
    ]
    shown = [arms[0], *(a for a in arms if a.path)]
    shown += [a for a in arms[1:] if a.sampler == "ddim"]
    for arm in shown:
        videos = video_io.read_npz(out / "rows" / f"{arm.key}.npz")
        films.append(
            page.VideoGrid(arm.name, videos[:PAGE_VIDEOS], columns=PAGE_VIDEOS)
        )
    sections: list[page.Section] = [
        page.VideoGrids(
            "From the same noise",
            films,
            config.video.fps,
            note="A column is one noise and one label: the teacher, its students, and "
            "the teacher hurried. The real clips have the labels, not the noise.",
        )
    ]
    titles = {
        "position_std": "Spread",
        "frame_fd_ratio": "Frame Frechet distance over the first row's",
        "motion_fd_ratio": "Motion Frechet distance over the first row's",
        "all_attributes": "All four attributes right",
    }
    for key, name in titles.items():
        if lines := _curves(rows, key):
            title = f"{name}, by calls"
            sections.append(page.Curve(title, lines, x_name="nfe", log_x=True))
    sections.append(
        page.Table("Students and teacher", headings, body, highlight=(0,), note=NOTE)
    )
    bias = format_cells(rows, pixel_statistics.BIAS_COLUMNS | {"row": ("", "")})
    sections.append(page.Table("What few videos do", *bias, note=BIAS_NOTE))
    sections.append(
        page.Table(
            "Rounds",
            ["steps", "updates", "loss", "metric", "seconds"],
            [
                [str(r["steps"]), str(r["updates"]), f"{r['loss']:.5f}",
                 f"{r['metric']:.3f}", f"{r['seconds']:.0f}"]
                for r in rounds
            ],
        )
    )  # fmt: skip
    sections += [
        page.Commands("The commands", commands),
        environment_section(teacher, seed),
    ]
    last = rounds[-1]["steps"]
    page.write(
        out / "index.html",
        title=f"vdm_jax: {workdir.name}",
        summary=f"A teacher and its students down to {last} "
        f"{'steps' if last > 1 else 'step'}, guidance_scale {scale:g}.",
        sections=sections,
    )
    print(f"\nthe report: {out / 'index.html'}")
