"""Boards as text: for a terminal, as CSV, JSON and Markdown. Names in MLflow may be hostile here."""

import csv as csv_writer
import json as json_writer
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from textwrap import fill
from typing import TYPE_CHECKING, Any

from leaderboard.board import COLUMNS, Board, Column, Entry, Summary, nearest
from leaderboard.query import skipped_line

if TYPE_CHECKING:
    from rich.table import Table

FORMATS = ("terminal", "csv", "json", "markdown")
NOTHING = "No finished run to show."

# Left out in this order where a terminal is too narrow; the model's label repeats the first ones.
HIDE_FIRST = (
    "latency_ms",
    "backbone",
    "mixer",
    "size",
    "stem",
    "top5",
    "training_seconds",
    "memory_mib",
    "gmacs",
    "ema_top1",
)


def render(
    boards: Sequence[Board],
    skipped: Mapping[str, int] | None = None,
    *,
    format: str = "terminal",
    width: int | None = None,
    color: bool = False,
) -> str:
    """The boards in one of `FORMATS`. ValueError: unknown format, several protocols in one CSV."""
    check_format(format)
    if format == "csv":
        return csv(boards)
    if format == "json":
        return json(boards, skipped)
    if format == "markdown":
        return markdown(boards, skipped)
    return terminal(boards, skipped, width=width, color=color)


def check_format(format: str) -> None:
    """ValueError: no such format."""
    if format not in FORMATS:
        raise ValueError(f"cannot write {format!r}: {nearest(format, FORMATS)}")


def terminal(
    boards: Sequence[Board],
    skipped: Mapping[str, int] | None = None,
    *,
    width: int | None = None,
    color: bool = False,
) -> str:
    """Tables of at most ``width`` characters (this terminal's by default); says what it leaves out."""
    from rich.console import Console
    from rich.text import Text

    width = width or shutil.get_terminal_size().columns
    console = Console(
        file=StringIO(),
        width=width,
        color_system="standard" if color else None,
        force_terminal=color,
    )
    for board in boards:
        models = f"{_count(len(board.entries), 'model')}, {_count(_runs(board), 'run')}"
        console.print(
            Text.assemble(
                (plain(board.protocol), "bold"), f" · {plain(board.fingerprint)} · {models}"
            )
        )
        columns, hidden = _columns(board), []
        table = _table(board, columns)
        for name in HIDE_FIRST:
            if console.measure(table, options=console.options.update(width=9999)).maximum <= width:
                break
            hidden += [column.header for column in columns if column.name == name]
            columns = [column for column in columns if column.name != name]
            table = _table(board, columns)
        console.print(table)
        for note in board.notes:
            console.print(Text(plain(note), style="bold" if board.synthetic else ""))
        if hidden:
            console.print(Text(f"hidden at {width} characters: {', '.join(hidden)}", style="dim"))
        console.print()
    console.print(Text("\n".join(_last_lines(boards, skipped))))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n") + "\n"


def csv(boards: Sequence[Board]) -> str:
    """Full precision, one row per model. ValueError: several protocols, which share no table."""
    if len(boards) > 1:
        names = "; ".join(f"protocol={b.fingerprint} ({plain(b.protocol)})" for b in boards)
        raise ValueError(f"a CSV holds one protocol, here are {len(boards)}. Filter by: {names}")
    file = StringIO()
    writer = csv_writer.writer(file, lineterminator="\n")
    header = ["protocol", "fingerprint", "random images"]
    for column in COLUMNS:
        header += [column.header, f"{column.header} std"] if column.spread else [column.header]
    writer.writerow(header)
    for board in boards:
        for entry in board.entries:
            row: list[object] = [board.protocol, board.fingerprint, board.synthetic]
            for column in COLUMNS:
                value = entry.value(column.key)
                row.append(value.mean if isinstance(value, Summary) else value)
                if column.spread:
                    row.append(value.std if isinstance(value, Summary) else None)
            writer.writerow([_no_formula(v) if isinstance(v, str) else v for v in row])
    return file.getvalue()


