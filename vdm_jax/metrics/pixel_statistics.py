"""Statistics of videos from pixels: no network, numpy in float64, seconds on a CPU.

Each statistic is also measured on real clips and on distorted real clips
(`reference_sets`), because its value alone says little: a constant mean frame passes a
test that has no term for motion. docs/evaluation.md says what each statistic detects.

Videos are [n, f, h, w, c], uint8 0..255 or float in [-1, 1]; floats are clipped to
that range. All pixel units are those of [-1, 1]. Pictures, videos of one frame, have no
statistics of motion.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from scipy import ndimage

from vdm_jax.area_means import area_matrix
from vdm_jax.metrics.frechet import distance_scores
from vdm_jax.metrics.reference_sets import ReferenceSets
from vdm_jax.metrics.tables import Row, distance_columns
from vdm_jax.metrics.video_arrays import (
    check_same_shape,
    check_videos,
    group_by_video,
    to_float64,
)

CELLS = 8  # rows and columns of the grid that a frame's features are averaged on
COLUMNS = {
    "frame_fd": ("frame FD", ".2f"),
    "motion_fd": ("motion FD", ".3f"),
    "motion": ("motion / real", ".2f"),
    "sharpness": ("sharpness / real", ".2f"),
    "closer_to_train": ("closer to train", ".2f"),
}
"""Heading and format of the keys of a row."""
BIAS_COLUMNS = distance_columns(COLUMNS, "frame_fd", "motion_fd")
"""Heading and format of the keys that state error and bias of the distances."""


def pixel_features(videos: np.ndarray) -> np.ndarray:
    """Return features [n * f, 256] of single RGB frames.

    The first 192 are the mean colours of 8x8 cells, the other 64 the mean lengths of
    the gradient there, averaged over the channels.
    """
    return np.concatenate([_features(video) for video in _checked(videos, frames=1)])


def motion_features(videos: np.ndarray) -> np.ndarray:
    """Return `pixel_features` of differences of adjacent frames, [n * (f - 1), 256]."""
    displaced = (np.diff(video, axis=0) for video in _checked(videos))
    return np.concatenate([_features(difference) for difference in displaced])


def _checked(videos: np.ndarray, frames: int = 2) -> Iterator[np.ndarray]:
    """Return the videos, of so many frames at least, one by one in float64."""
    check_videos(videos, "a statistic", clips=2, frames=frames, channels="c")
    return map(to_float64, videos)


def _features(frames: np.ndarray) -> np.ndarray:
    """Return cell means of colours and gradient lengths: [f, 8 * 8 * (c + 1)]."""
    across = np.diff(frames, axis=2, append=frames[:, :, -1:])  # 0 at the far edge
    down = np.diff(frames, axis=1, append=frames[:, -1:])
    gradient = np.hypot(across, down).mean(-1, keepdims=True)
    _, h, w, _ = frames.shape
    rows, columns = area_matrix(h, CELLS), area_matrix(w, CELLS)

    def cells(x: np.ndarray) -> np.ndarray:
        means = np.einsum("ih,jw,fhwc->fijc", rows, columns, x, optimize=True)
        return means.reshape(len(x), -1)

    return np.concatenate([cells(frames), cells(gradient)], axis=1)


def motion(videos: np.ndarray) -> float:
    """Return the mean absolute difference of adjacent frames, pixels in [-1, 1]."""
    means = [np.abs(np.diff(video, axis=0)).mean() for video in _checked(videos)]
    return float(np.mean(means))


def sharpness(videos: np.ndarray) -> float:
    """Return the mean absolute Laplacian, edges extended by their nearest pixel.

    The Laplacian is the sum of the four neighbours minus four times the pixel.
    """
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], np.float64)[None, :, :, None]
    means = [
        np.abs(ndimage.convolve(to_float64(video), kernel, mode="nearest")).mean()
        for video in videos
    ]
    return float(np.mean(means))


def nearest_training(
    samples: np.ndarray, training: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return index and distance of each sample's nearest training clip, both [n].

    The distance is the root mean square of the pixel differences over the whole clip,
    on [-1, 1]: 0 for a copy. It does not find shifted or mirrored copies, and a blurred
    sample is close to every clip, so the pairs should be viewed too.
    """
    check_same_shape(samples, training)
    flat = to_float64(samples).reshape(len(samples), -1)
    best = np.full(len(samples), np.inf)
    index = np.zeros(len(samples), np.int64)
    for start in range(0, len(training), 256):  # bounds the float64 copies in memory
        clips = to_float64(training[start : start + 256]).reshape(-1, flat.shape[1])
        score = (clips**2).sum(1) - 2 * flat @ clips.T  # distance^2 minus |sample|^2
        nearest = score.argmin(1)
        value = score[np.arange(len(flat)), nearest]
        index = np.where(value < best, nearest + start, index)
        best = np.minimum(value, best)
    # Recomputed from the pixels: cancellation in the score would hide an exact copy.
    distance = [
        np.sqrt(np.mean((to_float64(s) - to_float64(training[i])) ** 2))
        for s, i in zip(samples, index, strict=True)
    ]
    return index, np.array(distance)


