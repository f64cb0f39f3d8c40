"""Attributes of clips of shapes: accuracies and positions, measured from the pixels.

No network is used. There is a metric for each data source of shapes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.data import bouncing, shapes
from vdm_jax.metrics import bouncing_motion, shape_detection
from vdm_jax.metrics.tables import Row

NOTE = (
    "Attributes are measured by template matching, without a network. Direction must "
    "be right on every displacement; an axis is that of a fitted path. template mse is "
    "in px^2 a frame; position std is the standard deviation of the clips' mean "
    "position in pixels. guidance_scale is s of uncond + s (cond - uncond)."
)


class ShapeMetric(NamedTuple):
    """How the four attributes of a data source are measured.

    names              of the attributes
    measure_motion     from `detect_shapes` and a geometry to the last two [n, 2]
    direction_classes  class of each of shapes.DIRECTIONS that is recognised
    source             makes the data source: (geometry, held_out)
    """

    names: tuple[str, ...]
    measure_motion: Callable[[dict[str, np.ndarray], shapes.Geometry], np.ndarray]
    direction_classes: np.ndarray
    source: Callable[[shapes.Geometry, bool], Any]

    def chance(self) -> Row:
        """Return the accuracies of a guess."""
        directions = len(np.unique(self.direction_classes))
        sizes = (*shapes.ATTRIBUTE_SIZES[:2], directions, shapes.ATTRIBUTE_SIZES[3])
        chance: Row = {n: 1 / size for n, size in zip(self.names, sizes, strict=True)}
        return chance | {"all_attributes": 1 / math.prod(sizes)}

    def measure(self, videos: np.ndarray, stride: int = 1) -> dict[str, np.ndarray]:
        """Measure the attributes of clips of one shape on black.

        Args:
          videos: [n, f, h, w, 3], uint8 or float in [-1, 1], f >= 2.
          stride: of the clips, as in shapes.Geometry.

        Returns:
          attributes: int32 [n, 4], indices into shapes.ATTRIBUTES, -1 where
            undecidable; all four are where a frame has no detection.
          template_mse, centres: of `shape_detection.detect_shapes`.
        """
        detected = shape_detection.detect_shapes(videos)
        _, frames, height, width, _ = videos.shape
        geometry = shapes.Geometry(frames, height, width, stride)
        appearance = np.stack([detected["shape"], detected["colour"]], -1)
        appearance = np.where(detected["decidable"], appearance, -1)
        motion = self.measure_motion(detected, geometry)
        every = np.concatenate([appearance, motion], -1)
        every = np.where(detected["detected"][:, None], every, -1).astype(np.int32)
        measured = {key: detected[key] for key in ("template_mse", "centres")}
        return {"attributes": every, **measured}

    def attribute_scores(
        self, videos: np.ndarray, labels: np.ndarray, stride: int = 1
    ) -> Row:
        """Return `accuracy` and `position_scores` of clips with labels int [n, 4]."""
        direction = labels[:, 2]
        labels = labels.copy()
        labels[:, 2] = np.where(direction < 0, -1, self.direction_classes[direction])
        measured = self.measure(videos, stride)
        return accuracy(measured, labels, self.names) | position_scores(measured)

    def reference_scores(
        self, geometry: shapes.Geometry, n: int = 216, seed: int = 0
    ) -> dict[str, Row]:
        """Return scores of held-out clips, of distorted ones, and of chance, by name.

        The distortions are Gaussian noise of deviation .2 (of a range of 2), random
        order of frames, and uniform noise instead of the clips.
        """
        source = self.source(geometry, True)
        rng = np.random.default_rng(seed)
        clips = [source.load(i, rng, geometry.frames) for i in range(n)]
        real = np.stack([clip["video"] for clip in clips])
        labels = np.stack([clip["label"] for clip in clips])
        sets = {
            "real": real,
            "real + noise .2": real / 127.5 - 1 + 0.2 * rng.standard_normal(real.shape),
            "shuffled frames": np.stack([rng.permutation(clip) for clip in real]),
            "noise": rng.uniform(-1, 1, real.shape),
        }
        rows = {
            name: self.attribute_scores(videos, labels, geometry.stride)
            for name, videos in sets.items()
        }
        return rows | {"chance": self.chance()}


SHAPES = ShapeMetric(
    ("shape", "colour", "direction", "speed"),
    shape_detection.measure_motion,
    np.arange(len(shapes.DIRECTIONS)),
    shapes.Shapes,
)
BOUNCING = ShapeMetric(
    ("shape", "colour", "axis", "speed"),
    bouncing_motion.measure_motion,
    bouncing.AXES,
    bouncing.bouncing_shapes,
)


def accuracy(
    measured: dict[str, np.ndarray], labels: np.ndarray, names: Sequence[str]
) -> Row:
    """Return the fraction of clips that agree with their labels, per attribute.

    labels: int [n, 4]; -1, an unspecified attribute, agrees with everything. The key
    all_attributes is the fraction of clips in which all four agree.
    """
    correct = (measured["attributes"] == labels) | (labels < 0)
    fractions = dict(zip(names, correct.mean(0).tolist(), strict=True))
    return fractions | {"all_attributes": float(correct.all(1).mean())}


def position_scores(measured: dict[str, np.ndarray], draws: int = 500) -> Row:
    """Return mean template_mse, position_std and its standard error of clips.

    position_std is the standard deviation over clips of their mean position, in pixels;
    its error is by a bootstrap over clips. measured: of `ShapeMetric.measure`.
    """
    positions = measured["centres"].mean(1)
    n = len(positions)
    drawn = positions[np.random.default_rng(0).integers(n, size=(draws, n))]
    return {
        "template_mse": float(measured["template_mse"].mean()),
        "position_std": float(np.sqrt(positions.var(0).mean())),
        "position_std_error": float(np.sqrt(drawn.var(1).mean(-1)).std()),
    }
