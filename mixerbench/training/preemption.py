"""A scheduler that wants the machine back: SIGTERM, or SIGUSR1 as SLURM is often told to send."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def signals_to(
    handler: Callable[[int, FrameType | None], None], *also_put_back: signal.Signals
) -> Iterator[None]:
    """``SIGNALS`` go to ``handler`` while the block lasts; then all handlers are as before.

    Outside the main thread, where Python takes no handlers, nothing happens.

    Args:
        also_put_back: signals that somebody takes meanwhile.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in (*SIGNALS, *also_put_back)}
        for number in SIGNALS:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class StopRequested(Exception):  # noqa: N818 - it says what happened
    """Raised where a run can stop: between two optimizer steps."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)


class Preemption:
    """A context that notes the signals; ``check`` raises once one has come.

    Noting and not raising in the handler: an exception out of it could come in the middle of
    an update.

    Args:
        agree: from the number of this process's signal, or 0, to that which all go by.
    """

    def __init__(self, agree: Callable[[int], int] = lambda number: number) -> None:
        self._agree = agree
        self._told = 0
        self._taken = signals_to(self._note)

    def __enter__(self) -> "Preemption":
        self._taken.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._taken.__exit__(*error)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._told = number

    def check(self) -> None:
        """Raise if a signal has come.

        Raises:
            StopRequested: names the signal.
        """
        told = self._agree(self._told)
        if told:
            raise StopRequested(told)
