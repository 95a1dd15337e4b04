"""What the predictions of a run show, and where its metrics say something else."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from leaderboard.claims.of_values import Problem
from mixerbench.tracking.figures import (
    TOLERANCE,
)
from mixerbench.tracking.keys import Metric, Prediction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


MOST_UNREADABLE = 0.01
"""Share of the validation images that a run may lack: no more could be left out in training."""
PREDICTED = (Prediction.IMAGE, Prediction.TOP1, Prediction.CONFIDENCE)
"""The columns that a model answers, and of which image."""
_DIFFERENT = 3


def problems_of_predictions(
    metrics: Mapping[str, float], correct: "NDArray[np.bool_]", in_top5: "NDArray[np.bool_]"
) -> Iterator[Problem]:
    """Where a run's own predictions say something else than it claims."""
    expected = {
        Metric.FINAL_TOP1: 100 * float(correct.mean()),
        Metric.FINAL_TOP5: 100 * float(in_top5.mean()),
        Metric.VAL_IMAGES: len(correct),
    }
    for metric, shown in expected.items():
        claimed = metrics.get(metric)
        if claimed is None or abs(claimed - shown) > TOLERANCE:
            yield Problem(
                f"whose predictions give another {metric}",
                f"its predictions give {metric} = {shown:.10g}, but it claims {claimed}",
            )


def digest_of_predictions(
    image: "NDArray[Any]", top1: "NDArray[Any]", confidence: "NDArray[Any]"
) -> str | None:
    """A digest that is equal only for runs with the same predictions, to the last digit.

    None: nearly all confidences are 1 to the last digit, so that two seeds may honestly agree.
    """
    import numpy as np

    unsure = confidence[confidence < 1 - TOLERANCE]
    if len(np.unique(unsure)) < _DIFFERENT:
        return None
    order = np.argsort(image)
    digest = hashlib.sha256()
    for column, kind in ((top1, np.int64), (confidence, np.float32)):
        digest.update(np.ascontiguousarray(column[order], dtype=kind).tobytes())
    return digest.hexdigest()[:32]


def same_predictions(seed: str) -> Problem:
    """The problem of a run that has the digest of another seed's run of the same model."""
    return Problem(
        "with the predictions of another seed",
        f"its predictions are those of seed {seed}, to the last digit: no two seeds give the same",
    )
