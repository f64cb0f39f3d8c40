"""Motion of clips of bouncing shapes, measured from their pixels.

A path that reflects at the edges is fitted to measured centres.
"""

import numpy as np

from vdm_jax.data import bouncing, shapes

NUM_PHASES, NUM_SPEEDS = 64, 31  # of the grid that `fit_path` searches
NUM_REFINEMENTS = 3  # searches, each on a finer grid
MAX_SPEED = 1.5  # largest speed searched, relative to the fast one of the data set


def fit_path(
    centres: np.ndarray, shape: int, geometry: shapes.Geometry
) -> dict[str, np.ndarray]:
    """Fit reflected paths of constant speed by least squares.

    Args:
      centres: [n, k, 2] (x, y) in pixels, of consecutive frames.
      shape: index into shapes.ATTRIBUTES[0], which sets how close to the edge a centre
        comes.
      geometry: of the data.

    Returns:
      axis [n], 0 horizontal or 1 vertical; phase [n] and speed [n], in pixels along the
      path without reflections; other [n], the constant coordinate; error [n], the mean
      squared distance.
    """
    travel = bouncing.travel_range(shape, geometry)
    edge = shapes.EXTENT[shape] * geometry.radius
    fits = [
        _fit_axis(centres - edge, axis, travel[axis], bouncing.fast_speed(geometry))
        for axis in (0, 1)
    ]
    axis = np.argmin([fit["error"] for fit in fits], axis=0)
    rows = np.arange(len(centres))
    best = {key: np.stack([fit[key] for fit in fits])[axis, rows] for key in fits[0]}
    return {"axis": axis, **best}


def _fit_axis(centres, axis: int, travel: float, fast: float) -> dict[str, np.ndarray]:
    """Fit paths along one axis, by a grid search over phase and speed."""
    along, other = centres[..., axis], centres[..., 1 - axis]
    frames = np.arange(along.shape[1])
    phase = np.full(len(along), travel)[:, None, None]
    speed = np.full(len(along), MAX_SPEED * fast / 2)[:, None, None]
    phase_range, speed_range = travel, MAX_SPEED * fast / 2
    for _ in range(NUM_REFINEMENTS):
        offsets = np.linspace(-phase_range, phase_range, NUM_PHASES)
        phases = phase + offsets[None, :, None]
        offsets = np.linspace(-speed_range, speed_range, NUM_SPEEDS)
        speeds = speed + offsets[None, None, :]
        error = np.zeros((len(along), NUM_PHASES, NUM_SPEEDS))
        for frame in frames:
            path = bouncing.reflect(phases + speeds * frame, travel)
            error += np.square(path - along[:, frame, None, None])
        i, j = np.unravel_index(
            error.reshape(len(along), -1).argmin(1), error.shape[1:]
        )
        rows = np.arange(len(along))
        least = error[rows, i, j] / len(frames)
        phase = phases[rows, i, 0][:, None, None]
        speed = speeds[rows, 0, j][:, None, None]
        phase_range = 3 * phase_range / NUM_PHASES
        speed_range = 3 * speed_range / NUM_SPEEDS
    return {
        "phase": phase.ravel(),
        "speed": speed.ravel(),
        "other": other.mean(1),
        "error": least + other.var(1),
    }


def measure_motion(
    detected: dict[str, np.ndarray], geometry: shapes.Geometry
) -> np.ndarray:
    """Return axis and speed [n, 2] of `detect_shapes`, -1 if undecidable.

    They are undecidable where the fitted path is off by 1 pixel (RMS), speed also where
    it is neither of the two speeds.
    """
    slow, fast = shapes.SPEEDS * bouncing.fast_speed(geometry)
    motion = np.full((len(detected["shape"]), 2), -1)
    for shape in np.unique(detected["shape"]):
        clips = np.flatnonzero(detected["shape"] == shape)
        path = fit_path(detected["centres"][clips], shape, geometry)
        speed = path["speed"]
        decidable = (speed > slow / 2) & (speed < fast + slow / 2)
        index = np.where(decidable, speed > (slow + fast) / 2, -1)
        fits = path["error"] < 1
        motion[clips] = np.where(fits[:, None], np.stack([path["axis"], index], -1), -1)
    return motion
