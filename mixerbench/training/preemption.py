"""A scheduler that wants the machine back: SIGTERM, or SIGUSR1 as SLURM is often told to send."""

import signal
import threading
from types import FrameType
from typing import Protocol

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class _Group(Protocol):
    def largest(self, number: int) -> int: ...


class StopRequested(Exception):  # noqa: N818 - it says what happened
    """Raised where a run can stop: between two optimizer steps."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)


class Preemption:
    """A context that notes the signals; ``check`` raises once one has come, to any of a group.

    Noting and not raising in the handler: an exception out of it could come in the middle of
    an update. Outside the main thread, where Python takes no handlers, nothing is noted.
    """

    def __init__(self, group: "_Group | None" = None) -> None:
        self._group = group
        self._told = 0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._told = number

    def check(self) -> None:
        """Raise if a signal has come.

        Raises:
            StopRequested: names the signal.
        """
        told = self._told if self._group is None else self._group.largest(self._told)
        if told:
            raise StopRequested(told)
