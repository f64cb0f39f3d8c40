"""Frechet distances of features: the value, its standard error, its limit for large n."""

import numpy as np

from vdm_jax.errors import UserError
from vdm_jax.metrics.kernel import kernel_distance

NUM_HALVES = 30  # random halves behind the error of a distance, and its extrapolation
RANK = 1e-12  # of a squared singular value to the largest: below, it is rounding


def frechet_distance(
    mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray
) -> float:
    """Frechet (2-Wasserstein) distance, squared, of two Gaussians [d], [d, d].

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2
    (Dowson and Landau 1982; Heusel et al. 2017, arXiv:1706.08500, section 3).
    """
    return _distance(mean1, _factor(cov1), mean2, _factor(cov2))


def frechet_of_features(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of Gaussians fitted to two sets of features, both [n, d].

    Covariances are unbiased (n - 1); the distance is not: it is too large by an
    amount that falls with n, so sets of unequal n are refused. n may be below d: the
    rank is then low, and no covariance is formed or inverted.
    """
    if a.shape != b.shape or len(a) < 2:
        raise UserError(
            f"features of shapes {a.shape} and {b.shape}: Frechet distances are "
            "comparable at equal numbers only, from 2 on"
        )
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    # R of Q R = X - mean has R^T R = (n - 1) S, without forming S.
    factors = [np.linalg.qr(x - x.mean(0)).R.T / np.sqrt(len(x) - 1) for x in (a, b)]
    return _distance(a.mean(0), factors[0], b.mean(0), factors[1])


def frechet_error(
    a: np.ndarray, b: np.ndarray, draws: int = NUM_HALVES, seed: int = 0
) -> float:
    """Standard error of `feature_distance` by the chance of the videos of `a`.

    a, b: [n, k, d], k features of each of n videos; NaN for n below 4. The distance is
    a linear function of the videos and a quadratic one, of variances V1 and V2: the
    chance is V1 + V2. The infinitesimal jackknife finds V1 + 2 V2 (Efron and Stein
    1981), a bootstrap V1 + 3 V2. V2 is that of what random halves, `draws` of them in
    complementary pairs, leave of the jackknife's line. experiments/frechet_errors/frechet_errors.py measures
    how often two of these errors hold the mean.
    """
    n, k, _ = a.shape
    if n < 4:
        return float("nan")
    flat, target = (np.asarray(x, np.float64).reshape(-1, x.shape[-1]) for x in (a, b))
    flat, off = flat - flat.mean(0), flat.mean(0) - target.mean(0)
    cross = flat @ _thin(target - target.mean(0)).T / np.sqrt(len(target) - 1)
    # The slope of the distance in the weight of each row of `a`.
    slopes = 2 * flat @ off / len(flat) + (flat**2).sum(1) / (len(flat) - 1)
    squares, vectors = np.linalg.eigh(cross.T @ cross)
    kept = squares > RANK * squares.max()
    along = (cross @ vectors[:, kept]) ** 2 / np.sqrt(squares[kept])
    slopes -= along.sum(1) / np.sqrt(len(flat) - 1)
    line = slopes.reshape(n, k).sum(1)
    line -= line.mean()

    def rest(half: np.ndarray) -> float:
        """Of the distance of these videos, what is not on the line."""
        x, y = (of.reshape(n, -1)[half].reshape(-1, of.shape[1])
                for of in (flat, cross))  # fmt: skip
        centre, degrees = x.mean(0), len(x) - 1
        spread = ((x - centre) ** 2).sum() / degrees
        nuclear = _nuclear(y - y.mean(0)) / np.sqrt(degrees)
        found = ((centre + off) ** 2).sum() + spread - 2 * nuclear
        return float(found - line[half].mean() * n)

    rests = [rest(half) for half in _halves(n, draws, seed)]
    quadratic = np.var(rests) * (n // 2 / (n - n // 2)) ** 2
    jackknife = (line**2).sum() * n / (n - 1)
    return float(np.sqrt(max(jackknife - quadratic, quadratic)))


def frechet_infinity(
    a: np.ndarray, b: np.ndarray, draws: int = 10, seed: int = 0
) -> float:
    """The Frechet distance of infinitely many videos, from n and from random halves.

    a, b: [n, k, d] as for `distance_error`; NaN for n below 4. Linear in 1 / n (Chong
    and Forsyth 2020, arXiv:1911.07023, FID-infinity). Where there are fewer features
    than about 1.5 d it is still too large: the covariances have no full rank. It may be
    negative.
    """
    n = len(a)
    if n < 4:
        return float("nan")

    def distance(videos: np.ndarray) -> float:
        x, y = (of[videos].reshape(-1, of.shape[-1]) for of in (a, b))
        off, degrees = x.mean(0) - y.mean(0), len(x) - 1
        x, y = x - x.mean(0), y - y.mean(0)
        spread = (x**2).sum() + (y**2).sum() - 2 * _nuclear(x @ _thin(y).T)
        return float(off @ off + spread / degrees)

    a, b = (np.asarray(x, np.float64) for x in (a, b))
    whole = distance(np.arange(n))
    halves = np.mean([distance(half) for half in _halves(n, draws, seed)])
    return whole - (float(halves) - whole) * (n // 2) / (n - n // 2)


def distance_scores(
    name: str, a: np.ndarray, b: np.ndarray, draws: int = NUM_HALVES
) -> dict[str, float]:
    """The Frechet distance of two sets of features [n, k, d], and what few videos do.

    Keys: NAME, the distance; NAME_error, its standard error; NAME_infinite, as
    `extrapolated`; NAME_kernel and NAME_kernel_error, as `kernel_distance`.
    """
    kernel, kernel_error = kernel_distance(a, b)
    return {
        name: frechet_of_features(*(x.reshape(-1, x.shape[-1]) for x in (a, b))),
        f"{name}_error": frechet_error(a, b, draws),
        f"{name}_infinite": frechet_infinity(a, b),
        f"{name}_kernel": kernel,
        f"{name}_kernel_error": kernel_error,
    }


def _thin(rows: np.ndarray) -> np.ndarray:
    """[n, d] -> [at most d, d] of the same sum of outer products."""
    if len(rows) <= rows.shape[1]:
        return rows
    return np.linalg.qr(rows).R


def _nuclear(rows: np.ndarray) -> float:
    """The sum of the singular values, from their squares: to 1e-6 of the largest."""
    tall = len(rows) > rows.shape[1]
    square = rows.T @ rows if tall else rows @ rows.T
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh(square), 0)).sum())


def _halves(n: int, draws: int, seed: int) -> list[np.ndarray]:
    """Random halves of n numbers, each followed by as many of the rest."""
    rng, half = np.random.default_rng(seed), n // 2
    orders = [rng.permutation(n) for _ in range(max(draws // 2, 1))]
    return [part for order in orders for part in (order[:half], order[-half:])]


def _distance(
    mean1: np.ndarray, factor1: np.ndarray, mean2: np.ndarray, factor2: np.ndarray
) -> float:
    """The distance from factors [d, k] of the covariances, S = A A^T.

    The last trace is then the sum of the singular values of A1^T A2: their squares are
    the eigenvalues of S1^1/2 S2 S1^1/2.
    """
    difference = np.asarray(mean1, np.float64) - np.asarray(mean2, np.float64)
    cross = np.linalg.svd(factor1.T @ factor2, compute_uv=False).sum()
    spread = (factor1**2).sum() + (factor2**2).sum()
    return max(float(difference @ difference + spread - 2 * cross), 0.0)


def _factor(cov: np.ndarray) -> np.ndarray:
    """A with A A^T = cov.

    Where the rank is low some eigenvalues are rounding errors instead of 0, and the
    root of 1e-16 is 1e-8: what is within rounding of 0 is taken as 0 before the root.
    """
    values, vectors = np.linalg.eigh(np.asarray(cov, np.float64))
    rounding = len(values) * np.finfo(np.float64).eps * np.abs(values).max()
    return vectors * np.sqrt(np.where(values > rounding, values, 0.0))
