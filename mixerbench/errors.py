"""Exceptions whose message is all that a user needs to see, and the exit codes they give."""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mixers.core.errors import Refusal as Refusal
from mixers.core.errors import is_out_of_memory as is_out_of_memory


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
    """``told to stop (SIGTERM)``, or ``interrupted`` by Ctrl-C."""
    return "interrupted" if _by_hand(stop) else f"told to stop ({stop})"


def told_to_stop(stop: KeyboardInterrupt, message: str) -> Preempted:
    """The end of a run that ``stop`` has told to stop."""
    return (Interrupted if _by_hand(stop) else Preempted)(message)


def _by_hand(stop: KeyboardInterrupt) -> bool:
    return not isinstance(stop, StopRequested) or stop.number == signal.SIGINT


def first_line(error: BaseException) -> str:
    """What an exception of somebody else's says, without the rest; its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class ReaderGone(Exception):  # noqa: N818 - it says what happened
    """Nobody reads the standard output any more, as after ``| head``: exit code 0."""


class Done(Exception):  # noqa: N818
    """Nothing is left to do, as after ``--help``: exit code 0."""


REPORT = (
    "This is a bug of mixerbench or of a plugin: report it in the issue tracker, with these lines "
    "and the command."
)


def exit_code(work: Callable[[], None]) -> int:
    """Run ``work``; say in one or two lines what went wrong.

    0 done, 1 stopped, 2 bad input, 130 told to stop by Ctrl-C, 75 by any other signal.

    Raises:
        Exception: a bug; its traceback ends with where to report it, and Python's exit code is 1.
    """
    code = _exit_code(work)
    lost = _exit_code(lambda: print(end="", flush=True))  # what Python has buffered counts too
    return code or lost


def _exit_code(work: Callable[[], None]) -> int:
    try:
        with _machine_told():
            work()
    except (Refusal, TrainingStopped) as error:
        if os.environ.get("MIXERBENCH_DEBUG") == "1":
            raise
        print(f"mixerbench: {error}", file=sys.stderr)
        if isinstance(error, Preempted):
            return INTERRUPTED if isinstance(error, Interrupted) else PREEMPTED
        return 2 if isinstance(error, Refusal) else 1
    except KeyboardInterrupt as stop:
        print(f"mixerbench: {how_told(stop)}.", file=sys.stderr)
        return INTERRUPTED if _by_hand(stop) else PREEMPTED
    except (ReaderGone, Done):
        pass
    except SystemExit as end:
        print(f"mixerbench: {called_exit(end)}", file=sys.stderr)
        return 1
    except Exception as error:
        error.add_note(REPORT)
        raise
    return 0


def called_exit(end: SystemExit) -> str:
    """What is wrong with a model's code that ends the process, be it with 0, and where it does."""
    place = traceback.extract_tb(end.__traceback__)[-1]
    said = "" if end.code is None else repr(end.code)
    return (
        f"{place.filename}:{place.lineno} called sys.exit({said}), and a run is not its to end: "
        "let it raise an error that says what is wrong."
    )


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@contextmanager
def _machine_told() -> Iterator[None]:
    """What the machine lacks, and no command can foresee, is told in one line; all else is a bug.

    Raises:
        Refusal, TrainingStopped: what is lacking.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        text = first_line(error)
        if is_out_of_memory(error):
            raise TrainingStopped(
                f"there is no memory left ({text[:200]}): set run.evaluation_batch_size or "
                "run.measure_batch_size lower, or take a smaller model or a larger machine."
            ) from error
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise TrainingStopped(
                f"cannot write {error.filename or 'a file'} ({error.strerror}): make room there, "
                "or for temporary files set TMPDIR to another folder."
            ) from error
        if "No usable temporary directory" in text:
            raise TrainingStopped(
                "no temporary folder takes a file: set TMPDIR to one that does, or make room."
            ) from error
        if "home directory" in text and isinstance(error, RuntimeError):
            raise Refusal(
                "there is no home folder that ~ could stand for: set HOME, or write the whole path."
            ) from error
        raise
