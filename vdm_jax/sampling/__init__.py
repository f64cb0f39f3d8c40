"""From a trained model to videos: its own size, longer, larger, from given ones."""

from vdm_jax.sampling import observations
from vdm_jax.sampling.autoregressive import fill
from vdm_jax.sampling.generate import Known, Text, invert, observing, sample, to_uint8
from vdm_jax.sampling.labels import draw_labels, label_text
from vdm_jax.sampling.settings import (
    Settings,
    calls,
    check,
    check_videos,
    two_branches,
    unread,
)

__all__ = [
    "Known",
    "Settings",
    "Text",
    "calls",
    "check",
    "check_videos",
    "draw_labels",
    "fill",
    "invert",
    "label_text",
    "observations",
    "observing",
    "sample",
    "to_uint8",
    "two_branches",
    "unread",
]
