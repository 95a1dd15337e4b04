"""What the runs of an entry said of each validation image."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaderboard.claims.of_predictions import digest_of_predictions
from leaderboard.reading.parquet import read_logged
from leaderboard.reading.results import TrainedRun
from leaderboard.reading.source import Source, UnreadableError, read_artifact
from mixerbench.tracking.keys import Artifact, Metric, Prediction
from mixers.core.errors import Refusal

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


NEARLY_ALL = 0.99
"""Of the larger of two lists of images: a test on fewer common ones is none of the together set."""
MOST_FAILURES = 3  # in turn: a store that gives no files is not asked for hundreds of them
_TOLERANCE = 1e-4  # of a percentage that is computed anew


class MissingError(Exception):
    """Why an entry has no predictions, in words that follow its name."""


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """A list of validation images, without repeats."""

    names: "pa.Array"
    target: "NDArray[np.int64]"
    checksum: "NDArray[np.int64] | None"  # of the pixels; None: older runs

    def __len__(self) -> int:
        return len(self.target)

    def equals(self, other: "Images") -> bool:
        """The same images in the same order, and as much known of them."""
        import numpy as np

        one, two = self.checksum, other.checksum
        return (
            len(self) == len(other)
            and (one is None) == (two is None)
            and np.array_equal(self.target, other.target)
            and (one is None or two is None or np.array_equal(one, two))
            and bool(self.names.equals(other.names))
        )


@dataclass(frozen=True, slots=True, eq=False)
class Common:
    """Where the images stand that two lists have in common: same name, class and pixels."""

    positions: "tuple[NDArray[np.int64], NDArray[np.int64]]"
    count: int
    of: int  # images of the larger list

    @property
    def is_nearly_all(self) -> bool:
        return self.count >= NEARLY_ALL * self.of

    def __str__(self) -> str:
        return f"{self.count} of {self.of} in common"


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """The predictions of all runs of one entry, on the same images in the same order."""

    images: Images
    top1: "NDArray[np.int64]"  # (runs, images), the predicted class
    confidence: "NDArray[np.float64]"  # (runs, images)

    @property
    def target(self) -> "NDArray[np.int64]":
        return self.images.target

    @property
    def correct(self) -> "NDArray[np.bool_]":
        return self.top1 == self.target

    @property
    def classes(self) -> int:
        """Number of classes, as far as the largest label tells it."""
        return int(max(self.target.max(), self.top1.max())) + 1


@dataclass(slots=True)
class Reader:
    """Reads the predictions of many entries; equal lists of images are one object."""

    source: Source
    _lists: list[Images] = field(default_factory=list)
    _common: dict[tuple[int, int], Common] = field(default_factory=dict)
    _failures: int = 0

    def read(self, runs: Sequence[TrainedRun]) -> Predictions:
        """The predictions of an entry's runs, on the images that all of these have.

        Raises:
            MissingError: a run has none, they cannot be read, they are of other images, or they
                are those of another seed.
        """
        import numpy as np

        together, *others = (self._of_run(run) for run in runs)
        for run, other in zip(runs[1:], others, strict=True):
            images = together.images
            if other.images is not images:
                common = self.common(images, other.images)
                if not common.is_nearly_all:
                    raise MissingError(
                        f"seeds {runs[0].seed} and {run.seed} were evaluated on other images: "
                        f"{common}"
                    )
                ours, theirs = common.positions
                images = self._shared(_merged(images, other.images, common))
                together, other = _at(together, images, ours), _at(other, images, theirs)
            together = Predictions(
                images,
                np.concatenate([together.top1, other.top1]),
                np.concatenate([together.confidence, other.confidence]),
            )
        if twins := _twins(together):
            one, two = (runs[index].seed for index in twins)
            raise MissingError(
                f"seeds {one} and {two} have the same predictions, to the last digit: no two "
                "seeds give the same"
            )
        return together

    def common(self, one: Images, two: Images) -> Common:
        """The images that two lists have in common; kept, as many runs share few lists."""
        key = (id(one), id(two))
        if key not in self._common:
            self._common[key] = _common(one, two)
        return self._common[key]

    def _of_run(self, run: TrainedRun) -> Predictions:
        if self._failures >= MOST_FAILURES:
            raise MissingError("its predictions were not asked for, as fetching others had failed")
        try:
            found = read_artifact(self.source, run, Artifact.PREDICTIONS, _read)
        except UnreadableError as error:
            raise MissingError(
                f"the predictions file of seed {run.seed} cannot be read ({error})"
            ) from None
        except ValueError:  # whatever the store says, which has just been read
            self._failures += 1
            raise MissingError(
                f"the predictions file of seed {run.seed} cannot be fetched"
            ) from None
        self._failures = 0
        if found is None:
            raise MissingError(f"seed {run.seed} logged no predictions")
        shown, claimed = 100 * float(found.correct.mean()), run.metrics[Metric.FINAL_TOP1]
        if abs(shown - claimed) > _TOLERANCE:
            raise MissingError(
                f"the predictions of seed {run.seed} give a top-1 of {shown:.2f} %, "
                f"but the run claims {claimed:.2f} %"
            )
        return Predictions(self._shared(found.images), found.top1, found.confidence)

    def _shared(self, images: Images) -> Images:
        for known in self._lists:
            if known.equals(images):
                return known
        self._lists.append(images)
        return images


def read_predictions(source: Source, runs: Sequence[TrainedRun]) -> Predictions | None:
    """None if one of the runs has none that can be used."""
    try:
        return Reader(source).read(runs)
    except MissingError:
        return None


def _read(path: Path) -> Predictions:
    """The predictions of one run.

    Raises:
        Refusal: the file holds no predictions.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = (Prediction.IMAGE, Prediction.TARGET, Prediction.TOP1, Prediction.CONFIDENCE)
    table = read_logged(path, wanted, optional=[Prediction.CHECKSUM])
    if not len(table):
        raise Refusal("it has no rows")

    def column(name: str, kind: type[Any]) -> "NDArray[Any]":
        values = table[name]
        fits = pa.types.is_integer if kind is np.int64 else pa.types.is_floating
        if not fits(values.type) or values.null_count:
            raise Refusal(f"its column {name} holds something else than numbers")
        return values.to_numpy().astype(kind)

    target, top1 = column(Prediction.TARGET, np.int64), column(Prediction.TOP1, np.int64)
    confidence = column(Prediction.CONFIDENCE, np.float64)
    if min(target.min(), top1.min()) < 0:
        raise Refusal("it has a negative class")
    if not np.all((confidence >= 0) & (confidence <= 1 + 1e-6)):  # false for NaN
        raise Refusal("a confidence is not within 0 and 1")
    names = table[Prediction.IMAGE].cast(pa.string()).combine_chunks()
    if names.null_count or pc.count_distinct(names).as_py() != len(names):
        raise Refusal("an image stands twice or has no name")
    with_checksum = Prediction.CHECKSUM in table.column_names
    if with_checksum and not table[Prediction.CHECKSUM].null_count:
        checksum = column(Prediction.CHECKSUM, np.int64)
    else:  # an older run's
        checksum = None
    return Predictions(Images(names, target, checksum), top1[None], confidence[None])


