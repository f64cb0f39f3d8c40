"""A video by formula, for values that another library computes from the same input."""

import numpy as np


def waves(frames: int, height: int, width: int) -> np.ndarray:
    """Return float64 [1, f, h, w, 3] in [-1, 1]; all frames, rows, columns differ."""
    t, y, x, c = np.ogrid[:frames, :height, :width, :3]
    coarse = np.sin(0.7 * t + 0.31 * y - 0.2 * x + 2 * c)
    fine = np.sin(0.05 * x * (1 + 0.1 * t) - 0.11 * y + c)
    return (0.5 * coarse + 0.5 * fine)[None]


def sample(values: np.ndarray, most: int = 1500) -> np.ndarray:
    """Return evenly spaced values of an array, at most `most` of them."""
    flat = values.reshape(-1)
    places = np.linspace(0, len(flat) - 1, min(most, len(flat)))
    return flat[places.round().astype(int)]
