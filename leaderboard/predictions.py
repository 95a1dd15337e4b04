"""What the runs of an entry said of each validation image."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from leaderboard.runs import Run
from leaderboard.source import Source
from mixerbench.tracking.keys import Artifact, Prediction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Of all runs of one entry, on the same images in the same order."""

    images: tuple[str, ...]
    target: "NDArray[np.int64]"  # (images,)
    top1: "NDArray[np.int64]"  # (runs, images), the predicted class
    confidence: "NDArray[np.float64]"  # (runs, images)

    @property
    def correct(self) -> "NDArray[np.bool_]":
        return self.top1 == self.target

    @property
    def classes(self) -> int:
        """At least as many as the largest label says."""
        return int(max(self.target.max(), self.top1.max())) + 1

    def same_images(self, other: "Predictions") -> bool:
        return self.images == other.images and bool((self.target == other.target).all())


def read_predictions(source: Source, runs: tuple[Run, ...]) -> Predictions | None:
    """None if a run logged none, or if the runs were not evaluated on the same images."""
    import numpy as np
    import pyarrow.parquet as pq

    columns = (Prediction.IMAGE, Prediction.TARGET, Prediction.TOP1, Prediction.CONFIDENCE)

    def read(path: Path) -> Predictions:
        table = pq.read_table(path, columns=list(columns))
        target, top1, confidence = (table[name].to_numpy() for name in columns[1:])
        return Predictions(
            images=tuple(table[Prediction.IMAGE].to_pylist()),
            target=target.astype(np.int64),
            top1=top1[None].astype(np.int64),
            confidence=confidence[None].astype(np.float64),
        )

    parts = []
    for run in runs:
        path = source.artifact(run, Artifact.PREDICTIONS)
        if path is None:
            return None
        parts.append(read(path))
        if not parts[0].same_images(parts[-1]):
            return None
    return Predictions(
        images=parts[0].images,
        target=parts[0].target,
        top1=np.concatenate([part.top1 for part in parts]),
        confidence=np.concatenate([part.confidence for part in parts]),
    )
