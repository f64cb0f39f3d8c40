"""Video sets that are measured together: samples, real clips, distorted real clips."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from vdm_jax.errors import UserError
from vdm_jax.metrics.video_arrays import check_same_shape, to_float64, unique_videos

DISTORTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "frozen frame": lambda x: np.broadcast_to(x[:, :1], x.shape),
    "per-video mean": lambda x: np.broadcast_to(x.mean(1, keepdims=True), x.shape),
    "4x4 blur": lambda x: ndimage.uniform_filter(x, 4, axes=(2, 3), mode="nearest"),
    "global mean": lambda x: np.broadcast_to(x.mean((0, 1)), x.shape),
    "noise": lambda x: np.random.default_rng(0).uniform(-1.0, 1.0, x.shape),
}
"""Distortions of real clips [n, f, h, w, c] in [-1, 1]. In order: the first frame
repeated; the mean over a clip's frames repeated; the mean over windows of 4x4 pixels;
the mean over all clips and frames repeated; uniform noise instead of the clip."""
OF_MOTION = ("frozen frame", "per-video mean")  # these leave a picture as it is


class ReferenceSets(NamedTuple):
    """Sets of the same number of clips: the reference, and those that are compared."""

    reference: np.ndarray  # [n, f, h, w, c]
    named: dict[str, Callable[[], np.ndarray]]  # make the sets, by the names of rows


def reference_sets(
    samples: np.ndarray,
    training: np.ndarray,
    held_out: np.ndarray | None,
    seed: int = 0,
) -> ReferenceSets:
    """Return the reference set and functions that make the sets to measure.

    The sets are, by row name: samples, training real, held-out real (absent where
    held_out is None) and one set per entry of DISTORTIONS. All sets have the same
    number n of clips: the smallest of the numbers of samples, of held-out clips and of
    half the training clips, duplicates not counted.

    Pictures, clips of one frame, have no distortions of motion.

    n training clips are drawn with `seed` as the reference. n others are the set
    'training real': its score is the best that n clips can reach. The distorted sets
    are made from the same n clips, so they differ from it by the distortion alone.

    Raises:
      UserError: shapes differ, or n is below 2.
    """
    check_same_shape(samples, training)
    training = unique_videos(training)
    n = min(len(samples), len(training) // 2)
    if held_out is not None:
        check_same_shape(samples, held_out)
        held_out = unique_videos(held_out)
        n = min(n, len(held_out))
    if n < 2:
        others = "" if held_out is None else f"{len(held_out)} held-out, "
        raise UserError(
            f"{len(samples)} samples, {others}{len(training)} training clips that "
            "differ: statistics need at least 2 of each and 4 for training"
        )
    drawn = training[np.random.default_rng(seed).permutation(len(training))[: 2 * n]]
    other = drawn[n:]
    named = {"samples": lambda: samples[:n], "training real": lambda: other}
    if held_out is not None:
        named["held-out real"] = lambda: held_out[:n]
    distortions = {**DISTORTIONS}
    for name in OF_MOTION if samples.shape[1] == 1 else ():
        del distortions[name]
    for name, distort in distortions.items():
        named[name] = lambda distort=distort: distort(to_float64(other))
    return ReferenceSets(drawn[:n], named)
