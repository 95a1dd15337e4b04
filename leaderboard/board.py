"""From runs to boards: one per protocol fingerprint, never mixed; spread over seeds."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from statistics import fmean, stdev
from typing import TYPE_CHECKING, NamedTuple

from leaderboard import marks
from leaderboard.analysis import NOTHING, Analysis, analyse
from leaderboard.bundle import PLACES
from leaderboard.pareto import front
from leaderboard.ranking.columns import COLUMNS, Column
from leaderboard.runs import Measurement, Run, digest_of
from leaderboard.source import Source
from leaderboard.statistics import Interval
from mixerbench.config.cost_target import TOLERANCE, read_target
from mixerbench.tracking.figures import BY_KEY, HEADLINE, MEASURED
from mixerbench.tracking.keys import Metric
from mixers.core.errors import Refusal

if TYPE_CHECKING:
    from pandas import DataFrame

FILTERS = ("mixer", "size", "backbone", "stem", "protocol", "params", "flops")


class Summary(NamedTuple):
    """One metric over seeds; ``std`` is the sample standard deviation, None for a single seed."""

    mean: float
    std: float | None
    values: Mapping[str, float]  # by seed


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What an entry costs on one hardware."""

    machine: str  # the tag
    session: str  # of `mixerbench measure`; empty: measured by the training runs themselves
    finished: int  # milliseconds since 1970
    metrics: Mapping[str, float]

    def interval(self, metric: str) -> Interval | None:
        """The quartiles of the repeats."""
        low = self.metrics.get(metric + Metric.LOWER_QUARTILE)
        high = self.metrics.get(metric + Metric.UPPER_QUARTILE)
        return None if low is None or high is None else Interval(low, high)


@dataclass(frozen=True, slots=True)
class Entry:
    """One model: its newest run of each seed.

    What came in a bundle stands beside one's own runs of the same model, and replaces none.
    """

    key: str  # unique on its board, and the same whatever else is on it
    rank: int  # by mean top-1 among all entries of the protocol, whatever is filtered or sorted
    label: str
    mixer: str
    size: str
    backbone: str
    stem: str
    model_fingerprint: str
    runs: tuple[Run, ...]
    superseded: int  # older runs of the same seeds
    imported: str  # name of the bundle that its runs came in; empty: they were trained here
    efficiencies: Mapping[str, Efficiency]  # hardware -> on it
    hardware: str = ""  # the board's: the figures are of this one
    machine: str = ""  # of which the training time is shown
    rank_range: tuple[int, int] = (0, 0)  # what is not tested counts as not told apart
    rank_tested: bool = False  # against every other entry of the board
    top1_interval: Interval | None = None  # in percent
    calibration_error: float | None = None  # in percent

    @property
    def seeds(self) -> int:
        return len(self.runs)

    @property
    def ranks(self) -> str:
        """``2`` or ``1–3``, or ``1–3 ?``: not tested against all others.

        A single number is a verdict. The only entry of a board is 1 of 1: nobody is better.
        """
        low, high = self.rank_range
        text = f"{low}" if low == high else f"{low}–{high}"
        return text if self.rank_tested else f"{text} {marks.UNTESTED}"

    @property
    def unreadable(self) -> int | None:
        """Validation images that could not be read, of all runs; None: none."""
        key = Metric.UNREADABLE_VAL_IMAGES
        return round(sum(run.metrics.get(key, 0) for run in self.runs)) or None

    @property
    def versions(self) -> str | None:
        return marks.text(marks.versions(self.runs))

    @property
    def mixed(self) -> str | None:
        return ", ".join(marks.mixed(self.runs)) or None

    @property
    def top1_std(self) -> float | None:
        top1 = self.summary(HEADLINE.key)
        return top1.std if top1 else None

    @property
    def top1_low(self) -> float | None:
        return self.top1_interval.low if self.top1_interval else None

    @property
    def top1_high(self) -> float | None:
        return self.top1_interval.high if self.top1_interval else None

    @property
    def interval_text(self) -> str | None:
        interval = self.top1_interval
        return f"{interval.low:.2f} – {interval.high:.2f}" if interval else None

    @property
    def efficiency(self) -> Efficiency | None:
        """On the board's hardware."""
        return self.efficiencies.get(self.hardware)

    def summary(self, metric: str) -> Summary | None:
        """Over seeds; of what depends on the machine, over the runs on the board's."""
        runs = self.runs
        if metric in BY_KEY and BY_KEY[metric].per_machine:
            runs = tuple(run for run in runs if run.hardware == self.machine)
        values = {run.seed: run.metrics[metric] for run in runs if metric in run.metrics}
        if not values:
            return None
        numbers = list(values.values())
        return Summary(fmean(numbers), stdev(numbers) if len(numbers) > 1 else None, values)

    def value(self, column: Column) -> str | float | None:
        """The cell: of a metric the mean over seeds, of a measurement that on the hardware."""
        if column.figure is None:
            value: str | float | None = getattr(self, column.key)
            return value
        if column.figure.is_measured:
            return self.efficiency.metrics.get(column.key) if self.efficiency else None
        summary = self.summary(column.key)
        return summary.mean if summary else None

    def interval(self, column: Column) -> Interval | None:
        """How sure the number is; None where nothing is known of it."""
        if column.figure is HEADLINE:
            return self.top1_interval
        if column.key in MEASURED and self.efficiency:
            return self.efficiency.interval(column.key)
        return None


