"""Scores of stills and clips of sprites, from what `sprite_detection` finds in them."""

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from scipy import ndimage

from vdm_jax.data.sprite_vocabulary import COLOURS, GRADIENTS
from vdm_jax.data.sprites import DIRECTIONS, SPEEDS, Geometry, Sprites, is_held_out
from vdm_jax.metrics.sprite_detection import Detections, detect_sprites
from vdm_jax.metrics.tables import Row

NAMES = ("object", "background", "direction", "speed")
MIN_EXPLAINED = 0.1  # of every frame's variance; of noise nothing is explained
MAX_COLOUR_ERROR = 40 / 255  # largest distance to a named colour, values in [0, 1]
MAX_OUTSIDE = 2  # pixels of an object past the border; sizes are searched in such steps
MIN_DISPLACEMENT = 1 / 4  # smaller ones, relative to the slow speed, are no movement
NOTE = (
    "Object and background are found by least squares over objects and places, without "
    "a network; direction must be right on every displacement. 95% is Wilson's "
    "interval of the share before it, n the number of clips. Unseen are the labels "
    "whose combination of object and background, or of object and direction, training "
    "lacks. Explained is the share of the pixels' variance that the object found "
    "explains. Identity is the share of clips with one object in all frames. Flicker "
    "and warp error are root mean squares, pixels in [0, 1]; trajectory error is the "
    "mean distance in pixels to the path of the real clip, which only a model that is "
    "given a video can know. guidance_scale is s of uncond + s (cond - uncond)."
)


