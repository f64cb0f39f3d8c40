"""Sprites: pictures of objects on a background, still or moving, with captions.

"a rocket on a dark blue background moves up slowly": an infinite set of clips with
exact labels, open in vocabulary. Clips of one frame are stills, which know neither
direction nor speed. The drawings are OpenMoji's (data/sprite_pictures.py).
"""

import dataclasses
import functools
import itertools
import math

import numpy as np
from ml_collections import ConfigDict

from vdm_jax.data import sprite_pictures, sprite_vocabulary
from vdm_jax.data.clips import Clips, open_clips
from vdm_jax.data.source import Clip
from vdm_jax.data.sprite_vocabulary import COLOURS, GRADIENTS, PHOTOGRAPH, VOCABULARIES
from vdm_jax.errors import UserError

SIZES = (7 / 16, 9 / 16)  # of a sprite, relative to the frame's shorter side
MIN_SIDE = 32  # pixels of a frame
DIRECTIONS = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)], np.float32)  # (x, y), y down
SPEEDS = np.array([0.5, 1.0], np.float32)  # relative to the fast speed
HELD_OUT_PERIOD = 4  # one value in so many is held out for each object
EXTRAS = ("gradients", "photographs")  # backgrounds that a path adds


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
    def sizes(self) -> tuple[int, ...]:
        """Longer sides of sprites: 28 and 36 in frames of 64x64."""
        return tuple(round(size * min(self.height, self.width)) for size in SIZES)

    @property
    def travel(self) -> float:
        """Pixels that a fast sprite moves in a clip: 7/8 of the largest one's range."""
        return 7 / 8 * (min(self.height, self.width) - max(self.sizes))

    @property
    def fast_speed(self) -> float:
        """Pixels per frame of a fast sprite: 3.5 for 8 frames of 64x64; 0 for one."""
        return self.travel * self.stride / max(self.frames * self.stride - 1, 1)

    def trajectory(
        self, motion: np.ndarray, size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Return centres (x, y) [frames, 2] of a straight path inside the frame.

        motion: direction and speed, or empty for a still. For both speeds the start is
        uniform among those from which a fast sprite stays inside.
        """
        step = travel = np.zeros(2, np.float32)
        if len(motion):
            direction, speed = motion
            step = SPEEDS[speed] * self.fast_speed * DIRECTIONS[direction]
            travel = self.travel * DIRECTIONS[direction]
        low = size / 2 + np.maximum(-travel, 0)
        frame = np.array([self.width, self.height], np.float32)
        high = frame - size / 2 - np.maximum(travel, 0)
        start = low + (high - low) * rng.random(2, np.float32)
        return start + step * np.arange(self.frames, dtype=np.float32)[:, None]


def is_held_out(labels: np.ndarray) -> np.ndarray:
    """Return whether only held-out items have a combination: bool [n, attributes - 1].

    labels: [n, attributes]. The first column is for object x background, the second for
    object x direction. Both hold out a quarter: (object + value) mod 4 = 3. A speed is
    never held out. So training has each object, background and direction.
    """
    held = (labels[:, :1] + labels[:, 1:]) % HELD_OUT_PERIOD == HELD_OUT_PERIOD - 1
    held[:, 2:] = False
    return held


@dataclasses.dataclass(frozen=True)
class Sprites:
    """The source. Item i has label number i modulo their number, at a random place.

    The held-out part has all labels and other places; the training part lacks the
    combinations of `is_held_out`.

    Attributes:
      vocabulary: a name of VOCABULARIES.
      gradients: also backgrounds between two colours, from top to bottom.
      photographs: footage whose frames are backgrounds too.
      silhouettes: clips come with the place of the object, pixel by pixel.
      seed: of the places in training; the next one is of the held-out places.
      cache_dir: of rendered pictures; "" is the user's cache folder.
    """

    vocabulary: str
    geometry: Geometry
    gradients: bool = False
    photographs: Clips | None = None
    silhouettes: bool = False
    held_out: bool = False
    seed: int = 0
    cache_dir: str = ""

    name = "sprites"
    flip = False  # a mirrored clip would have a wrong direction

    @property
    def names(self) -> tuple[str, ...]:
        """What the items are made of, for the fingerprint."""
        extras = [self.gradients, self.photographs is not None]
        return (self.vocabulary, *itertools.compress(EXTRAS, extras))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of values of each attribute, for the fingerprint."""
        return tuple(map(len, self.label_vocabulary))

    @functools.cached_property
    def label_vocabulary(self) -> tuple[tuple[str, ...], ...]:
        """Object and background; of clips also direction and speed."""
        backgrounds = [*COLOURS]
        backgrounds += [" to ".join(pair) for pair in GRADIENTS] * self.gradients
        backgrounds += [PHOTOGRAPH] * (self.photographs is not None)
        nouns = tuple(noun for _, noun in sprite_pictures.objects(self.vocabulary))
        motion = (sprite_vocabulary.DIRECTIONS, sprite_vocabulary.SPEEDS)
        return (nouns, tuple(backgrounds), *(motion * (self.geometry.frames > 1)))

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """int32 [n, attributes]: the labels of this part, which items use in turn."""
        values = np.unravel_index(np.arange(math.prod(self.sizes)), self.sizes)
        labels = np.stack(values, axis=1).astype(np.int32)
        return labels if self.held_out else labels[~is_held_out(labels).any(1)]

    @property
    def captions(self) -> list[str]:
        """All captions of its clips and of single frames of them."""
        return sprite_vocabulary.captions(self.label_vocabulary)

    def __len__(self) -> int:
        return 2**31 - 1

    def background(self, value: int, rng: np.random.Generator) -> np.ndarray:
        """Return float32 [h, w, 3] in [0, 255]. rng: draws a photograph."""
        shape = (self.geometry.height, self.geometry.width, 3)
        if value < len(COLOURS):
            rows = sprite_vocabulary.COLOUR_VALUES[value]
        elif value < len(COLOURS) + len(GRADIENTS) * self.gradients:
            top, bottom = (COLOURS[c] for c in GRADIENTS[value - len(COLOURS)])
            share = (np.arange(shape[0])[:, None] + 0.5) / shape[0]
            rows = ((1 - share) * top + share * bottom)[:, None]
        else:
            assert self.photographs is not None
            index = int(rng.integers(len(self.photographs)))
            rows = self.photographs.load(index, rng, 1)["video"][0]
        return np.array(np.broadcast_to(rows, shape), np.float32)

    def draw_place(self, label: np.ndarray, rng: np.random.Generator):
        """Return the size in pixels and the centres [frames, 2] of a random item."""
        size = self.geometry.sizes[int(rng.integers(len(SIZES)))]
        return size, self.geometry.trajectory(label[2:], size, rng)

    def load(self, index: int, rng: np.random.Generator, frames: int) -> Clip:
        """Load the clip of item `index`, or `frames` consecutive frames of it.

        The pixels of a clip depend on the index alone; `rng` draws the caption and the
        first frame. A single frame of a moving clip has no direction and no speed: they
        are -1, and its caption is a still's.
        """
        label = self.labels[index % len(self.labels)]
        place_rng = np.random.default_rng((self.seed + self.held_out, index))
        size, centres = self.draw_place(label, place_rng)
        start = int(rng.integers(self.geometry.frames - frames + 1))
        background = self.background(label[1], place_rng)
        place = int(label[0]), size, centres[start : start + frames]
        arrays = {"video": self.render(*place, background)}
        if self.silhouettes:
            arrays["silhouette"] = self.silhouette(*place)
        if frames == 1:
            label = np.concatenate([label[:2], np.full(len(label) - 2, -1, np.int32)])
        values = zip(self.label_vocabulary, label.tolist(), strict=True)
        words = [names[value] for names, value in values if value >= 0]
        caption = sprite_vocabulary.caption(words, rng)
        return Clip(**arrays, label=label, caption=caption)

    def render(
        self, number: int, size: int, centres: np.ndarray, background: np.ndarray
    ) -> np.ndarray:
        """Return uint8 [frames, h, w, 3] of object `number` at centres [frames, 2]."""
        bank = sprite_pictures.pictures(self.vocabulary, size, self.cache_dir)
        return self._paste(bank[number], size, centres, background)

    def silhouette(self, number: int, size: int, centres: np.ndarray) -> np.ndarray:
        """Return uint8 [frames, h, w, 1], how much of each pixel the object covers."""
        bank = sprite_pictures.pictures(self.vocabulary, size, self.cache_dir)
        hole = bank[number] * np.array([0, 0, 0, 1], np.uint8)[:, None, None]
        shape = (self.geometry.height, self.geometry.width, 3)
        left = self._paste(hole, size, centres, np.full(shape, 255, np.float32))
        return 255 - left[..., :1]

    def _paste(
        self,
        picture: np.ndarray,
        size: int,
        centres: np.ndarray,
        background: np.ndarray,
    ) -> np.ndarray:
        """Return uint8 [frames, h, w, 3] of a rendered picture at centres."""
        picture = picture.astype(np.float32)
        video = np.repeat(background[None], len(centres), axis=0)
        # Rounding could bring an edge past the frame's.
        limit = np.array([self.geometry.width, self.geometry.height]) - size
        edges = np.clip(centres - size / 2, 0, limit)
        for frame, (x, y) in zip(video, edges.tolist(), strict=True):
            sprite_pictures.paste(frame, picture, x, y)
        return np.rint(video).astype(np.uint8)

    def split(self, held_out: bool) -> "Sprites":
        """Return the part with other places, all labels and other photographs."""
        photographs = self.photographs and self.photographs.split(held_out)
        return dataclasses.replace(self, held_out=held_out, photographs=photographs)


def open_photographs(config) -> Clips:
    """Open the footage whose frames are backgrounds, of the size of the clips.

    Raises the errors of `open_clips`.
    """
    footage = {"data": {"path": "published", "stride": 1, "target_fps": 0.0}}
    config = ConfigDict(config.to_dict())
    config.update(footage | {"video": {"frames": 1}})
    return open_clips(config)


def open_sprites(config) -> Sprites:
    """Open the source of a config.

    config.data.path is a vocabulary, to which "+gradients" and "+photographs" add
    backgrounds: "everyday+gradients".

    Raises:
      UserError: an unknown path, a size at which objects would look alike, or packages
        that are not installed.
    """
    data, video = config.data, config.video
    vocabulary, *extras = data.path.split("+")
    if vocabulary not in VOCABULARIES or not set(extras) <= set(EXTRAS):
        raise UserError(
            f"config.data.path={data.path!r}: one of {', '.join(VOCABULARIES)}, and "
            "after it +gradients, +photographs or neither"
        )
    if min(video.height, video.width) < MIN_SIDE or video.channels != 3:
        raise UserError(
            f"sprites of {video.height}x{video.width}, {video.channels} channels: need "
            f"config.video.height and width >= {MIN_SIDE}, channels = 3"
        )
    if data.held_out_combinations:
        raise UserError(
            f"config.data.held_out_combinations={data.held_out_combinations}: sprites "
            "hold out a fixed quarter: leave it 0"
        )
    sprite_pictures.svg_folder()
    geometry = Geometry(video.frames, video.height, video.width, data.stride)
    photographs = open_photographs(config) if "photographs" in extras else None
    silhouettes = "control" in config and "silhouette" in config.control.kinds
    source = Sprites(
        vocabulary, geometry, "gradients" in extras, photographs, silhouettes,
        cache_dir=data.cache_dir,
    )  # fmt: skip
    for size in geometry.sizes:  # rendered before the workers start
        sprite_pictures.pictures(vocabulary, size, data.cache_dir)
    return source
