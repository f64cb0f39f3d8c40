"""Modules that measure attributes of videos, by the data source that has them."""

from typing import Any

from vdm_jax.metrics import bouncing_motion, shape_detection

ATTRIBUTE_METRICS: dict[str, Any] = {
    "shapes": shape_detection,
    "bouncing": bouncing_motion,
}
