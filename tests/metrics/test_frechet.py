"""Frechet distances and their errors: closed forms, invariances; no stored values."""

import numpy as np
import pytest
import scipy.linalg

from vdm_jax.errors import UserError
from vdm_jax.metrics import frechet
from vdm_jax.metrics.tables import distance_columns


def gaussian(seed, d=6, rank=None):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(d, rank or d))
    return rng.normal(size=d), factor @ factor.T


def features(mean, cov):
    """Return features [2 d, d] of exactly this mean and covariance."""
    values, vectors = np.linalg.eigh(np.atleast_2d(cov))
    rows = (vectors * np.sqrt(np.maximum(values, 0))).T
    rows = rows * np.sqrt((2 * len(rows) - 1) / 2)
    return mean + np.concatenate([rows, -rows])


def eigenvalue_distance(a, b):
    """Return the distance of two feature sets by the eigenvalues of S1 S2."""
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values = np.linalg.eigvals(c1 @ c2).real
    values = np.where(values > 1e-12 * values.max(), values, 0)
    squares = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return squares + np.trace(c1) + np.trace(c2) - 2 * np.sqrt(values).sum()


@pytest.mark.parametrize("rank", [6, 2])
def test_distance_to_itself_is_zero_at_low_rank_too(rank):
    own = features(*gaussian(0, rank=rank))
    variance = np.trace(np.cov(own, rowvar=False))
    assert frechet.frechet_of_features(own, own) < 1e-12 * variance


def test_diagonal_covariances_add_up_by_dimension():
    rng = np.random.default_rng(1)
    m1, m2, s1, s2 = rng.uniform(0.1, 2, (4, 5))
    expected = ((m1 - m2) ** 2 + (s1 - s2) ** 2).sum()
    own = features(m1, np.diag(s1**2)), features(m2, np.diag(s2**2))
    assert frechet.frechet_of_features(*own) == pytest.approx(expected, rel=1e-11)


def test_same_for_rotated_axes_and_exchanged_arguments():
    a, b = features(*gaussian(2)), features(*gaussian(3, rank=3))
    rotation = np.linalg.qr(np.random.default_rng(4).normal(size=(6, 6)))[0]
    expected = pytest.approx(frechet.frechet_of_features(a, b), rel=1e-10)
    assert frechet.frechet_of_features(a @ rotation, b @ rotation) == expected
    assert frechet.frechet_of_features(b, a) == expected


def test_agrees_with_the_matrix_square_root():
    (m1, c1), (m2, c2) = gaussian(5), gaussian(6)
    root = scipy.linalg.sqrtm(c1)
    trace = np.trace(scipy.linalg.sqrtm(root @ c2 @ root)).real
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * trace
    own = features(m1, c1), features(m2, c2)
    assert frechet.frechet_of_features(*own) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [5, 50])
def test_distance_of_features_is_that_of_their_means_and_covariances(n):
    a, b = np.random.default_rng(9).normal(size=(2, n, 8)) * np.arange(1, 9)
    expected = pytest.approx(eigenvalue_distance(a, b), rel=1e-9)
    assert frechet.frechet_of_features(a, b) == expected
    groups = a.reshape(n, 2, 4), b.reshape(n, 2, 4)
    flat = (x.reshape(2 * n, 4) for x in groups)
    expected = frechet.frechet_of_features(*flat)
    assert frechet.frechet_of_features(*groups) == expected


def test_fitted_distance_approaches_that_of_the_gaussians_and_is_biased_upward():
    rng = np.random.default_rng(7)
    small, large = (
        np.mean(
            [
                frechet.frechet_of_features(*rng.normal(size=(2, n, 4)))
                for _ in range(20)
            ]
        )
        for n in (20, 2000)
    )
    assert 0 < large < 0.02 < small


def test_unequal_numbers_are_refused():
    with pytest.raises(UserError, match="equal numbers"):
        frechet.frechet_of_features(np.zeros((8, 3)), np.zeros((9, 3)))


