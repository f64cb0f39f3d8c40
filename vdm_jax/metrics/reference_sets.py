"""The rows of every table: samples, real clips, and real clips distorted on purpose."""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from vdm_jax.errors import UserError
from vdm_jax.metrics.video_arrays import check_same_shape, to_float64, unique_videos


def _frozen(x: np.ndarray) -> np.ndarray:
    return np.broadcast_to(x[:, :1], x.shape)


def _video_mean(x: np.ndarray) -> np.ndarray:
    return np.broadcast_to(x.mean(1, keepdims=True), x.shape)


def _blur(x: np.ndarray) -> np.ndarray:
    return ndimage.uniform_filter(x, size=4, axes=(2, 3), mode="nearest")


def _global_mean(x: np.ndarray) -> np.ndarray:
    return np.broadcast_to(x.mean((0, 1)), x.shape)


def _noise(x: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1.0, 1.0, x.shape)


DISTORTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "frozen frame": _frozen,
    "per-video mean": _video_mean,
    "4x4 blur": _blur,
    "global mean": _global_mean,
    "noise": _noise,
}
"""Real clips [n,f,h,w,c] in [-1, 1], spoilt in one way each: first frame held; mean
over a clip's frames, held; mean over windows of 4x4 pixels; mean over all clips and
frames, held; uniform noise in their place."""


def reference_sets(
    samples: np.ndarray,
    training: np.ndarray,
    held_out: np.ndarray | None,
    seed: int = 0,
) -> tuple[np.ndarray, dict[str, Callable[[], np.ndarray]]]:
    """The reference [n, ...], and what stands beside it: samples, real clips, spoilt
    ones; each made when it is asked for.

    All have the same number n of clips: that of the samples, of the held-out clips (if
    there are any: None leaves their row out) or half that of the training clips,
    whichever is least, repeated clips not counted. Of
    the training clips n are drawn as the reference, and n others for 'training real',
    which is as good as n clips can look, and for the SPOILT rows: so those differ from
    it by the spoiling alone. Raises UserError for unlike shapes, or if n is below 2.
    """
    check_same_shape(samples, training)
    training = unique_videos(training)
    n = min(len(samples), len(training) // 2)
    if held_out is not None:
        check_same_shape(samples, held_out)
        held_out = unique_videos(held_out)
        n = min(n, len(held_out))
    if n < 2:
        kept = "" if held_out is None else f"{len(held_out)} held-out, "
        raise UserError(
            f"{len(samples)} samples, {kept}{len(training)} training clips that "
            "differ: statistics need at least 2 of each and 4 for training"
        )
    drawn = training[np.random.default_rng(seed).permutation(len(training))[: 2 * n]]
    other = drawn[n:]
    rows: dict[str, Callable[[], np.ndarray]] = {
        "samples": lambda: samples[:n],
        "training real": lambda: other,
    }
    if held_out is not None:
        rows["held-out real"] = lambda: held_out[:n]
    for name, spoil in DISTORTIONS.items():
        rows[name] = lambda spoil=spoil: spoil(to_float64(other))
    return drawn[:n], rows
