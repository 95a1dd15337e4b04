"""What the numbers, times and tags of a run can be."""

import re
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from mixerbench.tracking.figures import (
    BY_KEY,
    COUNT,
    COUNT_OR_NONE,
    FIGURES,
    MEASURED,
    PERCENT,
    TOLERANCE,
    ZERO_OR_MORE,
    Bound,
)
from mixerbench.tracking.keys import Metric, Tag

LONGEST: Mapping[str, int] = {"tag": 8000, "parameter": 6000, "experiment": 500, "name": 250}
"""Characters that MLflow takes. What is as long may have been cut off."""
FINGERPRINT = re.compile(r"[0-9a-f]{16}")
_SEED = re.compile(r"0|[1-9][0-9]{0,9}")
EARLIEST_MS = 1_577_836_800_000  # the year 2020: before there was a mixerbench
CLOCK_SKEW_MS = 24 * 3600 * 1000  # a clock may be in another time zone


class Problem(NamedTuple):
    """What is wrong with a run."""

    kind: str  # as it is counted: "3 whose protocol hashes to another fingerprint"
    line: str  # of this run: "its protocol hashes to ..., but it claims ..."


BOUNDS: Mapping[str, Bound] = {
    **{figure.key: figure.bound for figure in FIGURES},
    **{
        key + quartile: BY_KEY[key].bound
        for key in MEASURED
        for quartile in (Metric.LOWER_QUARTILE, Metric.UPPER_QUARTILE)
    },
    **dict.fromkeys((Metric.FINAL_EMA_TOP5, Metric.BEST_TOP1), PERCENT),
    **dict.fromkeys((Metric.VAL_TOP1, Metric.VAL_TOP5, Metric.EMA_TOP1, Metric.EMA_TOP5), PERCENT),
    **dict.fromkeys((Metric.FINAL_LOSS, Metric.EPOCH, Metric.MFU), ZERO_OR_MORE),
    **dict.fromkeys((Metric.IMAGES_SEEN, Metric.VAL_IMAGES, Metric.MEASURE_BATCH_SIZE), COUNT),
    **dict.fromkeys((Metric.UNREADABLE_VAL_IMAGES, Metric.CORRUPT_IMAGES), COUNT_OR_NONE),
}
"""What a metric can be: of figures, and of what else is known. Others are not shown."""
_IN_ORDER = (
    (Metric.FINAL_TOP1, Metric.FINAL_TOP5),
    (Metric.FINAL_EMA_TOP1, Metric.FINAL_EMA_TOP5),
    *(
        (name + low, name + high)
        for name in MEASURED
        for low, high in (
            ("", Metric.UPPER_QUARTILE),
            (Metric.LOWER_QUARTILE, ""),
        )
    ),
)
"""Pairs of which the first is never the larger."""


def problems_of_metrics(
    metrics: Mapping[str, float], classes: int | None = None
) -> Iterator[Problem]:
    """Of the metrics of a run or a measurement, without those that are no numbers.

    Args:
        classes: of the data set. Every model ends in a linear layer with a bias for each class, so
            it has at least as many parameters.
    """
    for key in metrics.keys() & BOUNDS.keys():
        if not BOUNDS[key].fits(metrics[key]):
            words = BOUNDS[key].words
            yield Problem(f"with {key} other than {words}", f"it claims {key} = {metrics[key]:g}")
    for smaller, larger in _IN_ORDER:
        if smaller in metrics and larger in metrics:
            excess = metrics[smaller] - metrics[larger]
            if excess > TOLERANCE:
                yield Problem(
                    f"with {smaller} above {larger}",
                    f"it claims {smaller} = {metrics[smaller]:g} and {larger} = "
                    f"{metrics[larger]:g}",
                )
    parameters = metrics.get(Metric.PARAMETERS)
    if classes and parameters is not None and parameters < classes:
        yield Problem(
            "with fewer parameters than classes",
            f"it claims {parameters:g} parameters for {classes} classes",
        )


def problems_of_time(finished: int) -> Iterator[Problem]:
    """When a run ended. When it began may be wrong, see `sound_start`."""
    if not EARLIEST_MS <= finished <= int(time.time() * 1000) + CLOCK_SKEW_MS:
        yield Problem("that ended before 2020 or in the future", f"it ended at {finished} ms")


def sound_start(started: int, finished: int) -> int:
    """When a run began: as recorded, or its end where the clock went back meanwhile.

    Its results do not depend on the clock, and how long it trained was not told by it.
    """
    return started if EARLIEST_MS <= started <= finished else finished


def problems_of_tags(tags: Mapping[str, str]) -> Iterator[Problem]:
    for tag in (Tag.PROTOCOL_FINGERPRINT, Tag.MODEL_FINGERPRINT, Tag.VAL_PIXELS):
        if tag in tags and not FINGERPRINT.fullmatch(tags[tag]):
            yield Problem(
                f"with a {tag} that is none",
                f"its tag {tag} is {tags[tag]!r:.60}, not 16 hex digits",
            )
    seed = tags.get(Tag.SEED)
    if seed is not None and not (_SEED.fullmatch(seed) and int(seed) < 2**32):
        yield Problem(
            "with a seed that is none", f"its seed is {seed!r:.60}, no whole number below 2**32"
        )
    for text in tags.values():
        if len(text) > LONGEST["tag"]:
            yield Problem("with a tag that is too long", f"a tag has {len(text)} characters")
