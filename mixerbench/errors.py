"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something the user wrote or has does not fit; one or two lines, exit code 2.

    Says what came, what fits, and what to do.
    """
