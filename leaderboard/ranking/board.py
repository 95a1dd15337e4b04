"""A board: the entries of one protocol, and what must be read beside them."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from leaderboard.ranking import marks
from leaderboard.ranking.analysis import NOTHING, Analysis
from leaderboard.ranking.columns import COLUMNS, Column, check_sort
from leaderboard.ranking.entries import Entry
from leaderboard.ranking.pareto import front
from leaderboard.reading.results import TrainedRun, newest
from mixerbench.tracking.figures import HEADLINE

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, slots=True)
class Board:
    """The models of one protocol."""

    protocol: str
    fingerprint: str
    fields: Mapping[str, str]  # of the newest run, without what names files of its machine
    synthetic: bool
    entries: tuple[Entry, ...]  # those shown
    everyone: tuple[Entry, ...]  # those and what a filter left out
    hardware: str = ""  # what speed, memory and energy were measured on; empty: nothing was
    analysis: Analysis = field(default=NOTHING, repr=False)

    @property
    def title(self) -> str:
        warning = " · random images: accuracy means nothing" if self.synthetic else ""
        return f"{self.protocol} · {self.fingerprint}{warning}"

    @property
    def hardwares(self) -> Mapping[str, int]:
        """Every hardware that an entry was measured on, and how many were."""
        return Counter(h for entry in self.everyone for h in entry.efficiencies)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Those in which an entry has something."""
        return tuple(
            column
            for column in COLUMNS
            if any(entry.value(column) is not None for entry in self.entries)
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be read beside the numbers, a line each."""
        notes = [*marks.lines(self.entries, self.everyone, self.analysis)]
        if self.hardware:
            notes.append(f"measured on {self.hardware}{self._how_measured()}")
        others = {h: count for h, count in self.hardwares.items() if h != self.hardware}
        for hardware, count in others.items():
            notes.append(
                f"not shown, as no two hardwares compare: {count} measured on {hardware} "
                f"(--hardware {hardware_id(hardware)})"
            )
        if superseded := sum(entry.superseded for entry in self.entries):
            notes.append(f"runs superseded by a newer one of the same model and seed: {superseded}")
        return tuple(notes)

    @property
    def results(self) -> tuple[TrainedRun, ...]:
        """One run of each model and seed that is shown: one's own before an imported one."""
        found = defaultdict(list)
        for entry in self.entries:
            for run in entry.runs:
                found[run.model_fingerprint, run.seed].append(run)
        return tuple(newest(runs) for runs in found.values())

    def front(self, cost: str, gain: str = HEADLINE.name) -> tuple[Entry, ...]:
        """The entries shown that no other beats in both columns, the best cost first.

        Raises:
            Refusal: no such column.
        """
        columns = [check_sort(cost), check_sort(gain)]
        rows = [[entry.value(column) for column in columns] for entry in self.entries]
        indices = [i for i, row in enumerate(rows) if all(isinstance(v, int | float) for v in row)]
        signs = (-1 if columns[0].high_first else 1, 1 if columns[1].high_first else -1)
        points = [(signs[0] * float(rows[i][0]), signs[1] * float(rows[i][1])) for i in indices]  # type: ignore[arg-type]
        return tuple(self.entries[indices[i]] for i in front(points))

    def frame(self) -> "DataFrame":
        """A row for each entry, indexed by label, columns by their names in `COLUMNS`."""
        from pandas import DataFrame

        rows = [{c.name: entry.value(c) for c in COLUMNS} for entry in self.entries]
        frame = DataFrame(rows, columns=[c.name for c in COLUMNS])
        frame.insert(0, "model_fingerprint", [entry.model_fingerprint for entry in self.entries])
        frame.insert(0, "key", [entry.key for entry in self.entries])
        return frame.set_index("model")

    def comparisons_frame(self) -> "DataFrame":
        """A row for each pair of entries, with the fields of `analysis.Comparison`."""
        from dataclasses import asdict

        from pandas import DataFrame

        labels = {entry.key: entry.label for entry in self.everyone}
        rows = []
        for (a, b), comparison in self.analysis.comparisons.items():
            content = asdict(comparison)
            low, high = content.pop("interval")
            rows.append(
                {"a": labels[a], "b": labels[b], "low": low, "high": high}
                | content
                | {"differ": comparison.differ}
            )
        return DataFrame(rows)

    def _how_measured(self) -> str:
        found = [e.efficiency for e in self.entries if e.efficiency]
        sessions = Counter(efficiency.session for efficiency in found)
        alone = sessions.pop("", 0)
        if not sessions:
            return ", each at the end of its training: 'mixerbench measure' does it side by side"
        if alone or len(sessions) > 1:
            words = [f"{count} in one session" for _, count in sessions.most_common()]
            words += [f"{alone} at the end of training"] if alone else []
            return f": {', '.join(words)}; 'mixerbench measure' does it side by side"
        return ", all in one session, in turns" if len(found) == len(self.entries) else ""


def hardware_id(hardware: str) -> str:
    """8 hex digits that stand for hardware, software and batch."""
    return hashlib.sha256(hardware.encode()).hexdigest()[:8]
