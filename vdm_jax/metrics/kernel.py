"""Kernel distance of two feature sets, unbiased in the number of features."""

import numpy as np

ROUNDING = 1e-12  # a variance below this fraction of the squared value is rounding
BLOCK = 2**22  # products computed at a time, which bounds the memory


def kernel_distance(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return the squared maximum mean discrepancy, unbiased, and its standard error.

    a [n, k, d], b [m, k, d]: k features of each of n and m videos.

    The kernel is (x . y / d + 1)^3, as in the kernel inception distance (Binkowski et
    al. 2018, arXiv:1801.01401, section 4). The estimate is the U-statistic (Gretton et
    al. 2012, equation 3) over videos, since the features of one video are dependent.
    Its mean is 0 for equal distributions, so it may be negative. The standard error is
    over draws of the videos `a`; it is NaN for fewer than 4 videos.
    """
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    own, other, cross = _kernel(a, a), _kernel(b, b), _kernel(a, b)
    # Conditional on b, the estimate is a U-statistic of the videos a with this kernel.
    near = cross.mean(1)
    pairs = own - near[:, None] - near + _mean_of_pairs(other)
    np.fill_diagonal(pairs, 0)
    value = _mean_of_pairs(pairs)
    return value, _error(pairs, value)


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the mean kernel of the k x k feature pairs of each two videos, [n, m]."""
    n, k, d = a.shape
    flat = b.reshape(-1, d)
    each = max(1, BLOCK // (k * b.shape[0] * b.shape[1]))
    rows = []
    for start in range(0, n, each):
        x = a[start : start + each]
        products = (x.reshape(-1, d) @ flat.T / d + 1) ** 3
        rows.append(products.reshape(len(x), k, len(b), -1).mean((1, 3)))
    return np.concatenate(rows)


def _mean_of_pairs(square: np.ndarray) -> float:
    """Return the mean of the entries of [n, n] off the diagonal."""
    n = len(square)
    return float((square.sum() - np.trace(square)) / (n * (n - 1)))


def _error(pairs: np.ndarray, value: float) -> float:
    """Return the standard error of the off-diagonal mean of pairs [n, n] over its n.

    pairs is symmetric with a diagonal of 0. The variance is value^2 minus an unbiased
    estimate of the squared mean, from products of two pairs without a common video. It
    is at least the variance of the pairs alone.
    """
    n = len(pairs)
    if n < 4:
        return float("nan")
    squares, sums = (pairs**2).sum(), pairs.sum(1)
    # Mean products of two pairs that share two, one and no videos.
    two = squares / (n * (n - 1))
    one = ((sums**2).sum() - squares) / (n * (n - 1) * (n - 2))
    none = sums.sum() ** 2 - 4 * (sums**2).sum() + 2 * squares
    none /= n * (n - 1) * (n - 2) * (n - 3)
    pair_variance = 2 * (two - 2 * one + none) / (n * (n - 1))
    variance = max(value**2 - none, pair_variance)
    return float(np.sqrt(variance)) if variance > ROUNDING * value**2 else 0.0
