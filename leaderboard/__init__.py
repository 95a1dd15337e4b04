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
    from leaderboard.board import Board, Entry, boards
    from leaderboard.ranking.columns import Column
    from leaderboard.runs import Measurement, Reading, Run
    from leaderboard.source import Source, open_source, read_runs

_PLACES = {
    "explain": "leaderboard.explain",
    "render": "leaderboard.render",
    "boards": "leaderboard.board.boards",
    "Board": "leaderboard.board.Board",
    "Column": "leaderboard.ranking.columns.Column",
    "Entry": "leaderboard.board.Entry",
    "open_source": "leaderboard.source.open_source",
    "read_runs": "leaderboard.source.read_runs",
    "Measurement": "leaderboard.runs.Measurement",
    "Reading": "leaderboard.runs.Reading",
    "Run": "leaderboard.runs.Run",
    "Source": "leaderboard.source.Source",
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

    ValueError: nothing to read there; unknown filter, column or hardware.
    """
    from leaderboard.board import boards
    from leaderboard.source import open_source

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

    ValueError: unknown format, filter, column or hardware; nothing to read at ``tracking_uri``.
    """
    from leaderboard import board, render
    from leaderboard import source as sources

    render.check_format(format)  # before the seconds that reading takes
    board.check_sort(sort)
    source = sources.open_source(tracking_uri, refresh=refresh)
    reading = source.read()
    shown = board.boards(
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

    ValueError: A or B is unknown or ambiguous; nothing to read at ``tracking_uri``.
    """
    from leaderboard import explain, source

    return explain.explain(source.read_runs(tracking_uri).runs, a, b).text()


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'leaderboard' has no attribute {name!r}")
    place = _PLACES[name]
    if name in ("explain", "render"):
        return import_module(place)
    module, _, attribute = place.rpartition(".")
    return getattr(import_module(module), attribute)
