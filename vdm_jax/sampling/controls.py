"""How strongly, and in which steps, each ControlNet of a model controls its videos."""

import math
from collections.abc import Sequence

import numpy as np

from vdm_jax.conditions.hint import Hint
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel
from vdm_jax.sampling.types import Control

MAX_CONTROL_SCALE = 10.0


def control_scales(controls: Sequence[Control], steps: int, rows: int) -> np.ndarray:
    """Return what residuals are multiplied by, [rows, controls], by step.

    The scale of a ControlNet in the steps that lie within its start and its end whole,
    as in diffusers; 0 in the others, and in the rows behind the last step.

    Raises:
      UserError: no step lies within.
    """
    scales = np.zeros((rows, len(controls)))
    for i in range(steps):
        for k, control in enumerate(controls):
            if control.start <= i / steps and (i + 1) / steps <= control.end:
                scales[i, k] = control.scale
    for k, control in enumerate(controls):
        if control.scale and not scales[:, k].any():
            raise UserError(
                f"a control from {control.start} to {control.end} has no step of "
                f"{steps} within: give more steps or a longer part"
            )
    return scales


def check_controls(model: DiffusionModel, controls: Sequence[Control]) -> None:
    """Raise UserError for controls out of range, or not one for each ControlNet."""
    count = sum(isinstance(condition, Hint) for _, condition in model.conditions)
    if controls and len(controls) != count:
        raise UserError(f"{len(controls)} controls: the model has {count} ControlNets")
    for control in controls:
        scale, start, end = control
        if not (math.isfinite(scale) and 0 <= scale <= MAX_CONTROL_SCALE):
            raise UserError(
                f"scale {scale} of a control: from 0 to {MAX_CONTROL_SCALE}"
            )
        if not 0 <= start < end <= 1:
            raise UserError(
                f"a control from {start} to {end}: fractions of the steps, the start "
                "before the end, from 0 to 1"
            )
