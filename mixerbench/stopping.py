"""The signals that tell a process to stop, and when it does: at once, or where it can save.

=======  ===========================================================================
SIGINT   Ctrl-C; a second one does not wait for anything to be saved
SIGTERM  a scheduler or a system that goes down
SIGUSR1  what SLURM is often told to send before the time is over
SIGXCPU  the time that a job was given is used up
SIGHUP   the terminal was closed; ``nohup`` has it ignored, and so it stays
SIGQUIT  Ctrl-\\
=======  ===========================================================================
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, ClassVar, Final

from mixerbench.errors import StopRequested

SIGNALS: Final = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGUSR1),
    *(signal.SIGXCPU, signal.SIGHUP, signal.SIGQUIT),
)
_SAVING: Final = (
    b"\nmixerbench: the state of this step is being saved; Ctrl-C once more stops at once.\n"
)


@contextmanager
def signals_to(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers,
) -> Iterator[None]:
    """``SIGNALS`` go to ``handler`` while the block lasts; then all handlers are as before.

    What is ignored stays so: a run that was started with nohup, or in the background of a script.
    Outside the main thread, where Python takes no handlers, nothing happens.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
        before = {n: old for n, old in before.items() if old not in (None, signal.SIG_IGN)}
        for number in before:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def deadly_signals() -> Iterator[None]:
    """``SIGNALS`` end the process while the block lasts, as they do where nobody takes them.

    For what waits in C for others, where no Python handler would be called.
    """
    with signals_to(signal.SIG_DFL):
        yield


class Stop:
    """A context in which the signals mean: stop. One may stand in another, which it replaces.

    By default a signal is noted, and ``check`` raises where nothing is half done: an exception out
    of the handler could come in the middle of an update. Once told, only a second Ctrl-C counts.

    Args:
        agree: from the number of this process's signal, or 0, to that which all go by.
        at_once: raise where the signal comes, since nothing can be left half done.

    Raises:
        StopRequested: from ``check``, or from anywhere.
        KeyboardInterrupt: from anywhere, at a second Ctrl-C.
    """

    _innermost: ClassVar["Stop | None"] = None

    def __init__(
        self, agree: Callable[[int], int] = lambda number: number, *, at_once: bool = False
    ) -> None:
        self._agree, self._at_once = agree, at_once
        self._told = 0
        self._taken = signals_to(self._note)
        self._outer: Stop | None = None

    def __enter__(self) -> "Stop":
        self._outer, Stop._innermost = Stop._innermost, self
        self._told = self._outer._told if self._outer else 0
        self._taken.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._taken.__exit__(*error)
        Stop._innermost = self._outer
        if self._outer is not None:
            self._outer._told = self._told

    def check(self) -> None:
        """Raise if a signal has come.

        Raises:
            StopRequested: names the signal.
        """
        told = self._agree(self._told)
        if told:
            raise StopRequested(told)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._told:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self._told = number
        if self._at_once:
            raise StopRequested(number)
        if number == signal.SIGINT:
            with suppress(OSError):
                os.write(2, _SAVING)  # print() may be where the signal has come in between
