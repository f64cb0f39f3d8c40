"""Bouncing shapes: moving shapes whose motion can go on for ever.

The shapes of data/shapes.py with their labels, reflected where their edge meets the
frame's; the direction is that of the first frame. The clip starts anywhere on the way,
so nothing but the frames before says what comes next: what an extension of a video must
read from them.
"""

import dataclasses
import math

import numpy as np

from vdm_jax.data import shapes
from vdm_jax.data.shapes import Geometry
from vdm_jax.data.source import Clip

AXES = np.abs(shapes.DIRECTIONS).argmax(1)  # of each direction: 0 across, 1 down
SPEED_FACTOR = 1.5  # than moving shapes: 1.34 pixels a frame at 8 frames of 16x16


def fast_speed(geometry: Geometry) -> float:
    """Of a fast shape, in pixels a frame."""
    return SPEED_FACTOR * geometry.fast_speed


def reflect(u, room):
    """The reflected path: 0 at u = 0, `room` at u = room, back to 0 at 2 room."""
    return room - abs(u % (2 * room) - room)


def travel_range(shape: int, geometry: Geometry) -> np.ndarray:
    """[x, y] pixels between the outermost places of a shape's centre."""
    extent = shapes.EXTENT[shape] * geometry.radius
    return np.array([geometry.width, geometry.height]) - 2 * extent


def trajectory(
    label: np.ndarray,
    rng: np.random.Generator,
    geometry: Geometry,
    step: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Centres x, y [frames]: the place, on the way and beside it, is uniform.

    step: of a fast shape in pixels a frame, default `pace` of the geometry.
    """
    shape, _, direction, speed = label
    axis = AXES[direction]
    back = shapes.DIRECTIONS[direction, axis] < 0
    room = travel_range(shape, geometry)
    centres = np.tile(room * rng.random(2), (geometry.frames, 1))
    start = room[axis] * (rng.random() + back)  # the way back is that from room on
    fast = fast_speed(geometry) if step is None else step
    gone = shapes.SPEEDS[speed] * fast * np.arange(geometry.frames)
    centres[:, axis] = reflect(start + gone, room[axis])
    x, y = (centres + shapes.EXTENT[shape] * geometry.radius).T
    return x, y


@dataclasses.dataclass(frozen=True)
class Bouncing:
    """The source. Item i has label number i mod 72 and its own random path."""

    geometry: Geometry
    held_out: bool = False

    name = "bouncing"
    names = ()
    sizes = ()
    label_vocabulary = shapes.ATTRIBUTES
    flip = False  # it would turn left into right

    def __len__(self) -> int:
        return 2**31 - 1

    def load(self, index: int, rng: np.random.Generator, frames: int) -> Clip:
        """The clip of item `index`, or `frames` consecutive ones out of it."""
        geometry = self.geometry
        own = np.random.default_rng((2 + self.held_out, index))
        number = index % math.prod(shapes.ATTRIBUTE_SIZES)
        label = np.array(np.unravel_index(number, shapes.ATTRIBUTE_SIZES), np.int32)
        x, y = trajectory(label, own, geometry)
        start = int(rng.integers(geometry.frames - frames + 1))
        window = slice(start, start + frames)
        grey = shapes.coverage(int(label[0]), x[window], y[window], geometry)
        colour = shapes.COLOURS[label[1]]
        video = np.rint(255 * grey[..., None] * colour).astype(np.uint8)
        text = shapes.caption(label, rng)
        return Clip(video=video, label=label, caption=text)

    def split(self, held_out: bool) -> "Bouncing":
        """The same shapes on other paths."""
        return dataclasses.replace(self, held_out=held_out)


def open_bouncing(config) -> Bouncing:
    """The source for a config; the sizes that shapes can have."""
    return Bouncing(shapes.open_shapes(config).geometry)
