"""Application of a compiled function to large arrays in batches of one size."""

from collections.abc import Callable

import jax
import numpy as np
from tqdm import tqdm


def apply_in_batches(
    function: Callable[..., jax.Array],
    *arrays: np.ndarray,
    size: int,
    progress: str = "",
) -> np.ndarray:
    """Apply a function to arrays [n, ...], `size` items at a time: [n, ...].

    The last batch is padded with copies of the last item, whose results are dropped, so
    that one compiled program serves all batches. progress: the name of a progress bar,
    "" for none.
    """
    n, results = len(arrays[0]), []
    size = min(size, n)
    disable = None if progress else True
    for start in tqdm(range(0, n, size), progress, disable=disable, unit="batch"):
        index = np.minimum(np.arange(start, start + size), n - 1)
        results.append(np.asarray(function(*(a[index] for a in arrays))))
    return np.concatenate(results)[:n]
