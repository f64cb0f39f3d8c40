"""Labels of the videos to sample, by the names of their values."""

import csv

import numpy as np

from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel

OPEN_LABEL = "none"  # the label text that leaves all attributes open


def label_array(
    model: DiffusionModel, num: int, text: str = "", seed: int = 0, flag: str = "label"
) -> np.ndarray | None:
    """Return labels int32 [num, attributes], or None for a model without labels.

    text: names of values, comma separated, at most one per attribute, in any order
    ("red,circle,left,fast"). An attribute without a value stays open, -1; `none` leaves
    all open; "" draws each value equally often. A name that holds a comma or a
    quotation mark, or is `none`, is quoted as in CSV. flag: name of the flag, for
    messages.
    """
    vocabulary = model.label_vocabulary
    if not vocabulary:
        if text:
            raise UserError(f"--{flag}={text}: this model was trained without labels")
        return None
    if not text:
        rng = np.random.default_rng(seed)
        # Each value as often as the others, in a random order per attribute.
        columns = [rng.permutation(np.arange(num) % len(names)) for names in vocabulary]
        return np.stack(columns, axis=1).astype(np.int32)
    label = np.full(len(vocabulary), -1, np.int32)
    try:
        values = [] if text == OPEN_LABEL else next(csv.reader([text], strict=True))
    except csv.Error as error:
        raise UserError(f"--{flag}={text}: {error}: quotes are as in CSV") from error
    for value in values:
        attributes = [i for i, names in enumerate(vocabulary) if value in names]
        if not attributes:
            known = "; ".join(", ".join(map(_quoted, names)) for names in vocabulary)
            raise UserError(f"--{flag}={text}: no value {value!r}; there are {known}")
        if label[attributes[0]] >= 0:
            raise UserError(f"--{flag}={text}: two values for one attribute")
        label[attributes[0]] = vocabulary[attributes[0]].index(value)
    return np.tile(label, (num, 1))


def label_text(model: DiffusionModel, label: np.ndarray) -> str:
    """Return a label int [attributes] as `label_array` reads it, open ones left out."""
    return ",".join(
        _quoted(names[i])
        for names, i in zip(model.label_vocabulary, label, strict=True)
        if i >= 0
    )


def _quoted(name: str) -> str:
    """Return a name as `label_array` reads it."""
    special = name == OPEN_LABEL or any(c in name for c in ',"\r\n')
    return '"' + name.replace('"', '""') + '"' if special else name
