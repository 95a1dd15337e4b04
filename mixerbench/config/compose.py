"""From a command line to the settings of one run, or of every run of a sweep.

Hydra composes; this file says what can be composed, puts the result into the three
groups, and turns what Hydra refuses into one line that a person can use. No torch here:
what is registered is read from source.
"""

import copy
import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, Optional, Union

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mixerbench.config.checks import check
from mixerbench.config.schema import Composed, Protocol, Run, Settings, Tracking, build, flatten
from mixerbench.config.sizes import SIZES
from mixerbench.errors import UserError
from mixers.catalog import MISSING, Entry, mixer_catalog, nearest, read_files
from mixers.plan import SCHEDULES, read_plan

_HERE = Path(__file__).parent
CONFIGS = next(
    path for path in (_HERE.parent / "configs", _HERE.parents[1] / "configs") if path.is_dir()
)
"""The folder of YAML files: inside an installed package, else at the root of the checkout."""

_INSIDE_PROTOCOL = ("recipe", "data", "evaluation")
"""``recipe=deit3`` and ``data.root=...`` stand for what lies inside the protocol."""

_PARTS = ("backbone", "size", "stem", "mixer")
_WORDS = ("name", "description", "recipe.name", "data.name")  # chosen by the part's own name
_GROUPS = (*_PARTS, "protocol", "recipe", "data")


def compose(arguments: Sequence[str]) -> Settings:
    """The settings of one run.

    Raises:
        UserError: an unknown name or field, a value of the wrong type, a sweep.
    """
    overrides = _parse(arguments)
    for override in overrides:
        if override.is_sweep_override():
            raise UserError(
                f"{override.input_line} names several values: add -m to train one run for each."
            )
    return _compose_one([str(override.input_line) for override in overrides])


def compose_sweep(arguments: Sequence[str]) -> list[Settings]:
    """The settings of every combination of the values that the overrides name.

    Raises:
        UserError: as ``compose``; nothing has been started then.
    """
    choices = []
    for override in _parse(arguments):
        if override.is_sweep_override():
            if not override.is_choice_sweep() and not override.is_range_sweep():
                raise UserError(f"{override.input_line}: a sweep names its values: a,b,c.")
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([str(override.input_line)])
    return [_compose_one(list(combination)) for combination in itertools.product(*choices)]


def overrides_of(saved: Mapping[str, Any], given: Sequence[str]) -> list[str]:
    """Saved settings as overrides, without the parts that the command line chooses anew."""
    chosen = {override.partition("=")[0] for override in given}
    overrides = []
    for part in (*_PARTS, "protocol"):
        if part in chosen:
            continue
        content = saved["protocol"] if part == "protocol" else saved["model"][part]
        overrides.append(f"{part}={content['name']}")
        for key, value in flatten(content):
            if key not in _WORDS:
                overrides.append(f"{part}.{key}={_in_hydras_words(value)}")
    if saved["plugins"] and "plugins" not in chosen:
        overrides.append(f"plugins={_in_hydras_words(saved['plugins'])}")
    return overrides


def _in_hydras_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_in_hydras_words(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_in_hydras_words, value)) + "]"
    if isinstance(value, str):
        return QuotedString(value, Quote.double).with_quotes()
    return json.dumps(value)


def launcher_jobs(arguments: Sequence[str]) -> int | None:
    """``launcher.jobs``, which belongs to a sweep and to none of its runs."""
    for argument in arguments:
        if argument.startswith("launcher.jobs="):
            value = argument.partition("=")[2]
            if value != "null" and (not value.isdecimal() or int(value) < 1):
                raise UserError(f"{argument}: give one number, 1 or more.")
            return None if value == "null" else int(value)
    return None


def part_catalog(kind: str, plugins: Sequence[str] = ()) -> dict[str, Entry]:
    """The mixers, stems or backbones that can be named."""
    if kind == "mixer":
        return mixer_catalog(plugins)
    return read_files(sorted((_HERE.parent / "models").glob("*.py")), kind)


