"""Bouncing shapes: moving shapes whose motion can go on for ever.

The shapes of data/shapes.py, moving along one axis and reflected where their edge meets
the frame's. The clip starts anywhere on the way, so nothing but the frames before says
what comes next: what an extension of a video must read from them.
"""

import dataclasses
import math

import numpy as np

from vdm_jax.data import shapes
from vdm_jax.data.shapes import Geometry
from vdm_jax.data.source import Clip

ATTRIBUTES = (
    *shapes.ATTRIBUTES[:2],
    ("horizontal", "vertical"),
    ("slow", "fast"),
)
LABELS = tuple(len(values) for values in ATTRIBUTES)  # 3 x 3 x 2 x 2 = 36 labels
WORDS = (
    *shapes.WORDS[:2],
    (("from side to side", "left and right"), ("up and down",)),
    shapes.WORDS[3],
)


FASTER = 1.75  # than moving shapes: 1.56 pixels a frame at 8 frames of 16x16


def pace(geometry: Geometry) -> float:
    """Of a fast shape, in pixels a frame."""
    return FASTER * geometry.fast


def triangle(u, room):
    """The reflected path: 0 at u = 0, `room` at u = room, back to 0 at 2 room."""
    return room - abs(u % (2 * room) - room)


def rooms(shape: int, geometry: Geometry) -> np.ndarray:
    """[x, y] pixels between the outermost places of a shape's centre."""
    extent = shapes.EXTENT[shape] * geometry.radius
    return np.array([geometry.width, geometry.height]) - 2 * extent


def path(
    label: np.ndarray,
    rng: np.random.Generator,
    geometry: Geometry,
    step: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Centres x, y [frames]: place, heading and the other coordinate are uniform.

    step: of a fast shape in pixels a frame, default `pace` of the geometry.
    """
    shape, _, axis, speed = label
    room = rooms(shape, geometry)
    centres = np.tile(room * rng.random(2), (geometry.frames, 1))
    start = 2 * room[axis] * rng.random()
    fast = pace(geometry) if step is None else step
    gone = shapes.SPEEDS[speed] * fast * np.arange(geometry.frames)
    centres[:, axis] = triangle(start + gone, room[axis])
    x, y = (centres + shapes.EXTENT[shape] * geometry.radius).T
    return x, y


@dataclasses.dataclass(frozen=True)
class Bouncing:
    """The source. Item i has label number i mod 36 and its own random path."""

    geometry: Geometry
    held_out: bool = False

    name = "bouncing"
    names = ()
    sizes = ()
    attributes = ATTRIBUTES
    flip = True

    def __len__(self) -> int:
        return 2**31 - 1

    def load(self, index: int, rng: np.random.Generator, frames: int) -> Clip:
        """The clip of item `index`, or `frames` consecutive ones out of it."""
        geometry = self.geometry
        own = np.random.default_rng((2 + self.held_out, index))
        label = np.array(np.unravel_index(index % math.prod(LABELS), LABELS), np.int32)
        x, y = path(label, own, geometry)
        start = int(rng.integers(geometry.frames - frames + 1))
        window = slice(start, start + frames)
        grey = shapes.coverage(int(label[0]), x[window], y[window], geometry)
        colour = shapes.COLOURS[label[1]]
        video = np.rint(255 * grey[..., None] * colour).astype(np.uint8)
        text = shapes.caption(label, rng, WORDS)
        return Clip(video=video, label=label, caption=text)

    def split(self, held_out: bool) -> "Bouncing":
        """The same shapes on other paths."""
        return dataclasses.replace(self, held_out=held_out)


def open_bouncing(config) -> Bouncing:
    """The source for a config; the sizes that shapes can have."""
    return Bouncing(shapes.open_shapes(config).geometry)
