"""A video by formula, for figures that another library computes from the same input."""

import numpy as np


def waves(frames: int, height: int, width: int) -> np.ndarray:
    """Float64 [1, f, h, w, 3] in [-1, 1], no two frames, rows, columns alike."""
    t, y, x, c = np.ogrid[:frames, :height, :width, :3]
    coarse = np.sin(0.7 * t + 0.31 * y - 0.2 * x + 2 * c)
    fine = np.sin(0.05 * x * (1 + 0.1 * t) - 0.11 * y + c)
    return (0.5 * coarse + 0.5 * fine)[None]


def sample(values: np.ndarray, most: int = 1500) -> np.ndarray:
    """Values spread evenly over an array, [most] or all of them if it has fewer."""
    flat = values.reshape(-1)
    places = np.linspace(0, len(flat) - 1, min(most, len(flat)))
    return flat[places.round().astype(int)]
