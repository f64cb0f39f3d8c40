"""Reading a run's scalars, and drawing them to scale."""

import json
import re

import numpy as np
import pytest

from vdm_jax import scalars
from vdm_jax.errors import UserError
from vdm_jax.report import curves


def line_points(drawn, which):
    """Points of a path, in thousandths of the plot, y upwards."""
    path = re.search(rf'class="line {which}" d="M([^"]*)"', drawn)[1]
    x, y = np.array([point.split() for point in path.split("L")], float).T
    return x, 1000 - y


def test_scalars_are_sorted_despite_incomplete_and_repeated_lines(tmp_path):
    rows = [
        {"step": 10, "train/loss": 0.5, "time": 1.0},
        {"step": 20, "train/loss": 0.4, "val/loss_-5_+0": 0.9},
        {"step": 20, "train/loss": 0.3},  # repeated after a kill
        {"step": 30, "train/loss": None},  # not finite
    ]
    lines = [json.dumps(row) for row in rows]
    text = "\n".join([*lines[:2], '{"step": 30, "tr', *lines[2:], "7", '{"step": 40'])
    (tmp_path / "metrics.jsonl").write_text(text)
    values = scalars.read_scalars(tmp_path)
    np.testing.assert_array_equal(values["train/loss"], [[10, 20], [0.5, 0.3]])
    np.testing.assert_array_equal(values["val/loss_-5_+0"], [[20], [0.9]])


def test_a_folder_without_metrics_is_named(tmp_path):
    with pytest.raises(UserError, match="metrics.jsonl is missing"):
        scalars.read_scalars(tmp_path)


def test_loss_lines_are_training_then_bands_of_noise():
    points = (np.arange(2.0), np.ones(2))
    scalars = {
        "val/loss_-20_-5": points,
        "val/loss_-5_+0": points,
        "val/loss": points,
        "train/grad_norm": points,
        "train/loss": points,
    }
    names = [line.name for line in curves.loss_lines(scalars)]
    assert names == ["train", "val -20 -5", "val -5 +0", "val"]


@pytest.mark.parametrize("log_x", [False, True])
def test_values_can_be_read_back_from_lines_and_ticks(log_x):
    x = np.array([1.0, 40, 300, 1000])
    y = np.array([3.0, 0.2, 0.05, 0.01])  # all above 0: a logarithmic axis
    drawn = curves.draw([curves.Line("a", x, y)], log_x=log_x)
    px, py = line_points(drawn, "c0")
    assert (np.diff(py) < 0).all()  # a falling loss falls
    ticks = {
        axis: np.array(
            [
                (float(position), float(value.replace(",", "")))
                for position, value in re.findall(pattern, drawn)
            ]
        )
        for axis, pattern in {
            "x": r'class="x" style="left:([\d.]+)%">([^<]+)<',
            "y": r'class="y" style="top:([\d.]+)%">([^<]+)<',
        }.items()
    }

    def read(axis, values, position, log):
        """Values at positions, by the line through the first and the last tick."""
        marks = np.log(values) if log else values
        slope = (marks[-1] - marks[0]) / (axis[-1] - axis[0])
        scaled = marks[0] + slope * (position - axis[0])
        return np.exp(scaled) if log else scaled

    assert len(ticks["x"]) >= 2 and len(ticks["y"]) >= 2
    across = read(*ticks["x"].T, px / 10, log_x)
    np.testing.assert_allclose(across, x, rtol=0.02, atol=0.0 if log_x else 2)
    up = read(100 - ticks["y"][:, 0], ticks["y"][:, 1], py / 10, True)
    np.testing.assert_allclose(up, y, rtol=0.02)


@pytest.mark.parametrize(
    "low, high, log",
    [(-3, 5, False), (0, 1e-4, False), (95, 1e6, False), (2, 2, False)]
    + [(1e-9, 1e9, True), (0.3, 0.4, True), (95, 1e6, True), (2, 2, True)],
)
def test_ticks_are_few_within_the_axis_and_sorted(low, high, log):
    axis = curves._Axis(np.array([low, high], float), log, 0.05)
    places = np.array(axis.ticks())[:, 0]
    assert 2 <= len(places) <= 7
    assert (places >= -1e-9).all() and (places <= 1 + 1e-9).all()
    assert (np.diff(places) > 0).all()


def test_many_points_become_means():
    rng = np.random.default_rng(0)
    x = np.arange(4000.0)
    y = rng.normal(size=4000)
    y[7] = np.nan
    drawn = curves.draw([curves.Line("a", x, y)])
    px, py = line_points(drawn, "c0")
    assert 70 < len(px) <= curves.MAX_POINTS
    finite = np.delete(np.column_stack([x / 3999, y]), 7, axis=0)
    _, means = curves._bin_means(*finite.T)
    counts = np.histogram(finite[:, 0], np.linspace(0, 1, curves.MAX_POINTS + 1))[0]
    assert (means * counts).sum() == pytest.approx(finite[:, 1].sum(), rel=1e-9)


def test_labels_do_not_overlap_and_keep_their_order():
    tops = [50.0, 51.0, 50.5, 99.0, 98.0]
    placed = np.array(curves._separated(tops))
    order = np.argsort(tops)
    assert (np.diff(placed[order]) >= 7 - 1e-9).all()
    assert placed.max() <= 100
    np.testing.assert_array_equal(curves._separated([10.0, 90.0]), [10.0, 90.0])


def test_a_plot_without_values_says_so():
    line = curves.Line("a", np.arange(2.0), np.array([np.nan, np.inf]))
    assert "No values yet" in curves.draw([line])
    assert "No values yet" in curves.draw([])
