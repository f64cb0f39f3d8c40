"""The evaluate verb: samples beside real clips, measured, printed and reported."""

import dataclasses
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from vdm_jax import data, sampling, scalars, video_io
from vdm_jax.data import pipeline
from vdm_jax.data import shapes as moving_shapes
from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile, make_folder, write_json
from vdm_jax.metrics import perceptual, pixel_statistics
from vdm_jax.metrics import protocol as protocols
from vdm_jax.metrics.by_source import ATTRIBUTE_METRICS
from vdm_jax.metrics.perceptual import PerceptualNetworks
from vdm_jax.metrics.protocol import Protocol
from vdm_jax.metrics.tables import BIAS_NOTE, format_cells, format_table
from vdm_jax.metrics.video_arrays import unique_videos
from vdm_jax.report import curves, page
from vdm_jax.runs import TrainedModel, read_config, read_json

TRAINING_CLIPS = 1024  # among which the nearest is sought
SHOWN = 16  # videos in a grid of the page
RESULTS, SAMPLES = "results.json", "samples.npz"
TRAINING_PREVIEWS = 5  # looks at the training, from the first to the last


def evaluate(
    loaded: TrainedModel,
    workdir: Path,
    out: Path,
    *,
    num: int,
    guidance_scales: Sequence[float],
    seed: int,
    sample_folders: Sequence[Path],
    baseline_reports: Sequence[Path],
    networks: PerceptualNetworks | None,
    commands: Sequence[str],
    compare_steps: Sequence[int] = (),
) -> dict:
    """Measure `num` samples at each guidance scale; print, write the report, return.

    The first scale's samples are those of the page and of the tables; at `out` stand
    index.html, results.json and the contact sheet. beside: folders that sample.py
    wrote, shown first. against: reports of other models, whose figures are put beside,
    if they were measured alike. networks: for FVD and the like, seconds a clip; or
    None. fewer: numbers of steps, to sample the first scale in too from that noise.
    """
    model, config = loaded.model, loaded.config
    settings = sampling.Settings.from_config(config.sample)
    plain = dataclasses.replace(settings, guidance_schedule="constant")
    asked = [
        dataclasses.replace(settings if scale != 1 else plain, guidance_scale=scale)
        for scale in guidance_scales
    ]
    for given in asked:
        sampling.check_settings(model, num, seed, given)
    compare_steps = sorted({*compare_steps} - {settings.steps}, reverse=True)
    few_step_settings = {
        f"samples, {steps} steps": dataclasses.replace(asked[0], steps=steps)
        for steps in compare_steps
    }
    for given in few_step_settings.values():
        sampling.check_settings(model, num, seed, given)
    shown = sample_sections(sample_folders, config.data.source)
    make_folder(out)
    kept, training = real_clips(config, num)
    held_out = kept["video"]
    protocol = evaluation_protocol(config, training, held_out, num, seed, networks)
    others = read_baseline_reports(baseline_reports, protocol)
    # Asked for in the held-out clips' own proportions: else the mixture is measured.
    labels = kept["label"] if model.label_vocabulary else None
    cond = {name: kept[name] for name in model.batch_arrays}

    def sample(name: str, given: sampling.Settings) -> np.ndarray:
        started = time.perf_counter()
        with tqdm(desc=name, unit="step", leave=False, disable=None) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            videos = sampling.sample(
                model, loaded.params, num, given, cond=cond, seed=seed,
                progress=progress,
            )  # fmt: skip
        seconds = time.perf_counter() - started
        print(f"{name}: {num} videos in {seconds:.0f} s", flush=True)
        return sampling.to_uint8(videos)

    samples = {
        scale: sample(f"guidance_scale {scale:g}", given)
        for scale, given in zip(guidance_scales, asked, strict=True)
    }
    more = {name: sample(name, given) for name, given in few_step_settings.items()}
    first = samples[guidance_scales[0]]
    tables, figures = measure_tables(
        first, training, held_out, networks, others, extra_samples=more
    )
    results = {
        "protocol": protocol,
        **figures,
        "sample": dataclasses.asdict(asked[0]),
        "guidance_scales": list(guidance_scales),
    }
    if config.data.source in ATTRIBUTE_METRICS and labels is not None:
        attributes = ATTRIBUTE_METRICS[config.data.source]
        by_row = attribute_rows(model, attributes, samples, labels)
        title = "Does it show what the label asks?"
        cells = attribute_cells(by_row, attributes.NAMES)
        tables.insert(0, page.Table(title, *cells, note=attributes.NOTE))
        results["shapes"] = by_row
    for table in tables:
        print(f"\n{table.title}\n{format_table(table.headings, table.rows)}")
    print(f"\n{protocols.describe(protocol)}")

    write_results(out, results)
    video_io.write_sheet(out / "samples.png", first[:SHOWN], overwrite=True)
    sections = [*shown, *training_sections(workdir, config.video.fps)]
    sections += comparison_sections(first, held_out, training, config.video.fps)
    steps = [settings.steps, *compare_steps]
    sections += step_sections(steps, figures["pixels"][: len(steps)])
    sections += [*tables, page.Commands("The commands", commands)]
    sections.append(environment_section(loaded, seed))
    path = out / "index.html"
    page.write(
        path,
        title=f"vdm_jax: {workdir.name}",
        summary=f"{num} videos of {model.shape[0]} frames of {model.shape[1]}x"
        f"{model.shape[2]}, {settings.sampler} in {settings.steps} steps, beside "
        "real clips that were kept from training.",
        sections=sections,
    )
    print(f"\nthe report: {path}")
    return results