def r2(videos: np.ndarray, reference: np.ndarray) -> float:
    """Return the coefficient of determination R^2 of videos [n, ...] by a reference.

    1 - mean square difference / variance of the reference over its n videos, per pixel:
    1 for equal videos, 0 for the reference's mean video, about -1 for independent
    samples of the same distribution; 0 where the reference has no variance.
    """
    variance = float(np.var(reference, axis=0).mean())
    error = float(np.square(videos - reference).mean())
    return 1 - error / variance if variance else 0.0


FEATURES = {"frame_fd": pixel_features, "motion_fd": motion_features}


def grouped_features(videos: np.ndarray) -> dict[str, np.ndarray]:
    """Return features [n, k, d], k of each of n videos, by the names of distances."""
    return {
        name: group_by_video(extract(videos), len(videos))
        for name, extract in FEATURES.items()
        if name == "frame_fd" or videos.shape[1] > 1
    }


def pixel_distances(
    own: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]
) -> Row:
    """Return `frechet.distance_scores` of two results of `grouped_features`."""
    scores: Row = {}
    for name in own:
        scores |= distance_scores(name, own[name], reference[name])
    return scores


def pixel_rows(
    sets: ReferenceSets,
    training: np.ndarray,
    extra_samples: Mapping[str, np.ndarray] | None = None,
) -> list[Row]:
    """Return a row of pixel statistics per named set.

    training: clips that are searched for copies.
    extra_samples: further samples by row name, inserted after the first row.

    A row has the keys of COLUMNS and BIAS_COLUMNS, and clips, their number. frame_fd
    and motion_fd are in squared pixel units. motion and sharpness are ratios to the
    reference's, NaN where that is 0. closer_to_train is the fraction of clips that are
    closer to their nearest training clip than the median held-out clip is to its own,
    NaN without held-out clips.
    """
    reference, named = sets
    n = len(reference)
    held_out = named.get("held-out real")
    if held_out is not None:
        median = np.median(nearest_training(held_out(), training)[1])
    features = grouped_features(reference)
    real_sharpness = sharpness(reference)
    real_motion = motion(reference) if reference.shape[1] > 1 else None

    def row(name: str, videos: np.ndarray) -> Row:
        closer = np.nan
        if held_out is not None:
            closer = float(np.mean(nearest_training(videos, training)[1] < median))
        distances = pixel_distances(grouped_features(videos), features)
        row: Row = {"row": name, "clips": n, **distances}
        if real_motion is not None:
            row["motion"] = _ratio(motion(videos), real_motion)
        row["sharpness"] = _ratio(sharpness(videos), real_sharpness)
        return row | {"closer_to_train": closer}

    rows = [row(name, videos()) for name, videos in named.items()]
    extra = (extra_samples or {}).items()
    return rows[:1] + [row(name, videos[:n]) for name, videos in extra] + rows[1:]


def _ratio(value: float, real: float) -> float:
    return value / real if real > 0 else float("nan")