@dataclass(frozen=True, slots=True)
class Board:
    """The models of one protocol."""

    protocol: str
    fingerprint: str
    fields: Mapping[str, str]  # of the newest run, without what names files of its machine
    synthetic: bool
    entries: tuple[Entry, ...]  # those shown
    everyone: tuple[Entry, ...]  # those and what a filter left out
    hardware: str = ""  # what speed, memory and energy were measured on; empty: nothing was
    analysis: Analysis = field(default=NOTHING, repr=False)

    @property
    def title(self) -> str:
        warning = " · random images: accuracy means nothing" if self.synthetic else ""
        return f"{self.protocol} · {self.fingerprint}{warning}"

    @property
    def hardwares(self) -> Mapping[str, int]:
        """Every hardware that an entry was measured on, and how many were."""
        return Counter(h for entry in self.everyone for h in entry.efficiencies)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Those in which an entry has something."""
        return tuple(
            column
            for column in COLUMNS
            if any(entry.value(column) is not None for entry in self.entries)
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be read beside the numbers, a line each."""
        notes = [*marks.lines(self)]
        if self.hardware:
            notes.append(f"measured on {self.hardware}{self._how_measured()}")
        others = {h: count for h, count in self.hardwares.items() if h != self.hardware}
        for hardware, count in others.items():
            notes.append(
                f"not shown, as no two hardwares compare: {count} measured on {hardware} "
                f"(--hardware {hardware_id(hardware)})"
            )
        if superseded := sum(entry.superseded for entry in self.entries):
            notes.append(f"runs superseded by a newer one of the same model and seed: {superseded}")
        return tuple(notes)

    @property
    def results(self) -> tuple[Run, ...]:
        """One run of each model and seed that is shown: one's own before an imported one."""
        found = defaultdict(list)
        for entry in self.entries:
            for run in entry.runs:
                found[run.model_fingerprint, run.seed].append(run)
        return tuple(newest(runs) for runs in found.values())

    def front(self, cost: str, gain: str = HEADLINE.name) -> tuple[Entry, ...]:
        """The entries shown that no other beats in both columns, the best cost first.

        Refusal: no such column.
        """
        columns = [check_sort(cost), check_sort(gain)]
        rows = [[entry.value(column) for column in columns] for entry in self.entries]
        places = [i for i, row in enumerate(rows) if all(isinstance(v, int | float) for v in row)]
        signs = (-1 if columns[0].high_first else 1, 1 if columns[1].high_first else -1)
        points = [(signs[0] * float(rows[i][0]), signs[1] * float(rows[i][1])) for i in places]  # type: ignore[arg-type]
        return tuple(self.entries[places[i]] for i in front(points))

    def frame(self) -> "DataFrame":
        """A row for each entry, indexed by label, columns by their names in `COLUMNS`."""
        from pandas import DataFrame

        rows = [{c.name: entry.value(c) for c in COLUMNS} for entry in self.entries]
        frame = DataFrame(rows, columns=[c.name for c in COLUMNS])
        frame.insert(0, "model_fingerprint", [entry.model_fingerprint for entry in self.entries])
        frame.insert(0, "key", [entry.key for entry in self.entries])
        return frame.set_index("model")

    def comparisons_frame(self) -> "DataFrame":
        """A row for each pair of entries, with the fields of `analysis.Comparison`."""
        from dataclasses import asdict

        from pandas import DataFrame

        labels = {entry.key: entry.label for entry in self.everyone}
        rows = []
        for (a, b), comparison in self.analysis.comparisons.items():
            content = asdict(comparison)
            low, high = content.pop("interval")
            rows.append(
                {"a": labels[a], "b": labels[b], "low": low, "high": high}
                | content
                | {"differ": comparison.differ}
            )
        return DataFrame(rows)

    def _how_measured(self) -> str:
        found = [e.efficiency for e in self.entries if e.efficiency]
        sessions = Counter(one.session for one in found)
        alone = sessions.pop("", 0)
        if not sessions:
            return ", each at the end of its training: 'mixerbench measure' does it side by side"
        if alone or len(sessions) > 1:
            words = [f"{count} in one session" for _, count in sessions.most_common()]
            words += [f"{alone} at the end of training"] if alone else []
            return f": {', '.join(words)}; 'mixerbench measure' does it side by side"
        return ", all in one session, in turns" if len(found) == len(self.entries) else ""


