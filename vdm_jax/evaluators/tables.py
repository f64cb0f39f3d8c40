"""Tables of a report: scores by pixels, by networks, and by attributes."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vdm_jax.metrics import clip_score, perceptual, pixel_statistics
from vdm_jax.metrics.perceptual import PerceptualNetworks
from vdm_jax.metrics.reference_sets import ReferenceSets
from vdm_jax.metrics.tables import BIAS_NOTE, Row, format_cells
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
TABLES = (
    ("text", "Agreement with the text", clip_score.COLUMNS, clip_score.NOTE),
    ("pixels", "Pixel statistics", pixel_statistics.COLUMNS, PIXEL_NOTE),
    ("pixels", BIAS_TITLE, pixel_statistics.BIAS_COLUMNS, BIAS_NOTE),
    ("networks", "Network metrics", perceptual.COLUMNS, perceptual.NOTE),
    ("networks", f"{BIAS_TITLE} by networks", perceptual.BIAS_COLUMNS, BIAS_NOTE),
)
Scores = dict[str, list[Row]]  # rows by kind, of TABLES


def measure(
    sets: ReferenceSets,
    training: np.ndarray,
    networks: PerceptualNetworks | None,
    extra_samples: Mapping[str, np.ndarray] | None = None,
) -> Scores:
    """Return rows of scores of the named sets.

    Args:
      training: real clips that are searched for copies.
      networks: for the network metrics; None leaves them out.
      extra_samples: further samples by row name, among the pixel statistics.
    """
    scores = {"pixels": pixel_statistics.pixel_rows(sets, training, extra_samples)}
    if networks:
        scores["networks"] = perceptual.network_rows(sets, networks)
    return scores


def score_tables(
    results: Mapping[str, Any],
    baselines: Mapping[str, dict] | None = None,
    prefix: str = "",
    attribute_note: str = "",
) -> list[page.Table]:
    """Return the tables of a results.json: attributes, those of TABLES.

    baselines: of `read_baseline_reports`; their first rows follow our first. prefix:
    of the titles. attribute_note: of the measure of attributes.
    """
    tables = []
    if "attributes" in results:
        rows = results["attributes"]
        tables.append(attribute_table(rows, prefix, attribute_note))
    for kind, title, columns, note in TABLES:
        if kind in results:
            own, *others = results[kind]
            reports = [(k, v[kind]) for k, v in (baselines or {}).items() if kind in v]
            theirs = [rows[0] | {"row": folder} for folder, rows in reports]
            cells = format_cells([own, *theirs, *others], columns)
            tables.append(page.Table(prefix + title, *cells, highlight=(0,), note=note))
    return tables


def attribute_table(
    rows: Mapping[str, Row], prefix: str = "", note: str = ""
) -> page.Table:
    """Return the table of attribute scores by row name, with all columns of a row."""
    names = dict.fromkeys(name for row in rows.values() for name in row)
    names.pop("position_std_error", None)
    columns = {name: (name.replace("_", " "), ".3f") for name in names}
    columns |= {name: ("95%", ".3f") for name in names if name.endswith("_interval")}
    if "clips" in names:
        columns["clips"] = "n", "d"
    cells = format_cells([{"row": k, **row} for k, row in rows.items()], columns)
    cells[0][0] = ""
    return page.Table(f"{prefix}Attribute accuracy", *cells, note=note)
