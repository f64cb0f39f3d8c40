"""Attributes of clips of moving shapes, measured by template matching.

No network is used: every frame is compared with every shape in every position and
colour, as the data set renders them, and the template of the least squared error is
taken. A template that fits a frame no better than black counts as no detection.
"""

import functools

import numpy as np

from vdm_jax.data import shapes

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


def measure_motion(
    detected: dict[str, np.ndarray], geometry: shapes.Geometry
) -> np.ndarray:
    """Return direction and speed [n, 2] of `detect_shapes`, -1 if undecidable.

    The direction must be the same on every displacement, so shuffled frames have none.
    The speed is that of the line fitted by least squares.
    """
    slow, fast = shapes.SPEEDS * geometry.fast_speed
    centres = detected["centres"]
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
