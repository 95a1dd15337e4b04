"""The runs of a suite as one table: live on a terminal, a line for each event elsewhere.

On a terminal the finished runs are ranked below it, as they come in.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mixerbench.objectives import CLASSIFICATION
from mixerbench.tracking.journal import Record
from mixerbench.tracking.keys import Metric

_HEADLINE = CLASSIFICATION.headline  # of the runs of a suite

WAITING, RUNNING, RESUMED = "waiting", "running", "resumed"
FINISHED, BROKEN, FAILED, IN_USE = "finished", "broken", "failed", "in use"

_STYLES = {
    WAITING: "dim",
    RUNNING: "cyan",
    RESUMED: "cyan",
    FINISHED: "green",
    BROKEN: "yellow",
    FAILED: "red",
    IN_USE: "yellow",
}
_SHOWN_FIRST = (RUNNING, RESUMED, FAILED, BROKEN, IN_USE, WAITING, FINISHED)
"""What a terminal with too few lines keeps."""

_LINES_BESIDE_ROWS = 4  # header, counts, what is left out, and the prompt
_BAR_WIDTH = 20  # columns


@dataclass
class _Row:
    name: str
    state: str = WAITING
    starts: int = 0
    step: int = 0
    total: int | None = None
    epoch: float = 0.0
    score: float | None = None  # the newest headline score
    seconds: float | None = None  # of training, once it is finished
    known_until: int = -1  # time of the newest record of an earlier process
    began: tuple[float, int] | None = None  # when this process was at which step

    def take(self, record: Record) -> None:
        kind, values = record["kind"], record.get("values", {})
        if kind == "start":
            self.starts += 1
            self.state = RUNNING if self.starts == 1 else RESUMED
            self.total, self.began = record["total_steps"], None
        elif kind == "end":
            ended = {"FINISHED": FINISHED, "KILLED": BROKEN}
            self.state = ended.get(record["status"], FAILED)
        elif kind == "metrics":
            if Metric.TRAIN_LOSS in values:
                self.step = record["step"]
                self.epoch = values.get(Metric.EPOCH, self.epoch)
                self.began = self.began or (record["time"] / 1000, record["step"])
            for key in (_HEADLINE.val, _HEADLINE.final):
                self.score = values.get(key, self.score)
            self.seconds = values.get(Metric.TRAINING_SECONDS, self.seconds)

    def cells(self) -> tuple[RenderableType, ...]:
        return (
            escape(self.name),
            f"[{_STYLES[self.state]}]{self.state}[/]",
            ProgressBar(self.total or 1, self.step, width=_BAR_WIDTH),
            self._epoch(),
            "-" if self.score is None else _HEADLINE.number(self.score),
            self._time(),
        )

    def _epoch(self) -> str:
        if not self.step or self.total is None:
            return "-"
        if not self.epoch:  # as in a journal that was cut off
            return f"{self.step}/{self.total} steps"
        return f"{self.epoch:.0f}/{self.epoch * self.total / self.step:.0f}"

    def _time(self) -> str:
        if self.state == FINISHED and self.seconds is not None:
            return _clock(self.seconds)
        if self.state in (RUNNING, RESUMED) and self.began is not None and self.total is not None:
            since, first = self.began
            if self.step > first:
                pace = (time.time() - since) / (self.step - first)
                return f"{_clock(pace * (self.total - self.step))} left"
        return "-"


class SuiteTable:
    """A row for each run: a context in which it is kept up to date.

    Args:
        enabled: False: only what went wrong is said.
    """

    def __init__(self, names: Iterable[str], enabled: bool = True) -> None:
        self._rows = {name: _Row(name) for name in names}
        self._console = Console(stderr=True)
        live = enabled and self._console.is_terminal
        self._lines = enabled and not live
        self._fits = self._console.height - _LINES_BESIDE_ROWS if live else None
        self._live = Live(get_renderable=self.render, console=self._console) if live else None

    def __enter__(self) -> "SuiteTable":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._fits = None  # what stays on the terminal is the whole table
        if self._live is not None:
            self._live.stop()

    def recall(self, name: str, state: str, records: Iterable[Record] = ()) -> None:
        """Take in what was before, and in which state it has left the run ``name``."""
        row = self._rows[name] = _Row(name)
        for record in records:
            row.take(record)
            row.known_until = record["time"]
        row.state = state

    def expect(self, name: str) -> None:
        """Show a run that has not begun; all of a suite are shown from the beginning."""

    def show(self, name: str, record: Record) -> None:
        """Take in one record of the journal of ``name``; one that is known changes nothing."""
        row = self._rows[name]
        if record["time"] <= row.known_until:
            return
        before = row.state
        row.take(record)
        if row.state != before and row.state in (RUNNING, RESUMED):
            self._say(f"{name}: {row.state}")
        if _HEADLINE.val in record.get("values", {}) and row.score is not None:
            score = _HEADLINE.text(row.score)
            self._say(f"{name}: step {record['step']}/{row.total}, {score}")

    def ended(self, name: str, message: str) -> None:
        """Say how the run ``name`` ended, and why it did not finish, if it did not."""
        row = self._rows[name]
        if not message:
            row.state = FINISHED
            self._say(f"{name}: {row.state}")
            return
        if row.state != BROKEN:  # told to stop: it is no failure of its own
            row.state = FAILED
        self.note(name, message)

    def note(self, name: str, message: str) -> None:
        """Say something of the run ``name`` without breaking the table."""
        self._console.print(f"{name}: {message}", markup=False, highlight=False, soft_wrap=True)

    def render(self) -> RenderableType:
        """The table, with as many rows as fit, and the number of runs in each state."""
        rows, left_out = list(self._rows.values()), 0
        counts = Counter(row.state for row in rows)
        if self._fits is not None and len(rows) > self._fits:
            by_need = sorted(rows, key=lambda row: _SHOWN_FIRST.index(row.state))
            kept = {row.name for row in by_need[: max(self._fits, 1)]}
            left_out = len(rows) - len(kept)
            rows = [row for row in rows if row.name in kept]
        said = ", ".join(f"{counts[state]} {state}" for state in _STYLES if counts[state])
        counted = f"{len(self._rows)} runs: {said}" + (f"; {left_out} not shown" * bool(left_out))
        table = Table(box=None, pad_edge=False)
        for header in ("run", "state", ""):
            table.add_column(header, no_wrap=True)
        for header in ("epoch", _HEADLINE.header, "time"):
            table.add_column(header, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*row.cells())
        ranked = self._ranking()
        if self._fits is None or len(rows) + len(ranked) + 1 > self._fits:
            ranked = []
        return Group(table, Text(counted, style="dim italic"), *ranked)

    def _ranking(self) -> list[Text]:
        """The finished runs, best first: what is known of the board before it is judged."""
        finished = [row for row in self._rows.values() if row.state == FINISHED and row.score]
        finished.sort(key=lambda row: -(row.score or 0.0))
        return [
            Text(f"{rank:>3}. {row.name}  {_HEADLINE.number(row.score or 0.0)}")
            for rank, row in enumerate(finished, 1)
        ]

    def _say(self, line: str) -> None:
        if self._lines:
            print(line, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
