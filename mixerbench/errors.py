"""Exceptions whose message is all that a user needs to see, and the exit codes they give."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something the user wrote or has does not fit: exit code 2.

    The message says in one or two lines what came, what fits, and what to do.
    """


class TrainingStopped(Exception):  # noqa: N818 - it says what happened
    """A run cannot go on, through no fault of the command line: exit code 1."""


class Preempted(TrainingStopped):
    """A run was told to stop and has saved its state: exit code 75, "try again later"."""


class Interrupted(Preempted):
    """It was told so by Ctrl-C: exit code 130, as shells have it."""


class StopRequested(KeyboardInterrupt):
    """A signal has told this process to stop; what catches errors does not catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


PREEMPTED = os.EX_TEMPFAIL  # 75, which a scheduler may be told to requeue on
INTERRUPTED = 128 + signal.SIGINT


def how_told(stop: KeyboardInterrupt) -> str:
    """``told to stop (SIGTERM)``, or ``interrupted`` where no more is known."""
    return f"told to stop ({stop})" if isinstance(stop, StopRequested) else "interrupted"


def told_to_stop(stop: KeyboardInterrupt, message: str) -> Preempted:
    """The end of a run that ``stop`` has told to stop."""
    return (Interrupted if _by_hand(stop) else Preempted)(message)


def _by_hand(stop: KeyboardInterrupt) -> bool:
    return not isinstance(stop, StopRequested) or stop.number == signal.SIGINT


def first_line(error: BaseException) -> str:
    """What an exception of somebody else's says, without the rest; its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def as_user_errors(kinds: tuple[type[Exception], ...] = (ValueError,)) -> Iterator[None]:
    """What the parts refuse is for the user to mend: such exceptions become UserErrors."""
    try:
        yield
    except kinds as error:
        raise UserError(str(error)) from error  # which MIXERBENCH_DEBUG=1 shows


def exit_code(work: Callable[[], None]) -> int:
    """Run ``work``; say in one or two lines what went wrong.

    0 done, 1 stopped, 2 bad input, 130 told to stop by Ctrl-C, 75 by any other signal.
    """
    try:
        work()
    except (UserError, TrainingStopped) as error:
        if os.environ.get("MIXERBENCH_DEBUG") == "1":
            raise
        print(f"mixerbench: {error}", file=sys.stderr)
        if isinstance(error, Preempted):
            return INTERRUPTED if isinstance(error, Interrupted) else PREEMPTED
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt as stop:
        print(f"mixerbench: {how_told(stop)}.", file=sys.stderr)
        return INTERRUPTED if _by_hand(stop) else PREEMPTED
    except BrokenPipeError:  # the reader of a pipe, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
