"""The one exception type for what a user can put right, and how names are shown."""


class UserError(Exception):
    """Wrong input, or a state of the run that the user must decide about.

    The message is one line: what is wrong, and what would be right. The verbs turn
    this type, and nothing else, into that line and the exit status: 2 wrong input,
    3 non-finite training, 4 checkpoints were committed here and none verifies, 5 a
    round of a distillation lost more than it may.
    """

    def __init__(self, message: str, status: int = 2):
        super().__init__(printable(message))
        self.status = status


def printable(text: str) -> str:
    """Return a text as one line that any UTF-8 terminal, log or report can hold.

    Whatever is no printable character (a line's end or a terminal's code in the name of
    a file, a byte that is not UTF-8) stands there as its escape, as Python writes it.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )
