"""How near reconstructions are to their originals."""

import numpy as np

from vdm_jax.metrics.video_arrays import check_same_shape

MAX_PSNR = 100.0  # dB, of equal frames


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the peak signal-to-noise ratio of pairs of frames in dB: float64 [n, f].

    PSNR = 10 log10(255^2 / MSE), with the mean over a frame's pixels and channels. It
    is at most 100.

    a, b: uint8 [n, f, h, w, c].

    Raises:
      UserError: their shapes differ.
    """
    check_same_shape(a, b)
    error = np.square(a.astype(np.float64) - b).mean((2, 3, 4))
    smallest = 255**2 / 10 ** (MAX_PSNR / 10)
    return 10 * np.log10(255**2 / np.maximum(error, smallest))
