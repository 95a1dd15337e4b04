"""From runs to boards: one per protocol fingerprint, never mixed; spread over seeds."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from statistics import mean, stdev
from typing import NamedTuple

from leaderboard.query import Run
from mixerbench.tracking.keys import Metric

FILTERS = ("mixer", "size", "backbone", "stem", "protocol")


class Column(NamedTuple):
    name: str  # in `sort` and JSON
    header: str
    key: str  # a metric, or an attribute of Entry
    format: str  # how a number is shown
    high_first: bool = False

    @property
    def is_metric(self) -> bool:
        return "/" in self.key


# fmt: off
COLUMNS = (
    #      name                 header                   key                       format   order
    Column("rank",              "#",                     "rank",                   "d"),
    Column("model",             "model",                 "label",                  "s"),
    Column("mixer",             "mixer",                 "mixer",                  "s"),
    Column("size",              "size",                  "size",                   "s"),
    Column("backbone",          "backbone",              "backbone",               "s"),
    Column("stem",              "stem",                  "stem",                   "s"),
    Column("top1",              "top-1 (%)",             Metric.FINAL_TOP1,        ".2f",   True),
    Column("top1_std",          "± std (seeds)",         "top1_std",               ".2f"),
    Column("top5",              "top-5 (%)",             Metric.FINAL_TOP5,        ".2f",   True),
    Column("ema_top1",          "EMA top-1 (%)",         Metric.FINAL_EMA_TOP1,    ".2f",   True),
    Column("parameters",        "parameters",            Metric.PARAMETERS,        ",.0f"),
    Column("gmacs",             "GMACs (multiply-adds)", Metric.GMACS,             ".3f"),
    Column("images_per_second", "inference (images/s)",  Metric.IMAGES_PER_SECOND, ",.1f",  True),
    Column("latency_ms",        "latency (ms)",          Metric.LATENCY_MS,        ".2f"),
    Column("memory_mib",        "training memory (MiB)", Metric.MEMORY_MIB,        ",.0f"),
    Column("training_seconds",  "training time (s)",     Metric.TRAINING_SECONDS,  ",.0f"),
    Column("seeds",             "seeds",                 "seeds",                  "d",     True),
    Column("hardware",          "hardware",              "hardware",               "s"),
)
# fmt: on

ON_HARDWARE = {  # depends on the machine: never averaged over several
    Metric.IMAGES_PER_SECOND: "images/s",
    Metric.LATENCY_MS: "latency",
    Metric.MEMORY_MIB: "memory",
    Metric.TRAINING_SECONDS: "training time",
}


class Summary(NamedTuple):
    """One metric over seeds; ``std`` is the sample standard deviation, None for a single seed."""

    mean: float
    std: float | None
    values: Mapping[str, float]  # by seed


@dataclass(frozen=True, slots=True)
class Entry:
    """One model: its newest run of each seed."""

    rank: int  # by top-1 among all models of the protocol, whatever is filtered or sorted
    label: str
    mixer: str
    size: str
    backbone: str
    stem: str
    model_fingerprint: str
    hardware: str  # of the newest run; the figures of ON_HARDWARE are of its runs only
    runs: tuple[Run, ...]
    superseded: int  # older runs of the same seeds

    @property
    def seeds(self) -> int:
        return len(self.runs)

    @property
    def top1_std(self) -> float | None:
        top1 = self.summary(Metric.FINAL_TOP1)
        return top1.std if top1 else None

    @property
    def runs_on_hardware(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if _hardware(run) == self.hardware)

    def summary(self, metric: str) -> Summary | None:
        runs = self.runs_on_hardware if metric in ON_HARDWARE else self.runs
        values = {run.seed: run.metrics[metric] for run in runs if metric in run.metrics}
        if not values:
            return None
        numbers = list(values.values())
        return Summary(mean(numbers), stdev(numbers) if len(numbers) > 1 else None, values)

    def value(self, column: Column) -> str | float | None:
        """The cell: of a metric the mean over seeds."""
        if column.is_metric:
            summary = self.summary(column.key)
            return summary.mean if summary else None
        value: str | float | None = getattr(self, column.key)
        return value


@dataclass(frozen=True, slots=True)
class Board:
    """The models of one protocol."""

    protocol: str
    fingerprint: str
    fields: Mapping[str, str]
    synthetic: bool
    entries: tuple[Entry, ...]

    @property
    def title(self) -> str:
        warning = " · random images: accuracy means nothing" if self.synthetic else ""
        return f"{self.protocol} · {self.fingerprint}{warning}"

    @property
    def hardware(self) -> Mapping[str, str]:
        """Each hardware of the entries and its footnote mark."""
        found = dict.fromkeys(entry.hardware for entry in self.entries)
        return {hardware: f"h{i}" for i, hardware in enumerate(found, start=1)}

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be read beside the numbers, a line each."""
        notes = []
        if len(self.hardware) == 1:
            notes.append(f"measured on {', '.join(self.hardware)}")
        else:
            names = ", ".join(ON_HARDWARE.values())
            notes.append(f"not comparable between different hardware: {names}")
            notes += [f"{mark}: {hardware}" for hardware, mark in self.hardware.items()]
        for entry in self.entries:
            if (used := len(entry.runs_on_hardware)) < entry.seeds:
                notes.append(
                    f"{entry.label} ran on several hardwares; what depends on them is of the "
                    f"newest run's only ({used} of {entry.seeds} runs)"
                )
        if superseded := sum(entry.superseded for entry in self.entries):
            notes.append(f"runs superseded by a newer one of the same model and seed: {superseded}")
        return tuple(notes)


