"""From the states that a source holds to a reading; what is left out is counted."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from leaderboard.claims.of_settings import Parameters
from leaderboard.claims.of_values import (
    Problem,
    problems_of_metrics,
    problems_of_tags,
    problems_of_time,
    sound_start,
)
from leaderboard.reading.results import (
    MEASUREMENT_TAGS,
    TAGS,
    Measurement,
    Reading,
    State,
    TrainedRun,
    in_order,
    is_finite,
)
from mixerbench.tracking.figures import HEADLINE
from mixerbench.tracking.keys import LEADERBOARD, MEASUREMENT, SCHEMA_VERSION, Metric, Tag


def reading_of(
    states: Mapping[str, State],
    parts: Mapping[str, Mapping[str, str]],
    experiments: Mapping[str, str],
    *,
    verify: bool = True,
) -> Reading:
    """Runs and measurements from their states.

    What is left out is counted by its reason: what is no finished run, what claims something that
    no run can claim, and what differs from its own recorded settings. Such a run does not keep
    the others from being shown. Of the runs of one protocol only those are kept that saw the same
    pixels, see `_with_other_pixels`. A model that was measured here needs no imported measurement.

    Args:
        states: of each run or measurement, by its id.
        parts: groups of parameters, by the digests that the states name.
        experiments: names by id; runs of others are left out.
        verify: whether the claims are checked; a bundle does so itself.
    """
    runs: list[TrainedRun] = []
    measurements: list[Measurement] = []
    imported: list[Measurement] = []
    skipped = Counter[str]()
    refused: dict[str, str] = {}
    parameters = Parameters(parts)
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
                TrainedRun(
                    run_id=run_id,
                    experiment_id=state["experiment"],
                    name=state["name"] or run_id,
                    experiment=experiments[state["experiment"]],
                    started=sound_start(state["started"], state["finished"]),
                    finished=state["finished"],
                    synthetic=tags.get(Tag.SYNTHETIC) == "true",
                    tags=tags,
                    params={name: parts[digest] for name, digest in state["params"].items()},
                    metrics=metrics,
                    **{field: tags[tag] for field, tag in TAGS.items()},
                )
            )
    own = {_what_was_measured(measurement) for measurement in measurements}
    measurements += [
        measurement for measurement in imported if _what_was_measured(measurement) not in own
    ]
    if other := _with_other_pixels(runs):
        skipped["evaluated on validation images of other pixels"] = len(other)
    runs = [run for run in runs if run.run_id not in other]
    return Reading(
        tuple(sorted(runs, key=lambda run: (run.finished, run.tags.get(Tag.UID, run.run_id)))),
        dict(skipped),
        in_order(measurements),
        refused,
    )


def _what_was_measured(measurement: Measurement) -> tuple[object, ...]:
    batch_size = measurement.metrics.get(Metric.MEASURE_BATCH_SIZE)
    return (
        measurement.protocol_fingerprint,
        measurement.model_fingerprint,
        measurement.hardware,
        batch_size,
    )


def _with_other_pixels(runs: Iterable[TrainedRun]) -> set[str]:
    """Ids of the runs that were evaluated on other pixels than most runs of their protocol.

    Runs that were trained here decide, and where there are none, imported ones. If two groups
    have equally many runs, the group whose first run ended earlier decides. Runs without the tag
    (of older versions) are always kept.
    """
    by_protocol: dict[str, dict[str, list[TrainedRun]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if pixels := run.tags.get(Tag.VAL_PIXELS):
            by_protocol[run.protocol_fingerprint][pixels].append(run)

    def weight(group: Sequence[TrainedRun]) -> tuple[int, int, int]:
        own = [run for run in group if not run.imported]
        counted = own or group
        return len(own), len(counted), -min(run.finished for run in counted)

    other = set()
    for groups in by_protocol.values():
        stays = max(groups, key=lambda pixels: (weight(groups[pixels]), pixels))
        other |= {run.run_id for key in groups.keys() - {stays} for run in groups[key]}
    return other


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
    if not is_measurement and not is_finite(state["metrics"].get(HEADLINE.key, math.nan)):
        return f"without {HEADLINE.key}"
    return ""


def _problems(
    state: State, metrics: Mapping[str, float], parameters: Parameters
) -> Iterator[Problem]:
    """What a finished run or measurement claims and cannot be."""
    tags = state["tags"]
    yield from problems_of_time(state["finished"])
    yield from problems_of_tags(tags)
    if tags.get(Tag.KIND) == MEASUREMENT:  # records no settings
        yield from problems_of_metrics(metrics)
    else:
        yield from parameters.problems(tags, state["params"])
        yield from problems_of_metrics(metrics, parameters.classes(state["params"]))


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if is_finite(value)}
