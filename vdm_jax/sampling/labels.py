"""Labels of the videos to make, by the names of their values."""

import numpy as np

from vdm_jax.errors import UserError
from vdm_jax.model import Model


def draw_labels(
    model: Model, num: int, asked: str = "", seed: int = 0, flag: str = "label"
) -> np.ndarray | None:
    """Labels int32 [num, attributes]: as asked, else drawn evenly; None without any.

    asked: value names, comma separated, at most one an attribute, in any order
    ("red,circle,left,fast"); an attribute that is not named stays open, -1; "none"
    leaves all open. flag: what it was asked with, for messages.
    """
    if not model.attributes:
        if asked:
            raise UserError(f"--{flag}={asked}: this model was trained without labels")
        return None
    if not asked:
        rng = np.random.default_rng(seed)
        # Each value as often as the others, in an order of its own.
        columns = [
            rng.permutation(np.arange(num) % len(names)) for names in model.attributes
        ]
        return np.stack(columns, axis=1).astype(np.int32)
    label = np.full(len(model.attributes), -1, np.int32)
    for name in asked.split(",") if asked != "none" else ():
        places = [i for i, names in enumerate(model.attributes) if name in names]
        if not places:
            known = "; ".join(", ".join(names) for names in model.attributes)
            raise UserError(f"--{flag}={asked}: no value {name!r}; there are {known}")
        if label[places[0]] >= 0:
            raise UserError(f"--{flag}={asked}: two values for one attribute")
        label[places[0]] = model.attributes[places[0]].index(name)
    return np.tile(label, (num, 1))


def label_text(model: Model, label: np.ndarray) -> str:
    """The names of a label's values, open ones left out."""
    return ",".join(
        names[i] for names, i in zip(model.attributes, label, strict=True) if i >= 0
    )
