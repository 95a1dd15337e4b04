"""What the numbers of a board are worth: intervals, which entries differ, what they share."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from leaderboard.ranking import statistics
from leaderboard.ranking.statistics import Interval
from leaderboard.reading.predictions import MissingError, Predictions, Reader
from leaderboard.reading.results import TrainedRun, digest_of
from leaderboard.reading.source import Source
from mixerbench.tracking.figures import HEADLINE
from mixerbench.tracking.keys import Metric

if TYPE_CHECKING:
    from numpy.typing import NDArray


VERSION = 3  # of what is computed; raised when it changes
MOST_ENTRIES = 200  # that are compared in pairs: 19,900 tests


@dataclass(frozen=True, slots=True)
class Comparison:
    """Entry A beside entry B, on the same images. Accuracies and their differences in percent."""

    difference: float  # top-1 of A minus that of B, means over seeds
    interval: Interval  # of the difference; statistics.paired_bootstrap
    p_images: float  # statistics.image_test
    p_seeds: float | None  # statistics.seed_test; None: no entry of the board has several seeds
    p: float  # the larger: a difference must be neither the images' chance nor the seeds'
    p_corrected: float  # for all pairs of the board, by Holm
    only_a: float  # images that A got right and B did not, mean over pairs of runs
    only_b: float
    agreement: float  # share of images of which both say the same
    error_consistency: float  # statistics.error_consistency; both, mean over pairs of runs

    @property
    def differ(self) -> bool:
        """Beyond chance, at `statistics.LEVEL`, whatever the number of entries."""
        return self.p_corrected < 1 - statistics.LEVEL

    def reversed(self) -> "Comparison":
        """B beside A."""
        return dataclasses.replace(
            self,
            difference=-self.difference,
            interval=Interval(-self.interval.high, -self.interval.low),
            only_a=self.only_b,
            only_b=self.only_a,
        )


@dataclass(frozen=True, slots=True)
class Analysis:
    """Of one board. Entries are named by their keys.

    A pair that could not be tested counts as not told apart, and its two say so: see `tested`.
    """

    intervals: Mapping[str, Interval]  # of top-1, in percent
    calibration_errors: Mapping[str, float]  # in percent, mean over seeds
    rank_ranges: Mapping[str, tuple[int, int]]  # empty: the board is too large for pairs
    comparisons: Mapping[tuple[str, str], Comparison]
    missing: Mapping[str, str]  # entries without usable predictions, and why
    # Pairs that saw too few common images: how many, and how many the longer list has.
    unlike: Mapping[tuple[str, str], tuple[int, int]]

    def compare(self, a: str, b: str) -> Comparison | None:
        """None: the two were not tested against each other."""
        if (a, b) in self.comparisons:
            return self.comparisons[a, b]
        found = self.comparisons.get((b, a))
        return found.reversed() if found else None

    def tested(self, entries: Iterable[str]) -> frozenset[str]:
        """Which of all entries of the board were tested against every other one."""
        entries = tuple(entries)
        tests = Counter(key for pair in self.comparisons for key in pair)
        return frozenset(key for key in entries if tests[key] == len(entries) - 1)


NOTHING = Analysis({}, {}, {}, {}, {}, {})


def analyse(entries: Mapping[str, tuple[TrainedRun, ...]], source: Source) -> Analysis:
    """Of all entries of one board: key of the entry -> its run of each seed.

    Takes seconds for a board of 200 entries on 10,000 images, and is kept in the source's cache
    until what was missing there is no more.
    """
    named = [(key, [(run.run_id, run.finished) for run in runs]) for key, runs in entries.items()]
    names = ("analyses", f"{digest_of([VERSION, named])}.json")

    def write(path: Path) -> None:
        path.write_text(json.dumps(_to_json(_analyse(entries, source))))

    found = _read_analysis(source.cache.file(*names, make=write))
    if found.missing:
        _, still = _read_all({key: entries[key] for key in found.missing}, Reader(source))
        if still != found.missing:
            found = _read_analysis(source.cache.file(*names, make=write, again=True))
    return found


def _analyse(entries: Mapping[str, tuple[TrainedRun, ...]], source: Source) -> Analysis:
    intervals = {key: interval for key, runs in entries.items() if (interval := _interval(runs))}
    if len(entries) > MOST_ENTRIES:
        return dataclasses.replace(NOTHING, intervals=intervals)
    reader = Reader(source)
    predictions, missing = _read_all(entries, reader)
    errors = {key: 100 * _calibration_error(answers) for key, answers in predictions.items()}
    top1 = {key: _top1(runs) for key, runs in entries.items()}
    comparisons, unlike = _compare_all(top1, predictions, reader)
    ranges = _rank_ranges(top1, comparisons)
    return Analysis(intervals, errors, ranges, comparisons, missing, unlike)


def _read_all(
    entries: Mapping[str, tuple[TrainedRun, ...]], reader: Reader
) -> tuple[dict[str, Predictions], dict[str, str]]:
    """The predictions of each entry, or why it has none."""
    found, missing = {}, {}
    for key, runs in entries.items():
        try:
            found[key] = reader.read(runs)
        except MissingError as error:
            missing[key] = str(error)
    return found, missing


def _rank_ranges(
    top1: Mapping[str, Sequence[float]], comparisons: Mapping[tuple[str, str], Comparison]
) -> dict[str, tuple[int, int]]:
    positions = {key: position for position, key in enumerate(top1)}
    scores = [fmean(values) for values in top1.values()]
    differ = {}
    for (a, b), comparison in comparisons.items():
        i, j = positions[a], positions[b]
        # On the images that both have, the order might be another one than that of the means.
        differ[i, j] = comparison.differ and (comparison.difference > 0) == (scores[i] > scores[j])
    return dict(zip(top1, statistics.rank_ranges(scores, differ), strict=True))


def _top1(runs: Sequence[TrainedRun]) -> list[float]:
    return [run.metrics[HEADLINE.key] for run in runs]


def _interval(runs: Sequence[TrainedRun]) -> Interval | None:
    top1 = _top1(runs)
    if len(top1) > 1:
        return _clipped(statistics.seed_interval(top1))
    images = int(runs[0].metrics.get(Metric.VAL_IMAGES, 0))
    if images < 1 or not 0 <= top1[0] <= 100:
        return None
    low, high = statistics.wilson_interval(round(top1[0] / 100 * images), images)
    return Interval(100 * low, 100 * high)


def _clipped(interval: Interval) -> Interval:
    return Interval(max(0.0, interval.low), min(100.0, interval.high))


def _calibration_error(predictions: Predictions) -> float:
    pairs = zip(predictions.confidence, predictions.correct, strict=True)
    errors = [statistics.calibration(c, r).error for c, r in pairs]
    return sum(errors) / len(errors)


def _compare_all(
    top1: Mapping[str, Sequence[float]], predictions: Mapping[str, Predictions], reader: Reader
) -> tuple[dict[tuple[str, str], Comparison], dict[tuple[str, str], tuple[int, int]]]:
    """The tests of all pairs that have enough common images, and what the others have.

    What has no test counts in the correction as one that found nothing, and the scatter over
    seeds is that of all entries: so no missing file ever makes another verdict sharper.
    """
    found: dict[tuple[str, str], Comparison] = {}
    unlike: dict[tuple[str, str], tuple[int, int]] = {}
    noise = statistics.seed_noise(list(top1.values()))
    rows = {key: _Rows(answers.top1, answers.correct) for key, answers in predictions.items()}
    for a, b in combinations(predictions, 2):
        of_a, of_b = rows[a], rows[b]
        if predictions[a].images is not predictions[b].images:
            common = reader.common(predictions[a].images, predictions[b].images)
            if not common.is_nearly_all:
                unlike[a, b] = common.count, common.of
                continue
            of_a, of_b = of_a.at(common.positions[0]), of_b.at(common.positions[1])
        found[a, b] = _compare(of_a, of_b, noise)
    pairs = list(combinations(top1, 2))
    corrected = statistics.holm([found[pair].p if pair in found else 1.0 for pair in pairs])
    return {
        pair: dataclasses.replace(found[pair], p_corrected=p)
        for pair, p in zip(pairs, corrected, strict=True)
        if pair in found
    }, unlike


class _Rows(NamedTuple):
    """(runs, images) of one entry."""

    top1: "NDArray[Any]"
    correct: "NDArray[Any]"

    def at(self, positions: "NDArray[Any]") -> "_Rows":
        return _Rows(self.top1[:, positions], self.correct[:, positions])

    @property
    def accuracies(self) -> list[float]:
        """Of each run, in percent."""
        return [100 * float(share) for share in self.correct.mean(axis=1)]


def _compare(of_a: _Rows, of_b: _Rows, noise: statistics.SeedNoise | None) -> Comparison:
    a, b = of_a.correct, of_b.correct
    top1_a, top1_b = of_a.accuracies, of_b.accuracies
    runs_a, runs_b = len(a), len(b)
    # On a common scale of integers: right in i of runs_a against j of runs_b.
    p_images = statistics.image_test(runs_b * a.sum(axis=0) - runs_a * b.sum(axis=0))
    p_seeds = None if noise is None else statistics.seed_test(top1_a, top1_b, noise)
    p = max(p_images, p_seeds or 0.0)
    pairs = [(i, j) for i in range(runs_a) for j in range(runs_b)]
    low, high = statistics.paired_bootstrap(a, b)
    same = [(of_a.top1[i] == of_b.top1[j]).mean() for i, j in pairs]
    return Comparison(
        difference=sum(top1_a) / runs_a - sum(top1_b) / runs_b,
        interval=Interval(100 * low, 100 * high),
        p_images=p_images,
        p_seeds=p_seeds,
        p=p,
        p_corrected=p,
        only_a=sum(float((a[i] & ~b[j]).sum()) for i, j in pairs) / len(pairs),
        only_b=sum(float((b[j] & ~a[i]).sum()) for i, j in pairs) / len(pairs),
        agreement=float(sum(same) / len(pairs)),
        error_consistency=sum(statistics.error_consistency(a[i], b[j]) for i, j in pairs)
        / len(pairs),
    )


def _to_json(analysis: Analysis) -> dict[str, Any]:
    return {
        "intervals": analysis.intervals,
        "calibration_errors": analysis.calibration_errors,
        "rank_ranges": analysis.rank_ranges,
        "comparisons": [[*p, dataclasses.astuple(c)] for p, c in analysis.comparisons.items()],
        "missing": analysis.missing,
        "unlike": [[*pair, *common] for pair, common in analysis.unlike.items()],
    }


def _read_analysis(path: Path) -> Analysis:
    content = json.loads(path.read_text())
    comparisons = {}
    for a, b, (difference, interval, *rest) in content["comparisons"]:
        comparisons[a, b] = Comparison(difference, Interval(*interval), *rest)
    return Analysis(
        intervals={key: Interval(*interval) for key, interval in content["intervals"].items()},
        calibration_errors=content["calibration_errors"],
        rank_ranges={key: (low, high) for key, (low, high) in content["rank_ranges"].items()},
        comparisons=comparisons,
        missing=content["missing"],
        unlike={(a, b): (count, of) for a, b, count, of in content["unlike"]},
    )
