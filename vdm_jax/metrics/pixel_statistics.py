"""Cheap honest statistics of videos: no network, numpy in float64, seconds on a CPU.

Every figure stands in a table beside the same figure of real clips that were spoilt
in one way each, because alone it says little: a flat mean may pass where motion was
asked for. docs/evaluation.md says what each one shows and what it does not.

Videos are [n, f, h, w, c], uint8 0..255 or float in [-1, 1]; floats are clipped to
that range, as they are when written to a file. All pixel units are those of [-1, 1].
"""

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from vdm_jax.metrics.frechet import distance_scores
from vdm_jax.metrics.reference_sets import reference_sets
from vdm_jax.metrics.tables import Row, distance_columns
from vdm_jax.metrics.video_arrays import (
    check_same_shape,
    check_videos,
    group_by_video,
    to_float64,
)

CELLS = 8  # a frame is described on a grid of 8x8 cells
COLUMNS = {
    "row": ("{clips} clips a row", ""),
    "frame_fd": ("frame FD", ".2f"),
    "motion_fd": ("motion FD", ".3f"),
    "motion": ("motion / real", ".2f"),
    "sharpness": ("sharpness / real", ".2f"),
    "closer_to_train": ("nearer to training", ".2f"),
}
"""Keys of a row that are shown: heading and format."""
BIAS_COLUMNS = {
    "row": ("{clips} clips a row", ""),
    **distance_columns("frame_fd", "frame FD", ".2f"),
    **distance_columns("motion_fd", "motion FD", ".3f"),
}
"""Keys of a row that say what few clips do to its distances."""


def area_weights(size: int, cells: int) -> np.ndarray:
    """[cells, size]: the share of each pixel in each cell's mean; rows sum to 1.

    A cell is 1/cells of the length, wherever its ends fall within a pixel.
    """
    edges = np.arange(cells + 1) * size / cells
    left = np.maximum(edges[:-1, None], np.arange(size))
    right = np.minimum(edges[1:, None], np.arange(size) + 1)
    return np.maximum(right - left, 0.0) * cells / size


def pixel_features(videos: np.ndarray) -> np.ndarray:
    """[n*f, 256]: what the Frechet distances see of each RGB frame.

    First the mean colour of each of 8x8 cells (192), then the mean length of the
    gradient in each (64, averaged over the channels). Cells have equal areas; where
    the size does not divide by 8 their borders cut through pixels.
    """
    return np.concatenate(
        [_features(to_float64(video)) for video in check_videos(videos)]
    )


def motion_features(videos: np.ndarray) -> np.ndarray:
    """[n*(f-1), 256]: the same features of the differences of neighbouring frames."""
    return np.concatenate(
        [
            _features(np.diff(to_float64(video), axis=0))
            for video in check_videos(videos)
        ]
    )


def _features(frames: np.ndarray) -> np.ndarray:
    """[f, h, w, c] -> [f, 8*8*(c+1)]."""
    across = np.diff(frames, axis=2, append=frames[:, :, -1:])  # 0 at the far edge
    down = np.diff(frames, axis=1, append=frames[:, -1:])
    gradient = np.hypot(across, down).mean(-1, keepdims=True)
    _, h, w, _ = frames.shape
    rows, columns = area_weights(h, CELLS), area_weights(w, CELLS)

    def cells(x: np.ndarray) -> np.ndarray:
        return np.einsum("ih,jw,fhwc->fijc", rows, columns, x, optimize=True).reshape(
            len(x), -1
        )

    return np.concatenate([cells(frames), cells(gradient)], axis=1)


def motion(videos: np.ndarray) -> float:
    """Mean |difference of neighbouring frames|, in pixel values of [-1, 1]."""
    means = [
        np.abs(np.diff(to_float64(v), axis=0)).mean() for v in check_videos(videos)
    ]
    return float(np.mean(means))


def sharpness(videos: np.ndarray) -> float:
    """Mean |Laplacian| (the four neighbours less four times the pixel), edges held."""
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], np.float64)[None, :, :, None]
    means = [
        np.abs(ndimage.convolve(to_float64(video), kernel, mode="nearest")).mean()
        for video in videos
    ]
    return float(np.mean(means))


def nearest_training(
    samples: np.ndarray, training: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each sample the index of its nearest training clip, and the distance, [n].

    Distance is the root mean square of the pixel differences over the whole clip, on
    [-1, 1]: 0 for a copy. A shifted or mirrored copy is not found, and a blurred
    sample is near to everything: look at the pairs too.
    """
    check_same_shape(samples, training)
    flat = to_float64(samples).reshape(len(samples), -1)
    best = np.full(len(samples), np.inf)
    index = np.zeros(len(samples), np.int64)
    for start in range(0, len(training), 256):  # bounds the float64 copies in memory
        clips = to_float64(training[start : start + 256]).reshape(-1, flat.shape[1])
        score = (clips**2).sum(1) - 2 * flat @ clips.T  # distance^2 less |sample|^2
        found = score.argmin(1)
        value = score[np.arange(len(flat)), found]
        index = np.where(value < best, found + start, index)
        best = np.minimum(value, best)
    # Anew from the pixels: the scores cancel, and a copy would not come out as 0.
    distance = [
        np.sqrt(np.mean((to_float64(s) - to_float64(training[i])) ** 2))
        for s, i in zip(samples, index, strict=True)
    ]
    return index, np.array(distance)


def pixel_table(
    samples: np.ndarray,
    training: np.ndarray,
    held_out: np.ndarray | None,
    seed: int = 0,
    extra_samples: Mapping[str, np.ndarray] | None = None,
) -> list[Row]:
    """Rows of `compared`, measured by their pixels; more: of other samples, by name.

    A row has the keys of COLUMNS and BIAS, and clips, their number. frame_fd and
    motion_fd are in squared pixel units, motion and sharpness are divided by the
    reference's (NaN where that is 0), nearer is the share of clips that are nearer to a
    training clip (any of them) than the median held-out clip, NaN without any.

    Raises UserError as `compared` does.
    """
    reference, named = reference_sets(samples, training, held_out, seed)
    n, median = len(reference), np.nan
    if held_out is not None:
        kept = named["held-out real"]()
        median = np.median(nearest_training(kept, training)[1])
    seen = {"frame_fd": pixel_features, "motion_fd": motion_features}
    aims = {
        name: group_by_video(features(reference), n) for name, features in seen.items()
    }
    real_motion, real_sharpness = motion(reference), sharpness(reference)

    def nearer(videos: np.ndarray) -> float:
        if held_out is None:
            return np.nan
        return float(np.mean(nearest_training(videos, training)[1] < median))

    def row(name: str, videos: np.ndarray) -> Row:
        measured = [
            distance_scores(key, group_by_video(features(videos), n), aims[key])
            for key, features in seen.items()
        ]
        return {
            "row": name,
            "clips": n,
            **{k: v for found in measured for k, v in found.items()},
            "motion": _ratio(motion(videos), real_motion),
            "sharpness": _ratio(sharpness(videos), real_sharpness),
            "closer_to_train": nearer(videos),
        }

    rows = [row(name, videos()) for name, videos in named.items()]
    return (
        rows[:1]
        + [row(name, of[:n]) for name, of in (extra_samples or {}).items()]
        + rows[1:]
    )


def _ratio(value: float, real: float) -> float:
    return value / real if real > 0 else float("nan")
