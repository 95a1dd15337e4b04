"""From runs to boards: one per protocol fingerprint, never mixed; spread over seeds.

The rank is the place by top-1 among all models of the board, whatever is filtered or sorted.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from statistics import mean, stdev
from typing import NamedTuple

from leaderboard.query import Run
from mixerbench.tracking.keys import Metric

# What depends on the machine, so is never averaged or compared over several.
ON_HARDWARE = frozenset(
    {
        Metric.IMAGES_PER_SECOND,
        Metric.LATENCY_MS,
        Metric.MEMORY_MIB,
        Metric.TRAINING_SECONDS,
    }
)
RUN_FIELDS = ("mixer", "size", "backbone", "stem")


class Column(NamedTuple):
    name: str  # in `sort` and JSON
    header: str
    key: str  # a metric, or an attribute of Entry
    format: str  # of a number
    high_first: bool = False
    spread: bool = False  # show the standard deviation


# fmt: off
COLUMNS = (
    #      name                 header                   key                       format   order
    Column("rank",              "#",                     "rank",                   "d"),
    Column("model",             "model",                 "label",                  "s"),
    Column("mixer",             "mixer",                 "mixer",                  "s"),
    Column("size",              "size",                  "size",                   "s"),
    Column("backbone",          "backbone",              "backbone",               "s"),
    Column("stem",              "stem",                  "stem",                   "s"),
    Column("top1",              "top-1 (%)",             Metric.FINAL_TOP1,        ".2f",   True, True),
    Column("top5",              "top-5 (%)",             Metric.FINAL_TOP5,        ".2f",   True),
    Column("ema_top1",          "EMA top-1 (%)",         Metric.FINAL_EMA_TOP1,    ".2f",   True),
    Column("parameters",        "parameters",            Metric.PARAMETERS,        ",.0f"),
    Column("gmacs",             "GMACs (multiply-adds)", Metric.GMACS,             ".3f"),
    Column("images_per_second", "images/s",              Metric.IMAGES_PER_SECOND, ",.1f",  True),
    Column("latency_ms",        "latency (ms)",          Metric.LATENCY_MS,        ".2f"),
    Column("memory_mib",        "memory (MiB)",          Metric.MEMORY_MIB,        ",.0f"),
    Column("training_seconds",  "training time (s)",     Metric.TRAINING_SECONDS,  ",.0f"),
    Column("seeds",             "seeds",                 "seeds",                  "d",     True),
    Column("hardware",          "hardware",              "hardware",               "s"),
)
# fmt: on


class Summary(NamedTuple):
    """One metric over seeds; ``std`` is the sample standard deviation, None for a single seed."""

    mean: float
    std: float | None
    values: Mapping[str, float]  # by seed


@dataclass(frozen=True, slots=True)
class Entry:
    """One model: its newest run of each seed."""

    rank: int
    label: str
    runs: tuple[Run, ...]
    superseded: int  # older runs of the same seeds

    @property
    def newest(self) -> Run:
        return max(self.runs, key=_age)

    @property
    def seeds(self) -> int:
        return len(self.runs)

    @property
    def hardware(self) -> str:
        """The one that throughput, latency, memory and training time are of: the newest run's."""
        return _measured_on(self.newest)

    @property
    def runs_on_hardware(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if _measured_on(run) == self.hardware)

    def value(self, key: str) -> str | int | Summary | None:
        if "/" in key:
            return self.summary(key)
        value: str | int = getattr(self.newest if key in RUN_FIELDS else self, key)
        return value

    def summary(self, metric: str) -> Summary | None:
        runs = self.runs_on_hardware if metric in ON_HARDWARE else self.runs
        values = {run.seed: run.metrics[metric] for run in runs if metric in run.metrics}
        if not values:
            return None
        numbers = list(values.values())
        return Summary(mean(numbers), stdev(numbers) if len(numbers) > 1 else None, values)