def _common(one: Images, two: Images) -> Common:
    import numpy as np
    import pyarrow.compute as pc

    found = pc.index_in(one.names, value_set=two.names)
    there = found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    here = np.flatnonzero(there >= 0)
    there = there[here]
    same = one.target[here] == two.target[there]
    if one.checksum is not None and two.checksum is not None:
        same &= one.checksum[here] == two.checksum[there]
    return Common((here[same], there[same]), int(same.sum()), max(len(one), len(two)))


def _twins(predictions: Predictions) -> tuple[int, int] | None:
    """The first two runs that answered every image alike."""
    import numpy as np

    order = np.arange(len(predictions.images))  # the same in all runs
    seen: dict[str, int] = {}
    for index, answers in enumerate(zip(predictions.top1, predictions.confidence, strict=True)):
        digest = digest_of_predictions(order, *answers)
        if digest in seen:
            return seen[digest], index
        if digest is not None:
            seen[digest] = index
    return None


def _merged(one: Images, two: Images, common: Common) -> Images:
    """The common ones, in the order of the first."""
    ours, theirs = common.positions
    checksum = one.checksum[ours] if one.checksum is not None else None
    if checksum is None and two.checksum is not None:
        checksum = two.checksum[theirs]
    return Images(one.names.take(ours), one.target[ours], checksum)


def _at(together: Predictions, images: Images, positions: "NDArray[np.int64]") -> Predictions:
    return Predictions(images, together.top1[:, positions], together.confidence[:, positions])
