"""Cheap honest statistics of videos: no network, numpy in float64, seconds on a CPU.

Every figure stands in a table beside the same figure of real clips that were spoilt
in one way each, because alone it says little: a flat mean may pass where motion was
asked for. docs/evaluation.md says what each one shows and what it does not.

Videos are [n, f, h, w, c], uint8 0..255 or float in [-1, 1]; floats are clipped to
that range, as they are when written to a file. All pixel units are those of [-1, 1].
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import ndimage

from vdm_jax.errors import UserError
from vdm_jax.metrics.kernel import kernel_distance

CELLS = 8  # a frame is described on a grid of 8x8 cells
NUM_HALVES = 30  # random halves behind the error of a distance, and its extrapolation
Row = dict[str, str | int | float]


def pixels(video: np.ndarray) -> np.ndarray:
    """Float64 in [-1, 1] of uint8 0..255, or of floats, which are clipped."""
    video = np.asarray(video)
    if video.dtype == np.uint8:
        return video / 127.5 - 1.0
    if not np.issubdtype(video.dtype, np.floating):
        raise UserError(
            f"videos of type {video.dtype}: give uint8, or float in [-1, 1]"
        )
    if not np.isfinite(video).all():
        raise UserError("videos with NaN or infinite pixels: nothing can be measured")
    return np.clip(video.astype(np.float64), -1.0, 1.0)


# --- Frechet distance ------------------------------------------------------------


def frechet_distance(
    mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray
) -> float:
    """Frechet (2-Wasserstein) distance, squared, of two Gaussians [d], [d, d].

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2
    (Dowson and Landau 1982; Heusel et al. 2017, arXiv:1706.08500, section 3).
    """
    return _distance(mean1, _factor(cov1), mean2, _factor(cov2))


def frechet_of_features(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of Gaussians fitted to two sets of features, both [n, d].

    Covariances are unbiased (n - 1); the distance is not: it is too large by an
    amount that falls with n, so sets of unequal n are refused. n may be below d: the
    rank is then low, and no covariance is formed or inverted.
    """
    if a.shape != b.shape or len(a) < 2:
        raise UserError(
            f"features of shapes {a.shape} and {b.shape}: Frechet distances are "
            "comparable at equal numbers only, from 2 on"
        )
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    # R of Q R = X - mean has R^T R = (n - 1) S, without forming S.
    factors = [np.linalg.qr(x - x.mean(0)).R.T / np.sqrt(len(x) - 1) for x in (a, b)]
    return _distance(a.mean(0), factors[0], b.mean(0), factors[1])


