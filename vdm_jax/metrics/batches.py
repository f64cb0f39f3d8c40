"""Application of a compiled function to large arrays in batches of one size."""

from collections.abc import Callable

import jax
import numpy as np
from tqdm import tqdm

from vdm_jax.metrics.video_arrays import to_float64


def apply_in_batches(
    function: Callable[..., jax.Array], *arrays: np.ndarray, size: int, progress=""
) -> np.ndarray:
    """Apply a function to arrays of pixels [n, ...], `size` items at a time: [n, ...].

    It gets them as `to_float64` returns them, in float32. The last batch is padded with
    copies of the last item, whose results are dropped, so that one compiled program
    serves all batches. progress: the name of a progress bar, "" for none.
    """
    (n,) = {len(array) for array in arrays}  # they are of one length
    results = []
    size = min(size, n)
    disable = None if progress else True
    for start in tqdm(range(0, n, size), progress, disable=disable, unit="batch"):
        index = np.minimum(np.arange(start, start + size), n - 1)
        batch = (to_float64(array[index]).astype(np.float32) for array in arrays)
        results.append(np.asarray(function(*batch)))
    return np.concatenate(results)[:n]
