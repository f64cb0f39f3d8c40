"""Messages are one printable line: vdm_jax/errors.py."""

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
        ("a\u202eb", r"a\u202eb"),  # reverses the text after it
        ("größer 猫 a\\b 'x'", "größer 猫 a\\b 'x'"),
    ],
)
def test_a_name_is_printed_in_one_line(name, shown):
    assert printable(name) == shown
    message = str(UserError(f"{name}: no such file"))
    assert message == f"{shown}: no such file" and message.encode()
