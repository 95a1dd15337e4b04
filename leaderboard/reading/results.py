"""What is read: trained runs and measurements, as they were logged."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from mixerbench.tracking.keys import Tag

INFINITY = 1.797e308  # as MLflow stores it
OWN = "mixerbench."  # what the names of our tags begin with


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRun:
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
    runs: tuple[TrainedRun, ...]
    skipped: Mapping[str, int]  # reason: number of runs
    measurements: tuple[Measurement, ...] = ()
    refused: Mapping[str, str] = MappingProxyType({})  # run id: what its claims have wrong


def skipped_line(skipped: Mapping[str, int]) -> str:
    """``Not on a board: 2 failed, 1 of schema 0 (this is 1).``, or an empty string."""
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    return f"Not on a board: {counts}." if counts else ""


def in_order(measurements: Iterable[Measurement]) -> tuple[Measurement, ...]:
    """The same in every store that has them, as is the order of runs in a reading."""
    return tuple(
        sorted(measurements, key=lambda m: (m.finished, m.session, m.model_fingerprint, m.run_id))
    )


def digest_of(content: Any) -> str:
    """32 hex digits of plain data, such as a group of parameters."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def is_finite(value: float) -> bool:
    return abs(value) < INFINITY  # false for NaN


def newest(runs: Iterable[TrainedRun]) -> TrainedRun:
    """Of one's own if there are any: anybody may have dated an imported one."""
    return max(runs, key=lambda run: (not run.imported, run.finished, run.run_id))
