"""PSNR and SSIM: how near videos are to those that they should equal, pixel by pixel.

For predictions and reconstructions, where there is one right answer. Both reward blur
where the answer is uncertain. Videos are [n, f, h, w, c], uint8 0..255 or float in
[-1, 1], which are clipped; both scales give the same figures. Float64.
"""

import numpy as np
from scipy import ndimage

from vdm_jax.errors import UserError
from vdm_jax.metrics.video_arrays import to_float64

WINDOW, SIGMA = 11, 1.5  # of the Gaussian, in pixels
K1, K2 = 0.01, 0.03


def psnr(videos: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each video in decibels, [n]: higher is nearer.

    10 log10(range^2 / mean square error), the error over all pixels of all frames:
    infinite for equal videos. (The mean of the frames' PSNRs, which some report, is
    larger, and infinite where a single frame is equal.)
    """
    _checked(videos, reference)
    errors = [
        np.mean((to_float64(a) - to_float64(b)) ** 2)
        for a, b in zip(videos, reference, strict=True)
    ]
    with np.errstate(divide="ignore"):
        return 10 * np.log10(4.0 / np.array(errors))  # [-1, 1] has a range of 2


def ssim(videos: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Structural similarity of each video, [n]: 1 for equal videos, at least -1.

    Wang et al. 2004, IEEE TIP 13(4), equation 13: Gaussian windows of 11x11 pixels,
    sigma 1.5, K1 = .01, K2 = .03, those inside the frame only. Each channel alone, then
    the mean over windows, channels and frames (the paper has the luminance alone).
    """
    _checked(videos, reference)
    if min(np.shape(videos)[2:4]) < WINDOW:
        h, w = np.shape(videos)[2:4]
        raise UserError(f"frames of {h}x{w}: SSIM needs {WINDOW} pixels a side")
    return np.array([_ssim(a, b) for a, b in zip(videos, reference, strict=True)])


def _ssim(video: np.ndarray, reference: np.ndarray) -> float:
    """Of one video [f, h, w, c]."""
    # Luminance enters as a ratio, so black must be 0: [0, 1], not [-1, 1].
    x, y = (to_float64(v) / 2 + 0.5 for v in (video, reference))
    c1, c2 = K1**2, K2**2
    mx, my = _windows(x), _windows(y)
    vx, vy = _windows(x * x) - mx * mx, _windows(y * y) - my * my
    covariance = _windows(x * y) - mx * my
    similar = (2 * mx * my + c1) * (2 * covariance + c2)
    return float(np.mean(similar / ((mx * mx + my * my + c1) * (vx + vy + c2))))


def _windows(x: np.ndarray) -> np.ndarray:
    """Weighted means of the windows inside: [f, h, w, c] -> [f, h-10, w-10, c]."""
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
    """How far videos [n, ...] are those of a reference, one by one: 1 is the same.

    1 - mean square difference / variance of the reference over its n videos, pixel by
    pixel: 0 is no nearer than the reference's mean video, unrelated samples have -1.
    """
    spread = float(np.var(reference, axis=0).mean())
    error = float(np.square(videos - reference).mean())
    return 1 - error / spread if spread else 0.0
