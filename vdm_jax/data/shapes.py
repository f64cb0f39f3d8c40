"""Moving shapes: an infinite set of procedural clips with exact labels and captions.

One shape on black moves straight at one of two speeds and never leaves the frame.
Therefore its first position is a cue for its direction, as in real footage. All shapes
have the same area, so that brightness does not reveal the shape.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import numpy as np

from vdm_jax.data.source import Clip
from vdm_jax.errors import UserError

ATTRIBUTES = (
    ("circle", "square", "cross"),
    ("red", "green", "blue"),
    ("left", "right", "up", "down"),
    ("slow", "fast"),
)
ATTRIBUTE_SIZES = tuple(map(len, ATTRIBUTES))  # 3 x 3 x 4 x 2 = 72 labels
COLOURS = np.array([(1, 0, 0), (0, 1, 0), (0, 0, 1)], np.float32)
DIRECTIONS = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)], np.float32)  # (x, y), y down
SPEEDS = np.array([0.6, 1.0], np.float32)  # relative to the fast speed

# Half of a shape's extent, relative to the radius of the disc. Equal areas require
# pi = 4 a^2 for the square, and pi = 8 a b - 4 b^2 for the cross, whose arms have half
# thickness b.
ARM = 0.4  # b / a
EXTENT = (1.0, math.sqrt(math.pi) / 2, math.sqrt(math.pi / (8 * ARM - 4 * ARM**2)))

SUBROWS = 8  # sampled rows per pixel; along the rows the coverage is exact

WORDS = (
    (("circle", "disc", "ball"), ("square", "box"), ("cross", "plus sign")),
    (("red",), ("green",), ("blue",)),
    (("left",), ("right",), ("up", "upwards"), ("down", "downwards")),
    (("slowly", "at a slow pace"), ("quickly", "at a fast pace")),
)
TEMPLATES = (
    "a {1} {0} moves {2} {3}",
    "{3}, a {1} {0} glides {2}",
    "a {0} in {1} moving {2} {3}",
    "{1} {0} heading {2} {3} on black",
)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Lengths in pixels that follow from the size of the clip.

    With a stride a clip has every stride-th frame of a clip of frames x stride.
    """

    frames: int
    height: int
    width: int
    stride: int = 1

    @property
    def radius(self) -> float:
        """Radius of the disc: 4 for 16 pixels."""
        return min(self.height, self.width) / 4

    @property
    def travel(self) -> float:
        """Pixels that a fast shape moves in a clip: 7/8 of the largest shape's range.

        The rest of the range is for a random start.
        """
        return 7 / 8 * (min(self.height, self.width) - 2 * max(EXTENT) * self.radius)

    @property
    def fast_speed(self) -> float:
        """Pixels per frame of a fast shape: 0.89 for 8 frames of 16x16."""
        return self.travel * self.stride / (self.frames * self.stride - 1)


def half_chord(shape: int, dy: np.ndarray, radius: float) -> np.ndarray:
    """Return half the width of a shape `dy` >= 0 pixels from its centre; 0 outside."""
    extent = EXTENT[shape] * radius
    inside = dy < extent
    name = ATTRIBUTES[0][shape]
    if name == "circle":
        return np.sqrt(np.maximum(extent**2 - dy**2, 0))
    if name == "square":
        return extent * inside
    return np.where(dy < ARM * extent, extent, ARM * extent * inside)


def coverage(
    shape: int, x: np.ndarray, y: np.ndarray, geometry: Geometry
) -> np.ndarray:
    """Return the fraction of every pixel that a shape covers.

    Args:
      shape: index into ATTRIBUTES[0].
      x, y: [n] centres in pixels; pixel (row i, column j) is [i, i+1] x [j, j+1].

    Returns:
      float32 [n, height, width] in [0, 1].
    """
    rows = (np.arange(geometry.height * SUBROWS, dtype=np.float32) + 0.5) / SUBROWS
    x, y = (np.asarray(a, np.float32)[:, None] for a in (x, y))
    half = half_chord(shape, np.abs(rows - y), geometry.radius).astype(np.float32)
    columns = np.arange(geometry.width, dtype=np.float32)
    # The overlap of [x - half, x + half] with the pixel [j, j + 1], row by row.
    covered = np.clip((x + half)[..., None] - columns, 0, 1)
    covered -= np.clip((x - half)[..., None] - columns, 0, 1)
    return covered.reshape(len(x), geometry.height, SUBROWS, geometry.width).mean(2)


