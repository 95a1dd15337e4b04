"""What a setting must be and how it is treated: said in its annotation, read by `settings_of`.

hflip: Annotated[float, Bound("give a number from 0 to 1", lambda value: 0 <= value <= 1)]
root: Annotated[Optional[str], NOT_HASHED, LOCAL] = None
"""

import dataclasses
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True)
class Bound:
    """What a value must be, beyond its type. Null, where a setting may be null, always passes."""

    hint: str  # what to give, for the message
    allows: Callable[[Any], bool]


@dataclass(frozen=True)
class Mark:
    """How a setting is treated, where it differs from most."""

    meaning: str


NOT_HASHED = Mark("a name, a path or a tolerance of the protocol: it does not change a result")
ADDED_LATER = Mark("in the fingerprint unless it is its default, which is what held before it")
FILLED_IN = Mark("known once the data is open: no command line says it")
LOCAL = Mark("names files of one machine: what is published has the default instead")
FREE_IN_SUITE = Mark("the runs of one suite may differ in it")
MEASURED_WITH = Mark("speed and memory depend on it: recorded with every measurement")


@dataclass(frozen=True)
class Setting:
    """One field of the schema, with what its annotation says of it."""

    path: str  # recipe.optimizer.lr
    default: Any  # dataclasses.MISSING where it has none
    bound: Bound | None
    marks: frozenset[Mark]


@cache
def settings_of(schema: type) -> tuple[Setting, ...]:
    """Every setting of a schema, with those of the dataclasses inside it, in the schema's order."""
    return tuple(_settings(schema, ""))


def _settings(schema: type, prefix: str) -> Iterator[Setting]:
    hints = typing.get_type_hints(schema, include_extras=True)
    for field in dataclasses.fields(schema):
        hint, path = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(hint):
            yield from _settings(typing.cast(type, hint), f"{path}.")
        else:
            rules = list(_rules(hint))
            bound = next((rule for rule in rules if isinstance(rule, Bound)), None)
            marks = frozenset(rule for rule in rules if isinstance(rule, Mark))
            yield Setting(path, field.default, bound, marks)


def _rules(hint: Any) -> Iterator[Any]:
    """What ``Annotated`` says in a type, or inside it: ``Optional[Annotated[int, ...]]``."""
    yield from getattr(hint, "__metadata__", ())
    for inner in typing.get_args(hint):
        yield from _rules(inner)


def marked(schema: type, mark: Mark) -> dict[str, Any]:
    """Path -> default of the settings that have the mark; None for a setting without a default."""
    return {
        setting.path: None if setting.default is dataclasses.MISSING else setting.default
        for setting in settings_of(schema)
        if mark in setting.marks
    }
