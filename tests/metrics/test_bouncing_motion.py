"""Attributes and motion of bouncing shapes, on videos with known paths."""

import numpy as np
import pytest

from experiments.extension import continuation
from vdm_jax.data import bouncing, shapes
from vdm_jax.metrics import bouncing_motion
from vdm_jax.metrics.shape_scores import BOUNCING

GEOMETRY = shapes.Geometry(8, 16, 16)
LONG = shapes.Geometry(20, 16, 16)


def videos(n=72, geometry=LONG, step=None):
    """Return uint8 [n, f, h, w, 3], labels and centres, at speeds of eight frames."""
    rng = np.random.default_rng(0)
    rendered, centres, labels = [], [], []
    for i in range(n):
        label = np.array(np.unravel_index(i % 72, shapes.ATTRIBUTE_SIZES))
        fast = bouncing.fast_speed(GEOMETRY) if step is None else step
        x, y = bouncing.trajectory(label, rng, geometry, fast)
        grey = shapes.coverage(int(label[0]), x, y, geometry)
        rendered.append(np.rint(255 * grey[..., None] * shapes.COLOURS[label[1]]))
        centres.append(np.stack([x, y], -1))
        labels.append(label)
    return np.stack(rendered).astype(np.uint8), np.stack(labels), np.stack(centres)


@pytest.fixture(scope="module")
def long():
    return videos()


def test_reference_scores_are_high_for_real_and_low_for_distorted_clips():
    rows = BOUNCING.reference_scores(GEOMETRY, n=72)
    assert rows["real"]["all_attributes"] >= 0.99
    assert rows["real + noise .2"]["all_attributes"] >= 0.97
    assert rows["shuffled frames"]["all_attributes"] <= 0.1
    assert rows["noise"]["all_attributes"] <= 0.1
    assert rows["chance"]["all_attributes"] == pytest.approx(1 / 36)


def test_a_fitted_path_is_the_one_that_was_drawn(long):
    _, labels, centres = long
    for shape in range(3):
        index = labels[:, 0] == shape
        path = bouncing_motion.fit_path(centres[index], shape, GEOMETRY)
        np.testing.assert_array_equal(path["axis"], labels[index, 2] // 2)
        speed = shapes.SPEEDS[labels[index, 3]] * bouncing.fast_speed(GEOMETRY)
        np.testing.assert_allclose(path["speed"], speed, atol=0.01)
        assert path["error"].max() < 1e-3
        for frame in (0, 7, 19):
            here = continuation.path_position(path, frame, shape, GEOMETRY)
            np.testing.assert_allclose(here, centres[index, frame], atol=0.1)


def test_a_continued_motion_has_no_error(long):
    errors = continuation.continuation_errors(long[0], GEOMETRY)
    for error in errors.values():
        assert np.isnan(error[:, :4]).all()
        assert np.mean(error[:, 4:]) < 0.05
    assert continuation.consistent_attributes(long[0]).all()


def test_a_jump_is_measured_in_its_frame_and_in_pixels(long):
    """The second half is shifted by two pixels: so is the displacement of frame 10."""
    whole, _, _ = long
    jumped = whole.copy()
    jumped[:, 10:] = np.roll(whole[:, 10:], 2, axis=3)
    inside = (jumped[:, :, :, 0].max((2, 3)) < 30).all(1)  # not rolled over the edge
    errors = continuation.continuation_errors(jumped[inside], GEOMETRY)
    assert inside.sum() >= 5
    for error in errors.values():
        np.testing.assert_allclose(error[:, 10].mean(), 2, atol=0.3)
        assert error[:, 4:10].mean() < 0.05


def test_a_change_of_colour_or_speed_is_inconsistent(long):
    whole, _, _ = long
    recoloured = whole.copy()
    recoloured[:, 12:] = whole[:, 12:, :, :, [1, 2, 0]]
    same = continuation.consistent_attributes(recoloured)
    assert not same[:, 1].any()
    slower = np.concatenate([whole[:, ::2][:, :10], whole[:, 10:]], axis=1)
    assert continuation.consistent_attributes(slower)[:, 3].mean() < 0.4
