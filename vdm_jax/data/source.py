"""The protocol of a data set: names, labels, and clips by index."""

import re
from typing import NotRequired, Protocol, TypedDict

import numpy as np

from vdm_jax.errors import printable


class ClipConditions(TypedDict):
    """What is known of a clip.

    caption: one of the item's captions, drawn with the rng; "" if it has none.
    label: int32 [attributes], -1 = unknown.
    """

    caption: str
    label: NotRequired[np.ndarray]


class Clip(ClipConditions):
    """One training example.

    video: uint8 [frames, height, width, channels].
    silhouette: uint8 [frames, height, width, 1], 255 = the object.
    """

    video: np.ndarray
    silhouette: NotRequired[np.ndarray]


class LatentClip(ClipConditions):
    """One training example of stored latents.

    latents: mean and deviation of z, float16 or float32 [frames, h', w', 2 k].
    """

    latents: np.ndarray


class BadClip(Exception):
    """An unusable item. The pipeline skips it, counts it and prints its name.

    Args:
      name: the item's name as the user knows it (a file, a record).
      reason: a few words, such as "constant" or "truncated at frame 7".
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)  # both arguments, so that it can be pickled
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return printable(f"{self.name}: {self.reason}")


def mentions_left_or_right(text: str) -> bool:
    """Return whether labels or captions would be wrong for mirrored clips."""
    return bool(re.search(r"(?<![a-z])(left|right)", text, re.IGNORECASE))


class Source(Protocol):
    """A data set with random access. It must be picklable for worker processes.

    Attributes:
      name: of the data set, for messages and the resume fingerprint.
      names: of the files (or records) of the items, for the fingerprint; () if there
        are none.
      sizes: bytes (or frames) of each name, for the fingerprint: replacing a file under
        its old name changes it.
      label_vocabulary: one tuple of value names per attribute; () if the items carry no
        labels.
      flip: whether clips may be mirrored without making a label or a caption wrong.
    """

    name: str
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    label_vocabulary: tuple[tuple[str, ...], ...]
    flip: bool

    def __len__(self) -> int:
        """Return the number of items. Indices are 0 .. len - 1."""
        ...

    def load(
        self, index: int, rng: np.random.Generator, frames: int
    ) -> Clip | LatentClip:
        """Load a random clip of `frames` frames from item `index`.

        All randomness comes from `rng`: the same index and the same generator state
        give the same clip. `frames=1` loads a single image and ignores the stride.

        Raises:
          BadClip: the item is corrupt, constant or too short.
        """
        ...

    def split(self, held_out: bool) -> "Source":
        """Return the held-out part or the training part. They share no frame.

        A source starts as its training part. A split of a split refers to the whole:
        `source.split(True).split(False)` is the training part.
        """
        ...
