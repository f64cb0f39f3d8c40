"""How well bouncing shapes continue their motion, measured from pixels.

The distance of a frame from the continuation of the path of the frames before it, and
whether attributes stay the same.
"""

import numpy as np

from vdm_jax.data import bouncing, shapes
from vdm_jax.metrics import shape_detection
from vdm_jax.metrics.bouncing_motion import fit_path
from vdm_jax.metrics.shape_scores import BOUNCING

CONTEXT_FRAMES = 4  # frames that a continuation is fitted to
WINDOW_FRAMES, WINDOW_STRIDE = 8, 4  # of the windows of `consistent_attributes`


def path_position(
    path: dict[str, np.ndarray], frame: int, shape: int, geometry: shapes.Geometry
) -> np.ndarray:
    """Return centres [n, 2] of fitted paths at a frame; 0 is the first one fitted."""
    travel = bouncing.travel_range(shape, geometry)[path["axis"]]
    along = bouncing.reflect(path["phase"] + path["speed"] * frame, travel)
    horizontal = path["axis"] == 0
    x = np.where(horizontal, along, path["other"])
    y = np.where(horizontal, path["other"], along)
    return np.stack([x, y], -1) + shapes.EXTENT[shape] * geometry.radius


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


def consistent_attributes(videos: np.ndarray) -> np.ndarray:
    """Return whether each attribute is decidable and constant over a clip, bool [n, 4].

    Attributes are measured in windows of eight frames, four apart.
    """
    last = videos.shape[1] - WINDOW_FRAMES
    starts = sorted({*range(0, last, WINDOW_STRIDE), last})
    parts = [videos[:, start : start + WINDOW_FRAMES] for start in starts]
    windows = np.stack([BOUNCING.measure(part)["attributes"] for part in parts])
    return ((windows == windows[0]) & (windows >= 0)).all(0)
