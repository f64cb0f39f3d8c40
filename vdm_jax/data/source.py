"""What a data set must offer to the pipeline: names, labels, and clips by index."""

from typing import NotRequired, Protocol, TypedDict

import numpy as np

from vdm_jax.errors import printable


class Clip(TypedDict):
    """One training example."""

    video: np.ndarray  # uint8 [frames, height, width, channels]
    caption: str  # one of the item's captions, drawn with the rng; "" if it has none
    label: NotRequired[np.ndarray]  # int32 [attributes], -1 = unknown


class BadClip(Exception):
    """An item that turns out to be unusable: skipped, counted and named, never fatal.

    Args:
      name: the item's name as the user knows it (a file, a record).
      reason: a few words, e.g. "constant", "3 frames of 16", "truncated at frame 7".
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)  # both in args: survives pickling by a worker
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return printable(f"{self.name}: {self.reason}")


class Source(Protocol):
    """A data set with random access. Must pickle: workers are processes.

    Attributes:
      name: of the data set, for messages and the resume fingerprint.
      names: of the files (or records) behind the items, for the fingerprint; () where
        there are none.
      sizes: bytes (or frames) of each in the order of `names`, for the fingerprint: a
        file replaced under its old name changes it.
      attributes: the label vocabulary, one tuple of value names for each attribute;
        () if the items carry no labels.
      flip: whether left and right may be swapped without making a label or a caption
        untrue.
    """

    name: str
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    label_vocabulary: tuple[tuple[str, ...], ...]
    flip: bool

    def __len__(self) -> int:
        """The number of items; an index runs over 0 .. len - 1."""
        ...

    def load(self, index: int, rng: np.random.Generator, frames: int) -> Clip:
        """A random clip of `frames` frames from item `index`.

        All chance comes from `rng`: the same index and the same generator state give
        the same clip. `frames=1` asks for a single image and ignores the stride.

        Raises:
          BadClip: the item is corrupt, constant or too short.
        """
        ...

    def split(self, held_out: bool) -> "Source":
        """The held-out part, or the training part; they share no frame.

        A source starts as its training part, and a split of a split refers to the
        whole: `source.split(True).split(False)` is the training part.
        """
        ...
