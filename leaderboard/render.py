"""Boards as text. Names come from MLflow, where anybody may have written anything."""

import csv as csv_format
import json as json_format
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from io import StringIO
from textwrap import fill
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from leaderboard.ranking.board import Board
from leaderboard.ranking.columns import COLUMNS, Column
from leaderboard.ranking.entries import Entry
from leaderboard.reading.results import skipped_line
from leaderboard.text import nearest, plain
from mixerbench.tracking.figures import MEASURED
from mixers.core.errors import Refusal

if TYPE_CHECKING:
    from rich.table import Table


FORMATS = ("terminal", "csv", "json", "markdown")
NO_SKIPPED: Mapping[str, int] = MappingProxyType({})
NO_REFUSED: Mapping[str, str] = MappingProxyType({})
_HIDE_FIRST = sorted(
    (column for column in COLUMNS if column.priority is not None), key=lambda c: c.priority or 0
)
"""Left out in this order where a terminal is too narrow."""


def render(
    boards: Sequence[Board],
    skipped: Mapping[str, int] = NO_SKIPPED,
    *,
    format: str = "terminal",
    width: int | None = None,
    color: bool = False,
    refused: Mapping[str, str] = NO_REFUSED,
) -> str:
    """The boards in one of `FORMATS`; width and colour are the terminal's.

    Raises:
        Refusal: there is no such format.
    """
    check_format(format)
    if format == "csv":
        return csv(boards)
    if format == "json":
        return json(boards, skipped, refused=refused)
    if format == "markdown":
        return markdown(boards, skipped)
    return terminal(boards, skipped, width=width, color=color)


def check_format(format: str) -> None:
    """Check the name of a format.

    Raises:
        Refusal: there is no such format.
    """
    if format not in FORMATS:
        raise Refusal(f"cannot write {format!r}: {nearest(format, FORMATS)}")


def terminal(
    boards: Sequence[Board],
    skipped: Mapping[str, int] = NO_SKIPPED,
    *,
    width: int | None = None,
    color: bool = False,
) -> str:
    """Tables of ``width`` characters, this terminal's by default; says which columns it hides."""
    from rich.console import Console
    from rich.text import Text

    width = width or shutil.get_terminal_size().columns
    file = StringIO()
    color_system: Literal["standard"] | None = "standard" if color else None
    console = Console(file=file, width=width, color_system=color_system, force_terminal=color)
    unlimited = console.options.update(width=9999)
    for board in boards:
        columns, hidden = _columns(board), []
        for narrow in _HIDE_FIRST:
            table = _table(board, columns)
            if console.measure(table, options=unlimited).maximum <= width:
                break
            if narrow in columns:
                hidden.append(narrow.header)
                columns.remove(narrow)
        size = f"models: {len(board.entries)}, runs: {sum(e.seeds for e in board.entries)}"
        console.print(Text.assemble((plain(board.title), "bold"), f" · {size}"))
        console.print(_table(board, columns))
        for note in board.notes:
            console.print(Text(plain(note)))
        if hidden:
            console.print(Text(f"hidden at {width} characters: {', '.join(hidden)}", style="dim"))
        console.print()
    console.print(Text("\n".join(_last_lines(boards, skipped))))
    return "\n".join(line.rstrip() for line in file.getvalue().strip("\n").split("\n")) + "\n"


def csv(boards: Sequence[Board]) -> str:
    """One row per model, full precision. The skipped runs are not in it.

    Raises:
        Refusal: several protocols, which may not share a table.
    """
    if len(boards) > 1:
        names = "; ".join(f"protocol={b.fingerprint} ({plain(b.protocol)})" for b in boards)
        raise Refusal(f"a CSV holds one protocol, here are {len(boards)}. Filter by: {names}")
    file = StringIO()
    writer = csv_format.writer(file, lineterminator="\n")
    writer.writerow(["protocol", "fingerprint", "random images", *(c.header for c in COLUMNS)])
    for board in boards:
        for entry in board.entries:
            values = [entry.value(column) for column in COLUMNS]
            row = [board.protocol, board.fingerprint, str(board.synthetic).lower(), *values]
            writer.writerow([_no_formula(v) if isinstance(v, str) else v for v in row])
    return file.getvalue()


