"""Attributes of generated videos that can be measured, by the data set they are of."""

from typing import Any

from vdm_jax.metrics import bouncing_motion, shape_detection

ATTRIBUTE_METRICS: dict[str, Any] = {
    "shapes": shape_detection,
    "bouncing": bouncing_motion,
}
