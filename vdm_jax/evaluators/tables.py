"""Tables of a report: scores by pixels, by networks, and by attributes of shapes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vdm_jax.data import shapes
from vdm_jax.metrics import perceptual, pixel_statistics
from vdm_jax.metrics.perceptual import PerceptualNetworks
from vdm_jax.metrics.tables import BIAS_NOTE, format_cells, format_table
from vdm_jax.report import page

PIXEL_NOTE = (
    "Frame FD and motion FD are Frechet distances of pixel features: lower is closer "
    "to real clips, and 'training real' is the lowest value that this many clips "
    "reach. Motion and sharpness are ratios to real clips. 'Closer to train' is the "
    "fraction of clips that are closer to a training clip than the median held-out "
    "clip: far above .5 it indicates memorisation. The rows of distorted clips show "
    "which distortions each score detects."
)
BIAS_TITLE = "Bias and error of the distances"
CHECKS_NOTE = (
    "A constant colour, a still image and a blurred clip do not pass all of these. FVD "
    "and the frame FD hardly depend on motion, so motion and sharpness are checked "
    "too. Small models memorise some clips: view the nearest training clips as well."
)
TABLES = (
    ("pixels", "Pixel statistics", pixel_statistics.COLUMNS, PIXEL_NOTE),
    ("pixels", BIAS_TITLE, pixel_statistics.BIAS_COLUMNS, BIAS_NOTE),
    ("networks", "Network metrics", perceptual.COLUMNS, perceptual.NOTE),
    ("networks", f"{BIAS_TITLE} by networks", perceptual.BIAS_COLUMNS, BIAS_NOTE),
)


def measure_tables(
    samples: np.ndarray,
    training: np.ndarray,
    held_out: np.ndarray | None,
    networks: PerceptualNetworks | None,
    baselines: Mapping[str, dict],
    seed: int = 0,
    extra_samples: Mapping[str, np.ndarray] | None = None,
) -> tuple[list[page.Table], dict[str, list[dict]]]:
    """Measure samples and real clips; return tables, and their rows by kind.

    Args:
      samples: [n, f, h, w, c]; training, held_out: real clips of that shape.
      networks: for the network metrics; None leaves them out.
      baselines: of `read_baseline_reports`; their first rows follow ours.
      seed: of the draw of the reference clips.
      extra_samples: further samples by row name, in the pixel tables.
    """
    pixels = pixel_statistics.pixel_table(
        samples, training, held_out, seed, extra_samples
    )
    scores = {"pixels": pixels}
    if networks:
        scores["networks"] = perceptual.network_table(
            samples, training, held_out, networks, seed
        )
    tables = []
    for kind, title, columns, note in TABLES:
        if kind in scores:
            own, *others = scores[kind]
            theirs = [
                report[kind][0] | {"row": folder}
                for folder, report in baselines.items()
            ]
            cells = format_cells([own, *theirs, *others], columns)
            tables.append(page.Table(title, *cells, highlight=(0,), note=note))
    if networks:
        checks = perceptual.acceptance_checks(pixels, scores["networks"])
        headings = ["", "score", "limits", "passed"]
        tables.append(
            page.Table("Acceptance checks", headings, checks, note=CHECKS_NOTE)
        )
    return tables, scores


def attribute_rows(
    shape: Sequence[int],
    metric: Any,
    samples: Mapping[float, np.ndarray],
    labels: np.ndarray,
) -> dict[str, dict[str, float]]:
    """Return attribute scores of real and distorted clips, then of samples.

    Args:
      shape: (frames, height, width, channels) of a video.
      metric: a module of ATTRIBUTE_METRICS.
      samples: videos by guidance scale.
      labels: int [n, 4].
    """
    frames, height, width, _ = shape
    rows = metric.reference_scores(shapes.Geometry(frames, height, width))
    for scale, videos in samples.items():
        rows[f"samples, guidance_scale {scale:g}"] = metric.attribute_scores(
            videos, labels
        )
    return rows


def attribute_table(rows: Mapping[str, dict[str, float]], metric: Any) -> page.Table:
    """Return the table of `attribute_rows`."""
    columns = (*metric.NAMES, "all_attributes", "template_mse", "position_std")
    headings = ["", *(name.replace("_", " ") for name in columns)]

    def cell(row: dict[str, float], name: str) -> str:
        return f"{row[name]:.3f}" if name in row else "–"

    cells = [
        [name, *(cell(row, column) for column in columns)] for name, row in rows.items()
    ]
    return page.Table("Attribute accuracy", headings, cells, note=metric.NOTE)


def print_tables(tables: Sequence[page.Table]) -> None:
    """Print tables as plain text."""
    for table in tables:
        print(f"\n{table.title}\n{format_table(table.headings, table.rows)}")
