"""What a system makes: the videos that are requested, and options by their texts."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_origin

import numpy as np

from vdm_jax.errors import UserError
from vdm_jax.sampling import SamplingInputs
from vdm_jax.settings import check, settings_of
from vdm_jax.settings.declaration import value_type

DEFAULT_FRAMES = 8
FindForeground = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Request:
    """The videos that a system is to make.

    num          of videos
    num_frames   of each
    inputs       conditions, as of `sampling.sample`; initial_noise is that of the first
                 frames, z [num, 1, h, w, c]
    seed         decides all noise, with the number of each video
    first_video  number of the first video
    foreground   bool [1 or num, 1 or num_frames, h, w, 1] in pixels, of which one frame
                 is the foreground of the first frame; or a function that finds it in
                 the videos [num, num_frames, h, w, c] in [-1, 1] of a first pass
    """

    num: int = 1
    num_frames: int = DEFAULT_FRAMES
    inputs: SamplingInputs = SamplingInputs()
    seed: int = 0
    first_video: int = 0
    foreground: np.ndarray | FindForeground | None = None


def parse_options(declared: type, texts: Sequence[str]) -> Any:
    """Return the options of a system from texts NAME=VALUE, as "motion=0,-1".

    declared: the dataclass of its settings; values are parsed by their types.

    Raises:
      UserError: no such option, one given twice, or a value that is not allowed.
    """
    fields = settings_of(declared)
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in fields or not equals:
            known = ", ".join(f"{field}=..." for field in fields)
            raise UserError(f"--set={text}: NAME=VALUE, of {known}")
        if name in values:
            raise UserError(f"--set={text}: {name} is given twice")
        values[name] = _parse(value_type(fields[name]), value)
    check(fields, values, "--set=")
    return declared(**values)


def _parse(kind: Any, text: str) -> Any:
    """Return a text as a value of a type; as it is where it is none, for `check`."""
    if get_origin(kind) is tuple:
        parts = text.split(",") if text else []
        return tuple(_parse(get_args(kind)[0], part) for part in parts)
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text
