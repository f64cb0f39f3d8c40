"""A distance of two sets of features whose mean does not depend on their number."""

import numpy as np

ROUNDING = 1e-12  # of a variance to a squared value: below, it is rounding
BLOCK = 2**22  # products of features at a time: bounds the memory


def kernel_distance(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Squared maximum mean discrepancy, unbiased, and its standard error.

    a [n, k, d], b [m, k, d]: k features of each of n and m videos. The kernel is
    (x . y / d + 1)^3, as in the kernel inception distance (Binkowski et al. 2018,
    arXiv:1801.01401, section 4), the estimate the U-statistic (Gretton et al. 2012,
    equation 3) over videos, since the features of one are not independent. Its mean is
    0 for equal distributions, so it may be negative. The error is by the chance of the
    videos of `a`; NaN where there are fewer than 4 of them.
    """
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    own, other, cross = _kernel(a, a), _kernel(b, b), _kernel(a, b)
    # With b given: a U-statistic of its videos, whose kernel is `pairs`.
    near = cross.mean(1)
    pairs = own - near[:, None] - near + _mean_of_pairs(other)
    np.fill_diagonal(pairs, 0)
    value = _mean_of_pairs(pairs)
    return value, _error(pairs, value)


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[n, m]: the mean over the k x k products of each two videos."""
    n, k, d = a.shape
    flat, each = b.reshape(-1, d), max(1, BLOCK // (k * b.shape[0] * b.shape[1]))
    rows = []
    for start in range(0, n, each):
        x = a[start : start + each]
        products = (x.reshape(-1, d) @ flat.T / d + 1) ** 3
        rows.append(products.reshape(len(x), k, len(b), -1).mean((1, 3)))
    return np.concatenate(rows)


def _mean_of_pairs(square: np.ndarray) -> float:
    """Of [n, n], without the diagonal."""
    n = len(square)
    return float((square.sum() - np.trace(square)) / (n * (n - 1)))


def _error(pairs: np.ndarray, value: float) -> float:
    """Of the mean of [n, n], symmetric with a diagonal of 0, over its n.

    value^2 less an unbiased estimate of the squared mean: that of products of two pairs
    that share nothing. At least the part that no n is too few for, of pairs alone.
    """
    n = len(pairs)
    if n < 4:
        return float("nan")
    squares, sums = (pairs**2).sum(), pairs.sum(1)
    two = squares / (n * (n - 1))
    one = ((sums**2).sum() - squares) / (n * (n - 1) * (n - 2))
    none = sums.sum() ** 2 - 4 * (sums**2).sum() + 2 * squares
    none /= n * (n - 1) * (n - 2) * (n - 3)
    of_pairs = 2 * (two - 2 * one + none) / (n * (n - 1))
    variance = max(value**2 - none, of_pairs)
    return float(np.sqrt(variance)) if variance > ROUNDING * value**2 else 0.0
