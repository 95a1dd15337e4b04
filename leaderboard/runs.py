"""Runs and measurements, as they were logged; what is left out is counted, with the reason."""

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any, NamedTuple

from leaderboard import claims
from mixerbench.tracking.figures import HEADLINE
from mixerbench.tracking.keys import LEADERBOARD, MEASUREMENT, SCHEMA_VERSION, Metric, Tag

INFINITY = 1.797e308  # as MLflow stores it
OWN = "mixerbench."  # what the names of our tags begin with
CURVES = (
    *(Metric.VAL_TOP1, Metric.VAL_LOSS, Metric.EMA_TOP1),
    *(Metric.TRAIN_LOSS, Metric.LEARNING_RATE, Metric.TRAIN_SECONDS, Metric.EPOCH),
)
CURVE_POINTS = 200  # a longer curve is averaged down: 300 epochs of ImageNet log 37,500 losses


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One finished training run, as logged."""

    run_id: str
    experiment_id: str
    name: str
    experiment: str
    started: int  # milliseconds since 1970
    finished: int
    model: str
    model_fingerprint: str
    mixer: str
    size: str
    backbone: str
    stem: str
    protocol_name: str
    protocol_fingerprint: str
    seed: str
    synthetic: bool
    hardware: str
    tags: Mapping[str, str]  # mixerbench's own
    params: Mapping[str, Mapping[str, str]]  # {"protocol": {"protocol.recipe.epochs": "300"}}
    metrics: Mapping[str, float]  # last values; NaN and infinity are left out

    @property
    def imported(self) -> str:
        """Name of the bundle that it came in; empty: it was trained here."""
        return self.tags.get(Tag.IMPORTED, "")

    @property
    def protocol(self) -> Mapping[str, str]:
        """{"protocol.recipe.epochs": "300"}"""
        return self.params.get("protocol", {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What a model costs, measured by ``mixerbench measure`` beside others in one session."""

    run_id: str
    finished: int
    protocol_fingerprint: str
    model_fingerprint: str
    hardware: str
    session: str
    metrics: Mapping[str, float]


TAGS = {
    "model": Tag.MODEL,
    "model_fingerprint": Tag.MODEL_FINGERPRINT,
    "mixer": Tag.MIXER,
    "size": Tag.SIZE,
    "backbone": Tag.BACKBONE,
    "stem": Tag.STEM,
    "protocol_name": Tag.PROTOCOL,
    "protocol_fingerprint": Tag.PROTOCOL_FINGERPRINT,
    "seed": Tag.SEED,
    "hardware": Tag.HARDWARE,
}
MEASUREMENT_TAGS = {
    "protocol_fingerprint": Tag.PROTOCOL_FINGERPRINT,
    "model_fingerprint": Tag.MODEL_FINGERPRINT,
    "hardware": Tag.HARDWARE,
    "session": Tag.SESSION,
}
State = Mapping[str, Any]
"""A run as it is kept in the cache and in bundles: plain data, whatever its status."""


class Reading(NamedTuple):
    runs: tuple[Run, ...]
    skipped: Mapping[str, int]  # reason: number of runs
    measurements: tuple[Measurement, ...] = ()
    refused: Mapping[str, str] = MappingProxyType({})  # run id: what its claims have wrong


Curves = Mapping[str, Sequence[tuple[int, float]]]
"""Metric of `CURVES` -> (optimizer step, value)."""


def skipped_line(skipped: Mapping[str, int]) -> str:
    """``Not on a board: 2 failed, 1 of schema 0 (this is 1).``, or an empty string."""
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    return f"Not on a board: {counts}." if counts else ""


def reading_of(
    states: Mapping[str, State],
    parts: Mapping[str, Mapping[str, str]],
    experiments: Mapping[str, str],
    *,
    verify: bool = True,
) -> Reading:
    """Runs and measurements from their states; what is no finished run is counted.

    So is, unless ``verify`` is false, what claims something that no run can, or something else
    than its recorded settings: one that lies leaves the rest as it is.

    Runs of one protocol saw the same validation images, see `_with_other_pixels`; what was
    measured here counts before what was imported.
    """
    runs: list[Run] = []
    measurements: list[Measurement] = []
    imported: list[Measurement] = []
    skipped = Counter[str]()
    refused: dict[str, str] = {}
    parameters = claims.Parameters(parts)
    for run_id, state in states.items():
        tags, is_measurement = state["tags"], state["tags"].get(Tag.KIND) == MEASUREMENT
        if tags.get(Tag.KIND) == LEADERBOARD:  # the pages that were published from here
            continue
        if reason := _reason_to_skip(state, experiments):
            skipped[reason] += 1
            continue
        metrics = _finite(state["metrics"])
        problem = next(_problems(state, metrics, parameters), None) if verify else None
        if problem is not None:
            skipped[problem.kind] += 1
            refused[run_id] = problem.line
        elif is_measurement:
            (imported if Tag.IMPORTED in tags else measurements).append(
                Measurement(
                    run_id=run_id,
                    finished=state["finished"],
                    metrics=metrics,
                    **{field: tags[tag] for field, tag in MEASUREMENT_TAGS.items()},
                )
            )
        else:
            runs.append(
                Run(
                    run_id=run_id,
                    experiment_id=state["experiment"],
                    name=state["name"] or run_id,
                    experiment=experiments[state["experiment"]],
                    started=claims.sound_start(state["started"], state["finished"]),
                    finished=state["finished"],
                    synthetic=tags.get(Tag.SYNTHETIC) == "true",
                    tags=tags,
                    params={name: parts[digest] for name, digest in state["params"].items()},
                    metrics=metrics,
                    **{field: tags[tag] for field, tag in TAGS.items()},
                )
            )
    own = {_what_was_measured(one) for one in measurements}
    measurements += [one for one in imported if _what_was_measured(one) not in own]
    if other := _with_other_pixels(runs):
        skipped["evaluated on validation images of other pixels"] = len(other)
    runs = [run for run in runs if run.run_id not in other]
    return Reading(
        tuple(sorted(runs, key=lambda run: (run.finished, run.tags.get(Tag.UID, run.run_id)))),
        dict(skipped),
        in_order(measurements),
        refused,
    )


