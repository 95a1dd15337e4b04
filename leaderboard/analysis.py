"""What the numbers of a board are worth: intervals, which entries differ, what they share."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaderboard import statistics
from leaderboard.predictions import Predictions, read_predictions
from leaderboard.runs import Run, digest_of
from leaderboard.source import Source
from leaderboard.statistics import Interval
from mixerbench.tracking.keys import Metric

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 2  # of what is computed; raised when it changes
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
    """Of one board. Entries are named by their models' fingerprints."""

    intervals: Mapping[str, Interval]  # of top-1, in percent
    calibration_errors: Mapping[str, float]  # in percent, mean over seeds
    rank_ranges: Mapping[str, tuple[int, int]]  # of entries that could be compared with all others
    comparisons: Mapping[tuple[str, str], Comparison]

    def compare(self, a: str, b: str) -> Comparison | None:
        """None: one of them has no predictions, or the board is too large."""
        if (a, b) in self.comparisons:
            return self.comparisons[a, b]
        found = self.comparisons.get((b, a))
        return found.reversed() if found else None


NOTHING = Analysis({}, {}, {}, {})


def analyse(entries: Mapping[str, tuple[Run, ...]], source: Source) -> Analysis:
    """Of all entries of one board: fingerprint of the model -> its run of each seed.

    Takes seconds for a board of 200 entries on 10,000 images, and is kept in the source's cache.
    """
    named = [(f, [(run.run_id, run.finished) for run in runs]) for f, runs in entries.items()]
    digest = digest_of([VERSION, named])

    def write(path: Path) -> None:
        path.write_text(json.dumps(_to_json(_analyse(entries, source))))

    path = source.cache.file("analyses", f"{digest}.json", make=write)
    return _from_json(json.loads(path.read_text()))


def _analyse(entries: Mapping[str, tuple[Run, ...]], source: Source) -> Analysis:
    intervals = {f: one for f, runs in entries.items() if (one := _interval(runs))}
    if len(entries) > MOST_ENTRIES:
        return Analysis(intervals, {}, {}, {})
    found = {f: read_predictions(source, runs) for f, runs in entries.items()}
    predictions = {f: one for f, one in found.items() if one is not None}
    comparisons = _compare_all({f: _top1(entries[f]) for f in predictions}, predictions)
    ranks: dict[str, tuple[int, int]] = {}
    names = list(entries)
    if len(comparisons) == len(names) * (len(names) - 1) // 2:
        places = {f: place for place, f in enumerate(names)}
        differ = {(places[a], places[b]): c.differ for (a, b), c in comparisons.items()}
        scores = [sum(_top1(entries[f])) / len(entries[f]) for f in names]
        ranks = dict(zip(names, statistics.rank_ranges(scores, differ), strict=True))
    errors = {f: 100 * _calibration_error(one) for f, one in predictions.items()}
    return Analysis(intervals, errors, ranks, comparisons)


def _top1(runs: Sequence[Run]) -> list[float]:
    return [run.metrics[Metric.FINAL_TOP1] for run in runs]


def _interval(runs: Sequence[Run]) -> Interval | None:
    top1 = _top1(runs)
    if len(top1) > 1:
        return _clipped(statistics.seed_interval(top1))
    images = runs[0].metrics.get(Metric.VAL_IMAGES)
    if not images:
        return None
    low, high = statistics.wilson_interval(round(top1[0] / 100 * images), int(images))
    return Interval(100 * low, 100 * high)


def _clipped(interval: Interval) -> Interval:
    return Interval(max(0.0, interval.low), min(100.0, interval.high))


def _calibration_error(predictions: Predictions) -> float:
    pairs = zip(predictions.confidence, predictions.correct, strict=True)
    errors = [statistics.calibration(c, r).error for c, r in pairs]
    return sum(errors) / len(errors)


def _compare_all(
    top1: Mapping[str, Sequence[float]], predictions: Mapping[str, Predictions]
) -> dict[tuple[str, str], Comparison]:
    found: dict[tuple[str, str], Comparison] = {}
    noise = statistics.seed_noise(list(top1.values()))
    correct = {f: one.correct for f, one in predictions.items()}
    for a, b in combinations(predictions, 2):
        if predictions[a].same_images(predictions[b]):
            found[a, b] = _compare(
                (top1[a], top1[b]),
                (correct[a], correct[b]),
                (predictions[a], predictions[b]),
                noise,
            )
    corrected = statistics.holm([comparison.p for comparison in found.values()])
    return {
        pair: dataclasses.replace(comparison, p_corrected=p)
        for (pair, comparison), p in zip(found.items(), corrected, strict=True)
    }


def _compare(
    top1: tuple[Sequence[float], Sequence[float]],
    correct: "tuple[NDArray[Any], NDArray[Any]]",
    predictions: tuple[Predictions, Predictions],
    noise: statistics.SeedNoise | None,
) -> Comparison:
    (top1_a, top1_b), (a, b) = top1, correct
    runs_a, runs_b = len(a), len(b)
    # On a common scale of integers: right in i of runs_a against j of runs_b.
    p_images = statistics.image_test(runs_b * a.sum(axis=0) - runs_a * b.sum(axis=0))
    p_seeds = None if noise is None else statistics.seed_test(top1_a, top1_b, noise)
    p = max(p_images, p_seeds or 0.0)
    pairs = [(i, j) for i in range(runs_a) for j in range(runs_b)]
    low, high = statistics.paired_bootstrap(a, b)
    same = [(predictions[0].top1[i] == predictions[1].top1[j]).mean() for i, j in pairs]
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
    }


def _from_json(content: dict[str, Any]) -> Analysis:
    comparisons = {}
    for a, b, (difference, interval, *rest) in content["comparisons"]:
        comparisons[a, b] = Comparison(difference, Interval(*interval), *rest)
    return Analysis(
        intervals={f: Interval(*interval) for f, interval in content["intervals"].items()},
        calibration_errors=content["calibration_errors"],
        rank_ranges={f: (low, high) for f, (low, high) in content["rank_ranges"].items()},
        comparisons=comparisons,
    )