def frechet_error(
    a: np.ndarray, b: np.ndarray, draws: int = NUM_HALVES, seed: int = 0
) -> float:
    """Standard error of `feature_distance` by the chance of the videos of `a`.

    a, b: [n, k, d], k features of each of n videos; NaN for n below 4. The distance is
    a linear function of the videos and a quadratic one, of variances V1 and V2: the
    chance is V1 + V2. The infinitesimal jackknife finds V1 + 2 V2 (Efron and Stein
    1981), a bootstrap V1 + 3 V2. V2 is that of what random halves, `draws` of them in
    complementary pairs, leave of the jackknife's line. experiments/frechet_errors/frechet_errors.py measures
    how often two of these errors hold the mean.
    """
    n, k, _ = a.shape
    if n < 4:
        return float("nan")
    flat, target = (np.asarray(x, np.float64).reshape(-1, x.shape[-1]) for x in (a, b))
    flat, off = flat - flat.mean(0), flat.mean(0) - target.mean(0)
    cross = flat @ _thin(target - target.mean(0)).T / np.sqrt(len(target) - 1)
    # The slope of the distance in the weight of each row of `a`.
    slopes = 2 * flat @ off / len(flat) + (flat**2).sum(1) / (len(flat) - 1)
    squares, vectors = np.linalg.eigh(cross.T @ cross)
    kept = squares > RANK * squares.max()
    along = (cross @ vectors[:, kept]) ** 2 / np.sqrt(squares[kept])
    slopes -= along.sum(1) / np.sqrt(len(flat) - 1)
    line = slopes.reshape(n, k).sum(1)
    line -= line.mean()

    def rest(half: np.ndarray) -> float:
        """Of the distance of these videos, what is not on the line."""
        x, y = (of.reshape(n, -1)[half].reshape(-1, of.shape[1])
                for of in (flat, cross))  # fmt: skip
        centre, degrees = x.mean(0), len(x) - 1
        spread = ((x - centre) ** 2).sum() / degrees
        nuclear = _nuclear(y - y.mean(0)) / np.sqrt(degrees)
        found = ((centre + off) ** 2).sum() + spread - 2 * nuclear
        return float(found - line[half].mean() * n)

    rests = [rest(half) for half in _halves(n, draws, seed)]
    quadratic = np.var(rests) * (n // 2 / (n - n // 2)) ** 2
    jackknife = (line**2).sum() * n / (n - 1)
    return float(np.sqrt(max(jackknife - quadratic, quadratic)))


def frechet_infinity(
    a: np.ndarray, b: np.ndarray, draws: int = 10, seed: int = 0
) -> float:
    """The Frechet distance of infinitely many videos, from n and from random halves.

    a, b: [n, k, d] as for `distance_error`; NaN for n below 4. Linear in 1 / n (Chong
    and Forsyth 2020, arXiv:1911.07023, FID-infinity). Where there are fewer features
    than about 1.5 d it is still too large: the covariances have no full rank. It may be
    negative.
    """
    n = len(a)
    if n < 4:
        return float("nan")

    def distance(videos: np.ndarray) -> float:
        x, y = (of[videos].reshape(-1, of.shape[-1]) for of in (a, b))
        off, degrees = x.mean(0) - y.mean(0), len(x) - 1
        x, y = x - x.mean(0), y - y.mean(0)
        spread = (x**2).sum() + (y**2).sum() - 2 * _nuclear(x @ _thin(y).T)
        return float(off @ off + spread / degrees)

    a, b = (np.asarray(x, np.float64) for x in (a, b))
    whole = distance(np.arange(n))
    halves = np.mean([distance(half) for half in _halves(n, draws, seed)])
    return whole - (float(halves) - whole) * (n // 2) / (n - n // 2)


RANK = 1e-12  # of a squared singular value to the largest: below, it is rounding


def _thin(rows: np.ndarray) -> np.ndarray:
    """[n, d] -> [at most d, d] of the same sum of outer products."""
    if len(rows) <= rows.shape[1]:
        return rows
    return np.linalg.qr(rows).R


def _nuclear(rows: np.ndarray) -> float:
    """The sum of the singular values, from their squares: to 1e-6 of the largest."""
    tall = len(rows) > rows.shape[1]
    square = rows.T @ rows if tall else rows @ rows.T
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh(square), 0)).sum())


