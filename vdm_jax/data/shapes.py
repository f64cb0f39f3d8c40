"""Moving shapes: procedural clips with exact labels and captions, without end.

One shape on black moves straight on at one of two speeds and never leaves the frame, so
the side it starts from is a cue of its heading, as in real footage. Shapes have equal
areas: brightness alone does not tell them apart.
"""

import dataclasses
import functools
import itertools
import math

import numpy as np

from vdm_jax.data.source import Clip
from vdm_jax.errors import UserError

ATTRIBUTES = (
    ("circle", "square", "cross"),
    ("red", "green", "blue"),
    ("left", "right", "up", "down"),
    ("slow", "fast"),
)
ATTRIBUTE_SIZES = tuple(
    len(values) for values in ATTRIBUTES
)  # 3 x 3 x 4 x 2 = 72 labels
COLOURS = np.array([(1, 0, 0), (0, 1, 0), (0, 0, 1)], np.float32)
DIRECTIONS = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)], np.float32)  # (x, y), y down
SPEEDS = np.array([0.6, 1.0], np.float32)  # in units of the fast one

# Half of a shape's extent in units of the disc's radius, from equal areas: pi = 4 a^2
# for the square and pi = 8 a b - 4 b^2 for the cross with arms of half thickness b.
ARM = 0.4  # b / a
EXTENT = (1.0, math.sqrt(math.pi) / 2, math.sqrt(math.pi / (8 * ARM - 4 * ARM**2)))

SUBROWS = 8  # sample rows a pixel; along the rows the coverage is exact

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
    """Lengths in pixels that depend on the size of the clip alone.

    A clip with a stride is every stride-th frame of one of frames x stride.
    """

    frames: int
    height: int
    width: int
    stride: int = 1

    @property
    def radius(self) -> float:
        """Of the disc: 4 at 16 pixels."""
        return min(self.height, self.width) / 4

    @property
    def travel(self) -> float:
        """Pixels that a fast one crosses in the whole clip: 7/8 of the widest's room.

        The rest of the room is for a random start.
        """
        return 7 / 8 * (min(self.height, self.width) - 2 * max(EXTENT) * self.radius)

    @property
    def fast_speed(self) -> float:
        """Pixels from frame to frame: 0.89 at 8 frames of 16x16."""
        return self.travel * self.stride / (self.frames * self.stride - 1)


def half_chord(shape: int, dy: np.ndarray, radius: float) -> np.ndarray:
    """Half the width of a shape at `dy` >= 0 pixels from its middle; 0 outside."""
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
    """The share of every pixel that a shape covers.

    Args:
      shape: index into ATTRIBUTES[0].
      x, y: [n] centres in pixels; pixel (i, j) spans i..i+1 down and j..j+1 across.

    Returns:
      float32 [n, height, width] in [0, 1].
    """
    rows = (np.arange(geometry.height * SUBROWS, dtype=np.float32) + 0.5) / SUBROWS
    x, y = (np.asarray(a, np.float32)[:, None] for a in (x, y))
    half = half_chord(shape, np.abs(rows - y), geometry.radius).astype(np.float32)
    left_of = np.arange(geometry.width, dtype=np.float32)
    # the overlap of [x - half, x + half] with the pixel [j, j + 1], row by row
    covered = np.clip((x + half)[..., None] - left_of, 0, 1)
    covered -= np.clip((x - half)[..., None] - left_of, 0, 1)
    return covered.reshape(len(x), geometry.height, SUBROWS, geometry.width).mean(2)


