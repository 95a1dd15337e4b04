"""Reads results and nothing else: finished runs, one board per protocol fingerprint.

>>> import leaderboard
>>> board = leaderboard.read_boards("sqlite:///mlflow.db", filters=["protocol=digits"])[0]
>>> board.frame()                 # pandas: a row for each entry
>>> board.comparisons_frame()     # a row for each pair: difference, interval, p-values
>>> board.entries[0].ranks        # "1–3": it may be the best, and may be the third

Importing this package loads neither mlflow nor pandas nor rich; the functions do.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leaderboard import explain, render
    from leaderboard.opening import open_source, read_runs
    from leaderboard.ranking.board import Board
    from leaderboard.ranking.boards import boards
    from leaderboard.ranking.columns import Column
    from leaderboard.ranking.entries import Entry
    from leaderboard.reading.results import Measurement, Reading
    from leaderboard.reading.results import TrainedRun as Run
    from leaderboard.reading.source import Source

_MODULES = ("explain", "render")
_HOMES = {
    "boards": "leaderboard.ranking.boards.boards",
    "Board": "leaderboard.ranking.board.Board",
    "Column": "leaderboard.ranking.columns.Column",
    "Entry": "leaderboard.ranking.entries.Entry",
    "open_source": "leaderboard.opening.open_source",
    "read_runs": "leaderboard.opening.read_runs",
    "Measurement": "leaderboard.reading.results.Measurement",
    "Reading": "leaderboard.reading.results.Reading",
    "Run": "leaderboard.reading.results.TrainedRun",
    "Source": "leaderboard.reading.source.Source",
}

__all__ = [
    "Board",
    "Column",
    "Entry",
    "Measurement",
    "Reading",
    "Run",
    "Source",
    "boards",
    "explain",
    "explain_text",
    "leaderboard_text",
    "open_source",
    "read_boards",
    "read_runs",
    "render",
]


def read_boards(place: str, **arguments: Any) -> "tuple[Board, ...]":
    """The boards of a store, a server or a bundle, with intervals, tests and rank ranges.

    Args:
        place: an MLflow tracking URI, or a bundle's folder.
        arguments: those of `boards`: filters, sort, hardware.

    Raises:
        Refusal: nothing to read there; unknown filter, column or hardware.
    """
    from leaderboard.opening import open_source
    from leaderboard.ranking.boards import boards

    source = open_source(place)
    reading = source.read()
    return boards(reading.runs, reading.measurements, source=source, **arguments)


def leaderboard_text(
    tracking_uri: str,
    *,
    format: str = "terminal",
    filters: Sequence[str] = (),
    sort: str = "top1",
    hardware: str = "",
    refresh: bool = False,
    width: int | None = None,
    color: bool = False,
) -> str:
    """What ``mixerbench leaderboard`` prints.

    The arguments are those of `open_source`, `boards` and `render`.

    Raises:
        Refusal: unknown format, filter, column or hardware; nothing to read at ``tracking_uri``.
    """
    from leaderboard import render
    from leaderboard.opening import open_source
    from leaderboard.ranking.boards import boards
    from leaderboard.ranking.columns import check_sort

    render.check_format(format)  # before the seconds that reading takes
    check_sort(sort)
    source = open_source(tracking_uri, refresh=refresh)
    reading = source.read()
    shown = boards(
        *(reading.runs, reading.measurements),
        filters=filters,
        sort=sort,
        hardware=hardware,
        source=source,
    )
    return render.render(
        *(shown, reading.skipped),
        format=format,
        width=width,
        color=color,
        refused=reading.refused,
    )


def explain_text(tracking_uri: str, a: str, b: str) -> str:
    """What ``mixerbench leaderboard --explain A B`` prints: the protocol fields that differ.

    Raises:
        Refusal: A or B is unknown or ambiguous; nothing to read at ``tracking_uri``.
    """
    from leaderboard.explain import explain
    from leaderboard.opening import read_runs

    return explain(read_runs(tracking_uri).runs, a, b).text()


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"leaderboard.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'leaderboard' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].rpartition(".")
    return getattr(import_module(module), attribute)
