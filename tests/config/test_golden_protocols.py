"""The resolved values of protocols and recipes, written down when each file still stated all."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mixerbench.config.compose import compose
from mixerbench.config.files import config_names
from mixerbench.config.rules import ADDED_LATER, marked, settings_of
from mixerbench.config.schema import UNHASHED, Protocol, Settings, flatten

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "protocols.json").read_text())
"""Arguments -> setting -> value. The protocol ``digits`` is held by its fingerprint alone."""


def _resolved(argument: str) -> dict[str, Any]:
    return dict(flatten(dataclasses.asdict(compose([argument]).protocol)))


@pytest.mark.parametrize("argument", GOLDEN)
def test_resolved_values_are_what_they_were(argument: str) -> None:
    resolved = _resolved(argument)
    assert {path: resolved[path] for path in GOLDEN[argument]} == GOLDEN[argument]


def test_all_protocols_and_recipes_are_written_down() -> None:
    protocols = {f"protocol={name}" for name in config_names("protocol") if name != "digits"}
    recipes = {f"recipe={name}" for name in config_names("recipe")}
    assert set(GOLDEN) == protocols | recipes


def test_what_was_added_later_keeps_the_old_fingerprints_by_its_default() -> None:
    added = marked(Protocol, ADDED_LATER)
    paths = {setting.path: setting.default for setting in settings_of(Protocol)}
    assert added and all(paths[path] is not dataclasses.MISSING for path in added)
    written = set.union(*(set(values) for values in GOLDEN.values()))
    hashed = set(paths) - written - UNHASHED
    assert hashed <= set(added), f"{hashed}: mark them ADDED_LATER, or all fingerprints change"


def test_the_defaults_of_the_schema_are_within_its_own_bounds() -> None:
    for setting in settings_of(Settings):
        if setting.bound and setting.default not in (None, dataclasses.MISSING):
            assert setting.bound.allows(setting.default), setting.path
