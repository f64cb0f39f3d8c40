"""The exception type for errors that a user can fix, and the printing of names."""


class UserError(Exception):
    """Wrong input, or a state of a run that needs a decision of the user.

    The message is one line: what is wrong, and what would be right. Commands turn only
    this type into that line and an exit status: 2 wrong input, 3 non-finite training,
    4 no committed checkpoint is intact, 5 the metric of a distillation round dropped by
    more than the limit.
    """

    def __init__(self, message: str, status: int = 2):
        super().__init__(printable(message))
        self.status = status


def check_multiple(field: str, value: int, multiple: int, why: str) -> None:
    """Raise UserError for a value that is no multiple of another; name the nearest.

    why: what the other number is.
    """
    if value % multiple:
        below, above = value // multiple * multiple, (value // multiple + 1) * multiple
        nearest = [str(n) for n in (below, above) if n > 0]
        raise UserError(
            f"{field}={value} must be a multiple of {multiple} ({why}): "
            f"nearest {' or '.join(nearest)}"
        )


def printable(text: str) -> str:
    """Return a text as one printable line for terminals, logs and reports.

    Characters that are not printable (line ends, terminal codes, bytes of a file name
    that are not UTF-8) are replaced by Python's escape sequences.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )
