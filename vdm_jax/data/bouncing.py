"""Bouncing shapes: moving shapes that are reflected at the edges of the frame.

Shapes and labels are those of data/shapes.py; the direction is that of the first frame.
Motion never ends, and a clip starts at any point of the path. Only the previous frames
determine the next ones, so an extension of a video must use them.
"""

import dataclasses
import math

import numpy as np

from vdm_jax.data import shapes
from vdm_jax.data.shapes import Geometry
from vdm_jax.data.source import Clip

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


@dataclasses.dataclass(frozen=True)
class Bouncing:
    """The source. Item i has label number i modulo 72 and a random path."""

    geometry: Geometry
    held_out: bool = False

    name = "bouncing"
    names = ()
    sizes = ()
    label_vocabulary = shapes.ATTRIBUTES
    flip = False  # a mirrored clip would have a wrong direction

    def __len__(self) -> int:
        return 2**31 - 1

    def load(self, index: int, rng: np.random.Generator, frames: int) -> Clip:
        """Load the clip of item `index`, or `frames` consecutive frames of it."""
        geometry = self.geometry
        path_rng = np.random.default_rng((2 + self.held_out, index))
        number = index % math.prod(shapes.ATTRIBUTE_SIZES)
        label = np.array(np.unravel_index(number, shapes.ATTRIBUTE_SIZES), np.int32)
        x, y = trajectory(label, path_rng, geometry)
        start = int(rng.integers(geometry.frames - frames + 1))
        window = slice(start, start + frames)
        grey = shapes.coverage(int(label[0]), x[window], y[window], geometry)
        colour = shapes.COLOURS[label[1]]
        video = np.rint(255 * grey[..., None] * colour).astype(np.uint8)
        text = shapes.caption(label, rng)
        return Clip(video=video, label=label, caption=text)

    def split(self, held_out: bool) -> "Bouncing":
        """Return the part with other random paths."""
        return dataclasses.replace(self, held_out=held_out)


def open_bouncing(config) -> Bouncing:
    """Open the source of a config. Raises the errors of `open_shapes`."""
    return Bouncing(shapes.open_shapes(config).geometry)
