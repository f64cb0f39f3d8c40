"""Change a condition of a model, or add one."""

import dataclasses

from vdm_jax.conditions.label import Label
from vdm_jax.conditions.text import Text


def change(model, **conditions):
    """Return a model whose conditions have other fields: change(model, label={...})."""
    rows = dict(model.conditions)
    for name, fields in conditions.items():
        rows[name] = dataclasses.replace(rows[name], **fields)
    return dataclasses.replace(model, conditions=tuple(rows.items()))


def with_text(model, dim=2, dropout=0.0):
    """Return a model with text after its other conditions."""
    rows = (*model.conditions, ("text", Text(dim, dropout)))
    return dataclasses.replace(model, conditions=rows)


def labels(*vocabulary, **dropout):
    """Return conditions that are labels alone."""
    return (("label", Label(vocabulary, **dropout)),)
