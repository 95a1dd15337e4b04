"""Exceptions whose message is all that a user needs to see."""


class UserError(Exception):
    """Something the user wrote or has does not fit: exit code 2.

    The message says in one or two lines what came, what fits, and what to do.
    """


class TrainingStopped(Exception):  # noqa: N818 - it says what happened
    """A run cannot go on, through no fault of the command line: exit code 1."""
