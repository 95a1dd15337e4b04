"""The machine's load, beside the curves."""

import threading
from contextlib import suppress

from mixerbench.measure.hardware import system_metrics
from mixerbench.tracking.journal import Journal
from mixerbench.tracking.keys import Metric


class SystemMetrics:
    """Writes processor, memory and GPU figures to the journal until it is closed.

    Their step is the age of the run in seconds: they belong to a time, not to a step.
    """

    def __init__(self, journal: Journal, every_seconds: float) -> None:
        self._journal = journal
        self._every = every_seconds
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mixerbench-system", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._closing.wait(self._every):
            values = {Metric.SYSTEM + key: value for key, value in system_metrics().items()}
            with suppress(OSError):  # a full disk: the run itself says so, or has room by then
                self._journal.metrics(self._journal.age_seconds(), values)
