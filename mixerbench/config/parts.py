"""The parts that a model is made of: what can be chosen, with which options, and a model's label.

No torch here: what is registered is read from source.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Optional, Union

from mixerbench.config.assignments import read_assignment
from mixerbench.config.presets import PARTS
from mixerbench.config.sizes import SizeRow, finer_patch_size, size_settings
from mixers.core.catalog import mixer_catalog, plugin_path, read_files
from mixers.core.plan import PLAN, SCHEDULES, entry_name, plan_name, read_plan
from mixers.core.spec import MISSING, Spec

KINDS = ("backbone", "stem", "mixer", "channel_mixer", "merging")
"""The kinds of registered classes that a model is made of."""


def part_catalog(kind: str, plugins: Sequence[str] = ()) -> dict[str, Spec]:
    """What can be named of a kind: mixers, stems, backbones, channel mixers, mergings."""
    if kind == "mixer":
        return mixer_catalog(plugins)
    own = sorted((Path(__file__).parents[1] / "models").glob("*.py"))
    return read_files([*own, *map(plugin_path, plugins)], kind)


def size_node(name: str, row: SizeRow) -> type:
    """A dataclass of a size's numbers, so that Hydra knows their names and types."""
    fields: list[Any] = [("name", str, dataclasses.field(default=name))]
    for key, value in size_settings(row).items():
        if isinstance(value, list):
            fields.append((key, list[int], dataclasses.field(default_factory=partial(list, value))))
        else:
            fields.append((key, int, dataclasses.field(default=value)))
    return dataclasses.make_dataclass("Size", fields)


def option_node(entry: Spec, divisor: int) -> type:
    """A dataclass of a class's options, so that Hydra knows their names and types."""
    fields: list[Any] = [("name", str, dataclasses.field(default=entry.name))]
    for option in entry.options:
        default = option.default
        if default is MISSING:  # what every stem takes from the protocol
            default = f"${{finer_patch_size:${{protocol.{option.name}}},{divisor}}}"
        if isinstance(default, (tuple, list)):
            spec: Any = dataclasses.field(default_factory=partial(list, default))
        else:
            spec = dataclasses.field(default=default)
        fields.append((option.name, _python_type(option.annotation), spec))
    return dataclasses.make_dataclass(entry.class_name, fields)


def _python_type(annotation: str) -> Any:
    """The type that an annotation in our own source means; ``Any`` for an unknown name."""
    known = {
        "Any": Any, "Literal": Literal, "Optional": Optional, "Union": Union,
        "bool": bool, "float": float, "int": int, "list": list, "str": str, "tuple": tuple,
    }  # fmt: skip
    try:
        found = eval(annotation, {"__builtins__": {}}, known)
    except NameError:
        return Any
    return str if getattr(found, "__origin__", None) is Literal else found


def model_label(
    model: Mapping[str, Any], patch_size: int, catalogs: Mapping[str, Mapping[str, Spec]]
) -> str:
    """A short name: the mixer, the size, and whatever differs from the plain model."""
    names = {part: model[part]["name"] for part in PARTS}
    facts = catalogs["backbone"][names["backbone"]].facts
    stem_patch_size = finer_patch_size(patch_size, facts["stem_divisor"])
    words = [plan_name(model["mixer"]) if names["mixer"] == PLAN else names["mixer"], names["size"]]
    words += [names[part] for part in ("stem", "backbone") if names[part] not in ("patch", "vit")]
    for part in ("mixer", "stem", "backbone"):
        entry = catalogs[part].get(names[part])
        for option in entry.options if entry else ():
            value = model[part][option.name]
            plain = stem_patch_size if option.default is MISSING else option.default
            if value != (list(plain) if isinstance(plain, tuple) else plain):
                words.append(f"{option.name}={value}".replace(" ", ""))
    if names["mixer"] in SCHEDULES:
        plan = read_plan(model["mixer"]["plan"])
        if plan != read_plan(names["mixer"]):
            words.append("plan=" + "-".join(map(entry_name, plan)))
    for name, value in size_settings(facts["sizes"][names["size"]]).items():
        if model["size"][name] != value:
            words.append(f"{name}={model['size'][name]}".replace(" ", ""))
    return "_".join(words)


def preset_label(preset: str, overrides: Sequence[str]) -> str:
    """The preset's name and what the command line changes of it; also a folder's name."""
    words = [preset]
    for override in overrides:
        key, value = read_assignment(override)
        if key.partition(".")[0] in PARTS:
            option = f"{key.rpartition('.')[2]}=" if "." in key else ""
            words.append(option + re.sub(r"[^\w.]+", "-", value).strip("-"))
    return "_".join(words)
