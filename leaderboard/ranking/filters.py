"""Which entries are shown: ``mixer=attention``, ``params=22M``."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from leaderboard.ranking.board import Board
from leaderboard.ranking.entries import Entry
from leaderboard.text import nearest
from mixerbench.config.assignments import read_assignment
from mixerbench.config.cost_target import TOLERANCE, read_target
from mixerbench.tracking.keys import Metric
from mixers.core.errors import Refusal

FILTERS = ("mixer", "size", "backbone", "stem", "protocol", "params", "flops")


def filter_of(filters: Sequence[str], found: Sequence[Board]) -> Callable[[Board, Entry], bool]:
    wanted = defaultdict(list)
    for text in filters:
        field, value = read_assignment(text)
        if field not in FILTERS:
            raise Refusal(
                f"cannot filter by {text!r}: expected FIELD=VALUE; {nearest(field, FILTERS)}"
            )
        pairs = [(board, entry) for board in found for entry in board.entries]
        if not any(_fits(field, value, *pair) for pair in pairs):
            known = (word for pair in pairs for word in _words(field, *pair))
            raise Refusal(f"no finished run has {text!r}: {nearest(value, known)}")
        wanted[field].append(value)
    return lambda board, entry: all(
        any(_fits(field, value, board, entry) for value in values)
        for field, values in wanted.items()
    )


def _words(field: str, board: Board, entry: Entry) -> tuple[str, ...]:
    if field == "protocol":
        return board.protocol, board.fingerprint
    if field in _COSTS:
        cost = _cost(field, entry)
        return () if cost is None else (f"{cost / 1e6:.4g}M",)
    return (getattr(entry, field),)


_COSTS = {"params": (Metric.PARAMETERS, 1.0), "flops": (Metric.GMACS, 1e9)}  # metric, its unit


def _cost(field: str, entry: Entry) -> float | None:
    metric, unit = _COSTS[field]
    summary = entry.summary(metric)
    return summary.mean * unit if summary else None


def _fits(field: str, value: str, board: Board, entry: Entry) -> bool:
    if field == "protocol" and value and board.fingerprint.startswith(value):
        return True
    if field in _COSTS:
        try:
            target = read_target(f"{field}:{value}")
        except ValueError:
            given = f"{field}={value}"
            message = f"cannot filter by {given}: give a number such as 22M or 4.6G"
            raise Refusal(message) from None
        cost = _cost(field, entry)
        return cost is not None and abs(cost - target.value) <= TOLERANCE * target.value
    return value in _words(field, board, entry)
