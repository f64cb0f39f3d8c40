"""Bouncing shapes: moving shapes that are reflected at the edges of the frame.

Shapes and labels are those of data/shapes.py; the direction is that of the first frame.
Motion never ends, and a clip starts at any point of the path. Only the previous frames
determine the next ones, so an extension of a video must use them.
"""

import numpy as np

from vdm_jax.data import shapes
from vdm_jax.data.shapes import Geometry, Shapes

AXES = np.abs(shapes.DIRECTIONS).argmax(1)  # axis of each direction: 0 is x, 1 is y
SPEED_FACTOR = 1.5  # relative to moving shapes


def fast_speed(geometry: Geometry) -> float:
    """Return the pixels per frame of a fast shape: 1.34 for 8 frames of 16x16."""
    return SPEED_FACTOR * geometry.fast_speed


def reflect(u, length):
    """Reflect a position `u` at 0 and at `length`.

    The result is 0 at u = 0, `length` at u = length, and has the period 2 length.
    """
    return length - abs(u % (2 * length) - length)


def travel_range(shape: int, geometry: Geometry) -> np.ndarray:
    """Return [x, y], the pixels between the extreme positions of a shape's centre."""
    extent = shapes.EXTENT[shape] * geometry.radius
    return np.array([geometry.width, geometry.height]) - 2 * extent


def trajectory(
    label: np.ndarray,
    rng: np.random.Generator,
    geometry: Geometry,
    step: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return centres x, y [frames] with a uniform first position.

    step: pixels per frame of a fast shape; the default is `fast_speed`.
    """
    shape, _, direction, speed = label
    axis = AXES[direction]
    backward = shapes.DIRECTIONS[direction, axis] < 0
    lengths = travel_range(shape, geometry)
    centres = np.tile(lengths * rng.random(2), (geometry.frames, 1))
    # The second half of the period of `reflect` is the backward motion.
    start = lengths[axis] * (rng.random() + backward)
    fast = fast_speed(geometry) if step is None else step
    distance = shapes.SPEEDS[speed] * fast * np.arange(geometry.frames)
    centres[:, axis] = reflect(start + distance, lengths[axis])
    x, y = (centres + shapes.EXTENT[shape] * geometry.radius).T
    return x, y


def bouncing_shapes(geometry: Geometry, held_out: bool = False) -> Shapes:
    """Return the source of bouncing shapes. All labels are in both of its parts."""
    return Shapes(geometry, held_out, (), "bouncing", trajectory, seed=2)


def open_bouncing(config) -> Shapes:
    """Open the source of a config. Raises the errors of `open_shapes`."""
    return bouncing_shapes(shapes.open_shapes(config).geometry)
