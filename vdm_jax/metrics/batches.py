"""Application of a compiled function to large arrays in batches of one size."""

from collections.abc import Callable

import jax
import numpy as np


def apply_in_batches(
    function: Callable[..., jax.Array], *arrays: np.ndarray, size: int
) -> np.ndarray:
    """Apply a function to arrays [n, ...], `size` items at a time: [n, ...].

    The last batch is padded with copies of the last item, whose results are dropped, so
    that one compiled program serves all batches.
    """
    n, results = len(arrays[0]), []
    size = min(size, n)
    for start in range(0, n, size):
        index = np.minimum(np.arange(start, start + size), n - 1)
        results.append(np.asarray(function(*(a[index] for a in arrays))))
    return np.concatenate(results)[:n]
