"""What the recorded settings of a run make of it, and where its tags say something else.

A run's settings were recorded as parameters. They are read back, hashed again and compared with
what the tags claim.
"""

import ast
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from leaderboard.claims.of_values import LONGEST, Problem
from mixerbench.config import schema
from mixerbench.config.sources import has_fact
from mixerbench.tracking.keys import Param, Tag
from mixers.core.errors import Refusal
from mixers.core.plan import plan_name


@dataclass(frozen=True)
class Recorded:
    """What one group of recorded settings makes of a run: its protocol, its model or its seed."""

    tags: Mapping[str, str]  # that follow from it
    fingerprints: tuple[str, ...] = ()  # as each version so far hashed it, this version's first
    classes: int | None = None


def of_protocol(protocol: Mapping[str, Any]) -> Recorded:
    """What a run records of its protocol, of which all fields are given, nested or flat.

    Raises:
        KeyError, TypeError, ValueError: these are no settings of a protocol.
    """
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
    """What a run records of its model.

    Raises:
        KeyError, TypeError, ValueError: these are no settings of a model.
    """
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
    """What a run records of its run settings.

    Raises:
        KeyError: they have no seed.
    """
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
    """Settings read back from parameters, kept by the digests of groups: most runs share them."""

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