def boards(
    runs: Iterable[Run],
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

    Refusal: unknown field, value, column or hardware, with the nearest known ones.
    """
    column = check_sort(sort)
    by_protocol = defaultdict(list)
    for run in runs:
        by_protocol[run.protocol_fingerprint].append(run)
    by_model = defaultdict(list)
    for one in measurements:
        by_model[one.protocol_fingerprint, one.model_fingerprint].append(one)
    found = [_board(group, by_model) for group in by_protocol.values()]
    keep = _filter(filters, found)
    shown = []
    for board in found:
        entries = tuple(entry for entry in board.everyone if keep(board, entry))
        if entries:
            shown.append(replace(board, entries=entries))
    shown.sort(key=lambda b: (b.synthetic, -len(b.entries), b.protocol, b.fingerprint))
    chosen = _hardware_of_each(shown, hardware)
    return tuple(
        _finish(board, one, source, column) for board, one in zip(shown, chosen, strict=True)
    )


def check_sort(sort: str) -> Column:
    """The column of this name. ValueError: there is none."""
    columns = {column.name: column for column in COLUMNS}
    if sort not in columns:
        raise Refusal(f"cannot sort by {sort!r}: {nearest(sort, columns)}")
    return columns["rank" if sort == "ranks" else sort]


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message: known words near this one, or the first of all."""
    known = list(dict.fromkeys(known))
    if close := get_close_matches(word, known):
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(known[:20]) or 'none'}{', …' if len(known) > 20 else ''}"


def newest(runs: Iterable[Run]) -> Run:
    """Of one's own if there are any: anybody may have dated an imported one."""
    return max(runs, key=lambda run: (not run.imported, run.finished, run.run_id))


def hardware_id(hardware: str) -> str:
    """8 hex digits that stand for hardware, software and batch."""
    return hashlib.sha256(hardware.encode()).hexdigest()[:8]


