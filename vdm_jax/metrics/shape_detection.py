"""Attributes of clips of moving shapes, measured by template matching.

No network is used: every frame is compared with every shape in every position and
colour, as the data set renders them, and the template of the least squared error is
taken. A template that fits a frame no better than black counts as no detection.
"""

import functools
from collections.abc import Sequence

import numpy as np

from vdm_jax.data import shapes

NAMES = ("shape", "colour", "direction", "speed")
CHANCE = dict(zip(NAMES, (1 / n for n in shapes.ATTRIBUTE_SIZES), strict=True)) | {
    "all_attributes": 1 / 72
}
NOTE = (
    "Attributes are measured by template matching, without a network. Direction must "
    "be right on every displacement. template mse is in px^2 a frame; position std is "
    "the standard deviation of the clips' mean position in pixels. guidance_scale is s "
    "of uncond + s (cond - uncond)."
)
FRAMES_PER_CHUNK = 256  # frames compared with templates at a time

GRID_SPACING = 1 / 12  # spacing of template positions, in radii (0.3 px at 16x16)
MARGIN = 1 / 4  # how far centres may lie outside the data set's range, in radii
MIN_DISPLACEMENT = 1 / 4  # smaller ones, relative to the slow speed, are no movement


@functools.lru_cache(maxsize=4)
def _bank(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return grid positions y [p], x [q] and templates [shape, p, q, h * w]."""
    geometry = shapes.Geometry(1, height, width)
    low = (min(shapes.EXTENT) - MARGIN) * geometry.radius

    def axis(size: int) -> np.ndarray:
        points = int(np.ceil((size - 2 * low) / (GRID_SPACING * geometry.radius))) + 1
        return np.linspace(low, size - low, points)

    ys, xs = axis(height), axis(width)
    y, x = (a.ravel() for a in np.meshgrid(ys, xs, indexing="ij"))
    bank = np.stack(
        [shapes.coverage(s, x, y, geometry) for s in range(shapes.ATTRIBUTE_SIZES[0])]
    )
    return ys, xs, bank.reshape(len(bank), len(ys), len(xs), height * width)


def _refine(score: np.ndarray, at: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Return maxima between grid points [n], by a parabola through three scores.

    score [n, p]: the scores along one axis through each maximum; at [n]: the index of
    the largest.
    """
    inner = np.clip(at, 1, len(grid) - 2)
    rows = np.arange(len(at))
    before, here, after = (score[rows, inner + k] for k in (-1, 0, 1))
    bend = np.minimum(before - 2 * here + after, -1e-6)
    shift = np.clip(0.5 * (before - after) / bend, -1, 1)
    return grid[inner] + shift * (grid[1] - grid[0])


def _fit(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and centres of the best template per shape and colour.

    frames: [n, h, w, 3]. Scores are [n, shape, colour], centres (x, y)
    [n, shape, colour, 2]. The score is the squared error of black minus that of the
    template, in px^2. Colours are orthonormal, so each is matched in its own channel.
    """
    n, height, width, _ = frames.shape
    ys, xs, bank = _bank(height, width)
    energy = np.square(bank).sum(-1)
    colours, shape_count = len(shapes.COLOURS), len(bank)
    grey = np.moveaxis(frames @ shapes.COLOURS.T, -1, 1).reshape(n * colours, -1)
    scores = np.empty((n, shape_count, colours), np.float32)
    centres = np.empty((n, shape_count, colours, 2), np.float32)
    rows = np.arange(n * colours)
    for s in range(shape_count):
        templates = bank[s].reshape(-1, height * width)
        score = 2 * (grey @ templates.T) - energy[s].ravel()
        best = score.argmax(1)
        scores[:, s] = score[rows, best].reshape(n, colours)
        score = score.reshape(-1, len(ys), len(xs))
        i, j = np.unravel_index(best, score.shape[1:])
        x = _refine(score[rows, i], j, xs)
        y = _refine(score[rows, :, j], i, ys)
        centres[:, s] = np.stack([x, y], -1).reshape(n, colours, 2)
    return scores, centres


def _motion(centres: np.ndarray, geometry: shapes.Geometry) -> np.ndarray:
    """Return direction and speed [n, 2] of paths [n, frames, 2], -1 if undecidable.

    The direction must be the same on every displacement, so shuffled frames have none.
    The speed is that of the line fitted by least squares.
    """
    slow, fast = shapes.SPEEDS * geometry.fast_speed
    steps = np.diff(centres, axis=1)
    along = steps @ shapes.DIRECTIONS.T  # [n, frames - 1, direction]
    heading = np.where(along.max(-1) > MIN_DISPLACEMENT * slow, along.argmax(-1), -1)
    same = (heading == heading[:, :1]).all(1)
    time = np.arange(geometry.frames) - (geometry.frames - 1) / 2
    slope = np.einsum("f,nfc->nc", time, centres) / np.square(time).sum()
    speed = np.linalg.norm(slope, axis=-1)
    decidable = (speed > slow / 2) & (speed < fast + slow / 2)
    return np.stack(
        [
            np.where(same, heading[:, 0], -1),
            np.where(decidable, (speed > (slow + fast) / 2).astype(int), -1),
        ],
        -1,
    )


def detect_shapes(videos: np.ndarray) -> dict[str, np.ndarray]:
    """Detect the shape that fits every clip best, its colour and its positions.

    Args:
      videos: [n, f, h, w, 3], uint8 or float in [-1, 1].

    Returns:
      shape, colour: int [n], indices into shapes.ATTRIBUTES, one for all frames.
      decidable: bool [n, 2], of shape and colour. Shape is undecidable where the
        bright pixels do not cover between 1/2 and 3/2 of a shape's area, colour where
        two colours are detected.
      detected: bool [n], whether that shape fits better than black in every frame.
      template_mse: [n] px^2 a frame, the squared difference from the template at its
        refined centre, values in [0, 1], summed over pixels and channels, averaged
        over frames. 1 is one pixel of a wrong primary colour; a shape has about
        pi radius^2 pixels.
      centres: [n, f, 2] (x, y) in pixels.
    """
    n, f, height, width, _ = videos.shape
    geometry = shapes.Geometry(f, height, width)
    if videos.dtype == np.uint8:
        frames = videos.reshape(-1, height, width, 3).astype(np.float32) / 255
    else:
        frames = (videos.reshape(-1, height, width, 3).astype(np.float32) + 1) / 2
    chunks = [
        _fit(frames[i : i + FRAMES_PER_CHUNK])
        for i in range(0, n * f, FRAMES_PER_CHUNK)
    ]
    scores, centres = (np.concatenate(part) for part in zip(*chunks, strict=True))
    scores = scores.reshape(n, f, *scores.shape[1:])
    centres = centres.reshape(n, f, *centres.shape[1:])

    total: np.ndarray = scores.sum(1)  # [n, shape, colour]
    shape, colour = np.unravel_index(total.reshape(n, -1).argmax(1), total.shape[1:])
    clips = np.arange(n)
    centres = centres[clips, :, shape, colour]
    num_colours = np.count_nonzero(total.max(1) > 0, axis=1)
    light: np.ndarray = (frames @ shapes.COLOURS.T).reshape(n, -1, total.shape[2])
    bright = np.count_nonzero(light > 0.5, axis=1)[clips, colour]
    area = bright / f / (np.pi * geometry.radius**2)
    return {
        "shape": shape,
        "colour": colour,
        "decidable": np.stack(
            [np.less(abs(area - 1), 0.5), np.equal(num_colours, 1)], -1
        ),
        "detected": np.all(scores[clips, :, shape, colour] > 0, axis=1),
        "template_mse": _residual(frames.reshape(videos.shape), shape, colour, centres),
        "centres": centres,
    }


def attribute_indices(
    detected: dict[str, np.ndarray], motion: np.ndarray
) -> np.ndarray:
    """Return shape, colour and both attributes of motion [n, 2] as int32 [n, 4].

    detected: of `detect_shapes`. -1 is undecidable; all four are where a frame has no
    detection.
    """
    appearance = np.stack([detected["shape"], detected["colour"]], -1)
    appearance = np.where(detected["decidable"], appearance, -1)
    every = np.concatenate([appearance, motion], -1)
    return np.where(detected["detected"][:, None], every, -1).astype(np.int32)


def measure(videos: np.ndarray, stride: int = 1) -> dict[str, np.ndarray]:
    """Measure the attributes of clips of one moving shape on black.

    Args:
      videos: [n, f, h, w, 3], uint8 or float in [-1, 1], f >= 2.
      stride: of the clips, as in shapes.Geometry.

    Returns:
      attributes: int32 [n, 4], indices into shapes.ATTRIBUTES, -1 where undecidable.
      template_mse, centres: of `detect_shapes`.
    """
    detected = detect_shapes(videos)
    _, frames, height, width, _ = videos.shape
    geometry = shapes.Geometry(frames, height, width, stride)
    motion = _motion(detected["centres"], geometry)
    return {"attributes": attribute_indices(detected, motion)} | {
        key: detected[key] for key in ("template_mse", "centres")
    }


def _residual(videos, shape, colour, centres) -> np.ndarray:
    """Return squared errors per frame [n] of templates at the refined centres."""
    n, f, height, width, _ = videos.shape
    geometry = shapes.Geometry(f, height, width)
    errors = np.empty(n, np.float32)
    for i in range(n):
        x, y = centres[i].T
        template = shapes.coverage(int(shape[i]), x, y, geometry)
        coloured = template[..., None] * shapes.COLOURS[colour[i]]
        errors[i] = np.square(videos[i] - coloured).sum() / f
    return errors


def accuracy(
    measured: dict[str, np.ndarray], labels: np.ndarray, names: Sequence[str] = NAMES
) -> dict[str, float]:
    """Return the fraction of clips that agree with their labels, per attribute.

    labels: int [n, 4]; -1, an unspecified attribute, agrees with everything. The key
    all_attributes is the fraction of clips in which all four agree.
    """
    correct = (measured["attributes"] == labels) | (labels < 0)
    fractions = dict(zip(names, correct.mean(0).tolist(), strict=True))
    return fractions | {"all_attributes": float(correct.all(1).mean())}


def position_std(measured: dict[str, np.ndarray]) -> float:
    """Return the standard deviation over clips of their mean position, in pixels."""
    return float(np.sqrt(measured["centres"].mean(1).var(0).mean()))


def position_std_error(measured: dict[str, np.ndarray], draws: int = 500) -> float:
    """Return the standard error of `position_std`, by a bootstrap over clips."""
    positions, n = measured["centres"].mean(1), len(measured["centres"])
    index = np.random.default_rng(0).integers(n, size=(draws, n))
    return float(np.sqrt(positions[index].var(1).mean(-1)).std())


def attribute_scores(
    videos: np.ndarray, labels: np.ndarray, stride: int = 1
) -> dict[str, float]:
    """Return accuracies of `accuracy` and the scores of `position_scores`."""
    measured = measure(videos, stride)
    return accuracy(measured, labels) | position_scores(measured)


def position_scores(measured: dict[str, np.ndarray]) -> dict[str, float]:
    """Return mean template_mse, position_std and its standard error of clips.

    measured: of `measure`.
    """
    return {
        "template_mse": float(measured["template_mse"].mean()),
        "position_std": position_std(measured),
        "position_std_error": position_std_error(measured),
    }


def distorted_clips(
    source, n: int, seed: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return n clips of a source of shapes, intact and distorted, and their labels.

    The distortions are Gaussian noise of deviation .2 (of a range of 2), random order
    of frames, and uniform noise instead of the clips.
    """
    rng = np.random.default_rng(seed)
    clips = [source.load(i, rng, source.geometry.frames) for i in range(n)]
    real = np.stack([c["video"] for c in clips])
    rows = {
        "real": real,
        "real + noise .2": real / 127.5 - 1 + 0.2 * rng.standard_normal(real.shape),
        "shuffled frames": np.stack([rng.permutation(clip) for clip in real]),
        "noise": rng.uniform(-1, 1, real.shape),
    }
    return rows, np.stack([c["label"] for c in clips])


def reference_scores(
    geometry: shapes.Geometry, n: int = 216, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Return scores of held-out clips, of distorted ones, and of chance, by name."""
    rows, labels = distorted_clips(shapes.Shapes(geometry, held_out=True), n, seed)
    scores = {k: attribute_scores(v, labels, geometry.stride) for k, v in rows.items()}
    return scores | {"chance": CHANCE}
