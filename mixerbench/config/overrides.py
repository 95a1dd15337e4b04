"""Reading and writing settings as ``key=value``, as a command line gives them."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from mixerbench.config.assignments import key_of, read_assignment, values_of
from mixerbench.config.files import config_names
from mixerbench.config.presets import PARTS, with_changes
from mixerbench.config.saved import check_saved
from mixerbench.config.schema import flatten
from mixerbench.errors import Refusal
from mixers.core.names import nearest
from mixers.core.plan import PLAN, SCHEDULES
from mixers.core.spec import Spec

_INSIDE_PROTOCOL = ("recipe", "data", "evaluation")
"""``recipe=deit3`` is short for ``protocol.recipe=deit3``, and so for these groups."""

_NAMES = (
    "name",
    "description",
    "recipe.name",
    "data.name",
)  # fixed by the chosen part or file

GROUPS = (*PARTS, "protocol", "recipe", "data")
"""Settings that name a registered class or a YAML file, which brings its settings with it."""


def parse(arguments: Sequence[str]) -> list[Override]:
    """Overrides with full names, from what a command line says (``data.root=...``).

    Raises:
        Refusal: an argument is not of the form name=value.
    """
    for argument in arguments:
        if not re.match(r"[A-Za-z_][\w@./:-]*=", argument):
            raise Refusal(
                f"cannot read {argument!r}: settings are given as name=value, "
                "such as mixer=patch_ff or run.seed=1."
            )
    parser = OverridesParser.create()
    overrides = []
    for argument in arguments:
        expanded = _full_key(argument)
        key, value = read_assignment(expanded)
        if not value.isascii() and not re.search(r"[][(){}'\",=]", value):
            expanded = f"{key}={QuotedString(value, Quote.double).with_quotes()}"  # a path, a name
        try:
            overrides.append(parser.parse_override(expanded))
        except HydraException:
            raise Refusal(
                f"cannot read {argument!r}: settings are given as name=value. A value with special "
                "characters needs quotes of its own, name='\"a=b\"'."
            ) from None
    return overrides


def _full_key(argument: str) -> str:
    """``recipe.epochs=5`` -> ``protocol.recipe.epochs=5``."""
    key, value = read_assignment(argument)
    if key == "launcher":
        return f"launcher.name={value}"
    key = key.removeprefix("protocol.")
    first = key.partition(".")[0]
    if first not in _INSIDE_PROTOCOL:
        return argument
    if key in GROUPS:  # names a YAML file: Hydra wants to know where its settings go
        return f"{key}@protocol.{key}={value}"
    return f"protocol.{key}={value}"


def find_plugins(overrides: Sequence[str]) -> list[str]:
    """The absolute paths in the last ``plugins=[...]``, read before anything is composed.

    Raises:
        Refusal: the value is not a list of files.
    """
    values = values_of(overrides, "plugins")
    if not values:
        return []
    try:
        content = yaml.safe_load(values[-1])
    except yaml.YAMLError:
        content = None
    names = [content] if isinstance(content, str) else content
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Refusal(f"plugins={values[-1]}: give a list of Python files, plugins=[my_mixer.py].")
    return [str(Path(name).expanduser().absolute()) for name in names]


def in_hydras_words(value: Any) -> str:
    """A value as Hydra reads it behind the equals sign."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{in_hydras_words(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(in_hydras_words, value)) + "]"
    if isinstance(value, str):
        return QuotedString(value, Quote.double).with_quotes()
    return json.dumps(value)


def overrides_of(saved: Mapping[str, Any], given: Sequence[str]) -> list[str]:
    """Saved settings as overrides, without the parts that the command line chooses anew.

    Plugins and downloads are left out: a file must not run code or fetch data by itself.

    Raises:
        Refusal: they are no settings, or more than plain data.
    """
    check_saved(saved)
    chosen = set(map(key_of, given))
    content = {} if "preset" in chosen else {part: saved["model"][part] for part in PARTS}
    data = saved["protocol"].get("data")
    content["protocol"] = dict(saved["protocol"])
    if isinstance(data, Mapping):
        content["protocol"]["data"] = {k: v for k, v in data.items() if k != "download"}
    return [
        override
        for part, values in content.items()
        if part not in chosen
        for override in _part_overrides(part, values)
    ]


def _part_overrides(part: str, content: str | Mapping[str, Any]) -> list[str]:
    """``stem=conv``, ``stem.kernel_size=7``, ... for a name, or a mapping with its name in it."""
    if isinstance(content, str):
        return [f"{part}={content}"]
    return [f"{part}={content['name']}"] + [
        f"{part}.{key}={in_hydras_words(value)}"
        for key, value in flatten(content)
        if key not in _NAMES
    ]


def expand_preset(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """The name in ``preset=NAME``, and the overrides with the preset's own ones before them.

    Raises:
        Refusal: there is no such preset.
    """
    names = values_of(overrides, "preset")
    rest = [override for override in overrides if key_of(override) != "preset"]
    if not names:
        return None, rest
    name = names[-1]
    parts = with_changes(name, {k: v for k, v in map(read_assignment, rest) if k in PARTS})
    presets = [text for part, content in parts.items() for text in _part_overrides(part, content)]
    return name, presets + rest


def expand_plan(overrides: Sequence[str]) -> list[str]:
    """``mixer={cycle:[a,b]}`` and ``mixer=[a,b]`` are plans without a name."""
    expanded = []
    for override in overrides:
        key, value = read_assignment(override)
        if key != "mixer" or value[:1] not in ("{", "["):
            expanded.append(override)
        else:
            plan = value if value.startswith("[") else f"[{value}]"
            expanded += [f"mixer={PLAN}", f"mixer.plan={plan}"]
    return expanded


def match_targets(overrides: Sequence[str]) -> list[str]:
    """The values of ``match=``, without the backslash that a sweep puts before the colon."""
    parser = OverridesParser.create()
    return [
        str(parser.parse_override(override).value())
        for override in overrides
        if key_of(override) == "match"
    ]


def chosen_backbone(overrides: Sequence[str], known: Collection[str]) -> str:
    """The backbone that the overrides choose: what sizes there are depends on it."""
    chosen = values_of(overrides, "backbone")
    return chosen[-1] if chosen and chosen[-1] in known else "vit"


def check_names(
    overrides: Sequence[str], catalogs: Mapping[str, Mapping[str, Spec]], backbone: str
) -> None:
    """Refuse what Hydra would refuse less clearly: unknown names of parts and YAML files.

    Raises:
        Refusal: the name and the nearest known one.
    """
    known = {
        **{kind: list(catalogs[kind]) for kind in ("backbone", "stem", "mixer")},
        **{group: config_names(group) for group in ("protocol", *_INSIDE_PROTOCOL[:2])},
        "size": list(catalogs["backbone"][backbone].facts["sizes"]),
    }
    known["mixer"] += [*SCHEDULES, PLAN]
    for override in overrides:
        key, text = read_assignment(override)
        group = key.partition("@")[0]
        if group in known:
            value = OverridesParser.create().parse_override(override).value()
            if value not in known[group]:
                of = f" of backbone {backbone}" if group == "size" else ""
                hint = nearest(str(value), known[group])
                raise Refusal(f"unknown {group} {value!r}{of}. {hint}")
        elif key.partition(".")[0] in PARTS and key.endswith(".name"):
            part = key.removesuffix(".name")
            raise Refusal(f"{key} is not set by itself: choose with {part}={text}.")
        elif key.partition(".")[0] == "hydra":
            raise Refusal("there is no setting 'hydra': mixerbench keeps its own folders.")
