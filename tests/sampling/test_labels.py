"""Labels by the names of their values, whatever these are: sampling/labels.py."""

import types
from typing import Any

import numpy as np
import pytest

from vdm_jax.errors import UserError
from vdm_jax.sampling import label_array, label_text

NAMES = ("none", "cats, dogs", 'the "big" one', " ", "a=b", "-1", "naïve", "\\", "cats")
MODEL: Any = types.SimpleNamespace(label_vocabulary=(NAMES, ("slow", "fast")))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_can_be_written(name):
    label = np.array([NAMES.index(name), -1])
    text = label_text(MODEL, label)
    assert (label_array(MODEL, 2, text) == label).all()
    label[1] = 1
    assert (label_array(MODEL, 1, f"fast,{text}") == label).all()


def test_in_quotation_marks_a_name_is_what_it_is():
    assert label_array(MODEL, 1, "none") == pytest.approx(np.array([[-1, -1]]))
    assert label_array(MODEL, 1, '"none"') == pytest.approx(np.array([[0, -1]]))
    assert label_array(MODEL, 1, '"cats, dogs",slow') == pytest.approx(
        np.array([[1, 0]])
    )
    with pytest.raises(UserError, match=r'no value .*"none", "cats, dogs", "the ""big'):
        label_array(MODEL, 1, "cats, dogs")
    for text in ('"cats', '"a"b', '""'):
        with pytest.raises(UserError, match="--label="):
            label_array(MODEL, 1, text)
