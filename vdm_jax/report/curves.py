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
        low, high = self._scale(np.array([values.min(), values.max()]))
        spare = margin * (high - low) if high > low else 0.5
        self.low, self.high = low - spare, high + spare

    def _scale(self, values: np.ndarray) -> np.ndarray:
        return np.log10(values) if self.log else values

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return (self._scale(values) - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, float]]:
        """Return about four ticks within the axis, as (position, value)."""
        values = self._round_values()
        return list(zip(self(values).tolist(), values.tolist(), strict=True))

    def _round_values(self) -> np.ndarray:
        if self.log:
            tens = 10.0 ** np.arange(np.floor(self.low), np.ceil(self.high) + 1)
            for factors in ([1], [1, 3], [1, 2, 5]):
                marks = np.outer(tens, factors).ravel()
                position = self(marks)
                inside = marks[(position >= 0) & (position <= 1)]
                if len(inside) >= 3:
                    return inside[:: -(-len(inside) // 6)]
            low, high = 10**self.low, 10**self.high
        else:
            low, high = self.low, self.high
        rough = (high - low) / 4
        power = 10 ** np.floor(np.log10(rough))
        step = power * next((m for m in (1, 2, 5) if m >= rough / power), 10)
        return np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step


def draw(lines: Sequence[Line], *, x_name: str = "step", log_x: bool = False) -> str:
    """Return the HTML of a plot.

    A line is the mean of at most MAX_POINTS bins; where a bin has several points, a
    band shows their 10th to 90th percentile. The y axis is logarithmic where all values
    are positive. A logarithmic x axis starts at 1.
    """
    series = [(line.name, *_finite(line, log_x)) for line in lines]
    series = [(name, x, y) for name, x, y in series if len(x)]
    if not series:
        return '<p class="none">No values yet.</p>'
    y_all = np.concatenate([y for _, _, y in series])
    x_axis = _Axis(np.concatenate([x for _, x, _ in series]), log_x, 0.0)
    y_axis = _Axis(y_all, bool((y_all > 0).all()), 0.05)
    paths, tops = [], []
    for i, (_, x, y) in enumerate(series):
        colour = f"c{i % NUM_COLOURS}"
        position, (mean, low, high) = _bin_means(x_axis(x), y)
        if (high > low).any():
            edge = np.r_[position, position[::-1]], y_axis(np.r_[high, low[::-1]])
            paths.append(f'<path class="band {colour}" d="{_path(*edge)}Z"/>')
        d = _path(position, y_axis(mean))
        paths.append(f'<path class="line {colour}" d="{d}"/>')
        tops.append(_svg_y(y_axis(mean)[-1]) / 10)
    grid = "".join(f"M0 {_svg_y(position)}H1000" for position, _ in y_axis.ticks())
    ticks = [
        f'<i class="y" style="top:{_svg_y(position) / 10:.2f}%">{_number(value)}</i>'
        for position, value in y_axis.ticks()
    ] + [
        f'<i class="x" style="left:{100 * position:.2f}%">{_number(value)}</i>'
        for position, value in x_axis.ticks()
    ]
    names = [name for name, _, _ in series]
    labels = [
        f'<b class="c{i % NUM_COLOURS}" style="top:{top:.2f}%">{html.escape(name)}</b>'
        for i, (top, name) in enumerate(zip(_separated(tops), names, strict=True))
    ]
    description = "; ".join(
        f"{name} from {y[0]:.3g} to {y[-1]:.3g} at {x_name} {_number(x[-1])}"
        for name, x, y in series
    )
    gutter = max(map(len, names)) + 2
    return (
        f'<div class="plot" role="img" aria-label="{html.escape(description)}" '
        f'style="--gutter:{gutter}ch">'
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="grid" d="{grid}"/>{"".join(paths)}</svg>'
        f'{"".join(ticks)}{"".join(labels)}<i class="name">{html.escape(x_name)}</i>'
        "</div>"
    )


def _finite(line: Line, log_x: bool) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(line.x, np.float64), np.asarray(line.y, np.float64)
    keep = np.isfinite(y) & np.isfinite(x)
    return np.maximum(x[keep], 1.0) if log_x else x[keep], y[keep]


def _bin_means(position: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return bins of equal width: mean positions [k], and mean, low, high of y [3, k].

    low and high are the 10th and the 90th percentile. Up to MAX_POINTS points are
    returned as they are.
    """
    if len(position) <= MAX_POINTS:
        return position, np.stack([y, y, y])
    bins = np.minimum((position * MAX_POINTS).astype(int), MAX_POINTS - 1)
    groups = [bins == i for i in np.unique(bins)]
    values = [[y[g].mean(), *np.quantile(y[g], [0.1, 0.9])] for g in groups]
    return np.array([position[g].mean() for g in groups]), np.array(values).T


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
