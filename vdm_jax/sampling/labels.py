"""Labels of the videos to make, by the names of their values."""

import csv

import numpy as np

from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel

OPEN_LABEL = "none"  # asked for: no attribute is told


def draw_labels(
    model: DiffusionModel, num: int, text: str = "", seed: int = 0, flag: str = "label"
) -> np.ndarray | None:
    """Labels int32 [num, attributes]: as asked, else drawn evenly; None without any.

    asked: value names, comma separated, at most one an attribute, in any order
    ("red,circle,left,fast"); an attribute that is not named stays open, -1; `none`
    leaves all open. A name that holds a comma or a quotation mark, or is `none`, is
    asked for in quotation marks, as in CSV. flag: what it was asked with, for messages.
    """
    if not model.label_vocabulary:
        if text:
            raise UserError(f"--{flag}={text}: this model was trained without labels")
        return None
    if not text:
        rng = np.random.default_rng(seed)
        # Each value as often as the others, in an order of its own.
        columns = [
            rng.permutation(np.arange(num) % len(names))
            for names in model.label_vocabulary
        ]
        return np.stack(columns, axis=1).astype(np.int32)
    label = np.full(len(model.label_vocabulary), -1, np.int32)
    try:
        wanted = [] if text == OPEN_LABEL else next(csv.reader([text], strict=True))
    except csv.Error as error:
        raise UserError(f"--{flag}={text}: {error}: quotes are as in CSV") from error
    for name in wanted:
        places = [i for i, names in enumerate(model.label_vocabulary) if name in names]
        if not places:
            known = "; ".join(
                ", ".join(map(_quoted, names)) for names in model.label_vocabulary
            )
            raise UserError(f"--{flag}={text}: no value {name!r}; there are {known}")
        if label[places[0]] >= 0:
            raise UserError(f"--{flag}={text}: two values for one attribute")
        label[places[0]] = model.label_vocabulary[places[0]].index(name)
    return np.tile(label, (num, 1))


def label_text(model: DiffusionModel, label: np.ndarray) -> str:
    """The label as it is asked for, open attributes left out."""
    return ",".join(
        _quoted(names[i])
        for names, i in zip(model.label_vocabulary, label, strict=True)
        if i >= 0
    )


def _quoted(name: str) -> str:
    """A name as `draw_labels` takes it."""
    special = name == OPEN_LABEL or any(c in name for c in ',"\r\n')
    return '"' + name.replace('"', '""') + '"' if special else name
