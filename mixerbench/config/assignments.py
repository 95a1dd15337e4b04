"""``key=value`` as every command takes it: settings, filters, and what only one command knows."""

from collections.abc import Collection, Iterable
from typing import NamedTuple


class Assignment(NamedTuple):
    """One argument, split at its first equals sign."""

    key: str
    value: str  # as it was given; empty also where there is no equals sign


def read_assignment(argument: str) -> Assignment:
    key, _, value = argument.partition("=")
    return Assignment(key, value)


def key_of(argument: str) -> str:
    """``data.root=/images`` -> ``data.root``."""
    return read_assignment(argument).key


def values_of(arguments: Iterable[str], key: str) -> list[str]:
    """The values that a key is given, in their order: of several the last one counts."""
    return [value for name, value in map(read_assignment, arguments) if name == key]


def split_arguments(
    arguments: Iterable[str], keys: Collection[str]
) -> tuple[dict[str, str], list[str]]:
    """The last value of each of these keys, and every other argument as it was given.

    One of these keys without a value is left among the others, whose reader refuses it.
    """
    own: dict[str, str] = {}
    others = []
    for argument in arguments:
        key, value = read_assignment(argument)
        if key in keys and value:
            own[key] = value
        else:
            others.append(argument)
    return own, others