def json(boards: Sequence[Board], skipped: Mapping[str, int] | None = None) -> str:
    """Everything: full precision, mean, std and value of each seed, run ids, protocol fields."""
    content = {
        "columns": {column.name: column.header for column in COLUMNS},
        "boards": [
            {
                "protocol": board.protocol,
                "fingerprint": board.fingerprint,
                "fields": dict(board.fields),
                "synthetic": board.synthetic,
                "notes": board.notes,
                "entries": [_json_entry(entry) for entry in board.entries],
            }
            for board in boards
        ],
        "skipped": dict(skipped or {}),
    }
    return json_writer.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def markdown(boards: Sequence[Board], skipped: Mapping[str, int] | None = None) -> str:
    """GitHub's tables, with all columns."""
    lines = []
    for board in boards:
        columns = _columns(board)
        lines += [f"## {_escaped(board.protocol)} · {_escaped(board.fingerprint)}", ""]
        lines.append(_row(column.header for column in columns))
        lines.append(_row("---" if _is_text(column) else "---:" for column in columns))
        for entry in board.entries:
            lines.append(_row(_escaped(_cell(board, entry, column)) for column in columns))
        lines += ["", *(f"- {_escaped(note)}" for note in board.notes), ""]
    lines += [_escaped(line) for line in _last_lines(boards, skipped)]
    return "\n".join(lines).strip("\n") + "\n"


def plain(text: str) -> str:
    """One line without control, bidirectional and other invisible characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _table(board: Board, columns: Sequence[Column]) -> "Table":
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    cells = []
    for column in columns:
        texts = [plain(_cell(board, entry, column)) for entry in board.entries]
        if column.spread:  # decimal points one below the other, with and without a spread
            ends = [text.partition(" ")[2] for text in texts]
            widest = max(map(len, ends))
            texts = [
                text.partition(" ")[0] + (f" {end:<{widest}}" if widest else "")
                for text, end in zip(texts, ends, strict=True)
            ]
            longest = max(map(len, texts))
            texts = [text.rjust(longest) for text in texts]
        justify = "left" if _is_text(column) else "right"
        widest = max(map(cell_len, texts))
        header = Text(fill(column.header, max(widest, 10)), justify=justify)
        fold = column.name == "model"
        table.add_column(header, no_wrap=not fold, overflow="fold", max_width=30 if fold else None)
        cells.append([Text(t, justify="left" if column.spread else justify) for t in texts])
    for row in zip(*cells, strict=True):
        table.add_row(*row)
    return table


def _columns(board: Board) -> list[Column]:
    """All columns; the hardware's where it differs, otherwise it stands below the table."""
    return [c for c in COLUMNS if c.name != "hardware" or len(board.hardware) > 1]


def _cell(board: Board, entry: Entry, column: Column) -> str:
    value = entry.value(column.key)
    if column.name == "hardware":
        return board.hardware[entry.hardware]
    if value is None:
        return "–"
    if not isinstance(value, Summary):
        return format(value, column.format)
    text = format(value.mean, column.format)
    if column.spread and value.std is not None:
        text += f" ± {value.std:{column.format}}"
    return text


def _json_entry(entry: Entry) -> dict[str, Any]:
    values = {column.name: entry.value(column.key) for column in COLUMNS}
    return {
        name: value._asdict() if isinstance(value, Summary) else value
        for name, value in values.items()
    } | {
        "model_fingerprint": entry.newest.model_fingerprint,
        "superseded": entry.superseded,
        "runs": [
            {
                "run_id": run.run_id,
                "name": run.name,
                "experiment": run.experiment,
                "seed": run.seed,
                "hardware": run.hardware,
            }
            for run in entry.runs
        ],
    }


def _last_lines(boards: Sequence[Board], skipped: Mapping[str, int] | None) -> list[str]:
    return [
        line for line in ("" if boards else NOTHING, plain(skipped_line(skipped or {}))) if line
    ]


def _no_formula(text: str) -> str:
    """A spreadsheet executes a cell that begins with one of these; a leading quote makes it text."""
    text = plain(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _escaped(text: str) -> str:
    """Markdown and HTML off, formulas too; an underscore inside a word is harmless and stays."""
    return re.sub(r"[\\`|*\[\]<>!#&~]|^[=+\-@]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", plain(text))


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _is_text(column: Column) -> bool:
    return column.format == "s"


def _runs(board: Board) -> int:
    return sum(entry.seeds for entry in board.entries)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
