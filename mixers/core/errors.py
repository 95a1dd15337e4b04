"""What the user can mend, and what a machine lacks. No torch here."""

import errno


class Refusal(ValueError):  # noqa: N818 - it is no error of the program
    """Something the user wrote or has does not fit: exit code 2.

    The message says in one or two lines what came, what fits, and what to do. Raised where it is
    noticed, told once, by the command line. Any other ``ValueError`` is a bug.
    """


class BrokenCodeError(Refusal):
    """Somebody's own code raised: says whose it is, what it raised and where."""


def is_out_of_memory(error: BaseException) -> bool:
    """Did somebody want memory, of a GPU or of the CPU, that there is not?"""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (
            type(error).__name__ == "OutOfMemoryError"  # PyTorch's own, which is not imported here
            or "DefaultCPUAllocator" in str(error)
        )
    )
