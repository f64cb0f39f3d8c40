"""Curves of a run's scalars, as SVG lines with HTML labels.

Lines scale with the page and labels keep their size, so one drawing fits all screens.
Colours are those of report.css, light or dark.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vdm_jax.scalars import Scalars

MAX_POINTS = 80  # drawn per line
NUM_COLOURS = 5  # in the style sheet: .c0 is the accent colour, the others are greys


@dataclass(frozen=True, eq=False)
class Line:
    """A named line; the first line of a plot is drawn in the accent colour."""

    name: str
    x: np.ndarray  # [k]
    y: np.ndarray  # [k]; points that are not finite are dropped


def loss_lines(scalars: Scalars) -> list[Line]:
    """Return the training loss, then validation losses in the order of the file.

    "val/loss_-5_+0", the loss for logsnr in -5..0, is named "val -5 +0".
    """
    names = ["train/loss", *(name for name in scalars if name.startswith("val/loss"))]
    return [
        Line(name.replace("/loss", "").replace("_", " "), *scalars[name])
        for name in names
        if name in scalars
    ]


class _Axis:
    """A linear or logarithmic map of values to 0..1, and its round tick values."""

    def __init__(self, values: np.ndarray, log: bool, margin: float):
        self.log = log
        self.scale = np.log10 if log else np.asarray
        low, high = self.scale([values.min(), values.max()])
        spare = margin * (high - low) if high > low else 0.5
        self.low, self.high = low - spare, high + spare

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return (self.scale(values) - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, float]]:
        """Return at most seven ticks within the axis, as (position, value)."""
        values = self._round_values()
        return list(zip(self(values).tolist(), values.tolist(), strict=True))

    def _round_values(self) -> np.ndarray:
        low, high = self.low, self.high
        if self.log:
            tens = 10.0 ** np.arange(np.floor(low), np.ceil(high) + 1)
            low, high = 10**low, 10**high
            for factors in ([1], [1, 3], [1, 2, 5]):
                marks = np.outer(tens, factors).ravel()
                inside = marks[(marks >= low) & (marks <= high)]
                if len(inside) >= 3:
                    return inside[:: -(-len(inside) // 6)]
        rough = (high - low) / 4
        power = 10 ** np.floor(np.log10(rough))
        step = power * next((m for m in (1, 2, 5) if m >= rough / power), 10)
        return np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step


def draw(lines: Sequence[Line], *, x_name: str = "step", log_x: bool = False) -> str:
    """Return the HTML of a plot.

    A line is the mean of at most MAX_POINTS bins. The y axis is logarithmic where all
    values are positive. A logarithmic x axis starts at 1.
    """
    series = [(line.name, *_finite(line, log_x)) for line in lines]
    series = [(name, x, y) for name, x, y in series if len(x)]
    if not series:
        return '<p class="none">No values yet.</p>'
    names, x_all, y_all = zip(*series, strict=True)
    x_axis = _Axis(np.concatenate(x_all), log_x, 0.0)
    y_axis = _Axis(np.concatenate(y_all), bool(min(map(np.min, y_all)) > 0), 0.05)
    means = [_bin_means(x_axis(x), y) for _, x, y in series]
    tops = _separated([_svg_y(y_axis(mean)[-1]) / 10 for _, mean in means])
    grid = "".join(f"M0 {_svg_y(position)}H1000" for position, _ in y_axis.ticks())
    paths = f'<path class="grid" d="{grid}"/>'
    marks = ""
    for position, value in y_axis.ticks():
        top = f"top:{_svg_y(position) / 10:.2f}%"
        marks += f'<i class="y" style="{top}">{_number(value)}</i>'
    for position, value in x_axis.ticks():
        left = f"left:{100 * position:.2f}%"
        marks += f'<i class="x" style="{left}">{_number(value)}</i>'
    for i, ((position, mean), top, name) in enumerate(
        zip(means, tops, names, strict=True)
    ):
        colour = f"c{i % NUM_COLOURS}"
        line = _path(position, y_axis(mean))
        paths += f'<path class="line {colour}" d="{line}"/>'
        marks += f'<b class="{colour}" style="top:{top:.2f}%">{html.escape(name)}</b>'
    description = "; ".join(
        f"{name} from {y[0]:.3g} to {y[-1]:.3g} at {x_name} {_number(x[-1])}"
        for name, x, y in series
    )
    return (
        f'<div class="plot" role="img" aria-label="{html.escape(description)}" '
        f'style="--gutter:{max(map(len, names)) + 2}ch">'
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">'
        f"{paths}</svg>{marks}"
        f'<i class="name">{html.escape(x_name)}</i></div>'
    )


def _finite(line: Line, log_x: bool) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(line.x, np.float64), np.asarray(line.y, np.float64)
    keep = np.isfinite(y) & np.isfinite(x)
    return np.maximum(x[keep], 1.0) if log_x else x[keep], y[keep]


def _bin_means(position: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean positions [k] and means of y [k] in bins of equal width.

    Up to MAX_POINTS points are returned as they are.
    """
    if len(position) <= MAX_POINTS:
        return position, y
    bins = np.minimum((position * MAX_POINTS).astype(int), MAX_POINTS - 1)
    groups = [bins == i for i in np.unique(bins)]
    x, means = np.array([(position[g].mean(), y[g].mean()) for g in groups]).T
    return x, means


def _separated(tops: Sequence[float], gap: float = 7.0) -> list[float]:
    """Return label positions, percent from the top, at least `gap` apart."""
    order = np.argsort(tops, kind="stable")
    offsets = gap * np.arange(len(tops))
    pushed = np.maximum.accumulate(np.array(tops)[order] - offsets) + offsets
    result = np.empty(len(tops))
    result[order] = np.minimum(pushed, 100.0 - offsets[::-1])
    return result.tolist()


def _path(x: np.ndarray, y: np.ndarray) -> str:
    points = zip(x.tolist(), y.tolist(), strict=True)
    return "M" + "L".join(f"{1000 * a:.1f} {_svg_y(b)}" for a, b in points)


def _svg_y(position: float) -> float:
    return round(1000 * (1 - position), 1)


def _number(value: float) -> str:
    return f"{value:,.6g}"