def trajectory(
    label: np.ndarray, rng: np.random.Generator, geometry: Geometry
) -> tuple[np.ndarray, np.ndarray]:
    """Return centres x, y [frames] of a straight path inside the frame.

    For both speeds the start is uniform among those from which a fast shape stays
    inside. Slow shapes with more possible starts would reveal less of their direction.
    """
    shape, _, direction, speed = label
    extent = EXTENT[shape] * geometry.radius
    step = SPEEDS[speed] * geometry.fast_speed * DIRECTIONS[direction]
    travel = geometry.travel * DIRECTIONS[direction]
    size = np.array([geometry.width, geometry.height], np.float32)
    low = extent + np.maximum(-travel, 0)
    high = size - extent - np.maximum(travel, 0)
    start = low + (high - low) * rng.random(2, np.float32)
    x, y = (start + step * np.arange(geometry.frames, dtype=np.float32)[:, None]).T
    return x, y


def caption(label: np.ndarray, rng: np.random.Generator) -> str:
    """Draw one of the sentences for a label. Each attribute has a word in it."""
    choice = [words[i] for words, i in zip(WORDS, label, strict=True)]
    words = [options[int(rng.integers(len(options)))] for options in choice]
    return TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(*words)


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The source. Item i has label number i modulo their number, and a random path.

    Held-out items use another seed, so that no path occurs in both parts.

    Attributes:
      held_out_combinations: numbers of the labels that only held-out items have.
      trajectory: (label, rng, geometry) -> centres x, y of a random path.
      seed: of the paths in training; the next one is of the held-out paths.
    """

    geometry: Geometry
    held_out: bool = False
    held_out_combinations: tuple[int, ...] = ()
    name: str = "shapes"
    trajectory: Callable[..., tuple[np.ndarray, np.ndarray]] = trajectory
    seed: int = 0

    names = ()
    label_vocabulary = ATTRIBUTES
    flip = False  # a mirrored clip would have a wrong direction

    @property
    def sizes(self) -> tuple[int, ...]:
        """The labels that training leaves out, for the fingerprint."""
        return self.held_out_combinations

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """int32 [n, 4]: the labels of this part, which items use in turn."""
        numbers = np.arange(math.prod(ATTRIBUTE_SIZES))
        if not self.held_out:
            numbers = np.setdiff1d(numbers, self.held_out_combinations)
        values = np.unravel_index(numbers, ATTRIBUTE_SIZES)
        return np.stack(values, axis=1).astype(np.int32)

    @property
    def captions(self) -> list[str]:
        """All sentences that `caption` can return."""
        words = [list(itertools.chain(*synonyms)) for synonyms in WORDS]
        return [t.format(*w) for t in TEMPLATES for w in itertools.product(*words)]

    def __len__(self) -> int:
        return 2**31 - 1

    def load(self, index: int, rng: np.random.Generator, frames: int) -> Clip:
        """Load the clip of item `index`, or `frames` consecutive frames of it.

        The pixels of a clip depend on the index alone; `rng` draws the caption and the
        first frame.
        """
        geometry = self.geometry
        path_rng = np.random.default_rng((self.seed + self.held_out, index))
        label = self.labels[index % len(self.labels)]
        x, y = self.trajectory(label, path_rng, geometry)
        start = int(rng.integers(geometry.frames - frames + 1))
        window = slice(start, start + frames)
        grey = coverage(int(label[0]), x[window], y[window], geometry)
        video = np.rint(255 * grey[..., None] * COLOURS[label[1]]).astype(np.uint8)
        return Clip(video=video, label=label, caption=caption(label, rng))

    def split(self, held_out: bool) -> "Shapes":
        """Return the part with other random paths."""
        return dataclasses.replace(self, held_out=held_out)


def choose_held_out_combinations(n: int) -> tuple[int, ...]:
    """Return the numbers of n labels to hold out, a fixed draw with balanced values."""
    rng = np.random.default_rng(0)
    chosen = []
    while len(chosen) < n:
        orders = [rng.permutation(size) for size in ATTRIBUTE_SIZES]
        for k in range(max(ATTRIBUTE_SIZES)):
            values = [order[k % len(order)] for order in orders]
            number = int(np.ravel_multi_index(values, ATTRIBUTE_SIZES))
            if number not in chosen and len(chosen) < n:
                chosen.append(number)
    return tuple(sorted(chosen))


def open_shapes(config) -> Shapes:
    """Open the source of a config.

    Raises:
      UserError: a size at which labels would look alike.
    """
    video = config.video
    if min(video.height, video.width) < 8 or video.frames < 2 or video.channels != 3:
        raise UserError(
            "shapes need config.video.frames >= 2 (an image has no direction), height "
            "and width >= 8, channels = 3"
        )
    geometry = Geometry(video.frames, video.height, video.width, config.data.stride)
    held_out = choose_held_out_combinations(config.data.held_out_combinations)
    return Shapes(geometry, held_out_combinations=held_out)
