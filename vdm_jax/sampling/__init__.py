"""From a trained model to videos: its own size, longer, larger, from given ones."""

from vdm_jax.sampling import given
from vdm_jax.sampling.blocks import Known, Text, invert, observing, sample, to_uint8
from vdm_jax.sampling.labels import draw_labels, label_text
from vdm_jax.sampling.long import fill
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
    "given",
    "invert",
    "label_text",
    "observing",
    "sample",
    "to_uint8",
    "two_branches",
    "unread",
]