PIXEL_NOTE = (
    "Frechet distances of simple pixel features: lower is nearer to real clips, and "
    "'training real' is as low as this many clips can be. Motion and sharpness are "
    "ratios to real. 'Nearer' is the share nearer to a training clip than the median "
    "held-out clip is: far above .5 means copying. The spoilt rows say what each of "
    "the numbers notices."
)


def evaluation_protocol(
    config, training, held_out, num: int, seed: int, networks: PerceptualNetworks | None
) -> Protocol:
    """How the samples of a run are measured."""
    distinct = [len(unique_videos(x)) for x in (training, held_out)]
    frames, height, width = training.shape[1:4]
    return {
        "clips": min(num, distinct[0] // 2, distinct[1]),
        "training clips": distinct[0],
        "data": f"{config.data.source} {config.data.path}".strip(),
        "frames": frames,
        "stride": config.data.stride,
        "size": f"{height}x{width}",
        "encoding": "pixels",
        "seed": seed,
        "real clips": protocols.videos_digest(training, held_out),
        **(networks.protocol(frames) if networks else {}),
    }


def read_baseline_reports(against: Sequence[Path], own: Protocol) -> dict[str, dict]:
    """results.json of other reports by the names of their folders.

    Raises UserError for one that was measured otherwise.
    """
    found = {}
    for folder in against:
        path = folder / RESULTS
        if not path.is_file():
            raise UserError(f"{folder} holds no {RESULTS}: give a report's folder")
        other = read_json(path)
        if not isinstance(other, dict):
            raise UserError(f"{path} is no report of evaluate.py: measure it again")
        protocols.check_same_protocol(own, other.get("protocol"), path)
        for name in ("pixels", "networks") if "FVD" in own else ("pixels",):
            needed, may = ([*columns][1:] for columns in FIGURES[name])
            match other.get(name):
                case [dict(row), *_] if all(
                    isinstance(value, float | int | None)
                    for value in [
                        *(row.get(key, "") for key in needed),
                        *(row.get(key) for key in may),
                    ]
                ):
                    continue
            raise UserError(f"{path} holds no figures of {name}: measure it again")
        found[str(folder)] = other
    return found


def write_results(out: Path, results: dict) -> None:
    """OUT/results.json, strictly JSON: null for what is no number."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    write_json(out / RESULTS, plain(results))


def measure_tables(
    samples: np.ndarray,
    training: np.ndarray,
    held_out: np.ndarray | None,
    networks: PerceptualNetworks | None,
    baselines: dict[str, dict],
    seed: int = 0,
    extra_samples: Mapping[str, np.ndarray] | None = None,
) -> tuple[list[page.Table], dict[str, list[dict]]]:
    """Tables, and their rows by name: of pixels, and of networks if asked for.

    others: of `read_others`; their samples stand below ours. seed: of the training
    clips that are drawn as the reference. more: other samples, for the pixel table.
    """
    pixels = pixel_statistics.pixel_table(
        samples, training, held_out, seed, extra_samples
    )
    figures = {"pixels": pixels}
    if networks:
        figures["networks"] = perceptual.network_table(
            samples, training, held_out, networks, seed
        )
    tables = []
    for name, title, columns, note in TABLES:
        if name in figures:
            own, *spoilt = figures[name]
            beside = [
                other[name][0] | {"row": folder} for folder, other in baselines.items()
            ]
            cells = format_cells([own, *beside, *spoilt], columns)
            tables.append(page.Table(title, *cells, highlight=(0,), note=note))
    if networks:
        claims = perceptual.acceptance_checks(pixels, figures["networks"])
        headings = ["", "figure", "asked", ""]
        tables.append(
            page.Table("More than a toy?", headings, claims, note=CHECKS_NOTE)
        )
    return tables, figures


# Columns that a report of another model must have, and that older ones lack.
FIGURES = {
    "pixels": (pixel_statistics.COLUMNS, pixel_statistics.BIAS_COLUMNS),
    "networks": (perceptual.COLUMNS, perceptual.BIAS_COLUMNS),
}
BIAS_TITLE = "What few clips do to the distances"
TABLES = (
    ("pixels", "Pixel statistics", pixel_statistics.COLUMNS, PIXEL_NOTE),
    ("pixels", BIAS_TITLE, pixel_statistics.BIAS_COLUMNS, BIAS_NOTE),
    ("networks", "By networks", perceptual.COLUMNS, perceptual.NOTE),
    (
        "networks",
        f"{BIAS_TITLE} by networks",
        perceptual.BIAS_COLUMNS,
        BIAS_NOTE,
    ),
)
CHECKS_NOTE = (
    "What a flat colour, a still picture and a blur cannot pass together. FVD and the "
    "frame distance hardly see motion, so motion and sharpness are asked for beside "
    "them; and few real clips are memorised, so look at the nearest ones."
)


def training_size(num: int) -> int:
    """Enough training clips to draw two sets of `num` and to find neighbours in."""
    return max(TRAINING_CLIPS, 2 * num)


def stack_videos(clips: Iterator[dict[str, np.ndarray]]) -> np.ndarray:
    """Videos of batches of one, as one array."""
    return np.concatenate([clip["video"] for clip in clips])


def attribute_rows(model, measure, samples, labels) -> dict[str, dict[str, float]]:
    """Attribute accuracies: of the measure on known clips first, then of samples."""
    frames, height, width, _ = model.shape
    rows = measure.reference_scores(moving_shapes.Geometry(frames, height, width))
    for scale, videos in samples.items():
        rows[f"samples, guidance_scale {scale:g}"] = measure.attribute_scores(
            videos, labels
        )
    return rows


def attribute_cells(rows: dict[str, dict[str, float]], names: Sequence[str]):
    """Headings and formatted cells."""
    columns = (*names, "all_attributes", "template_mse", "position_std")
    headings = ["", *(name.replace("_", " ") for name in columns)]

    def cell(row: dict[str, float], name: str) -> str:
        return f"{row[name]:.3f}" if name in row else "–"

    return headings, [
        [name, *(cell(row, column) for column in columns)] for name, row in rows.items()
    ]


def sample_sections(folders: Sequence[Path], source: str) -> list[page.Section]:
    """What sample.py has written: of a cascade, prompts from stage to stage; of the
    same data source, side by side, to compare a teacher and its students; of another,
    each beside its real clips.
    """
    prompts, sections, alike = [], [], []
    for folder in folders:
        if not (folder / SAMPLES).is_file():
            raise UserError(f"{folder} holds no {SAMPLES}: give a --out of sample.py")
        videos = read_samples(folder)
        described = read_sample_info(folder)
        if "stages" in described:
            prompts.append(prompt_section(folder, described, videos))
            continue
        film = page.VideoGrid(described["command"], videos[:SHOWN])
        config = read_config(Path(described["workdir"]))
        if config.data.source == source:
            alike.append(film)
            fps = described["fps"]
            continue
        title = f"Samples of {described['workdir']}"
        sections.append(page.VideoGrids(title, [film], described["fps"]))
        kept, training = real_clips(config, len(videos))
        sections += comparison_sections(
            videos, kept["video"], training, config.video.fps, f"{title}: "
        )
    if alike:
        note = "Where the seed and the labels are the same, so is the noise."
        first = page.VideoGrids("Samples side by side", alike, fps, note=note)
        sections.insert(0, first)
    return prompts + sections


def read_sample_info(folder: Path) -> dict:
    """What sample.py has written of its videos: command, fps, workdir or stages."""
    path = folder / "samples.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no samples.json: give a --out of sample.py")
    match found := read_json(path):
        case {"command": str(), "fps": int() | float() as fps} if fps > 0:
            match found:
                case {"workdir": str()} | {"stages": [str(), *_], "labels": [*_]}:
                    return found
    raise UserError(f"{path} is not what sample.py writes: sample again")


def prompt_section(
    folder: Path, described: dict, videos: np.ndarray
) -> page.PromptGrid:
    """What a cascade made of prompts, with all of the stages that were kept."""
    *before, last = described["stages"]
    kept = [
        name
        for name in before
        if (folder / name / SAMPLES).is_file()
        and read_sample_info(folder / name)["command"] == described["command"]
    ]
    stages = [(name, read_samples(folder / name)) for name in kept] + [(last, videos)]
    films = []
    for name, made in stages:
        _, frames, height, width, _ = made.shape
        films.append(page.VideoGrid(f"{name}: {frames} x {height} x {width}", made))
    return page.PromptGrid(
        "Prompts, stage by stage",
        described["labels"][:SHOWN],
        films,
        videos.shape[1] / described["fps"],
        note="Frames, height and width of what each stage of the cascade has made.",
    )


def read_samples(folder: Path) -> np.ndarray:
    """The videos [n, f, h, w, c] that sample.py wrote, before any codec."""
    path = folder / SAMPLES
    try:
        return video_io.read_npz(path)
    except (OSError, CorruptFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} holds no videos of sample.py: {reason}") from error


def real_clips(config, num: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A batch of held-out clips, and training clips, of a config's data."""
    source = data.open_source(config)
    kept = pipeline.held_out_batch(config, source, num)
    clips = pipeline.fixed_clips(config, source.split(False), training_size(num))
    return kept, stack_videos(clips)


def training_sections(workdir: Path, fps: float) -> list[page.Section]:
    """The curve, and samples from the same noise through the training."""
    if not (workdir / "metrics.jsonl").is_file():
        return []
    lines = curves.loss_lines(scalars.read_scalars(workdir))
    sections: list[page.Section] = [
        page.Curve(
            "Loss",
            lines,
            note="Training loss, and the loss on held-out clips in four bands of the "
            "log signal-to-noise ratio: the lower the band, the more noise.",
        )
    ]
    looks = sorted((workdir / "samples").glob("step-*.npz"))
    if looks:
        chosen = np.linspace(
            0, len(looks) - 1, min(TRAINING_PREVIEWS, len(looks))
        ).round()
        films = []
        for look in (looks[int(i)] for i in chosen):
            try:
                videos = video_io.read_npz(look)
            except (CorruptFile, OSError) as error:
                print(f"{look} is left out: {error}", file=sys.stderr)
                continue
            step = int(look.stem.removeprefix("step-"))
            films.append(page.VideoGrid(f"step {step}", videos, columns=2))
        note = "The same noise and labels at each look."
        sections.append(page.VideoGrids("Learning", films, fps, note=note))
    return sections


def step_sections(steps: Sequence[int], rows: Sequence[dict]) -> list[page.Section]:
    """Figures of the same noise in several numbers of steps, if there are any."""
    if len(steps) < 2:
        return []
    titles = {"frame_fd": "Frame FD against steps", "motion_fd": "Motion FD"}
    lines = {
        key: [curves.Line("samples", np.array(steps), np.array([r[key] for r in rows]))]
        for key in titles
    }
    note = "The lower, the nearer to real clips; the same first noise and labels."
    return [
        page.Curve(title, lines[key], note, log_x=True, x_name="steps")
        for key, title in titles.items()
    ]


def comparison_sections(
    samples, held_out, training, fps: float, of: str = ""
) -> list[page.Section]:
    """Samples beside real clips, and each beside the training clip nearest to it.

    A few clips of real footage are memorised by a small model: the pairs show it.
    """
    index, distance = pixel_statistics.nearest_training(samples[:SHOWN], training)
    films = [
        page.VideoGrid("held-out clips", held_out[:SHOWN]),
        page.VideoGrid("samples", samples[:SHOWN]),
    ]
    return [
        page.VideoGrids(f"{of}Real clips and samples", films, fps),
        page.NearestNeighbours(
            f"{of}Is it remembered?", samples[:SHOWN], training[index], distance, fps
        ),
    ]


def environment_section(loaded: TrainedModel, seed: int) -> page.KeyValues:
    """What made the page."""
    count = sum(leaf.size for leaf in jax.tree.leaves(loaded.params))
    step = str(loaded.step) if loaded.step >= 0 else "a shipped model"
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "optax"))
    return page.KeyValues(
        "What it was made with",
        {
            "Machine": f"{jax.device_count()} x {jax.devices()[0].device_kind}, "
            f"{platform.machine()}",
            "Versions": f"Python {platform.python_version()}, {versions}",
            "Parameters": f"{count:,}",
            "Step": step,
            "Seed": str(seed),
        },
    )
