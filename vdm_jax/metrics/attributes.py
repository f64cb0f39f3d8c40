"""Attributes of samples, measured without a network: one measure for each data source.

`open_metric` makes the one of a config; ATTRIBUTE_METRICS has a row for each source
whose samples can be measured.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from vdm_jax.data.shapes import Geometry
from vdm_jax.data.sprites import Sprites, open_sprites
from vdm_jax.metrics import shape_scores, sprite_scores
from vdm_jax.metrics.shape_scores import BOUNCING, SHAPES, ShapeMetric
from vdm_jax.metrics.tables import Row


class AttributeMetric(Protocol):
    """The measure of one data source, at the size of its clips."""

    @property
    def note(self) -> str:
        """What the columns mean, for the page."""
        ...

    def reference_scores(self) -> dict[str, Row]:
        """Return scores of held-out clips, of distorted ones, and of chance, by name.

        Real clips are measured as samples are, so their row is the best to reach.
        """
        ...

    def scores(
        self, videos: np.ndarray, labels: np.ndarray, real: np.ndarray | None = None
    ) -> dict[str, Row]:
        """Return scores of samples that were conditioned on labels, by part.

        The part "" is all samples. A source that holds combinations out of training
        has the parts "seen" and "unseen" too.

        Args:
          videos: [n, f, h, w, c], uint8 or float in [-1, 1].
          labels: int [n, attributes]; -1, an open attribute, agrees with everything.
          real: the clips that have the labels, as videos.
        """
        ...

    def unlabelled_scores(self, videos: np.ndarray) -> Row:
        """Return the scores that need no labels."""
        ...


@dataclasses.dataclass(frozen=True)
class ShapeAttributes:
    """The measure of moving shapes on black."""

    metric: ShapeMetric
    geometry: Geometry

    note = shape_scores.NOTE

    def reference_scores(self) -> dict[str, Row]:
        """Return `ShapeMetric.reference_scores`."""
        return self.metric.reference_scores(self.geometry)

    def scores(
        self, videos: np.ndarray, labels: np.ndarray, real: np.ndarray | None = None
    ) -> dict[str, Row]:
        """Return `ShapeMetric.attribute_scores` as the only part."""
        stride = self.geometry.stride
        return {"": self.metric.attribute_scores(videos, labels, stride)}

    def unlabelled_scores(self, videos: np.ndarray) -> Row:
        """Return `shape_scores.position_scores`."""
        measured = self.metric.measure(videos, self.geometry.stride)
        return shape_scores.position_scores(measured)


@dataclasses.dataclass(frozen=True)
class SpriteAttributes:
    """The measure of sprites, still or moving."""

    source: Sprites

    note = sprite_scores.NOTE

    def reference_scores(self) -> dict[str, Row]:
        """Return `sprite_scores.reference_scores`."""
        return sprite_scores.reference_scores(self.source)

    def scores(
        self, videos: np.ndarray, labels: np.ndarray, real: np.ndarray | None = None
    ) -> dict[str, Row]:
        """Return `sprite_scores.split_scores`."""
        return sprite_scores.split_scores(videos, labels, self.source, real)

    def unlabelled_scores(self, videos: np.ndarray) -> Row:
        """Return none: without an object to look for nothing is right or wrong."""
        return {}


def _shapes(metric: ShapeMetric, config: Any) -> ShapeAttributes:
    video, stride = config.video, config.data.stride
    geometry = Geometry(video.frames, video.height, video.width, stride)
    return ShapeAttributes(metric, geometry)


ATTRIBUTE_METRICS: dict[str, Callable[[Any], AttributeMetric]] = {
    "shapes": lambda config: _shapes(SHAPES, config),
    "bouncing": lambda config: _shapes(BOUNCING, config),
    "sprites": lambda config: SpriteAttributes(open_sprites(config)),
}


def open_metric(config: Any) -> AttributeMetric | None:
    """Return the measure of a config's source; None where it has none.

    Raises the errors of opening the source.
    """
    make = ATTRIBUTE_METRICS.get(config.data.source)
    return make(config) if make else None
