"""What a user reads is one line that any terminal shows: vdm_jax/errors.py."""

import pytest

from vdm_jax.errors import UserError, printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("a\r\tb", r"a\r\tb"),
        ("caf\udce9.mp4", r"caf\udce9.mp4"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\u2028b\x85", r"a\u2028b\x85"),
        ("a\u202eb", r"a\u202eb"),  # would turn what follows around
        ("größer 猫 a\\b 'x'", "größer 猫 a\\b 'x'"),
    ],
)
def test_a_name_is_shown_in_one_line_that_can_be_written(name, shown):
    assert printable(name) == shown
    said = str(UserError(f"{name}: no such file"))
    assert said == f"{shown}: no such file" and said.encode()