def _halves(n: int, draws: int, seed: int) -> list[np.ndarray]:
    """Random halves of n numbers, each followed by as many of the rest."""
    rng, half = np.random.default_rng(seed), n // 2
    orders = [rng.permutation(n) for _ in range(max(draws // 2, 1))]
    return [part for order in orders for part in (order[:half], order[-half:])]


def distance_scores(
    name: str, a: np.ndarray, b: np.ndarray, draws: int = NUM_HALVES
) -> Row:
    """The Frechet distance of two sets of features [n, k, d], and what few videos do.

    Keys: NAME, the distance; NAME_error, its standard error; NAME_infinite, as
    `extrapolated`; NAME_kernel and NAME_kernel_error, as `kernel_distance`.
    """
    kernel, kernel_error = kernel_distance(a, b)
    return {
        name: frechet_of_features(*(x.reshape(-1, x.shape[-1]) for x in (a, b))),
        f"{name}_error": frechet_error(a, b, draws),
        f"{name}_infinite": frechet_infinity(a, b),
        f"{name}_kernel": kernel,
        f"{name}_kernel_error": kernel_error,
    }


def _distance(
    mean1: np.ndarray, factor1: np.ndarray, mean2: np.ndarray, factor2: np.ndarray
) -> float:
    """The distance from factors [d, k] of the covariances, S = A A^T.

    The last trace is then the sum of the singular values of A1^T A2: their squares are
    the eigenvalues of S1^1/2 S2 S1^1/2.
    """
    difference = np.asarray(mean1, np.float64) - np.asarray(mean2, np.float64)
    cross = np.linalg.svd(factor1.T @ factor2, compute_uv=False).sum()
    spread = (factor1**2).sum() + (factor2**2).sum()
    return max(float(difference @ difference + spread - 2 * cross), 0.0)


def _factor(cov: np.ndarray) -> np.ndarray:
    """A with A A^T = cov.

    Where the rank is low some eigenvalues are rounding errors instead of 0, and the
    root of 1e-16 is 1e-8: what is within rounding of 0 is taken as 0 before the root.
    """
    values, vectors = np.linalg.eigh(np.asarray(cov, np.float64))
    rounding = len(values) * np.finfo(np.float64).eps * np.abs(values).max()
    return vectors * np.sqrt(np.where(values > rounding, values, 0.0))


def agreement(videos: np.ndarray, reference: np.ndarray) -> float:
    """How far videos [n, ...] are those of a reference, one by one: 1 is the same.

    1 - mean square difference / variance of the reference over its n videos, pixel by
    pixel: 0 is no nearer than the reference's mean video, unrelated samples have -1.
    """
    spread = float(np.var(reference, axis=0).mean())
    error = float(np.square(videos - reference).mean())
    return 1 - error / spread if spread else 0.0


# --- what is seen of a frame ------------------------------------------------------


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
    return np.concatenate([_features(pixels(video)) for video in _checked(videos)])


def motion_features(videos: np.ndarray) -> np.ndarray:
    """[n*(f-1), 256]: the same features of the differences of neighbouring frames."""
    return np.concatenate(
        [_features(np.diff(pixels(video), axis=0)) for video in _checked(videos)]
    )


def group_by_video(features: np.ndarray, n: int) -> np.ndarray:
    """[n k, d] of n videos, one after the other, as [n, k, d]."""
    return features.reshape(n, -1, features.shape[-1])


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
    means = [np.abs(np.diff(pixels(v), axis=0)).mean() for v in _checked(videos)]
    return float(np.mean(means))


def sharpness(videos: np.ndarray) -> float:
    """Mean |Laplacian| (the four neighbours less four times the pixel), edges held."""
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], np.float64)[None, :, :, None]
    means = [
        np.abs(ndimage.convolve(pixels(video), kernel, mode="nearest")).mean()
        for video in videos
    ]
    return float(np.mean(means))


# --- nearest training clip --------------------------------------------------------


def nearest_training(
    samples: np.ndarray, training: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each sample the index of its nearest training clip, and the distance, [n].

    Distance is the root mean square of the pixel differences over the whole clip, on
    [-1, 1]: 0 for a copy. A shifted or mirrored copy is not found, and a blurred
    sample is near to everything: look at the pairs too.
    """
    _same_shape(samples, training)
    flat = pixels(samples).reshape(len(samples), -1)
    best = np.full(len(samples), np.inf)
    index = np.zeros(len(samples), np.int64)
    for start in range(0, len(training), 256):  # bounds the float64 copies in memory
        clips = pixels(training[start : start + 256]).reshape(-1, flat.shape[1])
        score = (clips**2).sum(1) - 2 * flat @ clips.T  # distance^2 less |sample|^2
        found = score.argmin(1)
        value = score[np.arange(len(flat)), found]
        index = np.where(value < best, found + start, index)
        best = np.minimum(value, best)
    # Anew from the pixels: the scores cancel, and a copy would not come out as 0.
    distance = [
        np.sqrt(np.mean((pixels(s) - pixels(training[i])) ** 2))
        for s, i in zip(samples, index, strict=True)
    ]
    return index, np.array(distance)


# --- the table --------------------------------------------------------------------


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

COLUMNS = {
    "row": ("{clips} clips a row", ""),
    "frame_fd": ("frame FD", ".2f"),
    "motion_fd": ("motion FD", ".3f"),
    "motion": ("motion / real", ".2f"),
    "sharpness": ("sharpness / real", ".2f"),
    "nearer": ("nearer to training", ".2f"),
}
"""Keys of a row that are shown: heading and format."""


def distance_columns(name: str, heading: str, form: str) -> dict[str, tuple[str, str]]:
    """Of the keys of `distances`."""
    return {
        name: (heading, form),
        f"{name}_error": ("±", form),
        f"{name}_infinite": ("n = ∞", form),
        f"{name}_kernel": ("KID", ".3g"),
        f"{name}_kernel_error": ("±", ".2g"),
    }


BIAS_NOTE = (
    "Frechet distances are too large by an amount that falls with the number of "
    "clips. n = ∞ is the distance extrapolated to infinitely many; with fewer features "
    "than about one and a half times their numbers it is still too large. KID, a "
    "kernel distance of the same features, has no such bias: its mean is 0 for equal "
    "distributions, so it may be negative. ± is a standard error by the chance of the "
    "row's own clips; on Gaussians twice that to either side held the mean over other "
    "clips, as many, in 90 to 97 trials of a hundred, of KID in 83 to 97."
)
BIAS_COLUMNS = {
    "row": ("{clips} clips a row", ""),
    **distance_columns("frame_fd", "frame FD", ".2f"),
    **distance_columns("motion_fd", "motion FD", ".3f"),
}
"""Keys of a row that say what few clips do to its distances."""


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
            "nearer": nearer(videos),
        }

    rows = [row(name, videos()) for name, videos in named.items()]
    return (
        rows[:1]
        + [row(name, of[:n]) for name, of in (extra_samples or {}).items()]
        + rows[1:]
    )


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
    _same_shape(samples, training)
    training = unique_videos(training)
    n = min(len(samples), len(training) // 2)
    if held_out is not None:
        _same_shape(samples, held_out)
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
        rows[name] = lambda spoil=spoil: spoil(pixels(other))
    return drawn[:n], rows


def unique_videos(videos: np.ndarray) -> np.ndarray:
    """The videos [n, ...] in their order, without those that are there already."""
    first: dict[bytes, int] = {}
    for i, video in enumerate(videos):
        first.setdefault(hashlib.sha256(video.tobytes()).digest(), i)
    return videos[list(first.values())]


def format_cells(
    rows: Sequence[Row], columns: Mapping[str, tuple[str, str]] = COLUMNS
) -> tuple[list[str], list[list[str]]]:
    """Headings and formatted cells of a table, for the terminal and for the report."""
    headings = [heading.format(**rows[0]) for heading, _ in columns.values()]
    return headings, [
        [_cell(row.get(key), form) for key, (_, form) in columns.items()]
        for row in rows
    ]


def format_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as aligned plain text: first column left, the others right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        name, *values = row
        right = [v.rjust(w) for v, w in zip(values, widths[1:], strict=True)]
        return "  ".join([name.ljust(widths[0]), *right]).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(headings), rule, *map(line, rows)])


def _cell(value: str | int | float | None, form: str) -> str:
    missing = value is None or (not isinstance(value, str) and np.isnan(value))
    return "–" if missing else format(value, form)


def _ratio(value: float, real: float) -> float:
    return value / real if real > 0 else float("nan")


def _checked(videos: np.ndarray) -> np.ndarray:
    if np.ndim(videos) != 5 or len(videos) < 2 or np.shape(videos)[1] < 2:
        raise UserError(
            f"videos of shape {np.shape(videos)}: statistics need [n, f, h, w, c] with "
            "at least 2 clips of 2 frames"
        )
    return videos


def _same_shape(a: np.ndarray, b: np.ndarray) -> None:
    if np.ndim(a) != 5 or np.ndim(b) != 5 or a.shape[1:] != b.shape[1:] or not len(b):
        raise UserError(
            f"clips of shapes {np.shape(a)} and {np.shape(b)} cannot be compared: give "
            "[n, f, h, w, c] with the same frames, size and channels"
        )
