"""What is wrong with a setting that Hydra refuses, in one line that a person can use."""

import copy
from contextlib import suppress
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mixerbench.config.assignments import key_of, read_assignment
from mixerbench.config.overrides import GROUPS
from mixerbench.config.schema import flatten
from mixers.core.names import nearest

_TYPES_IN_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "List": "a list such as [1,2]",
}
"""A type's name in Python -> how a message names it."""


def explain(overrides: list[str], error: Exception) -> str:
    """The message for what Hydra refuses: the override that is wrong, and what it should be."""
    groups = [o for o in overrides if key_of(o).partition("@")[0] in GROUPS]
    with suppress(HydraException, OmegaConfBaseException):
        plain = hydra.compose("train", groups)
        for override in overrides:
            if override not in groups:
                key, value = read_assignment(override)
                message = _explain_field(key, value, plain)
                if message:
                    return message
    reason = str(error).strip().splitlines()[0]
    return f"{reason} (settings: {' '.join(overrides)})"


def _explain_field(key: str, value: str, plain: DictConfig) -> str | None:
    """What is wrong with ``key=value``, by a configuration without it; None if it is right."""
    node: Any = plain
    walked = ""
    for name in key.split("."):
        known = [str(field) for field in node] if isinstance(node, DictConfig) else []
        if name not in known:
            where = f"{walked} has" if walked else "there is"
            return f"{where} no setting {name!r}. " + (
                _nearest_field(name, node) if known else f"{walked} is a single value."
            )
        node = node._get_node(name)
        walked = f"{walked}.{name}" if walked else name
    if isinstance(node, DictConfig):
        first = str(next(iter(node)))
        return f"{key} is a group of settings: set one of them, such as {key}.{first}=..."
    try:
        parsed = OverridesParser.create().parse_override(f"{key}={value}").value()
        OmegaConf.update(copy.deepcopy(plain), key, parsed)
    except OmegaConfBaseException:
        kind = getattr(node._metadata.ref_type, "__name__", "")
        return f"{key}={value}: expected {_TYPES_IN_WORDS.get(kind, kind)}, got {value!r}."
    return None


def _nearest_field(name: str, node: DictConfig) -> str:
    """A hint: the setting of this name in an inner group, else the most similar name here."""
    known = [str(field) for field in node]
    content: Any = OmegaConf.to_container(node, resolve=False)
    deeper = [path for path, _ in flatten(content) if path.endswith(f".{name}")]
    if deeper:
        return f"Did you mean {deeper[0]!r}? Known here: {', '.join(known)}."
    return nearest(name, known)
