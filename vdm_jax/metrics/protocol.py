"""Evaluation protocols: what must be equal before scores may be compared.

Frechet distances change more with the number of clips, the frames, the size or the
weights than between two models. Every results.json stores its protocol, and scores of
different protocols are not compared.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.errors import UserError

Protocol = dict[str, str | int | float]


def videos_digest(*videos: np.ndarray) -> str:
    """Return a checksum of videos: of their shapes, types and bytes."""
    digest = hashlib.sha256()
    for array in videos:
        digest.update(f"{array.shape} {array.dtype.str}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def describe(protocol: Protocol) -> str:
    """Return a protocol as one line of text."""
    return "; ".join(f"{name} {value}" for name, value in protocol.items())


def check_same_protocol(own: Protocol, other: Any, path: Path) -> None:
    """Raise UserError naming the first entry in which protocols differ."""
    if not isinstance(other, dict):
        raise UserError(f"{path} holds no protocol: run evaluate.py again")
    for name in {**own, **other}:
        a, b = own.get(name, "none"), other.get(name, "none")
        if a != b:
            raise UserError(
                f"{path} was measured with {name} {b}, this evaluation with {a}: "
                "scores compare only under one protocol; run one of them again"
            )
