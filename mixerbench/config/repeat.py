"""The command that trains a run again, made from its settings.

The command that a run recorded is not shown: it is somebody's text, and could be ``curl … | sh``.
This one consists of settings only, of those that differ from the defaults.
"""

import dataclasses
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from mixerbench.config.compose import compose
from mixerbench.config.files import config_names
from mixerbench.config.overrides import in_hydras_words
from mixerbench.config.parts import part_catalog
from mixerbench.config.rules import FILLED_IN, marked
from mixerbench.config.schema import UNHASHED, Protocol, flatten
from mixerbench.config.sizes import finer_patch_size, size_settings
from mixers.core.plan import PLAN, SCHEDULES
from mixers.core.spec import MISSING, Spec

_FILLED_IN = frozenset(marked(Protocol, FILLED_IN))

_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def command(
    model: Mapping[str, Any], protocol: Mapping[str, Any], seed: str, plugins: Sequence[str] = ()
) -> str | None:
    """``mixerbench train ...``, quoted for a shell: composed, it gives these settings.

    Settings that name a machine's files are left out.

    Args:
        model: the settings of that group, nested; likewise ``protocol``.
        plugins: the files of mixers that are not registered here.

    Returns:
        None if the settings hold a name or text that would be dangerous to paste.
    """
    try:
        arguments = list(_arguments(model, protocol, plugins))
    except (KeyError, TypeError, AttributeError, ValueError):
        return None
    return shlex.join(["mixerbench", "train", *arguments, f"run.seed={seed}"])


def _arguments(
    model: Mapping[str, Any], protocol: Mapping[str, Any], plugins: Sequence[str]
) -> Iterator[str]:
    if plugins:
        yield f"plugins=[{','.join(map(_name, plugins))}]"
    groups = tuple(_protocol_groups(protocol))
    base = _composed(groups)
    yield from groups
    for part, always in (("mixer", True), ("size", True), ("backbone", False), ("stem", False)):
        name = _name(model[part]["name"])
        if always or name != base[f"{part}.name"]:
            yield f"{part}={name}"
    for part in ("mixer", "size", "backbone", "stem"):
        plain = _plain_part(model, part, base["protocol.patch_size"])
        for key, value in flatten(model[part]):
            if key != "name" and (key not in plain or plain[key] != value):
                yield _override(f"{part}.{key}", value)
    for key, value in flatten(protocol):
        before = base.get(f"protocol.{key}")
        filled_in = key in _FILLED_IN and before is None
        if key not in UNHASHED and key != "data.name" and not filled_in and before != value:
            yield _override(f"protocol.{key}", value)


def _protocol_groups(protocol: Mapping[str, Any]) -> Iterator[str]:
    """Overrides that choose the YAML files of the protocol, its recipe and its data."""
    name = protocol["name"]
    groups = [f"protocol={name}"] if name in config_names("protocol") else []
    yield from groups
    base = _composed(tuple(groups))
    for group in ("recipe", "data"):
        own = protocol[group]["name"]
        if own != base[f"protocol.{group}.name"] and own in config_names(group):
            yield f"{group}={own}"


@cache
def _composed(groups: tuple[str, ...]) -> Mapping[str, Any]:
    """All settings, flat, with these YAML files and nothing else on the command line."""
    settings = compose(groups)
    flat = dict(flatten(settings.model))
    return flat | dict(flatten(dataclasses.asdict(settings.protocol), "protocol."))


def _plain_part(model: Mapping[str, Any], part: str, patch_size: int) -> Mapping[str, Any]:
    """The default options of the model's part; empty if the part is not registered here."""
    name, backbone = model[part]["name"], model["backbone"]["name"]
    if part == "size":
        known = _catalog("backbone")
        rows = known[backbone].facts["sizes"] if backbone in known else {}
        return size_settings(rows[name]) if name in rows else {}
    if part == "mixer" and (name in SCHEDULES or name == PLAN):
        return {"plan": list(SCHEDULES[name].plan) if name in SCHEDULES else []}
    if name not in _catalog(part) or backbone not in _catalog("backbone"):
        return {}
    patches = finer_patch_size(patch_size, _catalog("backbone")[backbone].facts["stem_divisor"])
    return _lists(
        {
            option.name: patches if option.default is MISSING else option.default
            for option in _catalog(part)[name].options
        }
    )


@cache
def _catalog(kind: str) -> Mapping[str, Spec]:
    return part_catalog(kind)


def _lists(options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(value) if isinstance(value, tuple) else value for k, value in options.items()}


def _override(key: str, value: Any) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no setting")
    for text in _texts(value):
        # An interpolation would be resolved on the machine of whoever pastes it.
        if not text.isprintable() or "${" in text:
            raise ValueError(f"{text!r} is no text of a command")
    return f"{key}={in_hydras_words(value)}"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in (*value.keys(), *value.values()):
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text!r} is no name")
    return text