def config_names(group: str) -> list[str]:
    """The names of the YAML files of a group."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def find_plugins(overrides: Sequence[str]) -> list[str]:
    """The absolute paths in ``plugins=[...]``: they must be known before anything is composed."""
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "plugins":
            try:
                content = yaml.safe_load(value)
            except yaml.YAMLError:
                content = None
            names = [content] if isinstance(content, str) else content
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise UserError(f"{override}: give a list of Python files, plugins=[my_mixer.py].")
            return [str(Path(name).expanduser().absolute()) for name in names]
    return []


# --- composing ------------------------------------------------------------------------------


def _compose_one(overrides: list[str]) -> Settings:
    plugins = find_plugins(overrides)
    try:
        catalogs = {kind: part_catalog(kind, plugins) for kind in ("backbone", "stem", "mixer")}
    except ValueError as error:
        raise UserError(str(error)) from None
    _check_names(overrides, catalogs)
    with _hydra(catalogs):
        try:
            config = hydra.compose("train", overrides)
            content: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_explain(overrides, error)) from None
    model = {part: content[part] for part in _PARTS}
    settings = Settings(
        label="",
        model=model,
        protocol=build(Protocol, content["protocol"]),
        run=build(Run, content["run"]),
        tracking=build(Tracking, content["tracking"]),
        plugins=plugins,
        overrides=overrides,
    )
    try:
        check(settings, catalogs["mixer"])
    except ValueError as error:
        raise UserError(str(error)) from None
    settings.label = _label(model, settings.protocol.patch_size, catalogs)
    return settings


def _check_names(overrides: Sequence[str], catalogs: Mapping[str, Mapping[str, Entry]]) -> None:
    """Refuse what Hydra would refuse less clearly: unknown names of whole groups."""
    known = {
        **{kind: list(entries) for kind, entries in catalogs.items()},
        **{group: config_names(group) for group in ("protocol", *_INSIDE_PROTOCOL[:2])},
        "size": list(SIZES),
    }
    known["mixer"] += SCHEDULES
    for override in overrides:
        key, _, text = override.partition("=")
        group = key.partition("@")[0]
        if group in known:
            value = OverridesParser.create().parse_override(override).value()
            if value not in known[group]:
                raise UserError(f"unknown {group} {value!r}. {nearest(str(value), known[group])}")
        elif key.partition(".")[0] in _PARTS and key.endswith(".name"):
            part = key.removesuffix(".name")
            raise UserError(f"{key} is not set by itself: choose with {part}={text}.")
        elif key.partition(".")[0] == "hydra":
            raise UserError("there is no setting 'hydra': mixerbench keeps its own folders.")


@dataclasses.dataclass
class _SizeNode:
    name: str
    dim: int
    depth: int
    num_heads: int


@contextmanager
def _hydra(catalogs: Mapping[str, Mapping[str, Entry]]) -> Iterator[None]:
    store = ConfigStore.instance()
    for group in _PARTS:
        store.repo.pop(group, None)  # what an earlier call's plugins registered
    store.store("schema", Composed)
    for kind, entries in catalogs.items():
        for name, entry in entries.items():
            store.store(name, _node(entry), group=kind)
    for name, schedule in SCHEDULES.items():
        store.store(name, {"name": name, "plan": list(schedule.plan)}, group="mixer")
    for name, size in SIZES.items():
        store.store(name, _SizeNode(name, **dataclasses.asdict(size)), group="size")
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield


def _node(entry: Entry) -> type:
    """A dataclass of a class's options, so that Hydra knows their names and types."""
    fields: list[Any] = [("name", str, dataclasses.field(default=entry.name))]
    for option in entry.options:
        default = option.default
        if default is MISSING:  # what every stem takes from the protocol
            default = f"${{protocol.{option.name}}}"
        if isinstance(default, (tuple, list)):
            spec: Any = dataclasses.field(default_factory=partial(list, default))
        else:
            spec = dataclasses.field(default=default)
        fields.append((option.name, _type(option.annotation), spec))
    return dataclasses.make_dataclass(entry.class_name, fields)


