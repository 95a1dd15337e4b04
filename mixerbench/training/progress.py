"""Progress on the terminal, read from journals: of one run, or of many side by side."""

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mixerbench.objectives import CLASSIFICATION
from mixerbench.tracking.journal import Record
from mixerbench.tracking.keys import Metric

_HEADLINE = CLASSIFICATION.headline  # of all runs so far
_WIDE = 100  # columns; on a narrower terminal the speed would push out the time that is left


class ProgressView:
    """A bar for each run on a terminal; elsewhere a line for each evaluation."""

    def __init__(self, enabled: bool = True) -> None:
        self._console = Console(stderr=True)
        self._bars = enabled and self._console.is_terminal
        self._lines = enabled and not self._bars
        self._tasks: dict[str, TaskID] = {}
        self._totals: dict[str, int] = {}
        self._speeds: dict[str, str] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[score]}{task.fields[speed]}"),
            console=self._console,
            disable=not self._bars,
        )

    def __enter__(self) -> "ProgressView":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def expect(self, name: str) -> None:
        """Show a run that has not begun."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(
                escape(name),
                start=False,
                total=None,
                loss="-",
                score=f"{_HEADLINE.header} -",
                speed="",
            )

    def show(self, name: str, record: Record) -> None:
        """Take in one record of the journal of the run ``name``."""
        self.expect(name)
        task = self._tasks[name]
        if record["kind"] == "start":
            self._totals[name] = record["total_steps"]
            self._progress.update(task, total=record["total_steps"])
            self._progress.start_task(task)
        elif record["kind"] == "metrics":
            values = record["values"]
            if Metric.TRAIN_LOSS in values:
                self._speeds[name] = _speed(values)
                self._progress.update(
                    task,
                    completed=record["step"],
                    loss=f"{values[Metric.TRAIN_LOSS]:.3f}",
                    speed=f"  {self._speeds[name]}" if self._console.width >= _WIDE else "",
                )
            if _HEADLINE.val in values:
                text = f"{_HEADLINE.header} {_HEADLINE.number(values[_HEADLINE.val], digits=1)}"
                self._progress.update(task, score=text)
                if self._lines:
                    total = self._totals.get(name, "?")
                    speed = f", {self._speeds[name]}" if name in self._speeds else ""
                    print(
                        f"{name}: step {record['step']}/{total}, {text}{speed}",
                        file=sys.stderr,
                    )

    def ended(self, name: str, message: str) -> None:
        """Say why the run ``name`` did not finish, if it did not, without breaking the bars."""
        if message:
            self._console.print(f"{name}: {message}", markup=False, highlight=False)


def _speed(values: Mapping[str, float]) -> str:
    mfu = f", MFU {values[Metric.MFU]:.0f} %" if Metric.MFU in values else ""
    return f"{values[Metric.TRAIN_IMAGES_PER_SECOND]:,.0f} images/s{mfu}"
