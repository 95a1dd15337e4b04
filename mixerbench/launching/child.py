"""A run that another process trains and this one watches; knows no torch."""

from abc import ABC, abstractmethod
from typing import Protocol

from mixerbench.config.schema import Settings
from mixerbench.launching.job import Job
from mixerbench.tracking.journal import FILE_NAME, Record, read


class View(Protocol):
    """What shows many runs."""

    def expect(self, name: str) -> None: ...
    def show(self, name: str, record: Record) -> None: ...
    def ended(self, name: str, message: str) -> None: ...


class Child(ABC):
    """A run that is trained elsewhere, and watched from here."""

    def __init__(self, name: str, settings: Settings, job: Job) -> None:
        self.name, self.settings, self.job = name, settings, job
        self.slot: str | None = None
        self._offset = 0

    @abstractmethod
    def start(self, slot: str | None) -> "Child":
        """Let it begin on the GPUs ``slot``; None: on all."""

    @abstractmethod
    def has_ended(self) -> bool: ...

    @abstractmethod
    def message(self) -> str:
        """Why it failed; empty if it did not."""

    @abstractmethod
    def tell_to_stop(self) -> None:
        """Ask it to save its state and end, since this process was told to stop."""

    @abstractmethod
    def wait(self) -> None:
        """Return when it has ended, after ``tell_to_stop``."""

    def report(self, view: View) -> None:
        """Show what has come to its journal since the last call."""
        folder = self.job.folder()
        if folder is not None:
            for record, offset in read(folder / FILE_NAME, self._offset):
                self._offset = offset
                view.show(self.name, record)