@pytest.mark.parametrize("mean, deviation", [(1, 1), (0, 2)])
def test_standard_error_is_the_deviation_over_fresh_videos(mean, deviation):
    """Features of one video are correlated: the error is that of n videos."""
    rng = np.random.default_rng(0)
    n, k, d = 60, 4, 3
    target = rng.standard_normal((n, k, d))

    def fresh():
        shared = mean + deviation * rng.standard_normal((n, 1, d))
        return shared + 0.1 * rng.standard_normal((n, k, d))

    def distance(a):
        return frechet.frechet_of_features(*(x.reshape(-1, d) for x in (a, target)))

    expected = np.std([distance(fresh()) for _ in range(300)])
    errors = [frechet.frechet_error(fresh(), target, draws=100) for _ in range(8)]
    assert np.mean(errors) == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("n, d, within", [(60, 4, 0.1), (60, 16, 0.2), (40, 64, 0.2)])
def test_standard_error_for_equal_distributions(n, d, within):
    """The slope is random there, and a bootstrap is too wide by root 3 or more."""
    rng = np.random.default_rng(0)
    target = rng.standard_normal((n, 1, d))
    fresh = lambda: rng.standard_normal((n, 1, d))  # noqa: E731
    expected = np.std(
        [frechet.frechet_of_features(fresh()[:, 0], target[:, 0]) for _ in range(400)]
    )
    errors = [frechet.frechet_error(fresh(), target) for _ in range(30)]
    assert np.mean(errors) == pytest.approx(expected, rel=within)


def test_standard_error_of_a_quadratic_distance():
    """The reference is the population, so the slope is 0: a jackknife is too wide by
    root 2, a bootstrap by root 3.
    """
    rng, n, d = np.random.default_rng(0), 60, 16
    target = rng.standard_normal((n, d))
    target -= target.mean(0)
    white = np.linalg.inv(np.linalg.cholesky(np.cov(target, rowvar=False)))
    target = target @ white.T
    fresh = lambda: rng.standard_normal((n, 1, d))  # noqa: E731
    expected = np.std(
        [frechet.frechet_of_features(fresh()[:, 0], target) for _ in range(300)]
    )
    errors = [frechet.frechet_error(fresh(), target[:, None]) for _ in range(20)]
    assert expected < np.mean(errors) < 1.3 * expected


def test_extrapolated_distance_is_that_of_the_gaussians():
    """The fitted one is far too large: |m|^2 + d / 4 for deviations 1 and 1.5."""
    rng, n, d = np.random.default_rng(0), 60, 8
    mean = np.full(d, 0.2)
    pairs = [
        (mean + 1.5 * rng.standard_normal((n, 1, d)), rng.standard_normal((n, 1, d)))
        for _ in range(60)
    ]
    fitted = [frechet.frechet_of_features(a[:, 0], b[:, 0]) for a, b in pairs]
    limits = [frechet.frechet_infinity(a, b) for a, b in pairs]
    expected, error = mean @ mean + d / 4, np.std(limits) / np.sqrt(len(limits))
    assert np.mean(fitted) > expected + 5 * error
    assert np.mean(limits) == pytest.approx(expected, abs=3 * error)


def test_scores_have_the_columns_and_are_nan_for_few_videos():
    a, b = np.random.default_rng(0).standard_normal((2, 9, 4, 3))
    scores = frechet.distance_scores("fd", a, b)
    columns = distance_columns({"fd": ("FD", ".2f")}, "fd")
    assert scores.keys() == columns.keys() and np.isfinite([*scores.values()]).all()
    flat = (x.reshape(-1, 3) for x in (a, b))
    assert scores["fd"] == frechet.frechet_of_features(*flat)
    few = frechet.distance_scores("fd", a[:3], b[:3])
    missing = {name for name, value in few.items() if np.isnan(value)}
    assert missing == {"fd_error", "fd_infinite", "fd_kernel_error"}
    same = frechet.distance_scores("fd", np.ones((5, 2, 3)), np.ones((5, 2, 3)))
    assert [*same.values()] == pytest.approx([0] * 5)
