"""What a run may say of itself, once: stores and bundles are judged by the same rules.

A run's settings were recorded as parameters. They are read back, hashed again and compared with
what the tags claim; numbers and times must be ones that a run can have. No check can show that a
run was trained at all: docs/sharing.md says what is left to trust.
"""

import ast
import hashlib
import re
import time
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from mixerbench.config import schema
from mixerbench.config.sources import has_fact
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
from mixerbench.tracking.keys import Metric, Param, Prediction, Tag
from mixers.core.errors import Refusal
from mixers.core.plan import plan_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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


# --- numbers --------------------------------------------------------------------------------


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


# --- times and texts ------------------------------------------------------------------------


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


# --- settings -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """What one group of recorded settings makes of a run: its protocol, its model or its seed."""

    tags: Mapping[str, str]  # that follow from it
    fingerprints: tuple[str, ...] = ()  # as each version so far hashed it, this version's first
    classes: int | None = None


def of_protocol(protocol: Mapping[str, Any]) -> Recorded:
    """``protocol`` nested or flat, whole. KeyError, TypeError: it is none."""
    flat = dict(schema.flatten(protocol))
    epochs, classes = flat["recipe.epochs"], flat.get("data.num_classes")
    if type(epochs) is not int or epochs < 1:
        raise Refusal(f"recipe.epochs is {epochs!r:.60}")
    if classes is not None and (type(classes) is not int or classes < 1):
        raise Refusal(f"data.num_classes is {classes!r:.60}")
    versions = range(schema.PROTOCOL_VERSION, 0, -1)
    return Recorded(
        tags={
            Tag.PROTOCOL: str(flat["name"]),
            Tag.SYNTHETIC: str(has_fact(flat["data.source"], "is_noise")).lower(),
        },
        fingerprints=tuple(schema.protocol_fingerprint(flat, version) for version in versions),
        classes=classes,
    )


def of_model(model: Mapping[str, Any]) -> Recorded:
    """KeyError, TypeError, ValueError: it is none."""
    mixer = model["mixer"]
    return Recorded(
        tags={
            Tag.SIZE: model["size"]["name"],
            Tag.BACKBONE: model["backbone"]["name"],
            Tag.STEM: model["stem"]["name"],
            Tag.MIXER: plan_name(mixer) if "plan" in mixer else mixer["name"],
        },
        fingerprints=(schema.fingerprint(model),),
    )


def of_run(run: Mapping[str, Any]) -> Recorded:
    """KeyError: it has no seed."""
    return Recorded(tags={Tag.SEED: str(run["seed"])})


def problems_of_settings(
    tags: Mapping[str, str], protocol: Recorded, model: Recorded, run: Recorded
) -> Iterator[Problem]:
    """Where the tags say something else than the recorded settings."""
    for part, tag, word in (
        (protocol, Tag.PROTOCOL_FINGERPRINT, "protocol"),
        (model, Tag.MODEL_FINGERPRINT, "model"),
    ):
        claimed = tags.get(tag, "")
        if claimed not in part.fingerprints:
            yield Problem(
                f"whose settings hash to another {word}",
                f"its {word} hashes to {part.fingerprints[0]} in this version of mixerbench, but "
                f"it claims {claimed:.60}",
            )
    expected = {**protocol.tags, **model.tags, **run.tags}
    yield from differences("tag", tags, expected)


def differences(
    kind: str, logged: Mapping[str, str], expected: Mapping[str, object]
) -> Iterator[Problem]:
    """Logged tags or parameters that are not as the settings say."""
    for key, value in expected.items():
        if logged.get(key) != str(value)[: LONGEST[kind]]:
            yield Problem(
                f"whose settings say another {key}",
                f"its {kind} {key} is {logged.get(key, 'missing')!r:.60}, but its settings say "
                f"{str(value)!r:.60}",
            )


class Parameters:
    """The settings that parameters tell, by the digests of their groups: most runs share them."""

    _GROUPS = (Param.PROTOCOL, Param.MODEL, Param.RUN)

    def __init__(self, parts: Mapping[str, Mapping[str, str]]) -> None:
        self._parts = parts
        self._known: dict[str, Recorded | Problem] = {}

    def problems(self, tags: Mapping[str, str], digests: Mapping[str, str]) -> Iterator[Problem]:
        """Where a run's tags say something else than its parameters."""
        groups = []
        for prefix in self._GROUPS:
            digest = digests.get(prefix.removesuffix("."))
            found = _UNKNOWN if digest is None else self._recorded(prefix, digest)
            if isinstance(found, Problem):
                yield found
                return
            groups.append(found)
        yield from problems_of_settings(tags, *groups)

    def classes(self, digests: Mapping[str, str]) -> int | None:
        found = self._known.get(digests.get("protocol", ""))
        return found.classes if isinstance(found, Recorded) else None

    def _recorded(self, prefix: str, digest: str) -> Recorded | Problem:
        if digest not in self._known:
            self._known[digest] = _recorded(prefix, self._parts[digest])
        return self._known[digest]


_UNKNOWN = Problem("without recorded settings", "it has no recorded settings")


def _recorded(prefix: str, params: Mapping[str, str]) -> Recorded | Problem:
    if prefix != Param.RUN and any(len(t) >= LONGEST["parameter"] for t in params.values()):
        return Problem(
            "with settings too long to be checked",
            f"a parameter has the {LONGEST['parameter']} characters at which MLflow cuts it off",
        )
    try:
        settings = settings_of(prefix, params)
        if prefix == Param.PROTOCOL:
            return of_protocol(settings)
        return of_model(settings) if prefix == Param.MODEL else of_run(settings)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        return Problem(
            "with settings of no run", f"its settings are not those of a run ({error!r:.100})"
        )


def settings_of(prefix: str, params: Mapping[str, str]) -> dict[str, Any]:
    """One group of settings from its parameters, which are texts of the flattened values."""
    nested: dict[str, Any] = {}
    for key, text in params.items():
        *groups, field = key.removeprefix(prefix).split(".")
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[field] = value_of(key, text)
    return nested


def value_of(key: str, text: str) -> Any:
    """The value of a setting whose ``str`` was recorded."""
    if key in _texts() or key.endswith(".name"):
        return None if text == "None" and _texts().get(key) else text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    # Only what comes out again as it went in: 0.10, (1, 2) or 0x10 were texts.
    return value if str(value) == text and not isinstance(value, tuple | set | bytes) else text


@cache
def _texts() -> Mapping[str, bool]:
    """Fields of the protocol that are texts, and whether each may be None."""
    return {Param.PROTOCOL + key: may_be_none for key, may_be_none in _fields(schema.Protocol)}


def _fields(cls: type) -> Iterator[tuple[str, bool]]:
    for name, hint in typing.get_type_hints(cls).items():
        if isinstance(hint, type) and hasattr(hint, "__dataclass_fields__"):
            yield from ((f"{name}.{key}", none) for key, none in _fields(hint))
        elif hint is str:
            yield name, False
        elif hint == (str | None):
            yield name, True


# --- predictions ----------------------------------------------------------------------------

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
    """Equal for runs that answered each image alike, to the last digit of every confidence.

    None: a model that is as sure as numbers can be of nearly every image may do so honestly.
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
    """Of a run whose digest is that of a run of the same model with this other seed."""
    return Problem(
        "with the predictions of another seed",
        f"its predictions are those of seed {seed}, to the last digit: no two seeds give the same",
    )
