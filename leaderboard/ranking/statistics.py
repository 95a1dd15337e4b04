"""What a number is worth: intervals, paired tests, calibration, agreement. Pure functions.

Accuracies are shares, 0 to 1. scipy and statsmodels are imported when something is computed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


LEVEL = 0.95  # of every interval; 1 - LEVEL is the error that tests allow
REPLICATES = 2000  # of a bootstrap: its ends are then known to 3 % of its width
BINS = 15  # of confidence, as Guo et al. take
_EXACT_UP_TO = 200_000  # sum of absolute differences, for the exact distribution


class Interval(NamedTuple):
    low: float
    high: float


def seed_interval(values: Sequence[float]) -> Interval:
    """Student's t interval of the mean over seeds; two values or more."""
    from scipy import stats

    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values)
    return Interval(float(fmean(values) - half), float(fmean(values) + half))


def wilson_interval(correct: float, count: int) -> Interval:
    """Wilson's interval of a share of ``count`` images: what another draw of images would give."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(correct, count, alpha=1 - LEVEL, method="wilson")
    return Interval(float(low), float(high))


def image_test(differences: "NDArray[np.int64]") -> float:
    """Could the two be equally good on images like these? Two-sided p-value.

    The exact sign-flip test: if neither is better, each image's difference is as likely to be of
    the other sign. With one run each the differences are -1, 0 and 1, and it is McNemar's exact
    test (McNemar 1947).

    Args:
        differences: per image, how often A was right minus how often B was, on a common scale of
            integers.
    """
    import numpy as np
    from scipy import fft, special, stats

    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    observed = int(differences.sum())
    if len(sizes) == 0:
        return 1.0
    if len(sizes) == 1:
        wins, count = int((differences > 0).sum()), int(counts[0])
        # binomtest's p-value for even odds, a thousand times as fast: a board has 20,000 pairs.
        return float(min(1.0, 2 * special.bdtr(min(wins, count - wins), count, 0.5)))
    largest = int((sizes * counts).sum())
    if largest > _EXACT_UP_TO:  # then a sum of very many: normal
        deviation = math.sqrt(float((sizes.astype(float) ** 2 * counts).sum()))
        return float(2 * stats.norm.sf(abs(observed) / deviation))
    # In units of what all sizes are multiples of, as they are of 3 where each has three runs.
    unit = int(np.gcd.reduce(sizes))
    sizes, observed, largest = sizes // unit, abs(observed) // unit, largest // unit
    # A sum of independent +-size has the characteristic function prod cos(size t) ** count. Its
    # Fourier transform is the distribution; sums lie in -largest..largest, the function is even.
    length = fft.next_fast_len(2 * largest + 1, real=True)
    angles = 2 * np.pi * np.arange(length // 2 + 1) / length
    characteristic = np.ones(len(angles))
    for size, count in zip(sizes, counts, strict=True):
        characteristic *= np.cos(size * angles) ** count
    probabilities = fft.irfft(characteristic, length).clip(min=0)  # of 0, 1, ..., largest
    at_least = probabilities[observed : largest + 1].sum()
    return float(min(1.0, 2 * at_least)) if observed else 1.0


class SeedNoise(NamedTuple):
    """How much top-1 scatters over seeds, from all entries of a board that have several."""

    variance: float
    degrees: int


def seed_noise(groups: Sequence[Sequence[float]]) -> SeedNoise | None:
    """The pooled variance within groups, as in analysis of variance; None: no group has two."""
    several = [values for values in groups if len(values) > 1]
    degrees = sum(len(values) - 1 for values in several)
    if degrees == 0:
        return None
    squares = sum((v - fmean(values)) ** 2 for values in several for v in values)
    return SeedNoise(squares / degrees, degrees)


def seed_test(a: Sequence[float], b: Sequence[float], noise: SeedNoise) -> float:
    """Could the two be equally good over seeds? A t test, two-sided p-value.

    Three seeds say little of their own scatter, so the variance is that of the whole board. Where
    these two scatter more (Welch's variance of the difference), theirs is taken.
    """
    from scipy import stats

    pooled = noise.variance * (1 / len(a) + 1 / len(b))
    own = sum(
        (variance(values) if len(values) > 1 else noise.variance) / len(values) for values in (a, b)
    )
    deviation = math.sqrt(max(pooled, own))
    difference = abs(fmean(a) - fmean(b))
    if deviation == 0:
        return float(difference == 0)
    return float(2 * stats.t.sf(difference / deviation, noise.degrees))


def paired_bootstrap(a: "NDArray[np.bool_]", b: "NDArray[np.bool_]") -> Interval:
    """Interval of accuracy A - B, where images and seeds are drawn again (percentiles).

    An image is drawn for A and B together, seeds for each of the two. A mean over k drawn seeds
    varies too little by (k - 1) / k; their deviations are widened by as much (Efron 1982, 6.4).

    Args:
        a, b: (seeds, images), whether each was right.
    """
    import numpy as np

    random = np.random.default_rng(0)  # the same interval every time
    difference = a.mean(axis=0) - b.mean(axis=0)
    values, counts = np.unique(difference, return_counts=True)
    drawn = random.multinomial(len(difference), counts / len(difference), size=REPLICATES)
    replicates = drawn @ values / len(difference)
    for sign, own in ((1, a), (-1, b)):
        seeds = len(own)
        if seeds > 1:
            deviations = own.mean(axis=1) - own.mean()
            picks = random.integers(seeds, size=(REPLICATES, seeds))
            widened = math.sqrt(seeds / (seeds - 1))
            replicates = replicates + sign * widened * deviations[picks].mean(axis=1)
    low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for there being so many (Holm 1979)."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far confidence is from accuracy; bins without images are left out."""

    error: float  # expected calibration error
    confidence: tuple[float, ...]  # mean of each bin
    accuracy: tuple[float, ...]
    share: tuple[float, ...]  # of the images


def calibration(confidence: "NDArray[np.float64]", correct: "NDArray[np.bool_]") -> Calibration:
    """Reliability diagram and expected calibration error in `BINS` bins of equal width.

    Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599, equation 3.
    """
    import numpy as np

    edges = np.linspace(0, 1, BINS + 1)
    bins = np.digitize(confidence, edges[1:-1], right=True)  # (low, high], as theirs
    means, accuracies, shares = [], [], []
    for index in np.unique(bins):
        inside = bins == index
        means.append(float(confidence[inside].mean()))
        accuracies.append(float(correct[inside].mean()))
        shares.append(float(inside.mean()))
    gaps = (abs(c - a) * s for c, a, s in zip(means, accuracies, shares, strict=True))
    return Calibration(math.fsum(gaps), tuple(means), tuple(accuracies), tuple(shares))


def confusion(
    target: "NDArray[np.int64]", predicted: "NDArray[np.int64]", classes: int
) -> "NDArray[np.int64]":
    """(classes, classes): images of the row's class that were called the column's."""
    import numpy as np

    pairs = np.bincount(target * classes + predicted, minlength=classes**2)
    return pairs.reshape(classes, classes)


def error_consistency(a: "NDArray[np.bool_]", b: "NDArray[np.bool_]") -> float:
    """Cohen's kappa of being right: do two models fail on the same images, beyond chance?

    1: on exactly the same; 0: as often as two independent ones of their accuracies would.
    Geirhos et al., Beyond accuracy, arXiv:2006.16736, equation 1.
    """
    observed = float((a == b).mean())
    rate_a, rate_b = float(a.mean()), float(b.mean())
    expected = rate_a * rate_b + (1 - rate_a) * (1 - rate_b)
    if expected == 1:  # both are always right, or always wrong
        return 1.0
    return (observed - expected) / (1 - expected)


def rank_ranges(
    scores: Sequence[float], differ: Mapping[tuple[int, int], bool]
) -> list[tuple[int, int]]:
    """Best and worst rank of each: 1 + those surely better, to all but those surely worse.

    Args:
        scores: higher is better.
        differ: (i, j) with i < j: whether the two differ beyond chance.
    """
    better, worse = [0] * len(scores), [0] * len(scores)
    for (i, j), is_different in differ.items():
        if is_different and scores[i] != scores[j]:
            winner, loser = (i, j) if scores[i] > scores[j] else (j, i)
            better[loser] += 1
            worse[winner] += 1
    return [(1 + b, len(scores) - w) for b, w in zip(better, worse, strict=True)]
