"""The one exception type for what a user can put right."""


class UserError(Exception):
    """Wrong input, or a state of the run that the user must decide about.

    The message is one line: what is wrong, and what would be right. The verbs turn
    this type, and nothing else, into that line and the exit status: 2 wrong input,
    3 non-finite training, 4 checkpoints were committed here and none verifies, 5 a
    round of a distillation lost more than it may.
    """

    def __init__(self, message: str, status: int = 2):
        super().__init__(message)
        self.status = status
