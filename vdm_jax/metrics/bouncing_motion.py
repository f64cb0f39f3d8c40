"""What a video of a bouncing shape shows, read from its pixels, and whether it goes on.

A path that the law of reflection allows is fitted to measured centres; where the next
frames lie against its continuation says whether a motion went on as it had begun.
"""

import numpy as np

from vdm_jax.data import bouncing, shapes
from vdm_jax.metrics import shape_detection as moving

NAMES = ("shape", "colour", "axis", "speed")
CHANCE = {
    "shape": 1 / 3,
    "colour": 1 / 3,
    "axis": 1 / 2,
    "speed": 1 / 2,
    "all_attributes": 1 / 36,
}
NOTE = (
    "Attributes read from the pixels by template matching and by fitting a reflected "
    "path, no network in it. Fit error in px^2 a frame, spread is the deviation of the "
    "clips' mean position in pixels. Guidance w is that of (1 + w) conditional - w "
    "unconditional."
)

NUM_PHASES, NUM_SPEEDS = 64, 31  # of the search for a path, then refined REFINE times
NUM_REFINEMENTS = 3
MAX_SPEED = 1.5  # speeds searched, in units of the fast one
CONTEXT_FRAMES = 4  # frames that a continuation is fitted to
WINDOW_FRAMES, WINDOW_STRIDE = (
    8,
    4,
)  # frames among which attributes are read, and from one to the next


def fit_path(
    centres: np.ndarray, shape: int, geometry: shapes.Geometry
) -> dict[str, np.ndarray]:
    """The reflected path at a constant speed with the least squared distance.

    Args:
      centres: [n, k, 2] (x, y) in pixels, of consecutive frames.
      shape: index into shapes.ATTRIBUTES[0]: how near the edge it turns.
      geometry: of the data; `bouncing.pace` of it is the unit of speed.

    Returns:
      axis [n], 0 across or 1 down; phase [n] and speed [n] in pixels of the path,
      unfolded; other [n], the coordinate that does not move; error [n], the mean
      squared distance.
    """
    room = bouncing.travel_range(shape, geometry)
    edge = shapes.EXTENT[shape] * geometry.radius
    fits = [
        _fit_axis(centres - edge, axis, room[axis], bouncing.fast_speed(geometry))
        for axis in (0, 1)
    ]
    axis = np.argmin([fit["error"] for fit in fits], axis=0)
    rows = np.arange(len(centres))
    best = {key: np.stack([fit[key] for fit in fits])[axis, rows] for key in fits[0]}
    return {"axis": axis, **best}


def _fit_axis(centres, axis: int, room: float, fast: float) -> dict[str, np.ndarray]:
    """The best path along one axis: a grid of phase and speed, narrowed."""
    along, other = centres[..., axis], centres[..., 1 - axis]
    frames = np.arange(along.shape[1])
    phase = np.full(len(along), room)[:, None, None]
    speed = np.full(len(along), MAX_SPEED * fast / 2)[:, None, None]
    reach, pace = room, MAX_SPEED * fast / 2
    for _ in range(NUM_REFINEMENTS):
        phases = phase + np.linspace(-reach, reach, NUM_PHASES)[None, :, None]
        speeds = speed + np.linspace(-pace, pace, NUM_SPEEDS)[None, None, :]
        error = np.zeros((len(along), NUM_PHASES, NUM_SPEEDS))
        for frame in frames:
            path = bouncing.reflect(phases + speeds * frame, room)
            error += np.square(path - along[:, frame, None, None])
        i, j = np.unravel_index(
            error.reshape(len(along), -1).argmin(1), error.shape[1:]
        )
        rows = np.arange(len(along))
        least = error[rows, i, j] / len(frames)
        phase = phases[rows, i, 0][:, None, None]
        speed = speeds[rows, 0, j][:, None, None]
        reach, pace = 3 * reach / NUM_PHASES, 3 * pace / NUM_SPEEDS
    return {
        "phase": phase.ravel(),
        "speed": speed.ravel(),
        "other": other.mean(1),
        "error": least + other.var(1),
    }


def path_position(
    path: dict[str, np.ndarray], frame: int, shape: int, geometry: shapes.Geometry
) -> np.ndarray:
    """Centres [n, 2] of fitted paths at a frame, counted from the first one fitted."""
    room = bouncing.travel_range(shape, geometry)[path["axis"]]
    along = bouncing.reflect(path["phase"] + path["speed"] * frame, room)
    across = path["axis"] == 0
    place = np.stack(
        [
            np.where(across, along, path["other"]),
            np.where(across, path["other"], along),
        ],
        -1,
    )
    return place + shapes.EXTENT[shape] * geometry.radius


def continuation_errors(
    videos: np.ndarray, geometry: shapes.Geometry
) -> dict[str, np.ndarray]:
    """How far each frame is from where the four before it lead.

    Returns position and velocity [n, f] in pixels and pixels a frame, NaN for the first
    four frames: the distance of the measured centre, and of its step from the frame
    before, from those of the path fitted to the four frames before.
    """
    seen = moving.detect_shapes(videos)
    centres, frames = seen["centres"], videos.shape[1]
    errors = {
        key: np.full(videos.shape[:2], np.nan) for key in ("position", "velocity")
    }
    for shape in np.unique(seen["shape"]):
        of = np.flatnonzero(seen["shape"] == shape)
        for frame in range(CONTEXT_FRAMES, frames):
            before = centres[of, frame - CONTEXT_FRAMES : frame]
            path = fit_path(before, shape, geometry)
            here, last = (
                path_position(path, at, shape, geometry)
                for at in (CONTEXT_FRAMES, CONTEXT_FRAMES - 1)
            )
            miss = centres[of, frame] - here
            errors["position"][of, frame] = np.linalg.norm(miss, axis=-1)
            step = centres[of, frame] - centres[of, frame - 1] - (here - last)
            errors["velocity"][of, frame] = np.linalg.norm(step, axis=-1)
    return errors


def measure(videos: np.ndarray, geometry: shapes.Geometry) -> dict[str, np.ndarray]:
    """Attributes int32 [n, 4] of clips, with fit_error and centres of `moving.look`.

    videos: [n, f, h, w, 3], uint8 or float in [-1, 1]. The speed is undecidable, -1, if
    it is none of the two; axis and speed are if the path misses by 1 pixel (RMS).
    """
    seen = moving.detect_shapes(videos)
    slow, fast = shapes.SPEEDS * bouncing.fast_speed(geometry)
    motion = np.full((len(videos), 2), -1)
    for shape in np.unique(seen["shape"]):
        of = np.flatnonzero(seen["shape"] == shape)
        path = fit_path(seen["centres"][of], shape, geometry)
        speed = path["speed"]
        is_one = (speed > slow / 2) & (speed < fast + slow / 2)
        pace = np.where(is_one, speed > (slow + fast) / 2, -1)
        fits = path["error"] < 1
        motion[of] = np.where(fits[:, None], np.stack([path["axis"], pace], -1), -1)
    return {"attributes": moving.attribute_indices(seen, motion)} | {
        key: seen[key] for key in ("template_mse", "centres")
    }


def consistent_attributes(videos: np.ndarray, geometry: shapes.Geometry) -> np.ndarray:
    """bool [n, 4]: whether each attribute is the same, and decidable, all the way.

    Read in windows of eight frames, four apart.
    """
    last = videos.shape[1] - WINDOW_FRAMES
    starts = sorted({*range(0, last, WINDOW_STRIDE), last})
    found = np.stack(
        [
            measure(videos[:, s : s + WINDOW_FRAMES], geometry)["attributes"]
            for s in starts
        ]
    )
    return ((found == found[0]) & (found >= 0)).all(0)


def attribute_scores(videos: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """One line of the table: accuracies, mean fit error in px^2 a frame, spread.

    labels: of the data, int [n, 4]; of the direction the axis counts.
    """
    labels = labels.copy()
    labels[:, 2] = np.where(labels[:, 2] < 0, -1, bouncing.AXES[labels[:, 2]])
    measured = measure(videos, shapes.Geometry(*videos.shape[1:4]))
    return moving.accuracy(measured, labels, NAMES) | {
        "template_mse": float(measured["template_mse"].mean()),
        "position_std": moving.position_std(measured),
        "position_std_error": moving.position_std_error(measured),
    }


def reference_scores(
    geometry: shapes.Geometry, n: int = 216, seed: int = 0
) -> dict[str, dict[str, float]]:
    """What the measure says of held-out clips, of spoilt ones, and of chance."""
    source = bouncing.Bouncing(geometry, held_out=True)
    rows, labels = moving.distorted_clips(source, n, seed)
    return {k: attribute_scores(v, labels) for k, v in rows.items()} | {
        "chance": CHANCE
    }
