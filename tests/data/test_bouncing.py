"""Bouncing shapes: vdm_jax/data/bouncing.py."""

import itertools

import numpy as np
import pytest
from ml_collections import ConfigDict

from vdm_jax.data import bouncing, shapes
from vdm_jax.errors import UserError

GEOMETRY = shapes.Geometry(8, 16, 16)
SOURCE = bouncing.bouncing_shapes(GEOMETRY)


def load(index, source=SOURCE, frames=8, seed=0):
    return source.load(index, np.random.default_rng(seed), frames)


@pytest.mark.parametrize("length", [3.0, 7.5])
def test_reflect_is_periodic(length):
    u = np.array([0, 0.25, 1, 1.5, 2, 2.25, -0.25]) * length
    expected = np.array([0, 0.25, 1, 0.5, 0, 0.25, 0.25]) * length
    np.testing.assert_allclose(bouncing.reflect(u, length), expected, atol=1e-12)


@pytest.mark.parametrize("size", [(8, 16, 16), (16, 24, 20), (5, 17, 31)])
def test_paths_have_one_axis_and_speed_and_reverse_at_the_edge(size):
    geometry, rng = shapes.Geometry(*size), np.random.default_rng(1)
    turns = 0
    for label in itertools.product(*map(range, shapes.ATTRIBUTE_SIZES)):
        x, y = bouncing.trajectory(np.array(label), rng, geometry)
        along, across = (x, y) if label[2] < 2 else (y, x)
        extent = shapes.EXTENT[label[0]] * geometry.radius
        far = (geometry.width if label[2] < 2 else geometry.height) - extent
        assert (along >= extent - 1e-6).all() and (along <= far + 1e-6).all()
        np.testing.assert_allclose(across, across[0])
        speed = shapes.SPEEDS[label[3]] * bouncing.fast_speed(geometry)
        steps = np.diff(along)
        assert (abs(steps) <= speed + 1e-6).all()
        if abs(abs(steps[0]) - speed) < 1e-6:  # no reflection in the first step
            assert (steps[0] > 0) == (label[2] in (1, 3))
        # A shorter step includes a reflection: the parts before and after it add up.
        for a, b in itertools.pairwise(along):
            if abs(abs(b - a) - speed) > 1e-6:
                reflected = min(a + b - 2 * extent, 2 * far - a - b)
                np.testing.assert_allclose(reflected, speed, atol=1e-6)
                turns += 1
    assert turns > 20


def test_a_fast_clip_is_reflected():
    """The path is longer than its range, so the direction changes within a clip."""
    length = bouncing.travel_range(2, GEOMETRY)[0]
    assert bouncing.fast_speed(GEOMETRY) * (GEOMETRY.frames - 1) > length


def test_items_have_all_labels_and_the_two_parts_differ():
    labels = [tuple(load(i)["label"]) for i in range(72)]
    assert len(set(labels)) == 72
    np.testing.assert_array_equal(load(5)["video"], load(5, seed=1)["video"])
    held_out = SOURCE.split(True)
    assert not np.array_equal(load(5, held_out)["video"], load(5)["video"])
    assert held_out.split(False) == SOURCE


def test_a_clip_of_fewer_frames_is_part_of_the_whole_clip():
    whole, part = load(7)["video"], load(7, frames=3)["video"]
    windows = [whole[i : i + 3] for i in range(6)]
    assert any(np.array_equal(part, window) for window in windows)


def test_sizes_that_are_too_small_are_rejected():
    video = dict(frames=1, height=16, width=16, channels=3)
    with pytest.raises(UserError, match="frames >= 2"):
        bouncing.open_bouncing(ConfigDict({"video": video}))
