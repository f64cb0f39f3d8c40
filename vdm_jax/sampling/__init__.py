"""From a trained model to videos: its own size, longer, larger, from given ones."""

from vdm_jax.sampling import observations
from vdm_jax.sampling.autoregressive import extend_in_blocks
from vdm_jax.sampling.generate import (
    Observation,
    TextEmbeddings,
    invert,
    sample,
    to_uint8,
    with_reconstruction_weight,
)
from vdm_jax.sampling.labels import draw_labels, label_text
from vdm_jax.sampling.settings import (
    Settings,
    check_settings,
    check_video_memory,
    nfe,
    uses_cfg,
    why_unused,
)

__all__ = [
    "Observation",
    "Settings",
    "TextEmbeddings",
    "nfe",
    "check_settings",
    "check_video_memory",
    "draw_labels",
    "extend_in_blocks",
    "invert",
    "label_text",
    "observations",
    "with_reconstruction_weight",
    "sample",
    "to_uint8",
    "uses_cfg",
    "why_unused",
]
