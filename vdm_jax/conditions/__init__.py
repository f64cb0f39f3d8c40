"""What a network can be conditioned on: one file each, and a row of CONDITIONS."""

from collections.abc import Callable
from typing import Any

from vdm_jax.conditions.base import Condition
from vdm_jax.conditions.clean_frames import CleanFrames
from vdm_jax.conditions.frame_index import FrameIndex
from vdm_jax.conditions.guidance_weight import GuidanceWeight
from vdm_jax.conditions.hint import Hint
from vdm_jax.conditions.label import Label
from vdm_jax.conditions.low_resolution import LowResolution
from vdm_jax.conditions.text import Text

# Name -> from_config(config), which returns the condition or None. Their embeddings are
# summed in this order.
CONDITIONS: dict[str, Callable[[Any], Condition | None]] = {
    "label": Label.from_config,
    "text": Text.from_config,
    "low_resolution": LowResolution.from_config,
    "guidance_weight": GuidanceWeight.from_config,
    "frame_index": FrameIndex.from_config,
    "control_0": Hint.from_config,
    "clean_frames": CleanFrames.from_config,
}


def from_config(config: Any) -> tuple[tuple[str, Condition], ...]:
    """Return the conditions of a config by their names, in the order of CONDITIONS.

    Raises:
      UserError: values that are unknown or do not fit each other.
    """
    rows = ((name, make(config)) for name, make in CONDITIONS.items())
    return tuple((name, condition) for name, condition in rows if condition is not None)