def boards(
    runs: Iterable[Run], *, filters: Sequence[str] = (), sort: str = "top1"
) -> tuple[Board, ...]:
    """One board per protocol fingerprint; real data first, then the one with most models.

    ``filters`` are FIELD=VALUE with a field of `FILTERS`; a protocol's value is its name or a
    prefix of its fingerprint. Several of one field widen, different fields narrow. ``sort`` is the
    name of a column: accuracy and speed highest first, costs lowest first, missing values last.
    ValueError: unknown field, value or column, with the nearest known ones.
    """
    column = check_sort(sort)
    by_protocol = defaultdict(list)
    for run in runs:
        by_protocol[run.protocol_fingerprint].append(run)
    found = [_board(group) for group in by_protocol.values()]
    keep = _filter(filters, found)
    shown = []
    for board in found:
        entries = [entry for entry in board.entries if keep(board, entry)]
        entries.sort(key=lambda entry: _order(entry, column))
        if entries:
            shown.append(replace(board, entries=tuple(entries)))
    shown.sort(key=lambda b: (b.synthetic, -len(b.entries), b.protocol, b.fingerprint))
    return tuple(shown)


def check_sort(sort: str) -> Column:
    """The column of this name. ValueError: there is none."""
    columns = {column.name: column for column in COLUMNS}
    if sort not in columns:
        raise ValueError(f"cannot sort by {sort!r}: {nearest(sort, columns)}")
    return columns[sort]


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message: known words near this one, or the first of all."""
    known = list(dict.fromkeys(known))
    if close := get_close_matches(word, known):
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(known[:20]) or 'none'}{', …' if len(known) > 20 else ''}"


def newest(runs: Iterable[Run]) -> Run:
    return max(runs, key=lambda run: (run.finished, run.run_id))


def _board(runs: list[Run]) -> Board:
    by_model: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        by_model[run.model_fingerprint][run.seed].append(run)
    entries = [_entry(seeds) for seeds in by_model.values()]
    labels = Counter(entry.label for entry in entries)
    top1 = [mean(run.metrics[Metric.FINAL_TOP1] for run in entry.runs) for entry in entries]
    ranked = []
    for entry, own in zip(entries, top1, strict=True):
        mark = f" [{entry.model_fingerprint[:6]}]" if labels[entry.label] > 1 else ""
        rank = 1 + sum(other > own for other in top1)
        ranked.append(replace(entry, rank=rank, label=entry.label + mark))
    last = newest(runs)
    return Board(
        protocol=last.protocol_name,
        fingerprint=last.protocol_fingerprint,
        fields=last.protocol,
        synthetic=any(run.synthetic for run in runs),
        entries=tuple(ranked),
    )


def _entry(seeds: Mapping[str, list[Run]]) -> Entry:
    runs = tuple(newest(seeds[seed]) for seed in sorted(seeds, key=lambda s: (len(s), s)))
    last = newest(runs)
    return Entry(
        rank=0,  # known once all models of the board are
        label=last.model,
        mixer=last.mixer,
        size=last.size,
        backbone=last.backbone,
        stem=last.stem,
        model_fingerprint=last.model_fingerprint,
        hardware=_hardware(last),
        runs=runs,
        superseded=sum(len(group) - 1 for group in seeds.values()),
    )


def _filter(filters: Sequence[str], found: Sequence[Board]) -> Callable[[Board, Entry], bool]:
    wanted = defaultdict(list)
    for text in filters:
        field, _, value = text.partition("=")
        if field not in FILTERS:
            raise ValueError(
                f"cannot filter by {text!r}: expected FIELD=VALUE; {nearest(field, FILTERS)}"
            )
        pairs = [(board, entry) for board in found for entry in board.entries]
        if not any(_fits(field, value, *pair) for pair in pairs):
            known = (word for pair in pairs for word in _words(field, *pair))
            raise ValueError(f"no finished run has {text!r}: {nearest(value, known)}")
        wanted[field].append(value)
    return lambda board, entry: all(
        any(_fits(field, value, board, entry) for value in values)
        for field, values in wanted.items()
    )


def _words(field: str, board: Board, entry: Entry) -> tuple[str, ...]:
    if field == "protocol":
        return board.protocol, board.fingerprint
    return (getattr(entry, field),)


def _fits(field: str, value: str, board: Board, entry: Entry) -> bool:
    if field == "protocol" and value and board.fingerprint.startswith(value):
        return True
    return value in _words(field, board, entry)


def _order(entry: Entry, column: Column) -> tuple[bool, float, str, int, str]:
    value = entry.value(column)
    text = value.casefold() if isinstance(value, str) else ""
    number = value if isinstance(value, int | float) else 0
    return value is None, -number if column.high_first else number, text, entry.rank, entry.label


def _hardware(run: Run) -> str:
    """Two batch sizes are as little comparable as two machines."""
    batch_size = run.metrics.get(Metric.MEASURE_BATCH_SIZE)
    return run.hardware + (f" · batch {batch_size:.0f}" if batch_size else "")