def _what_was_measured(one: Measurement) -> tuple[object, ...]:
    batch_size = one.metrics.get(Metric.MEASURE_BATCH_SIZE)
    return one.protocol_fingerprint, one.model_fingerprint, one.hardware, batch_size


def _with_other_pixels(runs: Iterable[Run]) -> set[str]:
    """Ids of the runs that were evaluated on other pixels than most runs of their protocol.

    Where one has runs of one's own, only these decide; of as many, those of which one ended first.
    Runs of before there was the tag are none of them.
    """
    by_protocol: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if pixels := run.tags.get(Tag.VAL_PIXELS):
            by_protocol[run.protocol_fingerprint][pixels].append(run)

    def weight(group: Sequence[Run]) -> tuple[int, int, int]:
        own = [run for run in group if not run.imported]
        counted = own or group
        return len(own), len(counted), -min(run.finished for run in counted)

    other = set()
    for groups in by_protocol.values():
        stays = max(groups, key=lambda pixels: (weight(groups[pixels]), pixels))
        other |= {run.run_id for key in groups.keys() - {stays} for run in groups[key]}
    return other


def in_order(measurements: Iterable[Measurement]) -> tuple[Measurement, ...]:
    """The same in every store that has them, as is the order of runs in a reading."""
    return tuple(
        sorted(measurements, key=lambda m: (m.finished, m.session, m.model_fingerprint, m.run_id))
    )


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `CURVE_POINTS`: the mean of neighbours at the last step of each group.

    The last point stays as it is: where the curve ends is the metric's last value.
    """
    points = sorted(point for point in points if _is_finite(point[1]))
    rest, last = points[:-1], points[-1:]
    size = math.ceil(len(rest) / (CURVE_POINTS - 1))
    groups = (rest[start : start + size] for start in range(0, len(rest), size or 1))
    return [*((group[-1][0], fmean(value for _, value in group)) for group in groups), *last]


def read_curves(path: Path) -> Curves:
    content = json.loads(path.read_text())
    return {key: [(int(step), value) for step, value in content[key]] for key in content}


def digest_of(content: Any) -> str:
    """32 hex digits of plain data, such as a group of parameters."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _reason_to_skip(state: State, experiments: Mapping[str, str]) -> str:
    tags, status = state["tags"], state["status"]
    if not tags:
        return "of other programs"
    if state["deleted"]:
        return "deleted"
    if state["experiment"] not in experiments:
        return "of deleted experiments"
    if (schema := tags.get(Tag.SCHEMA, "unknown")) != SCHEMA_VERSION:
        return f"of schema {schema} (this is {SCHEMA_VERSION})"
    if status != "FINISHED":
        return "not finished" if status in ("RUNNING", "SCHEDULED") else status.lower()
    is_measurement = tags.get(Tag.KIND) == MEASUREMENT
    needed = MEASUREMENT_TAGS if is_measurement else TAGS
    if missing := [tag for tag in needed.values() if not tags.get(tag)]:
        return f"without tag {missing[0]}"
    if not is_measurement and not _is_finite(state["metrics"].get(HEADLINE.key, math.nan)):
        return f"without {HEADLINE.key}"
    return ""


def _problems(
    state: State, metrics: Mapping[str, float], parameters: claims.Parameters
) -> Iterator[claims.Problem]:
    """What a finished run or measurement claims and cannot be."""
    tags = state["tags"]
    yield from claims.problems_of_time(state["finished"])
    yield from claims.problems_of_tags(tags)
    if tags.get(Tag.KIND) == MEASUREMENT:  # records no settings
        yield from claims.problems_of_metrics(metrics)
    else:
        yield from parameters.problems(tags, state["params"])
        yield from claims.problems_of_metrics(metrics, parameters.classes(state["params"]))


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if _is_finite(value)}


def _is_finite(value: float) -> bool:
    return abs(value) < INFINITY  # false for NaN
