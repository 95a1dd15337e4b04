"""What an entry's predictions say, small enough for a page whatever the number of classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leaderboard.ranking import statistics
from leaderboard.reading.predictions import Predictions
from leaderboard.site.numbers import short, shorts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


MOST_CLASSES = 100  # with a bar each, and of a confusion matrix: more cannot be read
MOST_LISTED = 10_000  # in the table of an entry's own page
MOST_NUMBERS = 50_000  # of all entries' classes in the file of a board
BINS = 20  # of percent right
ENDS = 10  # classes at each of the two ends
PAIRS = 20


@dataclass(frozen=True, slots=True)
class Answers:
    """What the predictions of an entry say of classes and confidence; means over seeds."""

    reliability: Mapping[str, list[float]]
    classes: list[float | None]
    """Percent right of each class, None where it has no image; empty: more than `MOST_LISTED`."""
    spread: list[int]  # how many classes have 0 to 5, ..., 95 to 100 percent right
    hardest: list[tuple[int, float]]  # classes and their percent right
    easiest: list[tuple[int, float]]
    confused: list[tuple[int, int, float, float]]
    """Class, the one that it was called, images, percent of the class; the most images first."""
    confusion: list[list[float]]  # images of the row's class; empty: more than `MOST_CLASSES`

    @property
    def is_large(self) -> bool:
        """Whether there are too many classes for one bar each."""
        return not 0 < len(self.classes) <= MOST_CLASSES

    def for_plots(self, entries: int = 1) -> dict[str, Any]:
        """What the scripts draw; less of each entry where a file holds many ``entries``."""
        found: dict[str, Any] = {"reliability": self.reliability}
        fits = self.classes and entries * len(self.classes) <= MOST_NUMBERS
        if fits:
            found["classes"] = self.classes
        if self.is_large or not fits:
            found["spread"] = self.spread
        return found


def answers_of(predictions: Predictions) -> Answers:
    """Summarise predictions; class numbers may be any, so nothing here grows with the largest."""
    import numpy as np

    reliability = statistics.calibration(
        predictions.confidence.ravel(), predictions.correct.ravel()
    )
    numbers, right = _right_of_classes(predictions)
    lowest = int(min(numbers[0], predictions.top1.min()))
    count = predictions.classes if lowest >= 0 else MOST_LISTED + 1
    order = np.lexsort((numbers, right))
    ranked = [(int(numbers[index]), short(float(right[index]))) for index in order]
    return Answers(
        reliability={
            "confidence": shorts(reliability.confidence),
            "accuracy": shorts(reliability.accuracy),
            "share": shorts(reliability.share),
        },
        classes=_listed(numbers, right, count) if count <= MOST_LISTED else [],
        spread=np.histogram(right, BINS, (0, 100))[0].tolist(),
        hardest=ranked[:ENDS],
        easiest=ranked[: -ENDS - 1 : -1],
        confused=_confused(predictions),
        confusion=_confusion(predictions) if count <= MOST_CLASSES else [],
    )


def _right_of_classes(
    predictions: Predictions,
) -> "tuple[NDArray[np.int64], NDArray[np.float64]]":
    """The classes that have an image, and the percentage of right answers for each."""
    import numpy as np

    numbers, indices = np.unique(predictions.target, return_inverse=True)
    share = predictions.correct.mean(axis=0)
    return numbers, 100 * np.bincount(indices, weights=share) / np.bincount(indices)


def _listed(
    numbers: "NDArray[np.int64]", right: "NDArray[np.float64]", count: int
) -> list[float | None]:
    found: list[float | None] = [None] * count
    for number, value in zip(numbers.tolist(), right.tolist(), strict=True):
        found[number] = short(value)
    return found


def _confused(predictions: Predictions) -> list[tuple[int, int, float, float]]:
    import numpy as np

    runs = len(predictions.top1)
    wrong = ~predictions.correct
    target = np.broadcast_to(predictions.target, wrong.shape)[wrong]
    if not len(target):
        return []
    numbers, indices = np.unique([target, predictions.top1[wrong]], return_inverse=True)
    is_of, called = indices.reshape(2, -1)
    pairs, counts = np.unique(is_of * len(numbers) + called, return_counts=True)
    found = []
    for index in np.lexsort((pairs, -counts))[:PAIRS]:
        own, other = (int(numbers[i]) for i in divmod(pairs[index], len(numbers)))
        images = float(counts[index] / runs)
        share = 100 * images / int((predictions.target == own).sum())
        found.append((own, other, short(images), short(share)))
    return found


def _confusion(predictions: Predictions) -> list[list[float]]:
    import numpy as np

    matrices = [
        statistics.confusion(predictions.target, top1, predictions.classes)
        for top1 in predictions.top1
    ]
    mean: list[list[float]] = np.mean(matrices, axis=0).round(2).tolist()
    return mean
