"""What models/sprites is sampled from, in the record and in the test."""

from pathlib import Path

import numpy as np

ARRAYS = Path(__file__).with_name("sprites.npz")
STEPS, SCALE = 10, 3.0
TOKENS, WIDTH = 9, 384  # of MiniLM


def embeddings() -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings [1, TOKENS, WIDTH] of a prompt and of an empty one."""
    rng = np.random.default_rng(1)
    shape = 1, TOKENS, WIDTH
    text, empty = (0.3 * rng.standard_normal(shape, np.float32) for _ in range(2))
    return text, empty


def noise() -> np.ndarray:
    """Return the noise [1, 4, 16, 16] that sampling starts from."""
    return np.random.default_rng(2).standard_normal((1, 4, 16, 16), np.float32)
