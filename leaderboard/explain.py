"""Why two runs do not share a board: the protocol fields in which they differ."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from leaderboard.reading.results import TrainedRun, newest
from leaderboard.text import nearest, plain
from mixers.core.errors import Refusal


class Difference(NamedTuple):
    field: str  # protocol.recipe.epochs
    a: str | None  # None: this run has no such field
    b: str | None


@dataclass(frozen=True, slots=True)
class Explanation:
    a: TrainedRun
    b: TrainedRun
    differences: tuple[Difference, ...]

    @property
    def same_protocol(self) -> bool:
        """Whether the two may share a board: their fingerprints are equal."""
        return self.a.protocol_fingerprint == self.b.protocol_fingerprint

    def text(self) -> str:
        lines = [f"A: {_named(self.a)}", f"B: {_named(self.b)}", ""]
        if self.same_protocol:
            lines.append("Same protocol: they may share a board.")
            if self.differences:
                lines.append("Fields that differ, outside the fingerprint:")
        elif self.differences:
            lines.append(f"Different protocols. Fields that differ: {len(self.differences)}")
        else:
            lines.append("Different fingerprints, though every logged field is the same.")
        if self.differences:
            rows = [("field", "A", "B")]
            for field, *values in self.differences:
                a, b = ("(absent)" if value is None else plain(value) for value in values)
                rows.append((plain(field), a, b))
            wide, wide_a = (max(len(row[i]) for row in rows) for i in range(2))
            lines += [f"  {field:<{wide}}  {a:<{wide_a}}  {b}" for field, a, b in rows]
        return "\n".join(lines) + "\n"


def explain(runs: Iterable[TrainedRun], a: str, b: str) -> Explanation:
    """What differs between the protocols of A and B.

    Each is a run's name, a protocol's name, or the beginning of a run id or of a protocol's
    fingerprint.

    Raises:
        Refusal: nothing is called so, or several protocols are.
    """
    runs = tuple(runs)
    run_a, run_b = _find(runs, a), _find(runs, b)
    fields = sorted(run_a.protocol.keys() | run_b.protocol.keys())
    values = (Difference(f, run_a.protocol.get(f), run_b.protocol.get(f)) for f in fields)
    return Explanation(run_a, run_b, tuple(value for value in values if value.a != value.b))


def _find(runs: tuple[TrainedRun, ...], reference: str) -> TrainedRun:
    """The newest run that is meant; several are fine if they have one protocol."""
    found = [run for run in runs if reference in _names(run)]
    if not found and reference:
        found = [run for run in runs if any(n.startswith(reference) for n in _names(run)[2:])]
    if not found:
        known = (name for run in runs for name in _names(run))
        raise Refusal(
            f"no finished run or protocol is called {reference!r}: {nearest(reference, known)}"
        )
    meant = {run.protocol_fingerprint: run for run in found}
    if len(meant) > 1:
        candidates = "; ".join(map(_named, meant.values()))
        raise Refusal(
            f"{reference!r} is of {len(meant)} protocols: {candidates}. "
            "Give a run id or a fingerprint."
        )
    return newest(found)


def _names(run: TrainedRun) -> tuple[str, ...]:
    return run.name, run.protocol_name, run.protocol_fingerprint, run.run_id


def _named(run: TrainedRun) -> str:
    return (
        f"{plain(run.name)} (run {run.run_id[:8]}), "
        f"protocol {plain(run.protocol_name)} {run.protocol_fingerprint}"
    )
