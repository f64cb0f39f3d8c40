"""What sampling takes: conditions, and what is observed of the videos."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

# Arrays [n, ...] of conditions, by their names in a batch; n may be 1 for all videos.
Conditions = Mapping[str, np.ndarray]


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