def hardware_of(one: Run | Measurement) -> str:
    """Two batch sizes are as little comparable as two machines."""
    batch_size = one.metrics.get(Metric.MEASURE_BATCH_SIZE)
    return one.hardware + (f" · batch {batch_size:.0f}" if batch_size else "")


def _board(runs: list[Run], measurements: Mapping[tuple[str, str], Sequence[Measurement]]) -> Board:
    groups: dict[tuple[str, str], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        groups[run.model_fingerprint, run.imported][run.seed].append(run)
    last = newest(runs)
    entries = [
        _entry(seeds, measurements.get((last.protocol_fingerprint, model), ()))
        for (model, _), seeds in groups.items()
    ]
    labels = Counter(entry.label for entry in entries)
    top1 = [fmean(run.metrics[HEADLINE.key] for run in entry.runs) for entry in entries]
    ordered = sorted(top1, reverse=True)
    first_place = {value: place for place, value in reversed([*enumerate(ordered, start=1)])}
    everyone = tuple(
        replace(
            entry,
            rank=first_place[own],
            label=entry.label
            + (f" [{entry.model_fingerprint[:6]}]" if labels[entry.label] > 1 else ""),
        )
        for entry, own in zip(entries, top1, strict=True)
    )
    return Board(
        protocol=last.protocol_name,
        fingerprint=last.protocol_fingerprint,
        fields={k: value for k, value in last.protocol.items() if k not in PLACES},
        synthetic=any(run.synthetic for run in runs),
        entries=everyone,
        everyone=everyone,
    )


def _entry(seeds: Mapping[str, list[Run]], measurements: Sequence[Measurement]) -> Entry:
    runs = tuple(newest(seeds[seed]) for seed in sorted(seeds, key=lambda s: (len(s), s)))
    last = newest(runs)
    origin = digest_of(last.imported)[:8] if last.imported else ""
    return Entry(
        key=f"{last.model_fingerprint}_{origin}" if origin else last.model_fingerprint,
        rank=0,  # known once all models of the board are
        label=f"{last.model} (imported: {last.imported})" if last.imported else last.model,
        mixer=last.mixer,
        size=last.size,
        backbone=last.backbone,
        stem=last.stem,
        model_fingerprint=last.model_fingerprint,
        runs=runs,
        superseded=sum(len(group) - 1 for group in seeds.values()),
        imported=last.imported,
        efficiencies=_efficiencies(runs, measurements),
    )


def _efficiencies(
    runs: Sequence[Run], measurements: Sequence[Measurement]
) -> dict[str, Efficiency]:
    """On each hardware the newest measurement beside others, else the mean of the runs' own."""
    own: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        own[hardware_of(run)].append(run)
    found = {}
    for hardware, group in own.items():
        keys = {key for run in group for key in run.metrics if key.startswith(MEASURED)}
        values = {k: [run.metrics[k] for run in group if k in run.metrics] for k in keys}
        if not values:
            continue
        found[hardware] = Efficiency(
            machine=group[0].hardware,
            session="",
            finished=max(run.finished for run in group),
            metrics={key: fmean(numbers) for key, numbers in values.items()},
        )
    for one in sorted(measurements, key=lambda one: (one.finished, one.run_id)):
        found[hardware_of(one)] = Efficiency(one.hardware, one.session, one.finished, one.metrics)
    return found


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
        (one.machine for one in measured if one), max(machines, key=machines.__getitem__)
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


def _filter(filters: Sequence[str], found: Sequence[Board]) -> Callable[[Board, Entry], bool]:
    wanted = defaultdict(list)
    for text in filters:
        field, _, value = text.partition("=")
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


def _order(entry: Entry, column: Column) -> tuple[bool, float, str, int, str]:
    value = entry.value(column)
    text = value.casefold() if isinstance(value, str) else ""
    number = value if isinstance(value, int | float) else 0
    return value is None, -number if column.high_first else number, text, entry.rank, entry.label
