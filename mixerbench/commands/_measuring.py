"""The work of ``mixerbench measure``: what the models of one board cost here, side by side."""

import math
import secrets
import shutil
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from leaderboard import boards, read_runs
from leaderboard.reading.results import newest
from leaderboard.text import plain
from mixerbench.config.plugins import kept_names
from mixerbench.config.schema import Protocol, Run
from mixerbench.devices import choose_device
from mixerbench.errors import (
    Refusal,
    TrainingStopped,
    first_line,
    is_out_of_memory,
)
from mixerbench.measure.interleaved import Counted, count, measure_interleaved
from mixerbench.measure.model_costs import Measures
from mixerbench.measure.speed import Spread
from mixerbench.models.build import build_model
from mixerbench.tracking.keys import Artifact, Metric, Param
from mixerbench.tracking.measurements import EXPERIMENT, SETTINGS, fetch_settings, record
from mixerbench.tracking.passwords import without_password
from mixerbench.tracking.store import Store
from mixerbench.training import provenance
from mixerbench.training.folder import read_settings
from mixers.core.catalog import plugin_path, source_digest
from mixers.core.registry import MIXERS

if TYPE_CHECKING:
    from leaderboard.ranking.board import Board
    from leaderboard.reading.results import TrainedRun

_STORE_TIMEOUT_SECONDS: Final = 10.0
_EQUAL: Final = 1e-9  # relative: the same sum of whole numbers, divided by 1e9


@dataclass(frozen=True)
class _Rebuilt:
    """A model of the board, built anew."""

    counted: Counted
    protocol: Protocol


def measure(filters: Sequence[str], run: Run, uri: str, plugins: Sequence[str] = ()) -> None:
    """Measure all entries of one board in one interleaved run; print and record the results.

    Args:
        filters: as those of the leaderboard; they must leave one board.
        run: ``SETTINGS`` of it, for all models alike.
        plugins: the files that may be run. What a store holds of plugins is a stranger's code.

    Raises:
        Refusal: no board or several are left, or no model can be built again.
        TrainingStopped: no room for a batch, or the store refuses the results.
    """
    trusted = {source_digest(plugin_path(plugin).read_bytes()) for plugin in plugins}
    device = choose_device(run.device)
    torch.set_num_threads(run.threads)
    board = _one_board(filters, uri)
    try:
        store = Store(uri, _STORE_TIMEOUT_SECONDS)
    except Exception as error:  # whatever MLflow raises
        raise Refusal(
            f"the results cannot be recorded there: {without_password(first_line(error))}"
        ) from None
    labels: dict[str, str] = {}  # by the id of the run that a model is built from
    rebuilt: dict[str, _Rebuilt] = {}
    for entry in board.entries:
        last = newest(entry.runs)
        labels[last.run_id] = entry.label
        try:
            rebuilt[last.run_id] = _rebuild(store, last, run, trusted)
        except Exception as error:  # of MLflow, of an old record, of somebody's plugin
            print(
                f"{entry.label} is left out: {plain(without_password(first_line(error)))}",
                file=sys.stderr,
            )
    if not rebuilt:
        raise Refusal("no model of this board can be built again: nothing is left to measure.")
    protocol = next(iter(rebuilt.values())).protocol  # that of all, by its fingerprint
    with _Bar() as bar:
        try:
            measures = measure_interleaved(
                {run_id: one.counted for run_id, one in rebuilt.items()},
                protocol.image_size,
                num_classes=int(protocol.data.num_classes or 0),
                batch_size=run.measure_batch_size,
                seconds=run.measure_seconds,
                precision=run.precision,
                device=device,
                progress=lambda run_id, done: bar.show(labels[run_id], done),
            )
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingStopped(
                f"{device} has no room for {run.measure_batch_size} images of {bar.shown}: set "
                "run.measure_batch_size lower. Nothing was recorded."
            ) from None
    session = secrets.token_hex(8)
    _print_results(board.title, protocol, session, {labels[key]: measures[key] for key in measures})
    settings = {Param.RUN + name: str(getattr(run, name)) for name in SETTINGS}
    try:
        record(store, measures, session=session, tags=provenance.git_tags(), params=settings)
    except Exception as error:  # whatever MLflow raises
        raise TrainingStopped(
            f"the store refused the results ({without_password(first_line(error))}): they stand "
            "above and nowhere else."
        ) from None
    print(f"recorded as session {session} in the experiment {EXPERIMENT}")