def _type(annotation: str) -> Any:
    known = {
        "Any": Any, "Literal": Literal, "Optional": Optional, "Union": Union,
        "bool": bool, "float": float, "int": int, "list": list, "str": str, "tuple": tuple,
    }  # fmt: skip
    try:
        found = eval(annotation, {"__builtins__": {}}, known)  # a type from our own source
    except NameError:
        return Any
    return str if getattr(found, "__origin__", None) is Literal else found


def _parse(arguments: Sequence[str]) -> list[Override]:
    for argument in arguments:
        if not re.match(r"[A-Za-z_][\w@./:-]*=", argument):
            raise UserError(
                f"cannot read {argument!r}: settings are given as name=value, "
                "such as mixer=patch_ff or run.seed=1."
            )
    parser = OverridesParser.create()
    overrides = []
    for argument in arguments:
        expanded = _expand(argument)
        key, _, value = expanded.partition("=")
        if not value.isascii() and not re.search(r"[][(){}'\",=]", value):
            expanded = f"{key}={QuotedString(value, Quote.double).with_quotes()}"  # a path, a name
        try:
            overrides.append(parser.parse_override(expanded))
        except HydraException:
            raise UserError(
                f"cannot read {argument!r}: settings are given as name=value. A value with special "
                "characters needs quotes of its own, name='\"a=b\"'."
            ) from None
    return overrides


def _expand(argument: str) -> str:
    key, equals, value = argument.partition("=")
    key = key.removeprefix("protocol.")
    first = key.partition(".")[0]
    if first not in _INSIDE_PROTOCOL:
        return argument
    if key in _GROUPS:  # a whole file: Hydra wants to know where it goes
        return f"{key}@protocol.{key}{equals}{value}"
    return f"protocol.{key}{equals}{value}"


def _label(
    model: Mapping[str, Any], patch_size: int, catalogs: Mapping[str, Mapping[str, Entry]]
) -> str:
    """A short name: the mixer, the size, and whatever differs from the plain model."""
    names = {part: model[part]["name"] for part in _PARTS}
    words = [names["mixer"], names["size"]]
    words += [names[part] for part in ("stem", "backbone") if names[part] not in ("patch", "vit")]
    for part in ("mixer", "stem", "backbone"):
        entry = catalogs[part].get(names[part])
        for option in entry.options if entry else ():
            value = model[part][option.name]
            plain = patch_size if option.default is MISSING else option.default
            if value != (list(plain) if isinstance(plain, tuple) else plain):
                words.append(f"{option.name}={value}")
    plan = model["mixer"].get("plan")
    if plan is not None and tuple(plan) != SCHEDULES[names["mixer"]].plan:
        words.append("plan=" + "-".join(choice.name for choice in read_plan(plan)))
    for name, value in dataclasses.asdict(SIZES[names["size"]]).items():
        if model["size"][name] != value:
            words.append(f"{name}={model['size'][name]}")
    return "_".join(words)


# --- explaining -----------------------------------------------------------------------------


def _explain(overrides: list[str], error: Exception) -> str:
    """What is wrong with the override that Hydra refuses, in our words."""
    groups = [o for o in overrides if o.partition("=")[0].partition("@")[0] in _GROUPS]
    with suppress(HydraException, OmegaConfBaseException):
        plain = hydra.compose("train", groups)
        for override in overrides:
            if override not in groups:
                key, _, value = override.partition("=")
                message = _explain_field(key, value, plain)
                if message:
                    return message
    first = str(error).strip().splitlines()[0]
    return f"{first} (settings: {' '.join(overrides)})"


def _explain_field(key: str, value: str, plain: DictConfig) -> str | None:
    """What is wrong with ``key=value`` in a configuration that is right without it."""
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
        return f"{key}={value}: expected {_PLAIN.get(kind, kind)}, got {value!r}."
    return None


def _nearest_field(name: str, node: DictConfig) -> str:
    """The setting further down that is called so, else the nearest one at this level."""
    known = [str(field) for field in node]
    content: Any = OmegaConf.to_container(node, resolve=False)
    deeper = [path for path, _ in flatten(content) if path.endswith(f".{name}")]
    if deeper:
        return f"Did you mean {deeper[0]!r}? Known here: {', '.join(known)}."
    return nearest(name, known)


_PLAIN = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "List": "a list such as [1,2]",
}