def json(
    boards: Sequence[Board],
    skipped: Mapping[str, int] = NO_SKIPPED,
    *,
    refused: Mapping[str, str] = NO_REFUSED,
    most_compared: int | None = None,
) -> str:
    """Everything, full precision: mean, std and value of each seed, run ids, every comparison.

    ``refused``: run id -> what its claims have wrong, as `Reading.refused`.
    ``most_compared``: a board of more entries comes without its comparisons.
    """
    content = {
        "columns": {column.name: column.header for column in COLUMNS},
        "boards": [
            {
                "protocol": board.protocol,
                "fingerprint": board.fingerprint,
                "fields": board.fields,
                "synthetic": board.synthetic,
                "notes": board.notes,
                "hardware": board.hardware,
                "entries": [_json_entry(entry) for entry in board.entries],
                **(
                    {"comparisons": _json_comparisons(board)}
                    if most_compared is None or len(board.entries) <= most_compared
                    else {}
                ),
            }
            for board in boards
        ],
        "skipped": dict(skipped),
        **({"refused": dict(refused)} if refused else {}),
    }
    return json_format.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def markdown(boards: Sequence[Board], skipped: Mapping[str, int] = NO_SKIPPED) -> str:
    """GitHub's tables."""
    lines = []
    for board in boards:
        columns = _columns(board)
        lines += [f"## {_escaped(board.title)}", ""]
        lines.append(_row(column.header for column in columns))
        lines.append(_row("---" if column.format == "s" else "---:" for column in columns))
        for entry in board.entries:
            lines.append(_row(_escaped(cell(entry, column)) for column in columns))
        lines += ["", *(f"- {_escaped(note)}" for note in board.notes), ""]
    lines += [_escaped(line) for line in _last_lines(boards, skipped)]
    return "\n".join(lines).strip("\n") + "\n"


def glossary() -> str:
    """What the columns mean, as a table in GitHub's form; `docs/leaderboard.md` holds it."""
    rows = [_row(("column", "`--sort`", "better", "meaning")), _row(["---"] * 4)]
    for column in COLUMNS:
        if column.meaning:
            better = column.figure.better if column.figure else ""
            rows.append(_row((column.header, f"`{column.name}`", better, column.meaning)))
    return "\n".join(rows) + "\n"


def _table(board: Board, columns: Sequence[Column]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    rows = [[Text(plain(cell(e, column))) for column in columns] for e in board.entries]
    for i, column in enumerate(columns):
        fold = column.name == "model"
        table.add_column(
            # At least 10 characters, so that no word of a header is broken.
            Text(fill(column.header, max(10, *(cell_len(row[i].plain) for row in rows)))),
            justify="left" if column.format == "s" else "right",
            no_wrap=not fold,
            overflow="fold",
            max_width=30 if fold else None,
        )
    for row in rows:
        table.add_row(*row)
    return table


def _columns(board: Board) -> list[Column]:
    """All that say something to a person."""
    return [column for column in board.columns if column.in_tables]


def cell(entry: Entry, column: Column) -> str:
    """The cell as a person reads it."""
    value = entry.value(column)
    return "" if value is None else format(value, column.format)


def _json_entry(entry: Entry) -> dict[str, object]:
    runs = [
        {"run_id": r.run_id, "name": r.name, "experiment": r.experiment}
        | {"seed": r.seed, "hardware": r.hardware}
        for r in entry.runs
    ]
    values: dict[str, object] = {column.name: entry.value(column) for column in COLUMNS}
    for column in COLUMNS:
        if column.key in MEASURED:
            low, high = entry.interval(column) or (None, None)
            median = {"median": entry.value(column)}
            values[column.name] = median | {"lower_quartile": low, "upper_quartile": high}
        elif column.figure and (summary := entry.summary(column.key)):
            values[column.name] = summary._asdict()
    return values | {
        "key": entry.key,
        "model_fingerprint": entry.model_fingerprint,
        "imported": entry.imported,
        "rank_range": entry.rank_range,
        "rank_tested": entry.rank_tested,
        "superseded": entry.superseded,
        "runs": runs,
    }


def _json_comparisons(board: Board) -> list[dict[str, object]]:
    """Pairs of shown entries; fields as in `analysis.Comparison`."""
    labels = {entry.key: entry.label for entry in board.entries}
    return [
        {"a": labels[a], "b": labels[b]} | asdict(comparison)
        for (a, b), comparison in board.analysis.comparisons.items()
        if a in labels and b in labels
    ]


def _last_lines(boards: Sequence[Board], skipped: Mapping[str, int]) -> list[str]:
    lines = ["" if boards else "No finished run to show.", plain(skipped_line(skipped))]
    return [line for line in lines if line]


def _no_formula(text: str) -> str:
    """A spreadsheet executes a cell that begins so; a leading quote makes it text."""
    text = plain(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _escaped(text: str) -> str:
    """Markdown, HTML and formulas off; an underscore inside a word is harmless and stays."""
    special = r"[\\`|*\[\]<>!#&~]|^[=+\-@]|(?<![^\W_])_|_(?![^\W_])"
    return re.sub(special, r"\\\g<0>", plain(text))


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