def _one_board(filters: Sequence[str], uri: str) -> "Board":
    found = boards(read_runs(uri).runs, filters=filters)
    if not found:
        raise Refusal("there is no finished run to measure: train some models first.")
    if len(found) > 1:
        names = ", ".join(f"protocol={one.fingerprint} ({one.protocol})" for one in found)
        raise Refusal(f"models of one board are measured, and here are {len(found)}: {names}.")
    return found[0]


def _rebuild(store: Store, trained: "TrainedRun", run: Run, trusted: Collection[str]) -> _Rebuilt:
    """The model of ``trained``, freshly initialised: weights do not change what it costs.

    Args:
        trusted: digests of the plugins that the user named. A copy that the store keeps is run if
            it is one of them, byte for byte, and what the run recorded.

    Raises:
        Refusal: it has other parameters or multiply-adds than when it was trained.
        Exception: what is recorded of it is missing or does not fit this code.
    """
    known = set(MIXERS.names())
    with tempfile.TemporaryDirectory(prefix="mixerbench-measure-") as place:
        folder = Path(place)
        fetch_settings(store, trained.run_id, folder)
        settings = read_settings(folder)
        settings.run = run  # the same for all, such as no gradient checkpointing
        try:
            names = kept_names(settings.plugins).values()
            copies = [folder / Artifact.PLUGINS / name for name in names]
            for copy in copies:
                if source_digest(copy.read_bytes()) not in trusted:
                    raise Refusal(
                        f"it needs the plugin {copy.name}, which is code and is run only when you "
                        f"name it, as it was then: add 'plugins=[{copy.name}]'."
                    )
            settings.plugins = [str(copy) for copy in copies]
            model = build_model(settings, int(settings.protocol.data.num_classes or 0))
        finally:  # another run may have another version of a plugin, with the same names
            MIXERS.forget(MIXERS.loaded() - known)
    counted = count(model, settings.protocol.image_size)
    own = {Metric.PARAMETERS: counted.parameters, Metric.GMACS: counted.gmacs}
    for key, value in own.items():
        then = trained.metrics.get(key, value)  # none was counted with run.measure=false
        if not math.isclose(value, then, rel_tol=_EQUAL):
            raise Refusal(
                f"the code has changed since it was trained, its {key} is {value:,.10g} and was "
                f"{then:,.10g}. Train it again, or measure with the code of then."
            )
    return _Rebuilt(counted, settings.protocol)


class _Bar:
    """How far the measuring is, on a terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self.shown = ""
        self._progress = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=1.0)

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, label: str, done: float) -> None:
        self.shown = label
        self._progress.update(self._task, completed=done, description=label)


def _print_results(
    title: str, protocol: Protocol, session: str, results: Mapping[str, Measures]
) -> None:
    """A row for each model, the fastest first."""
    table = Table(box=None, pad_edge=False)
    table.add_column("model", overflow="fold", min_width=20)
    for header in ("images/s", "latency (ms)", "memory (MiB)", "mJ/image"):
        table.add_column(header, justify="right", overflow="fold")
    fastest_first = sorted(results.items(), key=lambda item: -item[1].images_per_second.median)
    for label, one in fastest_first:
        energy = one.joules_per_image
        table.add_row(
            Text(label),
            _with_quartiles(one.images_per_second, ",.1f"),
            _with_quartiles(one.latency_ms, ".3f"),
            f"{one.memory_mib:,.1f}",
            "-" if energy is None else f"{1e3 * energy:,.3g}",
        )
    first = fastest_first[0][1]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 160
    console = Console(highlight=False, width=width)
    console.print(Text(title), soft_wrap=True)
    console.print(table)
    console.print(
        Text(
            f"forward passes of {protocol.image_size} px, batch {first.batch_size}; latency of one "
            f"image; memory of a training step of {first.batch_size}\nmedian [quartiles] of "
            f"{first.images_per_second.repeats} rounds over all models, on {first.hardware}"
        ),
        soft_wrap=True,
    )


def _with_quartiles(spread: Spread, digits: str) -> Text:
    lower, upper = spread.lower_quartile, spread.upper_quartile
    return Text(f"{spread.median:{digits}} [{lower:{digits}}, {upper:{digits}}]")
