"""Means over areas: resizing without aliasing, by one matrix per axis."""

import numpy as np


def area_matrix(size: int, cells: int) -> np.ndarray:
    """Return [cells, size]: the weight of each pixel in each cell's mean.

    Cells have equal lengths and may end within a pixel. Rows sum to 1. With more cells
    than pixels, pixels are repeated.
    """
    edges = np.arange(cells + 1) * size / cells
    below = np.clip(edges[:, None] - np.arange(size), 0, 1)  # of each pixel, per edge
    return np.diff(below, axis=0) * cells / size
