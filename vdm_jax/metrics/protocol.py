"""How figures were measured: what must be equal before they are compared.

Two Frechet distances of the same videos differ by more than two models do when clips,
frames, sizes or weights differ, and papers seldom say. Here every results.json says,
and unlike ones are refused.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.errors import UserError

Protocol = dict[str, str | int | float]


def videos_digest(*videos: np.ndarray) -> str:
    """Which real clips: of their bytes and shapes."""
    told = hashlib.sha256()
    for array in videos:
        told.update(f"{array.shape} {array.dtype.str}\n".encode())
        told.update(np.ascontiguousarray(array).data)
    return told.hexdigest()[:16]


def describe(protocol: Protocol) -> str:
    """One line for a person."""
    return "; ".join(f"{name} {value}" for name, value in protocol.items())


def check_same_protocol(own: Protocol, other: Any, path: Path) -> None:
    """Raise UserError naming the first thing that was measured otherwise in `path`."""
    if not isinstance(other, dict):
        raise UserError(f"{path} holds no protocol: measure it again with evaluate.py")
    for name in {**own, **other}:
        a, b = own.get(name, "none"), other.get(name, "none")
        if a != b:
            raise UserError(
                f"{path} was measured with {name} {b}, this would be with {a}: figures "
                "compare only where both are alike; measure one of them again"
            )
