"""Do the runs of a bundle show what they claim?"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from leaderboard.bundles.form import BundleError, one_line
from leaderboard.claims.of_predictions import (
    MOST_UNREADABLE,
    PREDICTED,
    digest_of_predictions,
    problems_of_predictions,
    same_predictions,
)
from leaderboard.claims.of_settings import (
    differences,
    of_model,
    of_protocol,
    of_run,
    problems_of_settings,
)
from leaderboard.claims.of_values import problems_of_metrics, problems_of_tags, problems_of_time
from leaderboard.reading.results import TrainedRun
from mixerbench.config.schema import flatten
from mixerbench.tracking.figures import TOLERANCE
from mixerbench.tracking.keys import Metric, Param, Prediction, Tag

if TYPE_CHECKING:
    import pyarrow as pa


_LINES = 10  # of an error


def check_runs(
    runs: Iterable[TrainedRun],
    settings: Mapping[str, Mapping[str, Any]],
    predictions: Callable[[TrainedRun], "pa.Table | None"],
) -> None:
    """Check that each run shows what it claims.

    Args:
        settings: of each run, by its id.
        predictions: reads the table of a run; None: it logged none.

    Raises:
        BundleError: a line for each run that does not.
    """
    images: dict[str, tuple[TrainedRun, Shown]] = {}  # of the first run of each protocol
    seen: dict[tuple[str, str, str], TrainedRun] = {}  # by model and digest of predictions
    refused = []
    for run in runs:
        own, rows = settings.get(run.run_id, {}), predictions(run)
        try:
            problems = chain(
                _settings_problems(run, own),
                _prediction_problems(run, own, rows),
                _claim_problems(run, own),
            )
            problem = next(problems, None)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            problem = f"its settings are not those of a mixerbench run ({error!r:.100})"
        if problem is None and rows is not None:
            shown = _shown(rows)
            first, expected = images.setdefault(run.protocol_fingerprint, (run, shown))
            problem = _other_images(run, shown, first, expected)
        if problem is None and rows is not None:
            columns = (rows.column(name).to_numpy() for name in PREDICTED)
            if digest := digest_of_predictions(*columns):
                key = (run.protocol_fingerprint, run.model_fingerprint, digest)
                twin = seen.setdefault(key, run)
                if twin.seed != run.seed:
                    problem = same_predictions(twin.seed).line
        if problem is not None:
            refused.append(one_line(f"{title(run)}: {problem}."))
    if refused:
        more = [f"... and {len(refused) - _LINES} more."] if len(refused) > _LINES else []
        raise BundleError("\n".join([*refused[:_LINES], *more]))


def _settings_problems(run: TrainedRun, settings: Mapping[str, Any]) -> Iterator[str]:
    model, protocol = settings["model"], settings["protocol"]
    recorded = of_protocol(protocol), of_model(model), of_run(settings["run"])
    problems = [
        problems_of_settings(run.tags, *recorded),
        differences("tag", run.tags, {Tag.MODEL: settings["label"]}),
    ]
    yield from (problem.line for problem in chain(*problems))
    for prefix, part in ((Param.MODEL, model), (Param.PROTOCOL, protocol)):
        logged = run.params.get(prefix.removesuffix("."), {})
        expected = dict(flatten(part, prefix))
        for problem in differences("parameter", logged, expected):
            yield problem.line
        if more := logged.keys() - expected.keys():
            yield f"its parameter {min(more)} is not in its settings"


def _claim_problems(run: TrainedRun, settings: Mapping[str, Any]) -> Iterator[str]:
    classes = settings["protocol"]["data"]["num_classes"]
    problems = [
        problems_of_time(run.finished),
        problems_of_tags(run.tags),
        problems_of_metrics(run.metrics, classes),
    ]
    yield from (problem.line for problem in chain(*problems))


def _prediction_problems(
    run: TrainedRun, settings: Mapping[str, Any], rows: "pa.Table | None"
) -> Iterator[str]:
    import numpy as np

    if rows is None or not len(rows):
        yield "it has no predictions"
        return
    target, top1, confidence, probability, in_top5 = (
        rows.column(name).to_numpy()
        for name in (
            *(Prediction.TARGET, Prediction.TOP1, Prediction.CONFIDENCE),
            *(Prediction.TARGET_PROBABILITY, Prediction.IN_TOP5),
        )
    )
    correct = target == top1
    for problem in problems_of_predictions(run.metrics, correct, in_top5):
        yield problem.line
    if len(rows.column(Prediction.IMAGE).unique()) != len(rows):
        yield "an image stands twice in its predictions"
    classes = settings["protocol"]["data"]["num_classes"]
    if min(target.min(), top1.min()) < 0 or max(target.max(), top1.max()) >= classes:
        yield f"its predictions name a class beyond its {classes}"
    for values in (confidence, probability):
        if not np.all((values >= 0) & (values <= 1 + TOLERANCE)):  # false for NaN
            yield "its predictions have a probability that is not within 0 and 1"
    if np.any(probability > confidence + TOLERANCE):
        yield "its predictions have a class that is more probable than the predicted one"
    if np.any(correct & (np.abs(confidence - probability) > TOLERANCE)):
        yield "its predictions give two probabilities to one class"
    # Among six equal classes, of a model that learned nothing, the predicted one may be the sixth.
    if np.any(correct & ~in_top5 & (confidence > 1 / 6 + TOLERANCE)):
        yield "its predictions have a predicted class that is not among the first five"


Shown = Mapping[str, tuple[int, int | None]]
"""Class and checksum of each image."""


def _shown(rows: "pa.Table") -> Shown:
    names = (Prediction.IMAGE, Prediction.TARGET, Prediction.CHECKSUM)
    columns = [
        rows.column(name).to_pylist() if name in rows.column_names else [None] * len(rows)
        for name in names
    ]
    return {image: (target, checksum) for image, target, checksum in zip(*columns, strict=True)}


def _other_images(run: TrainedRun, shown: Shown, first: TrainedRun, expected: Shown) -> str | None:
    """How the images of two runs of one protocol differ, if by more than unreadable ones."""
    common = shown.keys() & expected.keys()
    missing = len(expected) - len(common), len(shown) - len(common)
    excused = (either.metrics.get(Metric.UNREADABLE_VAL_IMAGES, 0) for either in (run, first))
    nearly_all = (1 - MOST_UNREADABLE) * max(len(shown), len(expected))
    if (
        any(lacks > count for lacks, count in zip(missing, excused, strict=True))
        or len(common) < nearly_all
        or any(shown[image][0] != expected[image][0] for image in common)
    ):
        return (
            "it was evaluated on other images, or their classes are others, than "
            f"{first.name} of the same protocol"
        )
    for image in common:
        if (
            None not in (pixels := shown[image][1], first_pixels := expected[image][1])
            and pixels != first_pixels
        ):
            return f"its image {image:.80} has other pixels than that of {first.name}"
    return None


def title(run: TrainedRun) -> str:
    return one_line(f"run {run.name[:80]} ({run.run_id})")
