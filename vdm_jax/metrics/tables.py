"""Tables of scores: columns, formatted cells, plain text."""

from collections.abc import Mapping, Sequence

import numpy as np

Row = dict[str, str | int | float]


def distance_columns(name: str, heading: str, form: str) -> dict[str, tuple[str, str]]:
    """Of the keys of `distances`."""
    return {
        name: (heading, form),
        f"{name}_error": ("±", form),
        f"{name}_infinite": ("n = ∞", form),
        f"{name}_kernel": ("KID", ".3g"),
        f"{name}_kernel_error": ("±", ".2g"),
    }


BIAS_NOTE = (
    "Frechet distances are too large by an amount that falls with the number of "
    "clips. n = ∞ is the distance extrapolated to infinitely many; with fewer features "
    "than about one and a half times their numbers it is still too large. KID, a "
    "kernel distance of the same features, has no such bias: its mean is 0 for equal "
    "distributions, so it may be negative. ± is a standard error by the chance of the "
    "row's own clips; on Gaussians twice that to either side held the mean over other "
    "clips, as many, in 90 to 97 trials of a hundred, of KID in 83 to 97."
)


def format_cells(
    rows: Sequence[Row], columns: Mapping[str, tuple[str, str]]
) -> tuple[list[str], list[list[str]]]:
    """Headings and formatted cells of a table, for the terminal and for the report."""
    headings = [heading.format(**rows[0]) for heading, _ in columns.values()]
    return headings, [
        [_cell(row.get(key), form) for key, (_, form) in columns.items()]
        for row in rows
    ]


def format_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as aligned plain text: first column left, the others right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        name, *values = row
        right = [v.rjust(w) for v, w in zip(values, widths[1:], strict=True)]
        return "  ".join([name.ljust(widths[0]), *right]).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(headings), rule, *map(line, rows)])


def _cell(value: str | int | float | None, form: str) -> str:
    missing = value is None or (not isinstance(value, str) and np.isnan(value))
    return "–" if missing else format(value, form)
