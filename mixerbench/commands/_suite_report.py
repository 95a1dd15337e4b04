"""The work of ``mixerbench suite``: its runs are trained, or shown, and ranked at the end."""

import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from leaderboard import leaderboard_text
from mixerbench.config.schema import Tracking
from mixerbench.errors import TrainingStopped, first_line
from mixerbench.launching.suite import (
    Suite,
    find_runs,
    fingerprint_of,
    run_suite,
    show_found,
)
from mixerbench.launching.table import FINISHED, SuiteTable
from mixerbench.objectives import CLASSIFICATION
from mixerbench.tracking.journal import FILE_NAME, read
from mixerbench.tracking.passwords import without_password
from mixerbench.tracking.store import resolve_uri
from mixerbench.tracking.upload import Upload, sync_command

_HEADLINE = CLASSIFICATION.headline


def train_suite(suite: Suite) -> None:
    """Train what is not finished, upload what the store has missed, print the leaderboard.

    Raises:
        Refusal: the data is not there or does not fit.
        TrainingStopped: some runs did not finish; says which, after the leaderboard.
        Preempted: a scheduler said so; the running ones have saved their state.
    """
    fingerprint = fingerprint_of(suite)
    with SuiteTable(suite.runs, suite.any_run.run.progress) as table:
        failures = run_suite(suite, fingerprint, table)
    finished = _finished(suite, fingerprint)
    tracking = suite.any_run.tracking
    if finished and tracking.offline:
        _print(_accuracies(suite, fingerprint, finished))
    elif finished:
        for folder in finished.values():
            _upload(folder, tracking)
        print(
            leaderboard_text(
                resolve_uri(tracking.uri),
                filters=[f"protocol={fingerprint}"],
                width=_width(),
                color=sys.stdout.isatty(),
            )
        )
    if failures:
        raise TrainingStopped(
            f"{len(failures)} of {len(suite.runs)} runs did not finish: {', '.join(failures)}. "
            "The same command goes on with them."
        )


def show_suite(suite: Suite) -> None:
    """Print what is finished, broken and waiting; train nothing."""
    fingerprint = fingerprint_of(suite)
    table = SuiteTable(suite.runs, enabled=False)
    show_found(find_runs(suite, fingerprint), table)
    protocol = suite.any_run.protocol.name
    _print(Text(f"{suite.name}: {suite.description} ({protocol} · {fingerprint})"), table.render())


def _finished(suite: Suite, fingerprint: str) -> dict[str, Path]:
    """The folders of the finished runs."""
    found = find_runs(suite, fingerprint)
    return {
        name: one.folder
        for name, one in found.items()
        if one.state == FINISHED and one.folder is not None
    }


def _upload(folder: Path, tracking: Tracking) -> None:
    """Bring the store what it has missed; a store that is away now is no reason to stop."""
    try:
        upload = Upload(folder, tracking)
        if not upload.is_complete():
            upload.advance()
    except Exception as error:  # whatever MLflow raises
        print(
            f"{folder}: the store refused the upload ({without_password(first_line(error))}); "
            f"'{sync_command(folder, tracking.uri)}' uploads the rest.",
            file=sys.stderr,
        )


def _accuracies(suite: Suite, fingerprint: str, finished: dict[str, Path]) -> Table:
    """What the journals say, where there is no store to read: the mean over seeds, best first."""
    by_model: dict[str, list[float]] = defaultdict(list)
    for name, folder in finished.items():
        by_model[suite.runs[name].label].append(_final_score(folder))
    title = f"{suite.any_run.protocol.name} · {fingerprint}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for header in (f"{_HEADLINE.header} ({_HEADLINE.unit})", "± std (seeds)", "seeds"):
        table.add_column(header, justify="right", no_wrap=True)
    for label, scores in sorted(by_model.items(), key=lambda item: -mean(item[1])):
        spread = f"{stdev(scores):.2f}" if len(scores) > 1 else "-"
        table.add_row(Text(label), f"{mean(scores):.2f}", spread, str(len(scores)))
    return table


def _final_score(folder: Path) -> float:
    values: Iterable[float] = (
        record["values"][_HEADLINE.final]
        for record, _ in read(folder / FILE_NAME)
        if record["kind"] == "metrics" and _HEADLINE.final in record["values"]
    )
    return next(iter(values))


def _print(*parts: RenderableType) -> None:
    console = Console(highlight=False, width=_width())
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, Text))


def _width() -> int:
    return shutil.get_terminal_size((120, 24)).columns
