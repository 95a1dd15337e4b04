"""The entries of a board: one model, its runs of each seed, what it costs on each hardware."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import NamedTuple

from leaderboard.ranking.columns import Column
from leaderboard.ranking.statistics import Interval
from leaderboard.ranking.versions import as_text, mixed, versions
from leaderboard.reading.results import Measurement, TrainedRun, digest_of, newest
from mixerbench.tracking.figures import BY_KEY, HEADLINE, MEASURED
from mixerbench.tracking.keys import Metric

UNTESTED = "?"  # behind a rank


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
    runs: tuple[TrainedRun, ...]
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
        return text if self.rank_tested else f"{text} {UNTESTED}"

    @property
    def unreadable(self) -> int | None:
        """Validation images that could not be read, of all runs; None: none."""
        key = Metric.UNREADABLE_VAL_IMAGES
        return round(sum(run.metrics.get(key, 0) for run in self.runs)) or None

    @property
    def versions(self) -> str | None:
        return as_text(versions(self.runs))

    @property
    def mixed(self) -> str | None:
        return ", ".join(mixed(self.runs)) or None

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


def hardware_of(result: TrainedRun | Measurement) -> str:
    """Two batch sizes are as little comparable as two machines."""
    batch_size = result.metrics.get(Metric.MEASURE_BATCH_SIZE)
    return result.hardware + (f" · batch {batch_size:.0f}" if batch_size else "")


def entry_of(seeds: Mapping[str, list[TrainedRun]], measurements: Sequence[Measurement]) -> Entry:
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
    runs: Sequence[TrainedRun], measurements: Sequence[Measurement]
) -> dict[str, Efficiency]:
    """On each hardware the newest measurement beside others, else the mean of the runs' own."""
    own: dict[str, list[TrainedRun]] = defaultdict(list)
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
    for measurement in sorted(
        measurements, key=lambda measurement: (measurement.finished, measurement.run_id)
    ):
        found[hardware_of(measurement)] = Efficiency(
            measurement.hardware, measurement.session, measurement.finished, measurement.metrics
        )
    return found
