"""PSNR of known errors."""

import numpy as np
import pytest

from vdm_jax.errors import UserError
from vdm_jax.metrics.reconstruction import MAX_PSNR, psnr


def test_psnr_of_known_errors():
    """A constant difference d has PSNR 20 log10(255 / d)."""
    a = np.full((2, 3, 4, 5, 3), 100, np.uint8)
    b = a.copy()
    b[0, 0] += 10
    b[0, 1] -= 1
    b[1, 2, ..., 0] += 30  # of one channel in three: the mean square is 300
    values = psnr(a, b)
    assert values.shape == (2, 3)
    assert values[0, 0] == pytest.approx(20 * np.log10(25.5))
    assert values[0, 1] == pytest.approx(20 * np.log10(255))
    assert values[1, 2] == pytest.approx(10 * np.log10(255**2 / 300))
    assert (values.ravel()[2:5] == MAX_PSNR).all()
    with pytest.raises(UserError, match="cannot be compared"):
        psnr(a, b[:, :1])
