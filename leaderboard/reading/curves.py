"""The curves of a run, thinned to what a page can show."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from leaderboard.reading.results import is_finite
from mixerbench.tracking.keys import Metric

CURVES = (
    *(Metric.VAL_TOP1, Metric.VAL_LOSS, Metric.EMA_TOP1),
    *(Metric.TRAIN_LOSS, Metric.LEARNING_RATE, Metric.TRAIN_SECONDS, Metric.EPOCH),
)
CURVE_POINTS = 200  # a longer curve is averaged down: 300 epochs of ImageNet log 37,500 losses
Curves = Mapping[str, Sequence[tuple[int, float]]]
"""Metric of `CURVES` -> (optimizer step, value)."""


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `CURVE_POINTS`: the mean of neighbours at the last step of each group.

    The last point stays as it is: where the curve ends is the metric's last value.
    """
    points = sorted(point for point in points if is_finite(point[1]))
    rest, last = points[:-1], points[-1:]
    size = math.ceil(len(rest) / (CURVE_POINTS - 1))
    groups = (rest[start : start + size] for start in range(0, len(rest), size or 1))
    return [*((group[-1][0], fmean(value for _, value in group)) for group in groups), *last]


def read_curves(path: Path) -> Curves:
    content = json.loads(path.read_text())
    return {key: [(int(step), value) for step, value in content[key]] for key in content}