def measure_motion(centres: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Return direction and speed int [n, 2] of centres [n, f, 2]; -1 if undecidable.

    The direction must be the same on every displacement, so shuffled frames have none.
    The speed is that of the line fitted by least squares.
    """
    slow, fast = SPEEDS * geometry.fast_speed
    along = np.diff(centres, axis=1) @ DIRECTIONS.T  # [n, f - 1, direction]
    heading: np.ndarray = np.where(
        along.max(-1) > MIN_DISPLACEMENT * slow, along.argmax(-1), -1
    )
    same = (heading == heading[:, :1]).all(1)
    time = np.arange(centres.shape[1]) - (centres.shape[1] - 1) / 2
    slope = np.einsum("f,nfc->nc", time, centres) / np.square(time).sum()
    speed = np.linalg.norm(slope, axis=-1)
    decidable = (speed > slow / 2) & (speed < fast + slow / 2)
    index = np.where(decidable, speed > (slow + fast) / 2, -1)
    return np.stack([np.where(same, heading[:, 0], -1), index], axis=-1)


def measure_background(colours: np.ndarray, gradients: bool) -> np.ndarray:
    """Return the named background int [n] nearest to colours; -1 far from all.

    colours: [n, 2, 3] at the upper and lower edge, values in [0, 1].
    """
    named = [(name, name) for name in COLOURS] + [*GRADIENTS] * gradients
    edges = np.array([[COLOURS[name] for name in pair] for pair in named]) / 255
    distance = np.linalg.norm(colours[:, None] - edges, axis=-1).max(-1)
    near = distance.min(1) < MAX_COLOUR_ERROR
    return np.where(near, distance.argmin(1), -1)


def measure(detected: Detections, source: Sprites) -> np.ndarray:
    """Return the attributes int32 [n, 2 or 4] of clips, -1 where undecidable.

    The object is that of most frames, the background the named one nearest to the mean
    over frames. All are undecidable where a frame shows no object.
    """
    objects = np.array([np.bincount(clip).argmax() for clip in detected.object])
    background = measure_background(detected.colours.mean(1), source.gradients)
    attributes = np.stack([objects, background], axis=-1)
    if source.geometry.frames > 1:
        motion = measure_motion(detected.centre, source.geometry)
        attributes = np.concatenate([attributes, motion], axis=-1)
    shown = np.all(detected.explained > MIN_EXPLAINED, axis=1, keepdims=True)
    return np.where(shown, attributes, -1).astype(np.int32)


def identity(detected: Detections) -> np.ndarray:
    """Return whether all frames of a clip show one object: bool [n]."""
    shown = (detected.explained > MIN_EXPLAINED).all(1)
    return shown & (detected.object == detected.object[:, :1]).all(1)


def cut_off(videos: np.ndarray, source: Sprites) -> np.ndarray:
    """Return whether the border cuts off a clip's object: bool [n].

    It is measured in the first and the last frame, the ends of a straight path, of
    which either shows an object more than MAX_OUTSIDE pixels past the border. Objects
    are searched as far outside as half of the larger one. Backgrounds are flat.

    videos: [n, f, h, w, 3], uint8 or float in [-1, 1].
    """
    height, width = videos.shape[2:4]
    margin = max(Geometry(1, height, width).sizes) // 2
    found = detect_sprites(videos[:, [0, -1]], source, margin)
    half = found.size[..., None] / 2
    inside = np.minimum(found.centre, (width, height) - found.centre) - half
    shown = found.explained > MIN_EXPLAINED
    return (shown & (inside.min(-1) < -MAX_OUTSIDE)).any(1)


def trajectory_error(detected: Detections, centres: np.ndarray) -> np.ndarray:
    """Return the mean distance [n] in pixels to given centres [n, f, 2]."""
    return np.linalg.norm(detected.centre - centres, axis=-1).mean(1)


def flicker(videos: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Return the error [n] of differences between successive frames.

    Args:
      videos, real: [n, f, h, w, 3], uint8 or float in [-1, 1]. `real` may be the
        renderings of what was detected.

    Returns the root mean square, values of pixels in [0, 1].
    """
    steps = [np.diff(_unit(each), axis=1) for each in (videos, real)]
    return np.sqrt(np.square(steps[0] - steps[1]).mean((1, 2, 3, 4)))


def warp_error(videos: np.ndarray, detected: Detections) -> np.ndarray:
    """Return the difference [n] of successive frames around the moving object.

    Each frame is read, linearly between pixels, in a square of the object's size about
    its measured centre, so that a rigid object has the same pixels in all.

    Returns the root mean square, values of pixels in [0, 1].
    """
    errors = []
    for clip, size, centres in zip(
        _unit(videos), detected.size, detected.centre, strict=True
    ):
        offset = np.arange(int(np.median(size))) + 0.5 - np.median(size) / 2
        squares = []
        for frame, (x, y) in zip(clip, centres, strict=True):
            # The centre of the first pixel is at 0.5 in the frame, 0 in the array.
            at = np.meshgrid(y + offset - 0.5, x + offset - 0.5, indexing="ij")
            square = [
                ndimage.map_coordinates(frame[..., c], at, order=1, mode="nearest")
                for c in range(3)
            ]
            squares.append(square)
        errors.append(np.sqrt(np.square(np.diff(squares, axis=0)).mean()))
    return np.array(errors)


def scores(
    videos: np.ndarray,
    labels: np.ndarray,
    source: Sprites,
    centres: np.ndarray | None = None,
) -> Row:
    """Return the scores of videos that were conditioned on labels.

    Args:
      videos: [n, f, h, w, 3], uint8 or float in [-1, 1].
      labels: int [n, attributes]; -1, an unspecified one, agrees with everything.
      source: the data, for its vocabulary and geometry.
      centres: [n, f, 2] in pixels, if the videos have a given path.
    """
    detected = detect_sprites(videos, source)
    return _scores(videos, labels, source, detected, centres)


def _scores(
    videos: np.ndarray,
    labels: np.ndarray,
    source: Sprites,
    detected: Detections,
    centres: np.ndarray | None,
) -> Row:
    """Return `scores` of what was detected."""
    n = len(videos)
    correct = (measure(detected, source) == labels) | (labels < 0)
    shares: dict[str, float] = dict(zip(NAMES, correct.mean(0).tolist(), strict=False))
    shares["all_attributes"] = float(correct.all(1).mean())
    row: Row = {"clips": n}
    for name, share in shares.items():
        row |= {name: share, f"{name}_interval": wilson_interval(share, n)}
    row["explained"] = float(detected.explained.mean())
    if source.geometry.frames > 1:
        row |= {
            "identity": float(identity(detected).mean()),
            "flicker": float(flicker(videos, detected.rendering).mean()),
            "warp_error": float(warp_error(videos, detected).mean()),
        }
    if centres is not None:
        row["trajectory_error"] = float(trajectory_error(detected, centres).mean())
    return row


def split_scores(
    videos: np.ndarray,
    labels: np.ndarray,
    source: Sprites,
    real: np.ndarray | None = None,
) -> dict[str, Row]:
    """Return `scores` of all videos, "", and of their parts "seen" and "unseen".

    Seen are the labels that training has, unseen those that it lacks. A part without
    videos is absent. real: clips with the labels, whose path is the given one.
    """
    detected = detect_sprites(videos, source)
    centres = None
    if real is not None and source.geometry.frames > 1:
        centres = detect_sprites(real, source).centre
    unseen = is_held_out(labels).any(1)
    parts = {"": unseen | True, "seen": ~unseen, "unseen": unseen}
    return {
        name: _scores(
            videos[part],
            labels[part],
            source,
            Detections(*(field[part] for field in detected)),
            None if centres is None else centres[part],
        )
        for name, part in parts.items()
        if part.any()
    }


def wilson_interval(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the interval of a probability of which a share of n trials was seen.

    E. B. Wilson, Probable inference, 1927: 95% for z = 1.96. It holds at 0 and 1 too.
    """
    centre = share + z**2 / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = ((centre + sign * spread) / (1 + z**2 / n) for sign in (-1, 1))
    return min(max(low, 0.0), share), max(min(high, 1.0), share)  # despite rounding


def chance(source: Sprites) -> Row:
    """Return the accuracies of a guess."""
    row: Row = dict(zip(NAMES, (1 / size for size in source.sizes), strict=False))
    return row | {"all_attributes": 1 / math.prod(source.sizes)}


def reference_scores(source: Sprites, n: int = 200, seed: int = 0) -> dict[str, Row]:
    """Return scores of held-out clips, of distorted ones, and of chance, by name.

    The distortions are Gaussian noise of deviation .2 (of a range of 2), random order
    of frames, frames of different clips, and uniform noise instead of the clips.
    """
    rng, held_out = np.random.default_rng(seed), cast(Any, source.split(True))
    items = rng.integers(len(source), size=n)
    clips = [held_out.load(int(i), rng, source.geometry.frames) for i in items]
    real = np.stack([clip["video"] for clip in clips])
    labels = np.stack([clip["label"] for clip in clips])
    sets: Mapping[str, Any] = {
        "real": real,
        "real + noise .2": real / 127.5 - 1 + 0.2 * rng.standard_normal(real.shape),
        "noise": rng.uniform(-1, 1, real.shape),
    }
    if source.geometry.frames > 1:
        sets["shuffled frames"] = np.stack([rng.permutation(clip) for clip in real])
        mixed = [rng.permutation(frame) for frame in real.swapaxes(0, 1)]
        sets["frames of other clips"] = np.stack(mixed, axis=1)
    rows = {name: scores(videos, labels, source) for name, videos in sets.items()}
    return rows | {"chance": chance(source)}


def _unit(videos: np.ndarray) -> np.ndarray:
    """Return float32 videos in [0, 1]."""
    if videos.dtype == np.uint8:
        return videos.astype(np.float32) / 255
    return (videos.astype(np.float32) + 1) / 2
