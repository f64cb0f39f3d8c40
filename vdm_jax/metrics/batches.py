"""Many arrays through a compiled function, a few at a time."""

from collections.abc import Callable

import jax
import numpy as np


def apply_in_batches(
    function: Callable[..., jax.Array], *arrays: np.ndarray, size: int
) -> np.ndarray:
    """The function of arrays [n, ...], `size` items at a time: [n, ...].

    The last batch is filled up with copies of its last item, whose results are left
    out, so that one program serves all.
    """
    n, found = len(arrays[0]), []
    size = min(size, n)
    for start in range(0, n, size):
        chosen = np.minimum(np.arange(start, start + size), n - 1)
        found.append(np.asarray(function(*(a[chosen] for a in arrays))))
    return np.concatenate(found)[:n]
