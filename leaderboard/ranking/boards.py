"""From runs to boards: one per protocol fingerprint, never mixed; spread over seeds."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from leaderboard.ranking.analysis import NOTHING, analyse
from leaderboard.ranking.board import Board, hardware_id
from leaderboard.ranking.columns import Column, check_sort
from leaderboard.ranking.entries import Entry, entry_of
from leaderboard.ranking.filters import filter_of
from leaderboard.reading.results import Measurement, TrainedRun, newest
from leaderboard.reading.source import Source
from leaderboard.text import nearest
from mixerbench.config.schema import MACHINE_PATHS
from mixerbench.tracking.figures import HEADLINE
from mixers.core.errors import Refusal


def boards(
    runs: Iterable[TrainedRun],
    measurements: Iterable[Measurement] = (),
    *,
    filters: Sequence[str] = (),
    sort: str = HEADLINE.name,
    hardware: str = "",
    source: Source | None = None,
) -> tuple[Board, ...]:
    """One board per protocol fingerprint; real data first, then the one with most models.

    Args:
        filters: FIELD=VALUE with a field of `FILTERS`; a protocol's value is its name or a prefix
            of its fingerprint; params=22M and flops=4.6G (multiply-adds) are what is within 1 %.
            Several of one field widen, different fields narrow.
        sort: the name of a column: accuracy and speed highest first, costs lowest first, missing
            values last.
        hardware: whose speed, memory and energy to show: a part of its name or of its id; by
            default the one that most entries of a board were measured on.
        source: of predictions, for intervals and paired tests; None: without these, so that any
            rank is possible.

    Raises:
        Refusal: unknown field, value, column or hardware, with the nearest known ones.
    """
    column = check_sort(sort)
    by_protocol = defaultdict(list)
    for run in runs:
        by_protocol[run.protocol_fingerprint].append(run)
    by_model = defaultdict(list)
    for measurement in measurements:
        by_model[measurement.protocol_fingerprint, measurement.model_fingerprint].append(
            measurement
        )
    found = [_board(group, by_model) for group in by_protocol.values()]
    keep = filter_of(filters, found)
    shown = []
    for board in found:
        entries = tuple(entry for entry in board.everyone if keep(board, entry))
        if entries:
            shown.append(replace(board, entries=entries))
    shown.sort(key=lambda b: (b.synthetic, -len(b.entries), b.protocol, b.fingerprint))
    chosen = _hardware_of_each(shown, hardware)
    return tuple(
        _finish(board, hardware_name, source, column)
        for board, hardware_name in zip(shown, chosen, strict=True)
    )


def _board(
    runs: list[TrainedRun], measurements: Mapping[tuple[str, str], Sequence[Measurement]]
) -> Board:
    groups: dict[tuple[str, str], dict[str, list[TrainedRun]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for run in runs:
        groups[run.model_fingerprint, run.imported][run.seed].append(run)
    last = newest(runs)
    entries = [
        entry_of(seeds, measurements.get((last.protocol_fingerprint, model), ()))
        for (model, _), seeds in groups.items()
    ]
    labels = Counter(entry.label for entry in entries)
    top1 = [fmean(run.metrics[HEADLINE.key] for run in entry.runs) for entry in entries]
    ordered = sorted(top1, reverse=True)
    first_rank = {value: rank for rank, value in reversed([*enumerate(ordered, start=1)])}
    everyone = tuple(
        replace(
            entry,
            rank=first_rank[mean],
            label=entry.label
            + (f" [{entry.model_fingerprint[:6]}]" if labels[entry.label] > 1 else ""),
        )
        for entry, mean in zip(entries, top1, strict=True)
    )
    return Board(
        protocol=last.protocol_name,
        fingerprint=last.protocol_fingerprint,
        fields={k: value for k, value in last.protocol.items() if k not in MACHINE_PATHS},
        synthetic=any(run.synthetic for run in runs),
        entries=everyone,
        everyone=everyone,
    )


def _hardware_of_each(found: Sequence[Board], wanted: str) -> list[str]:
    """The hardware of each board: what is wanted, else what most entries were measured on."""
    names = {name for board in found for name in board.hardwares}
    meant = [n for n in names if wanted.casefold() in n.casefold() or hardware_id(n) == wanted]
    if wanted and not meant:
        known = (f"{hardware_id(name)} ({name})" for name in sorted(names))
        raise Refusal(f"nothing was measured on {wanted!r}: {nearest(wanted, known)}")
    chosen = []
    for board in found:
        newest_on = {
            name: max(
                e.efficiencies[name].finished for e in board.everyone if name in e.efficiencies
            )
            for name in board.hardwares
        }
        here = [name for name in meant if name in board.hardwares]
        best = max(here, key=lambda n: (board.hardwares[n], newest_on[n], n), default="")
        chosen.append(best)
    return chosen


def _finish(board: Board, hardware: str, source: Source | None, column: Column) -> Board:
    """With hardware and analysis, sorted."""
    analysis = NOTHING
    if source is not None:
        analysis = analyse({e.key: e.runs for e in board.everyone}, source)
    tested = analysis.tested(entry.key for entry in board.everyone)
    unknown = (1, len(board.everyone))

    machines = Counter(run.hardware for entry in board.everyone for run in entry.runs)
    measured = (entry.efficiencies.get(hardware) for entry in board.everyone)
    machine = next(
        (efficiency.machine for efficiency in measured if efficiency),
        max(machines, key=machines.__getitem__),
    )

    def finish(entries: Iterable[Entry]) -> tuple[Entry, ...]:
        finished = [
            replace(
                entry,
                hardware=hardware,
                machine=machine,
                rank_range=analysis.rank_ranges.get(entry.key, unknown),
                rank_tested=entry.key in tested,
                top1_interval=analysis.intervals.get(entry.key),
                calibration_error=analysis.calibration_errors.get(entry.key),
            )
            for entry in entries
        ]
        return tuple(sorted(finished, key=lambda entry: _order(entry, column)))

    return replace(
        board,
        entries=finish(board.entries),
        everyone=finish(board.everyone),
        hardware=hardware,
        analysis=analysis,
    )


def _order(entry: Entry, column: Column) -> tuple[bool, float, str, int, str]:
    value = entry.value(column)
    text = value.casefold() if isinstance(value, str) else ""
    number = value if isinstance(value, int | float) else 0
    return value is None, -number if column.high_first else number, text, entry.rank, entry.label
