"""Tables of scores: their columns, formatted cells and plain text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]  # scores of one set of videos by name
Columns = dict[str, tuple[str, str]]  # heading and format by key of a row


def distance_columns(columns: Columns, *names: str) -> Columns:
    """Return the columns of the keys of `frechet.distance_scores`, by those of NAME."""
    shown = {}
    for name in names:
        heading, form = columns[name]
        shown |= {
            name: (heading, form),
            f"{name}_error": ("±", form),
            f"{name}_infinite": ("n = ∞", form),
            f"{name}_kernel": ("KID", ".3g"),
            f"{name}_kernel_error": ("±", ".2g"),
        }
    return shown


BIAS_NOTE = (
    "A Frechet distance is biased upwards, by an amount that falls with the number of "
    "clips. n = ∞ is the distance extrapolated to infinitely many clips. With fewer "
    "feature vectors than about one and a half times their length it is still too "
    "large. KID, a kernel distance of the same features, is unbiased: its mean is 0 "
    "for equal distributions, so it may be negative. ± is the standard error over "
    "draws of the row's own clips."
)


def format_cells(
    rows: Sequence[Row], columns: Columns
) -> tuple[list[str], list[list[str]]]:
    """Return headings and formatted cells of a table; the first cell is the row's name.

    Columns without any value are left out. A cell without a value is a dash.
    """
    shown = {key: v for key, v in columns.items() if any(key in row for row in rows)}
    first = f"{rows[0]['clips']} clips a row" if "clips" in rows[0] else ""
    headings = [first, *(heading for heading, _ in shown.values())]
    return headings, [
        [str(row["row"]), *(_cell(row.get(k), form) for k, (_, form) in shown.items())]
        for row in rows
    ]


def format_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as plain text, first column left-aligned, the others right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        name, *values = row
        right = [v.rjust(w) for v, w in zip(values, widths[1:], strict=True)]
        return "  ".join([name.ljust(widths[0]), *right]).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(headings), rule, *map(line, rows)])


def _cell(value: Any, form: str) -> str:
    """Return a number, an interval (low, high) or words as text."""
    if isinstance(value, list | tuple):
        return " to ".join(format(end, form) for end in value)
    missing = value is None or (not isinstance(value, str) and np.isnan(value))
    return "–" if missing else format(value, form)
