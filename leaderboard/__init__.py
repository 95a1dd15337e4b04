"""Reads MLflow and nothing else: finished runs, one board per protocol fingerprint, five formats of text.

Importing this package loads neither mlflow nor rich; the functions do.
"""

from collections.abc import Sequence
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
    """What ``mixerbench leaderboard`` prints.

    ``width`` (characters, of this terminal by default) and ``color`` matter to the terminal format
    only. CSV holds one protocol and has no place for the skipped runs (`query.skipped_line`).
    ValueError: unknown format, filter or column; no store or server at ``tracking_uri``.
    """
    from leaderboard.board import boards, check_sort
    from leaderboard.query import read_runs
    from leaderboard.render import check_format, render

    check_format(format)  # before the seconds that reading takes
    check_sort(sort)
    runs, skipped = read_runs(tracking_uri)
    shown = boards(runs, filters=filters, sort=sort)
    return render(shown, skipped, format=format, width=width, color=color)


def explain_text(tracking_uri: str, a: str, b: str) -> str:
    """What ``mixerbench leaderboard --explain A B`` prints: the protocol fields that differ.

    ValueError: A or B is unknown or ambiguous; no store or server at ``tracking_uri``.
    """
    from leaderboard.explain import explain
    from leaderboard.query import read_runs

    return explain(read_runs(tracking_uri).runs, a, b).text()


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in ("explain", "render"):
        return import_module(f"leaderboard.{name}")
    if name in ("boards", "read_runs"):
        module = "board" if name == "boards" else "query"
        return getattr(import_module(f"leaderboard.{module}"), name)
    raise AttributeError(f"module 'leaderboard' has no attribute {name!r}")
