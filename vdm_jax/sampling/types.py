"""Arrays that sampling takes beside labels: text embeddings, and what is observed."""

from typing import NamedTuple

import numpy as np


class TextEmbeddings(NamedTuple):
    """Token embeddings [n, l, width], and a mask of the tokens, bool [n, l]."""

    tokens: np.ndarray
    mask: np.ndarray


class Observation(NamedTuple):
    """Known pixels of the videos, and a low-resolution version of all of it.

    video: [n, f, h, w, c] in [-1, 1]; mask: bool [n, f, h, w, 1], true where `video` is
    known; low_res: [n, f, h', w', c], area means of the video, or None. n is the number
    of videos, or 1 where all have the same observation.
    """

    video: np.ndarray
    mask: np.ndarray
    low_res: np.ndarray | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing is known."""
        return self.low_res is None and not self.mask.any()
