"""Labels of the videos to make, by the names of their values."""

import csv

import numpy as np

from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel

OPEN = "none"  # asked for: no attribute is told


def draw_labels(
    model: DiffusionModel, num: int, asked: str = "", seed: int = 0, flag: str = "label"
) -> np.ndarray | None:
    """Labels int32 [num, attributes]: as asked, else drawn evenly; None without any.

    asked: value names, comma separated, at most one an attribute, in any order
    ("red,circle,left,fast"); an attribute that is not named stays open, -1; `none`
    leaves all open. A name that holds a comma or a quotation mark, or is `none`, is
    asked for in quotation marks, as in CSV. flag: what it was asked with, for messages.
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
    try:
        wanted = [] if asked == OPEN else next(csv.reader([asked], strict=True))
    except csv.Error as error:
        raise UserError(f"--{flag}={asked}: {error}: quotes are as in CSV") from error
    for name in wanted:
        places = [i for i, names in enumerate(model.attributes) if name in names]
        if not places:
            known = "; ".join(
                ", ".join(map(_quoted, names)) for names in model.attributes
            )
            raise UserError(f"--{flag}={asked}: no value {name!r}; there are {known}")
        if label[places[0]] >= 0:
            raise UserError(f"--{flag}={asked}: two values for one attribute")
        label[places[0]] = model.attributes[places[0]].index(name)
    return np.tile(label, (num, 1))


def label_text(model: DiffusionModel, label: np.ndarray) -> str:
    """The label as it is asked for, open attributes left out."""
    return ",".join(
        _quoted(names[i])
        for names, i in zip(model.attributes, label, strict=True)
        if i >= 0
    )


def _quoted(name: str) -> str:
    """A name as `draw_labels` takes it."""
    special = name == OPEN or any(c in name for c in ',"\r\n')
    return '"' + name.replace('"', '""') + '"' if special else name