def trajectory(
    label: np.ndarray, rng: np.random.Generator, geometry: Geometry
) -> tuple[np.ndarray, np.ndarray]:
    """Centres x, y [frames] of a straight path wholly inside the frame.

    Uniform among the starts from which a fast one stays inside, for both speeds: a
    slow one that could start anywhere would hide its heading.
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
    """One of the sentences that describe a label; every attribute has its word."""
    choice = [words[i] for words, i in zip(WORDS, label, strict=True)]
    words = [options[int(rng.integers(len(options)))] for options in choice]
    return TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(*words)


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The source. Item i has the i-th label, over and over, and its own random path.

    Held-out items are drawn from another seed: no path occurs in both parts. unseen:
    numbers of labels that only held-out items have.
    """

    geometry: Geometry
    held_out: bool = False
    held_out_combinations: tuple[int, ...] = ()

    name = "shapes"
    names = ()
    label_vocabulary = ATTRIBUTES
    flip = False  # it would turn left into right

    @property
    def sizes(self) -> tuple[int, ...]:
        """What beside the config makes other clips, for the fingerprint."""
        return self.held_out_combinations

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """int32 [n, 4]: those that items take in turn."""
        numbers = np.arange(math.prod(ATTRIBUTE_SIZES))
        if not self.held_out:
            numbers = np.setdiff1d(numbers, self.held_out_combinations)
        return np.stack(np.unravel_index(numbers, ATTRIBUTE_SIZES), axis=1).astype(
            np.int32
        )

    @property
    def captions(self) -> list[str]:
        """Every sentence that `caption` can make."""
        words = [list(itertools.chain(*of_value)) for of_value in WORDS]
        return [t.format(*w) for t in TEMPLATES for w in itertools.product(*words)]

    def __len__(self) -> int:
        return 2**31 - 1

    def load(self, index: int, rng: np.random.Generator, frames: int) -> Clip:
        """The clip of item `index`, or `frames` consecutive ones out of it.

        The pixels of whole clips depend on the index alone; `rng` draws the caption
        and the window.
        """
        geometry = self.geometry
        own = np.random.default_rng((int(self.held_out), index))
        label = self.labels[index % len(self.labels)]
        x, y = trajectory(label, own, geometry)
        start = int(rng.integers(geometry.frames - frames + 1))
        window = slice(start, start + frames)
        grey = coverage(int(label[0]), x[window], y[window], geometry)
        video = np.rint(255 * grey[..., None] * COLOURS[label[1]]).astype(np.uint8)
        return Clip(video=video, label=label, caption=caption(label, rng))

    def split(self, held_out: bool) -> "Shapes":
        """The same shapes on other paths."""
        return dataclasses.replace(self, held_out=held_out)


def held_out_combinations(n: int) -> tuple[int, ...]:
    """Numbers of n labels to leave out: a fixed draw in which all values take turns.

    Raises:
      UserError: more than half of the labels.
    """
    if not 0 <= n <= math.prod(ATTRIBUTE_SIZES) // 2:
        raise UserError(
            f"config.data.held_out_combinations={n}: from 0 to {math.prod(ATTRIBUTE_SIZES) // 2}"
        )
    rng, chosen = np.random.default_rng(0), []
    while len(chosen) < n:
        round_ = [rng.permutation(size) for size in ATTRIBUTE_SIZES]
        for k in range(max(ATTRIBUTE_SIZES)):
            values = [order[k % len(order)] for order in round_]
            number = int(np.ravel_multi_index(values, ATTRIBUTE_SIZES))
            if number not in chosen and len(chosen) < n:
                chosen.append(number)
    return tuple(sorted(chosen))


def open_shapes(config) -> Shapes:
    """The source for a config.

    Raises:
      UserError: a size at which labels would look alike.
    """
    video = config.video
    if min(video.height, video.width) < 8 or video.frames < 2 or video.channels != 3:
        raise UserError(
            f"shapes of {video.frames} frames, {video.height}x{video.width}, "
            f"{video.channels} channels: needs config.video.frames >= 2 (a still "
            "picture has no direction), height and width >= 8, channels = 3"
        )
    geometry = Geometry(video.frames, video.height, video.width, config.data.stride)
    return Shapes(
        geometry,
        held_out_combinations=held_out_combinations(config.data.held_out_combinations),
    )
