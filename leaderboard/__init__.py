"""Reads MLflow and nothing else: finished runs, one board per protocol fingerprint, as text.

Importing this package loads neither mlflow nor rich; the functions do.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leaderboard import explain, render
    from leaderboard.board import boards
    from leaderboard.query import read_runs

__all__ = ["boards", "explain", "explain_text", "leaderboard_text", "read_runs", "render"]


def leaderboard_text(
    tracking_uri: str,
    *,
    format: str = "terminal",
    filters: Sequence[str] = (),
    sort: str = "top1",
    width: int | None = None,
    color: bool = False,
) -> str:
    """What ``mixerbench leaderboard`` prints; the arguments are those of `boards` and `render`.

    ValueError: unknown format, filter or column; no store or server at ``tracking_uri``.
    """
    from leaderboard import board, query, render

    render.check_format(format)  # before the seconds that reading takes
    board.check_sort(sort)
    runs, skipped = query.read_runs(tracking_uri)
    shown = board.boards(runs, filters=filters, sort=sort)
    return render.render(shown, skipped, format=format, width=width, color=color)


def explain_text(tracking_uri: str, a: str, b: str) -> str:
    """What ``mixerbench leaderboard --explain A B`` prints: the protocol fields that differ.

    ValueError: A or B is unknown or ambiguous; no store or server at ``tracking_uri``.
    """
    from leaderboard import explain, query

    return explain.explain(query.read_runs(tracking_uri).runs, a, b).text()


def __getattr__(name: str) -> Any:
    if name in ("explain", "render"):
        return import_module(f"leaderboard.{name}")
    if name == "boards":
        return import_module("leaderboard.board").boards
    if name == "read_runs":
        return import_module("leaderboard.query").read_runs
    raise AttributeError(f"module 'leaderboard' has no attribute {name!r}")
