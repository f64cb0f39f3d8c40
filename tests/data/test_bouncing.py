"""Laws of the bouncing shapes: paths that reflection allows, labels, seeds."""

import itertools

import numpy as np
import pytest
from ml_collections import ConfigDict

from vdm_jax.data import bouncing, shapes
from vdm_jax.errors import UserError

GEOMETRY = shapes.Geometry(8, 16, 16)
SOURCE = bouncing.Bouncing(GEOMETRY)


def load(index, source=SOURCE, frames=8, seed=0):
    return source.load(index, np.random.default_rng(seed), frames)


@pytest.mark.parametrize("room", [3.0, 7.5])
def test_the_triangle_goes_there_and_back(room):
    u = np.array([0, 0.25, 1, 1.5, 2, 2.25, -0.25]) * room
    expected = np.array([0, 0.25, 1, 0.5, 0, 0.25, 0.25]) * room
    np.testing.assert_allclose(bouncing.reflect(u, room), expected, atol=1e-12)


@pytest.mark.parametrize("size", [(8, 16, 16), (16, 24, 20), (5, 17, 31)])
def test_paths_move_along_one_axis_at_one_speed_and_turn_at_the_edge(size):
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
        if abs(abs(steps[0]) - speed) < 1e-6:  # it does not turn at once
            assert (steps[0] > 0) == (label[2] in (1, 3))
        # Where a step is shorter the shape has touched the edge: gone, turned, come.
        for a, b in itertools.pairwise(along):
            if abs(abs(b - a) - speed) > 1e-6:
                turned = min(a + b - 2 * extent, 2 * far - a - b)
                np.testing.assert_allclose(turned, speed, atol=1e-6)
                turns += 1
    assert turns > 20


def test_a_fast_clip_is_reflected():
    """Faster than the room is wide: within a clip the heading changes."""
    room = bouncing.travel_range(2, GEOMETRY)[0]
    assert bouncing.fast_speed(GEOMETRY) * (GEOMETRY.frames - 1) > room


def test_items_have_all_labels_and_the_two_parts_differ():
    labels = [tuple(load(i)["label"]) for i in range(72)]
    assert len(set(labels)) == 72
    np.testing.assert_array_equal(load(5)["video"], load(5, seed=1)["video"])
    held_out = SOURCE.split(True)
    assert not np.array_equal(load(5, held_out)["video"], load(5)["video"])
    assert held_out.split(False) == SOURCE


def test_a_clip_of_fewer_frames_is_a_window_of_the_whole():
    whole, part = load(7)["video"], load(7, frames=3)["video"]
    windows = [whole[i : i + 3] for i in range(6)]
    assert any(np.array_equal(part, window) for window in windows)


def test_sizes_without_room_are_refused():
    video = dict(frames=1, height=16, width=16, channels=3)
    with pytest.raises(UserError, match="frames >= 2"):
        bouncing.open_bouncing(ConfigDict({"video": video}))
