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
from mixerbench.config.match import Match, read_target
from mixerbench.config.plugins import source_digests
from mixerbench.config.presets import PARTS, with_changes
from mixerbench.config.saved import check_saved
from mixerbench.config.schema import (
    Composed,
    Launcher,
    Protocol,
    Run,
    Settings,
    Tracking,
    build,
    flatten,
)
from mixerbench.config.sizes import SIZES, finer_patch_size
from mixerbench.errors import Refusal
from mixers.core.catalog import MISSING, Entry, mixer_catalog, nearest, read_files
from mixers.core.plan import PLAN, SCHEDULES, plan_name, read_plan

_HERE = Path(__file__).parent
CONFIGS = next(
    path for path in (_HERE.parent / "configs", _HERE.parents[1] / "configs") if path.is_dir()
)
"""The folder of YAML files: inside an installed package, else at the root of the checkout."""

_INSIDE_PROTOCOL = ("recipe", "data", "evaluation")
"""``recipe=deit3`` and ``data.root=...`` stand for what lies inside the protocol."""

KINDS = ("backbone", "stem", "mixer", "channel_mixer", "merging")
"""The kinds of registered classes that a model is made of."""

_WORDS = ("name", "description", "recipe.name", "data.name")  # chosen by the part's own name
_GROUPS = (*PARTS, "protocol", "recipe", "data")


def compose(arguments: Sequence[str], match: Match | None = None) -> Settings:
    """The settings of one run.

    Args:
        match: finds the size for ``match=...``, which is refused without it.

    Raises:
        Refusal: an unknown name or field, a value of the wrong type, a sweep.
    """
    overrides = _parse(arguments)
    for override in overrides:
        if override.is_sweep_override():
            raise Refusal(
                f"{override.input_line} names several values: add -m to train one run for each."
            )
    return _matched(_compose_one([str(override.input_line) for override in overrides]), match)


def compose_sweep(arguments: Sequence[str], match: Match | None = None) -> list[Settings]:
    """The settings of every combination of the values that the overrides name.

    Args:
        match: as in ``compose``, asked once everything else is known to be right.

    Raises:
        Refusal: as ``compose``; nothing has been started then.
    """
    choices = []
    for override in _parse(arguments):
        if override.is_sweep_override():
            if not override.is_choice_sweep() and not override.is_range_sweep():
                raise Refusal(f"{override.input_line}: a sweep names its values: a,b,c.")
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([str(override.input_line)])
    runs = [_compose_one(list(combination)) for combination in itertools.product(*choices)]
    return [_matched(settings, match) for settings in runs]


def overrides_of(saved: Mapping[str, Any], given: Sequence[str]) -> list[str]:
    """Saved settings as overrides, without the parts that the command line chooses anew.

    Only that: no code (plugins are named on the command line or not at all), and no download.

    Raises:
        ValueError: they are no settings, or more than plain data.
    """
    check_saved(saved)
    chosen = {override.partition("=")[0] for override in given}
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
    """``stem=conv``, ``stem.kernel_size=7``, ... for a name or a mapping that has one."""
    if isinstance(content, str):
        return [f"{part}={content}"]
    return [f"{part}={content['name']}"] + [
        f"{part}.{key}={in_hydras_words(value)}"
        for key, value in flatten(content)
        if key not in _WORDS
    ]


