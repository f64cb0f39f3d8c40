"""Area means: pixels are shared by the lengths that cells cover of them."""

import numpy as np
import pytest

from vdm_jax.area_means import area_matrix


@pytest.mark.parametrize("size", [3, 8, 12, 13])
def test_cells_divide_every_pixel(size):
    weights = area_matrix(size, 8)
    assert weights.shape == (8, size)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(weights.sum(0), 8 / size, rtol=1e-12)


def test_means_over_whole_and_partial_pixels():
    np.testing.assert_array_equal(
        area_matrix(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
    )
    np.testing.assert_allclose(area_matrix(3, 2), np.array([[2, 1, 0], [0, 1, 2]]) / 3)


def test_more_cells_repeat_pixels():
    np.testing.assert_array_equal(area_matrix(2, 4), np.eye(2).repeat(2, 0))
