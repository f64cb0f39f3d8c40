"""PSNR, SSIM and R^2 of videos against reference videos, pixel by pixel.

For predictions and reconstructions, which have one right answer. PSNR and SSIM reward
blur where the answer is uncertain. Videos are [n, f, h, w, c], uint8 0..255 or float in
[-1, 1], which are clipped; both scales give the same scores. Computed in float64.
"""

import numpy as np
from scipy import ndimage

from vdm_jax.errors import UserError
from vdm_jax.metrics.video_arrays import to_float64

WINDOW, SIGMA = 11, 1.5  # size and deviation of the Gaussian window of SSIM, in pixels
K1, K2 = 0.01, 0.03  # constants of SSIM


def psnr(videos: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the peak signal-to-noise ratio of each video in decibels, [n].

    10 log10(range^2 / mean square error), the error over all pixels of all frames. It
    is infinite for equal videos. (The mean over per-frame PSNRs, which some papers
    report, is larger, and infinite where a single frame is equal.)
    """
    _checked(videos, reference)
    errors = [
        np.mean((to_float64(a) - to_float64(b)) ** 2)
        for a, b in zip(videos, reference, strict=True)
    ]
    with np.errstate(divide="ignore"):
        return 10 * np.log10(4.0 / np.array(errors))  # [-1, 1] has a range of 2


def ssim(videos: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the structural similarity of each video, [n]: 1 for equal, at least -1.

    Wang et al. 2004, IEEE TIP 13(4), equation 13: Gaussian windows of 11x11 pixels that
    lie inside the frame, sigma 1.5, K1 = .01, K2 = .03. Computed per channel, then
    averaged over windows, channels and frames (the paper has luminance only).

    Raises:
      UserError: shapes differ, or a side is below 11 pixels.
    """
    _checked(videos, reference)
    if min(np.shape(videos)[2:4]) < WINDOW:
        h, w = np.shape(videos)[2:4]
        raise UserError(f"frames of {h}x{w}: SSIM needs {WINDOW} pixels a side")
    return np.array([_ssim(a, b) for a, b in zip(videos, reference, strict=True)])


def _ssim(video: np.ndarray, reference: np.ndarray) -> float:
    """Return the structural similarity of one video [f, h, w, c]."""
    # SSIM has a ratio of luminances, so black must be 0: pixels in [0, 1].
    x, y = (to_float64(v) / 2 + 0.5 for v in (video, reference))
    c1, c2 = K1**2, K2**2
    mx, my = _windows(x), _windows(y)
    vx, vy = _windows(x * x) - mx * mx, _windows(y * y) - my * my
    covariance = _windows(x * y) - mx * my
    similar = (2 * mx * my + c1) * (2 * covariance + c2)
    return float(np.mean(similar / ((mx * mx + my * my + c1) * (vx + vy + c2))))


def _windows(x: np.ndarray) -> np.ndarray:
    """Return weighted window means: [f, h, w, c] -> [f, h - 10, w - 10, c]."""
    half = WINDOW // 2
    weights = np.exp(-0.5 * (np.arange(-half, half + 1) / SIGMA) ** 2)
    weights /= weights.sum()
    for axis in (1, 2):
        x = ndimage.correlate1d(x, weights, axis=axis)
    return x[:, half:-half, half:-half]


def _checked(videos: np.ndarray, reference: np.ndarray) -> None:
    shape = np.shape(videos)
    if len(shape) != 5 or shape != np.shape(reference) or 0 in shape:
        raise UserError(
            f"videos of shapes {shape} and {np.shape(reference)} cannot be compared: "
            "give [n, f, h, w, c] with the same numbers"
        )


def r2(videos: np.ndarray, reference: np.ndarray) -> float:
    """Return the coefficient of determination R^2 of videos [n, ...] by a reference.

    1 - mean square difference / variance of the reference over its n videos, per pixel:
    1 for equal videos, 0 for the reference's mean video, about -1 for independent
    samples of the same distribution; 0 where the reference has no variance.
    """
    variance = float(np.var(reference, axis=0).mean())
    error = float(np.square(videos - reference).mean())
    return 1 - error / variance if variance else 0.0