def _expand_preset(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """The name in ``preset=NAME``, and the overrides with what it stands for in front.

    Raises:
        ValueError: there is no such preset.
    """
    name, rest = None, []
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "preset":
            name = value
        else:
            rest.append(override)
    if name is None:
        return None, rest
    given = dict(override.split("=", 1) for override in rest if override.partition("=")[0] in PARTS)
    parts = with_changes(name, given)
    meant = [one for part, content in parts.items() for one in _part_overrides(part, content)]
    return name, meant + rest


def in_hydras_words(value: Any) -> str:
    """A value as the right side of an override."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{in_hydras_words(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(in_hydras_words, value)) + "]"
    if isinstance(value, str):
        return QuotedString(value, Quote.double).with_quotes()
    return json.dumps(value)


def part_catalog(kind: str, plugins: Sequence[str] = ()) -> dict[str, Entry]:
    """What can be named of a kind: mixers, stems, backbones, channel mixers, mergings."""
    if kind == "mixer":
        return mixer_catalog(plugins)
    return read_files(sorted((_HERE.parent / "models").glob("*.py")), kind)


def config_names(group: str) -> list[str]:
    """The names of the YAML files of a group."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def find_plugins(overrides: Sequence[str]) -> list[str]:
    """The absolute paths in ``plugins=[...]``: they must be known before anything is composed.

    Of several the last one counts, as of every setting.
    """
    for override in reversed(overrides):
        key, _, value = override.partition("=")
        if key == "plugins":
            try:
                content = yaml.safe_load(value)
            except yaml.YAMLError:
                content = None
            names = [content] if isinstance(content, str) else content
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise Refusal(f"{override}: give a list of Python files, plugins=[my_mixer.py].")
            return [str(Path(name).expanduser().absolute()) for name in names]
    return []


# --- composing ------------------------------------------------------------------------------


def _compose_one(overrides: list[str]) -> Settings:
    plugins = find_plugins(overrides)
    for text in _matches(overrides):
        read_target(text)
    preset, expanded = _expand_preset([o for o in overrides if not _matches([o])])
    catalogs = {kind: part_catalog(kind, plugins) for kind in KINDS}
    backbone = _backbone(expanded)
    _check_names(expanded, catalogs, backbone)
    with _hydra(catalogs, backbone):
        try:
            config = hydra.compose("train", expanded)
            content: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise Refusal(_explain(expanded, error)) from None
    model = {part: content[part] for part in PARTS}
    settings = Settings(
        label="",
        model=model,
        protocol=build(Protocol, content["protocol"]),
        run=build(Run, content["run"]),
        tracking=build(Tracking, content["tracking"]),
        plugins=plugins,
        overrides=overrides,
        launcher=build(Launcher, content["launcher"]),
    )
    check(settings, catalogs)
    digests = source_digests(plugins, model["mixer"], catalogs["mixer"])
    if digests:  # models of the built-in mixers keep the fingerprints that they always had
        model["plugins"] = digests
    settings.label = (
        _label(model, settings.protocol.patch_size, catalogs)
        if preset is None
        else _preset_label(preset, overrides)
    )
    return settings


def _matches(overrides: Sequence[str]) -> list[str]:
    """What stands after ``match=``, as Hydra reads it: a sweep escapes the colon."""
    parser = OverridesParser.create()
    return [
        str(parser.parse_override(override).value())
        for override in overrides
        if override.partition("=")[0] == "match"
    ]


def _matched(settings: Settings, match: Match | None) -> Settings:
    """Settings whose ``match=...`` is replaced by the size that it stands for.

    From here on it is a size like any other: in labels, fingerprints and recorded commands.
    """
    texts = _matches(settings.overrides)
    if not texts:
        return settings
    if match is None:
        raise Refusal(
            f"match={texts[-1]}: only train, profile and suite look for a size; name it here."
        )
    before = settings.model["size"]
    numbers = _plain(match(settings, read_target(texts[-1])))
    found = {f"size.{key}": value for key, value in numbers.items() if value != before[key]}
    kept = [o for o in settings.overrides if o.partition("=")[0] not in {"match", *found}]
    return _compose_one([*kept, *(f"{key}={in_hydras_words(n)}" for key, n in found.items())])


def _backbone(overrides: Sequence[str]) -> str:
    """The backbone that the overrides choose: what sizes there are depends on it."""
    chosen = [o.partition("=")[2] for o in overrides if o.partition("=")[0] == "backbone"]
    return chosen[-1] if chosen and chosen[-1] in SIZES else next(iter(SIZES))


def _check_names(
    overrides: Sequence[str], catalogs: Mapping[str, Mapping[str, Entry]], backbone: str
) -> None:
    """Refuse what Hydra would refuse less clearly: unknown names of whole groups."""
    known = {
        **{kind: list(catalogs[kind]) for kind in ("backbone", "stem", "mixer")},
        **{group: config_names(group) for group in ("protocol", *_INSIDE_PROTOCOL[:2])},
        "size": list(SIZES[backbone]),
    }
    known["mixer"] += [*SCHEDULES, PLAN]
    for override in overrides:
        key, _, text = override.partition("=")
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


@contextmanager
def _hydra(catalogs: Mapping[str, Mapping[str, Entry]], backbone: str) -> Iterator[None]:
    store = ConfigStore.instance()
    for group in PARTS:
        store.repo.pop(group, None)  # what an earlier call's plugins registered
    store.store("schema", Composed)
    divisor = catalogs["backbone"][backbone].facts["stem_divisor"]
    for kind in ("backbone", "stem", "mixer"):
        for name, entry in catalogs[kind].items():
            store.store(name, _node(entry, divisor), group=kind)
    plans = {name: list(schedule.plan) for name, schedule in SCHEDULES.items()} | {PLAN: []}
    for name, plan in plans.items():
        store.store(name, {"name": name, "plan": plan}, group="mixer")
    for name, size in SIZES[backbone].items():
        store.store(name, _size_node(name, size), group="size")
    OmegaConf.register_new_resolver("finer_patch_size", finer_patch_size, replace=True)
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield


def _plain(size: Any) -> dict[str, Any]:
    """A size as YAML and JSON have it."""
    numbers = dataclasses.asdict(size)
    return {key: list(n) if isinstance(n, tuple) else n for key, n in numbers.items()}


def _size_node(name: str, size: Any) -> type:
    fields: list[Any] = [("name", str, dataclasses.field(default=name))]
    for key, value in _plain(size).items():
        if isinstance(value, list):
            fields.append((key, list[int], dataclasses.field(default_factory=partial(list, value))))
        else:
            fields.append((key, int, dataclasses.field(default=value)))
    return dataclasses.make_dataclass(type(size).__name__, fields)


def _node(entry: Entry, divisor: int) -> type:
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
            raise Refusal(
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
            raise Refusal(
                f"cannot read {argument!r}: settings are given as name=value. A value with special "
                "characters needs quotes of its own, name='\"a=b\"'."
            ) from None
    return overrides


def _expand(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if key == "launcher":
        return f"launcher.name={value}"
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
    names = {part: model[part]["name"] for part in PARTS}
    divisor = catalogs["backbone"][names["backbone"]].facts["stem_divisor"]
    stem_patch_size = finer_patch_size(patch_size, divisor)
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
            words.append("plan=" + "-".join(choice.name for choice in plan))
    for name, value in _plain(SIZES[names["backbone"]][names["size"]]).items():
        if model["size"][name] != value:
            words.append(f"{name}={model['size'][name]}".replace(" ", ""))
    return "_".join(words)


def _preset_label(preset: str, overrides: Sequence[str]) -> str:
    """The preset's name and what the command line changes of it; also a folder's name."""
    words = [preset]
    for override in overrides:
        key, _, value = override.partition("=")
        if key.partition(".")[0] in PARTS:
            option = f"{key.rpartition('.')[2]}=" if "." in key else ""
            words.append(option + re.sub(r"[^\w.]+", "-", value).strip("-"))
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
