"""Frechet distances of features: value, standard error, extrapolation to infinite n."""

import numpy as np

from vdm_jax.errors import UserError
from vdm_jax.metrics.kernel import kernel_distance

NUM_HALVES = 30  # random halves that `frechet_error` draws
RANK = 1e-12  # smaller squared singular values, relative to the largest, are rounding


def frechet_of_features(a: np.ndarray, b: np.ndarray) -> float:
    """Return the squared Frechet (2-Wasserstein) distance of two feature sets [..., d].

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2 of the Gaussians fitted to
    them (Dowson and Landau 1982; Heusel et al. 2017, arXiv:1706.08500, section 3).
    Covariances are unbiased (divided by n - 1). The distance is biased upwards, by an
    amount that falls with n. n may be below d: no covariance is formed or inverted.

    Raises:
      UserError: the sets have unequal n, or n is below 2.
    """
    shapes = np.shape(a), np.shape(b)
    a, b = (np.asarray(x, np.float64).reshape(-1, x.shape[-1]) for x in (a, b))
    if shapes[0] != shapes[1] or len(a) < 2:
        raise UserError(
            f"features of shapes {shapes[0]} and {shapes[1]}: a Frechet distance needs "
            "equal numbers of features, at least 2 each"
        )
    # X - mean = Q R, and R^T R = (n - 1) S: the covariance S is never formed.
    root1, root2 = (
        np.linalg.qr(x - x.mean(0)).R.T / np.sqrt(len(x) - 1) for x in (a, b)
    )
    difference = a.mean(0) - b.mean(0)
    # The singular values' squares are the eigenvalues of S1^1/2 S2 S1^1/2.
    cross = np.linalg.svd(root1.T @ root2, compute_uv=False).sum()
    traces = (root1**2).sum() + (root2**2).sum()
    return max(float(difference @ difference + traces - 2 * cross), 0.0)


def frechet_error(
    a: np.ndarray, b: np.ndarray, draws: int = NUM_HALVES, seed: int = 0
) -> float:
    """Return the standard error of `frechet_of_features` over draws of the videos `a`.

    a, b: [n, k, d], k features of each of n videos. Returns NaN for n below 4.

    The distance is the sum of a linear and a quadratic function of the videos, with
    variances V1 and V2; its variance is V1 + V2. The infinitesimal jackknife estimates
    V1 + 2 V2 (Efron and Stein 1981), a bootstrap V1 + 3 V2. V2 is estimated as the
    variance of the residuals from the jackknife's linear part, over `draws` random
    halves in complementary pairs. experiments/frechet_errors measures the coverage of
    intervals of two of these errors.
    """
    n, k, _ = a.shape
    if n < 4:
        return float("nan")
    flat, target = (np.asarray(x, np.float64).reshape(-1, x.shape[-1]) for x in (a, b))
    off = flat.mean(0) - target.mean(0)
    flat = flat - flat.mean(0)
    cross = flat @ _reduce_rows(target - target.mean(0)).T / np.sqrt(len(target) - 1)
    # Derivative of the distance with respect to the weight of each row of `a`.
    slopes = 2 * flat @ off / len(flat) + (flat**2).sum(1) / (len(flat) - 1)
    squares, vectors = np.linalg.eigh(cross.T @ cross)
    nonzero = squares > RANK * squares.max()
    along = (cross @ vectors[:, nonzero]) ** 2 / np.sqrt(squares[nonzero])
    slopes -= along.sum(1) / np.sqrt(len(flat) - 1)
    linear = slopes.reshape(n, k).sum(1)
    linear -= linear.mean()

    def residual(half: np.ndarray) -> float:
        """Return the distance of a half minus its linear approximation."""
        x, y = (
            rows.reshape(n, -1)[half].reshape(-1, rows.shape[1])
            for rows in (flat, cross)
        )
        centre = x.mean(0)
        degrees = len(x) - 1
        variance = ((x - centre) ** 2).sum() / degrees
        nuclear = _nuclear_norm(y - y.mean(0)) / np.sqrt(degrees)
        distance = ((centre + off) ** 2).sum() + variance - 2 * nuclear
        return float(distance - linear[half].mean() * n)

    residuals = [residual(half) for half in _halves(n, draws, seed)]
    quadratic = np.var(residuals) * (n // 2 / (n - n // 2)) ** 2
    jackknife = (linear**2).sum() * n / (n - 1)
    return float(np.sqrt(max(jackknife - quadratic, quadratic)))


def frechet_infinity(
    a: np.ndarray, b: np.ndarray, draws: int = 10, seed: int = 0
) -> float:
    """Return the Frechet distance extrapolated to infinitely many videos.

    a, b: [n, k, d] as for `frechet_error`. Returns NaN for n below 4.

    Extrapolates linearly in 1 / n, from all n videos and from random halves (Chong and
    Forsyth 2020, arXiv:1911.07023, FID-infinity). With fewer than about 1.5 d features
    the covariances lack full rank and the result is too large. It may be negative.
    """
    n = len(a)
    if n < 4:
        return float("nan")

    def distance(videos: np.ndarray) -> float:
        x, y = (rows[videos].reshape(-1, rows.shape[-1]) for rows in (a, b))
        off = x.mean(0) - y.mean(0)
        degrees = len(x) - 1
        x, y = x - x.mean(0), y - y.mean(0)
        traces = (x**2).sum() + (y**2).sum()
        traces -= 2 * _nuclear_norm(x @ _reduce_rows(y).T)
        return float(off @ off + traces / degrees)

    a, b = (np.asarray(x, np.float64) for x in (a, b))
    whole = distance(np.arange(n))
    halves = np.mean([distance(half) for half in _halves(n, draws, seed)])
    return whole - (float(halves) - whole) * (n // 2) / (n - n // 2)


def distance_scores(
    name: str, a: np.ndarray, b: np.ndarray, draws: int = NUM_HALVES
) -> dict[str, float]:
    """Return the distances of two feature sets [n, k, d], with errors and bias.

    Keys: NAME, the Frechet distance; NAME_error, its standard error; NAME_infinite, of
    `frechet_infinity`; NAME_kernel and NAME_kernel_error, of `kernel_distance`.
    """
    kernel, kernel_error = kernel_distance(a, b)
    return {
        name: frechet_of_features(a, b),
        f"{name}_error": frechet_error(a, b, draws),
        f"{name}_infinite": frechet_infinity(a, b),
        f"{name}_kernel": kernel,
        f"{name}_kernel_error": kernel_error,
    }


def _reduce_rows(rows: np.ndarray) -> np.ndarray:
    """Return at most d rows with the same sum of outer products as rows [n, d]."""
    if len(rows) <= rows.shape[1]:
        return rows
    return np.linalg.qr(rows).R


def _nuclear_norm(rows: np.ndarray) -> float:
    """Return the sum of the singular values, accurate to 1e-6 of the largest."""
    tall = len(rows) > rows.shape[1]
    square = rows.T @ rows if tall else rows @ rows.T
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh(square), 0)).sum())


def _halves(n: int, draws: int, seed: int) -> list[np.ndarray]:
    """Return random halves of range(n), each followed by its complement."""
    rng = np.random.default_rng(seed)
    half = n // 2
    orders = [rng.permutation(n) for _ in range(max(draws // 2, 1))]
    return [part for order in orders for part in (order[:half], order[-half:])]