@dataclass(frozen=True, slots=True)
class Board:
    """The models of one protocol."""

    protocol: str
    fingerprint: str
    fields: Mapping[str, str]
    synthetic: bool
    entries: tuple[Entry, ...]

    @property
    def hardware(self) -> Mapping[str, str]:
        """Each hardware of the entries and its footnote mark."""
        found = dict.fromkeys(entry.hardware for entry in self.entries)
        return {hardware: f"h{i}" for i, hardware in enumerate(found, start=1)}

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be read beside the numbers, one sentence each."""
        notes = ["random images: accuracy means nothing"] if self.synthetic else []
        if any(entry.seeds > 1 for entry in self.entries):
            notes.append("± is the sample standard deviation over seeds")
        if len(self.hardware) == 1:
            notes.append(f"measured on {', '.join(self.hardware)}")
        else:
            names = [c.header.partition(" (")[0] for c in COLUMNS if c.key in ON_HARDWARE]
            notes.append(f"not comparable between different hardware: {', '.join(names)}")
            notes += [f"{mark}: {hardware}" for hardware, mark in self.hardware.items()]
        for entry in self.entries:
            if (used := len(entry.runs_on_hardware)) < entry.seeds:
                notes.append(
                    f"{entry.label} ran on several hardwares: what depends on them is of the newest "
                    f"run's only, {entry.hardware} ({used} of {entry.seeds} runs)"
                )
        if superseded := sum(entry.superseded for entry in self.entries):
            notes.append(f"runs superseded by a newer one of the same model and seed: {superseded}")
        return tuple(notes)


def boards(
    runs: Iterable[Run], *, filters: Sequence[str] = (), sort: str = "top1"
) -> tuple[Board, ...]:
    """One board per protocol fingerprint; real data first, then the one with most models.

    ``filters`` are ``mixer=``, ``size=``, ``backbone=``, ``stem=`` and ``protocol=`` (name or
    prefix of the fingerprint); several of one field widen, different fields narrow. ``sort`` is the
    name of a column: accuracy and speed highest first, costs lowest first, text by alphabet,
    missing values last. ValueError: unknown field, value or column, with the nearest known ones.
    """
    column = check_sort(sort)
    groups = defaultdict(list)
    for run in runs:
        groups[run.protocol_fingerprint].append(run)
    all_boards = [_board(group) for group in groups.values()]
    keep = _filter(filters, all_boards)
    shown = []
    for board in all_boards:
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
    """The end of an error message: known words near this one, or some of all."""
    known = list(dict.fromkeys(known))
    if close := get_close_matches(word, known, n=3):
        return f"did you mean {' or '.join(close)}?"
    more = ", …" if len(known) > 20 else ""
    return f"known: {', '.join(known[:20]) or 'none'}{more}"


def _board(runs: list[Run]) -> Board:
    models = defaultdict(list)
    for run in runs:
        models[run.model_fingerprint].append(run)
    unranked = []
    for group in models.values():
        newest_of_seed = {run.seed: run for run in sorted(group, key=_age)}
        kept = sorted(newest_of_seed.values(), key=lambda run: (len(run.seed), run.seed))
        label = max(kept, key=_age).model
        unranked.append(Entry(0, label, tuple(kept), len(group) - len(kept)))
    labels = Counter(entry.label for entry in unranked)
    top1 = [mean(run.metrics[Metric.FINAL_TOP1] for run in entry.runs) for entry in unranked]
    entries = []
    for entry, own in zip(unranked, top1, strict=True):
        mark = f" [{entry.newest.model_fingerprint[:6]}]" if labels[entry.label] > 1 else ""
        rank = 1 + sum(other > own for other in top1)
        entries.append(replace(entry, rank=rank, label=entry.label + mark))
    newest = max(runs, key=_age)
    return Board(
        protocol=newest.protocol_name,
        fingerprint=newest.protocol_fingerprint,
        fields=newest.protocol,
        synthetic=any(run.synthetic for run in runs),
        entries=tuple(entries),
    )


def _filter(filters: Sequence[str], found: Sequence[Board]) -> Callable[[Board, Entry], bool]:
    wanted = defaultdict(set)
    for text in filters:
        field, _, value = text.partition("=")
        if field not in (*RUN_FIELDS, "protocol"):
            raise ValueError(
                f"cannot filter by {text!r}: expected FIELD=VALUE; "
                f"{nearest(field, (*RUN_FIELDS, 'protocol'))}"
            )
        shown = [(board, entry) for board in found for entry in board.entries]
        if not any(_fits(field, value, *pair) for pair in shown):
            known = {word for pair in shown for word in _words(field, *pair)}
            raise ValueError(f"no finished run has {text!r}: {nearest(value, known)}")
        wanted[field].add(value)
    return lambda board, entry: all(
        any(_fits(field, value, board, entry) for value in values)
        for field, values in wanted.items()
    )


def _words(field: str, board: Board, entry: Entry) -> tuple[str, ...]:
    if field == "protocol":
        return board.protocol, board.fingerprint
    return (getattr(entry.newest, field),)


def _fits(field: str, value: str, board: Board, entry: Entry) -> bool:
    words = _words(field, board, entry)
    return value in words or (field == "protocol" and value != "" and words[-1].startswith(value))


def _order(entry: Entry, column: Column) -> tuple[bool, float, str, int, str]:
    value = entry.value(column.key)
    number = value.mean if isinstance(value, Summary) else value
    text = number.casefold() if isinstance(number, str) else ""
    number = 0 if number is None or isinstance(number, str) else number
    return value is None, -number if column.high_first else number, text, entry.rank, entry.label


def _measured_on(run: Run) -> str:
    batch_size = run.metrics.get(Metric.MEASURE_BATCH_SIZE)
    return run.hardware + (f" · batch {batch_size:.0f}" if batch_size else "")


def _age(run: Run) -> tuple[int, str]:
    return run.finished, run.run_id
