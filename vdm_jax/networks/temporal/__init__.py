"""How time is put into an image network: one file for each paper.

A bundle replaces some parts of a network. Its parameters are below path components that
start with "time_", so that a pattern freezes or trains them, and where
inputs.frame_mask is false a frame passes them unchanged.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn

from vdm_jax.networks import sd
from vdm_jax.networks.parts import Parts
from vdm_jax.networks.temporal import tune

BUNDLES: dict[str, Callable[[Parts], Parts]] = {
    "none": lambda parts: parts,
    "tune": tune.add_time,
}


def from_config(
    section: dict[str, Any], channels: int, sizes: Sequence[tuple[int, int]]
) -> nn.Module:
    """Return a network of kind "sd" with its bundle, see `networks.NETWORKS`."""
    parts = BUNDLES[section.get("temporal", "none")](sd.SD_PARTS)
    return sd.from_config(section, channels, sizes, parts)
