"""The kernel distance by its definition and on Gaussians."""

import numpy as np
import pytest

from experiments.frechet_errors.frechet_errors import expected_kernel
from vdm_jax.metrics import kernel


def test_it_is_the_u_statistic_over_videos(monkeypatch):
    """It equals loops over pairs of features, also when computed in small blocks."""
    rng = np.random.default_rng(0)
    n, m, k, d = 5, 4, 3, 2
    a, b = rng.standard_normal((n, k, d)), rng.standard_normal((m, k, d))

    def mean(x, y, same):
        return np.mean(
            [
                (p @ q / d + 1) ** 3
                for i, v in enumerate(x)
                for j, w in enumerate(y)
                if not (same and i == j)
                for p in v
                for q in w
            ]
        )

    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    found = kernel.kernel_distance(a, b)
    assert found[0] == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(kernel, "BLOCK", 1)
    assert kernel.kernel_distance(a, b) == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize("mean, deviation", [(0.0, 1.0), (0.5, 1.5)])
def test_it_is_unbiased_at_any_number(mean, deviation):
    """Its mean is 0 for equal distributions, for four clips as for many."""
    rng, d, ones = np.random.default_rng(1), 3, np.ones(3)
    first, second = (mean * ones, deviation**2 * ones), (0 * ones, ones)
    expected = expected_kernel(*first, *first) + expected_kernel(*second, *second)
    expected -= 2 * expected_kernel(*first, *second)
    assert (expected == 0) == (mean == 0)
    for n in (4, 30):
        values = [
            kernel.kernel_distance(
                mean + deviation * rng.standard_normal((n, 1, d)),
                rng.standard_normal((n, 1, d)),
            )[0]
            for _ in range(400)
        ]
        error = np.std(values) / np.sqrt(len(values))
        assert np.mean(values) == pytest.approx(expected, abs=3 * error)


@pytest.mark.parametrize("mean", [0.0, 0.7])
def test_its_error_is_the_deviation_over_fresh_videos(mean):
    rng, n, k, d = np.random.default_rng(0), 60, 2, 4
    b = rng.standard_normal((n, k, d))

    def fresh():
        shared = rng.standard_normal((n, 1, d))
        return mean + shared + 0.3 * rng.standard_normal((n, k, d))

    found = np.array([kernel.kernel_distance(fresh(), b) for _ in range(200)])
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.2)


def test_its_error_is_unbiased_in_the_square():
    """The variance of a U-statistic of six, estimated from each of many draws."""
    rng, n = np.random.default_rng(0), 6
    values, errors = [], []
    for _ in range(4000):
        x = rng.standard_normal(n) + 1
        pairs = np.multiply.outer(x, x)
        np.fill_diagonal(pairs, 0)
        values.append(pairs.sum() / (n * (n - 1)))
        errors.append(kernel._error(pairs, values[-1]))
    assert np.mean(np.square(errors)) == pytest.approx(np.var(values), rel=0.1)


def test_three_videos_have_no_error():
    a, b = np.random.default_rng(0).standard_normal((2, 3, 1, 2))
    value, error = kernel.kernel_distance(a, b)
    assert np.isfinite(value) and np.isnan(error)
