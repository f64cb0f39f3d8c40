"""A run's scalars, and a picture of them: an SVG of lines with HTML for its words.

The lines stretch with the page and the words keep their size, so one drawing serves a
phone and a desk; colours are the page's own (report.css), light or dark.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vdm_jax.scalars import Scalars

BINS = 80  # points a line is drawn with at most
COLOURS = 5  # of the style sheet: .c0 is the accent, the others greys


@dataclass(frozen=True, eq=False)
class Line:
    """One line of a curve; the first line of a curve is drawn in the accent colour."""

    name: str
    x: np.ndarray  # [k]
    y: np.ndarray  # [k]; points that are not finite are left out


def loss_lines(scalars: Scalars) -> list[Line]:
    """The training loss, then the validation losses in the order of the file.

    "val/loss_-5_+0", the loss where logsnr is in -5..0, is called "val -5 to 0".
    """
    lines = [Line("train", *scalars["train/loss"])] if "train/loss" in scalars else []
    for name, points in scalars.items():
        if name.startswith("val/loss"):
            band = name.removeprefix("val/loss").replace("+", "").split("_")[1:]
            lines.append(Line(" ".join(["val", " to ".join(band)]).rstrip(), *points))
    return lines


class _Axis:
    """Values to 0..1 along an axis, linear or logarithmic, with its round numbers."""

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
        """About four round numbers within the axis: (place, value)."""
        values = self._round()
        return list(zip(self(values).tolist(), values.tolist(), strict=True))

    def _round(self) -> np.ndarray:
        if self.log:
            tens = 10.0 ** np.arange(np.floor(self.low), np.ceil(self.high) + 1)
            choices = [tens, np.outer(tens, [1, 3]).ravel()]
            choices += [np.outer(tens, [1, 2, 5]).ravel()]
            for marks in choices:
                place = self(marks)
                inside = marks[(place >= 0) & (place <= 1)]
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
    """HTML of the lines: the mean of at most BINS points, and where a bin holds many,
    a band from their 10th to their 90th percentile behind it.

    The y axis is logarithmic where every value is above 0. A log x axis starts at 1.
    """
    kept = [(line.name, *_finite(line, log_x)) for line in lines]
    kept = [(name, x, y) for name, x, y in kept if len(x)]
    if not kept:
        return '<p class="none">No values yet.</p>'
    y_all = np.concatenate([y for _, _, y in kept])
    across = _Axis(np.concatenate([x for _, x, _ in kept]), log_x, 0.0)
    up = _Axis(y_all, bool((y_all > 0).all()), 0.05)
    shapes, tops = [], []
    for i, (_, x, y) in enumerate(kept):
        colour = f"c{i % COLOURS}"
        place, (mean, low, high) = _thin(across(x), y)
        if (high > low).any():
            edge = np.r_[place, place[::-1]], up(np.r_[high, low[::-1]])
            shapes.append(f'<path class="band {colour}" d="{_path(*edge)}Z"/>')
        shapes.append(f'<path class="line {colour}" d="{_path(place, up(mean))}"/>')
        tops.append(_y(up(mean)[-1]) / 10)
    grid = "".join(f"M0 {_y(place)}H1000" for place, _ in up.ticks())
    ticks = [
        f'<i class="y" style="top:{_y(place) / 10:.2f}%">{_number(value)}</i>'
        for place, value in up.ticks()
    ] + [
        f'<i class="x" style="left:{100 * place:.2f}%">{_number(value)}</i>'
        for place, value in across.ticks()
    ]
    labels = [
        f'<b class="c{i % COLOURS}" style="top:{top:.2f}%">{html.escape(name)}</b>'
        for i, (top, (name, _, _)) in enumerate(zip(_apart(tops), kept, strict=True))
    ]
    said = "; ".join(
        f"{name} from {y[0]:.3g} to {y[-1]:.3g} at {x_name} {_number(x[-1])}"
        for name, x, y in kept
    )
    gutter = max(len(name) for name, _, _ in kept) + 2
    return (
        f'<div class="plot" role="img" aria-label="{html.escape(said)}" '
        f'style="--gutter:{gutter}ch">'
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="grid" d="{grid}"/>{"".join(shapes)}</svg>'
        f'{"".join(ticks)}{"".join(labels)}<i class="name">{html.escape(x_name)}</i>'
        "</div>"
    )


def _finite(line: Line, log_x: bool) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(line.x, np.float64), np.asarray(line.y, np.float64)
    keep = np.isfinite(y) & np.isfinite(x)
    return np.maximum(x[keep], 1.0) if log_x else x[keep], y[keep]


def _thin(place: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bins of equal width on the axis: mean place [k], and mean, low, high [3, k]."""
    if len(place) <= BINS:
        return place, np.stack([y, y, y])
    bins = np.minimum((place * BINS).astype(int), BINS - 1)
    groups = [bins == i for i in np.unique(bins)]
    spread = [[y[g].mean(), *np.quantile(y[g], [0.1, 0.9])] for g in groups]
    return np.array([place[g].mean() for g in groups]), np.array(spread).T


def _apart(tops: Sequence[float], gap: float = 7.0) -> list[float]:
    """Places (percent from the top) for labels: near their lines, none overlapping."""
    order = np.argsort(tops, kind="stable")
    room = gap * np.arange(len(tops))
    pushed = np.maximum.accumulate(np.array(tops)[order] - room) + room
    result = np.empty(len(tops))
    result[order] = np.minimum(pushed, 100.0 - room[::-1])
    return result.tolist()


def _path(x: np.ndarray, y: np.ndarray) -> str:
    points = zip(x.tolist(), y.tolist(), strict=True)
    return "M" + "L".join(f"{1000 * a:.1f} {_y(b)}" for a, b in points)


def _y(place: float) -> float:
    return round(1000 * (1 - place), 1)


def _number(value: float) -> str:
    return f"{value:,.6g}"
