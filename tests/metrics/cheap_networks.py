"""Cheap networks in place of I3D, EfficientNet and LPIPS, and clips for them."""

import numpy as np

from vdm_jax.metrics import perceptual, pixel_statistics
from vdm_jax.metrics.video_arrays import to_float64


class CheapNetworks(perceptual.PerceptualNetworks):
    """Cell means in place of the networks' features; `names` are the rows extracted."""

    def __init__(self):
        self.names = []

    def i3d_logits(self, name, videos):
        self.names.append(name)
        return pixel_statistics.pixel_features(videos).reshape(len(videos), -1)[:, ::97]

    def frame_features(self, name, videos):
        features = pixel_statistics.pixel_features(videos)
        return features.reshape(*videos.shape[:2], -1)[:, :, ::5]

    def diversity(self, name, videos):
        return float(np.std(to_float64(videos), axis=0).mean())


def drifting_squares() -> np.ndarray:
    """Return squares that drift over a ramp: uint8 [40, 8, 16, 16, 3]."""
    rng = np.random.default_rng(0)
    videos = np.zeros((40, 8, 16, 16, 3), np.uint8)
    videos[:] = (np.arange(16) * 6)[:, None]
    for video in videos:
        colour, (y, x), dx = rng.integers(90, 255, 3), rng.integers(0, 9, 2), 1
        for t, frame in enumerate(video):
            left = min(x + dx * (t // 2), 12)
            frame[y : y + 4, left : left + 4] = colour
    return videos
