"""Attributes and motion of clips of bouncing shapes, measured from their pixels.

A path that reflects at the edges is fitted to measured centres. The distance of later
frames from its continuation measures whether a motion is continued.
"""

import numpy as np

from vdm_jax.data import bouncing, shapes
from vdm_jax.metrics import shape_detection

NAMES = ("shape", "colour", "axis", "speed")
CHANCE = {
    "shape": 1 / 3,
    "colour": 1 / 3,
    "axis": 1 / 2,
    "speed": 1 / 2,
    "all_attributes": 1 / 36,
}
NOTE = (
    "Attributes are measured by template matching and by fitting a reflected path, "
    "without a network. template mse is in px^2 a frame; position std is the standard "
    "deviation of the clips' mean position in pixels. guidance_scale is s of uncond + "
    "s (cond - uncond)."
)

NUM_PHASES, NUM_SPEEDS = 64, 31  # of the grid that `fit_path` searches
NUM_REFINEMENTS = 3  # searches, each on a finer grid
MAX_SPEED = 1.5  # largest speed searched, relative to the fast one of the data set
CONTEXT_FRAMES = 4  # frames that a continuation is fitted to
WINDOW_FRAMES, WINDOW_STRIDE = 8, 4  # of the windows of `consistent_attributes`


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


def path_position(
    path: dict[str, np.ndarray], frame: int, shape: int, geometry: shapes.Geometry
) -> np.ndarray:
    """Return centres [n, 2] of fitted paths at a frame; 0 is the first one fitted."""
    travel = bouncing.travel_range(shape, geometry)[path["axis"]]
    along = bouncing.reflect(path["phase"] + path["speed"] * frame, travel)
    horizontal = path["axis"] == 0
    position = np.stack(
        [
            np.where(horizontal, along, path["other"]),
            np.where(horizontal, path["other"], along),
        ],
        -1,
    )
    return position + shapes.EXTENT[shape] * geometry.radius


def continuation_errors(
    videos: np.ndarray, geometry: shapes.Geometry
) -> dict[str, np.ndarray]:
    """Return the distance of each frame from the continuation of the four before it.

    A path is fitted to the centres of the four frames before. position [n, f] is the
    distance of the centre from the path's, in pixels; velocity [n, f] is the same of
    the displacement since the previous frame, in pixels a frame. Both are NaN for the
    first four frames.
    """
    detected = shape_detection.detect_shapes(videos)
    centres, frames = detected["centres"], videos.shape[1]
    errors = {
        key: np.full(videos.shape[:2], np.nan) for key in ("position", "velocity")
    }
    for shape in np.unique(detected["shape"]):
        clips = np.flatnonzero(detected["shape"] == shape)
        for frame in range(CONTEXT_FRAMES, frames):
            context = centres[clips, frame - CONTEXT_FRAMES : frame]
            path = fit_path(context, shape, geometry)
            expected, previous = (
                path_position(path, at, shape, geometry)
                for at in (CONTEXT_FRAMES, CONTEXT_FRAMES - 1)
            )
            miss = centres[clips, frame] - expected
            errors["position"][clips, frame] = np.linalg.norm(miss, axis=-1)
            displacement = centres[clips, frame] - centres[clips, frame - 1]
            miss = displacement - (expected - previous)
            errors["velocity"][clips, frame] = np.linalg.norm(miss, axis=-1)
    return errors


def measure(videos: np.ndarray, geometry: shapes.Geometry) -> dict[str, np.ndarray]:
    """Measure the attributes of clips of one bouncing shape on black.

    videos: [n, f, h, w, 3], uint8 or float in [-1, 1].

    Returns:
      attributes: int32 [n, 4], -1 where undecidable. Axis and speed are undecidable
        where the fitted path is off by 1 pixel (RMS), speed also where it is neither of
        the two speeds.
      template_mse, centres: of `shape_detection.detect_shapes`.
    """
    detected = shape_detection.detect_shapes(videos)
    slow, fast = shapes.SPEEDS * bouncing.fast_speed(geometry)
    motion = np.full((len(videos), 2), -1)
    for shape in np.unique(detected["shape"]):
        clips = np.flatnonzero(detected["shape"] == shape)
        path = fit_path(detected["centres"][clips], shape, geometry)
        speed = path["speed"]
        decidable = (speed > slow / 2) & (speed < fast + slow / 2)
        index = np.where(decidable, speed > (slow + fast) / 2, -1)
        fits = path["error"] < 1
        motion[clips] = np.where(fits[:, None], np.stack([path["axis"], index], -1), -1)
    return {"attributes": shape_detection.attribute_indices(detected, motion)} | {
        key: detected[key] for key in ("template_mse", "centres")
    }


def consistent_attributes(videos: np.ndarray, geometry: shapes.Geometry) -> np.ndarray:
    """Return whether each attribute is decidable and constant over a clip, bool [n, 4].

    Attributes are measured in windows of eight frames, four apart.
    """
    last = videos.shape[1] - WINDOW_FRAMES
    starts = sorted({*range(0, last, WINDOW_STRIDE), last})
    windows = np.stack(
        [
            measure(videos[:, s : s + WINDOW_FRAMES], geometry)["attributes"]
            for s in starts
        ]
    )
    return ((windows == windows[0]) & (windows >= 0)).all(0)


def attribute_scores(videos: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return accuracies and position scores, as `shape_detection.attribute_scores`.

    labels: int [n, 4] of the data set; only the axis of the direction is compared.
    """
    labels = labels.copy()
    labels[:, 2] = np.where(labels[:, 2] < 0, -1, bouncing.AXES[labels[:, 2]])
    measured = measure(videos, shapes.Geometry(*videos.shape[1:4]))
    return shape_detection.accuracy(
        measured, labels, NAMES
    ) | shape_detection.position_scores(measured)


def reference_scores(
    geometry: shapes.Geometry, n: int = 216, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Return scores of held-out clips, of distorted ones, and of chance, by name."""
    source = bouncing.Bouncing(geometry, held_out=True)
    rows, labels = shape_detection.distorted_clips(source, n, seed)
    scores = {k: attribute_scores(v, labels) for k, v in rows.items()}
    return scores | {"chance": CHANCE}
