"""From a command line to the settings of one run, or of every run of a sweep.

Hydra composes; this file says what can be composed and puts the result into the three groups.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mixerbench.config.assignments import key_of
from mixerbench.config.checks import check
from mixerbench.config.cost_target import Match, read_target
from mixerbench.config.explain import explain
from mixerbench.config.files import CONFIGS
from mixerbench.config.overrides import (
    check_names,
    chosen_backbone,
    expand_plan,
    expand_preset,
    find_plugins,
    in_hydras_words,
    match_targets,
    parse,
)
from mixerbench.config.parts import (
    KINDS,
    model_label,
    option_node,
    part_catalog,
    preset_label,
    size_node,
)
from mixerbench.config.plugins import source_digests
from mixerbench.config.presets import PARTS
from mixerbench.config.schema import (
    Composed,
    Launcher,
    Protocol,
    Run,
    Settings,
    Tracking,
    build,
)
from mixerbench.config.sizes import finer_patch_size
from mixerbench.errors import Refusal
from mixers.core.plan import PLAN, SCHEDULES
from mixers.core.spec import Spec


def compose(arguments: Sequence[str], match: Match | None = None) -> Settings:
    """The settings of one run.

    Args:
        match: finds the size that ``match=...`` asks for; without it, ``match=...`` is refused.

    Raises:
        Refusal: an unknown name or field, a value of the wrong type, a sweep.
    """
    overrides = parse(arguments)
    for override in overrides:
        if override.is_sweep_override():
            raise Refusal(
                f"{override.input_line} names several values: add -m to train one run for each."
            )
    return _matched(_compose_one([str(override.input_line) for override in overrides]), match)


def compose_sweep(arguments: Sequence[str], match: Match | None = None) -> list[Settings]:
    """The settings of every combination of the values that the overrides name.

    Args:
        match: as in ``compose``; called when all combinations have been checked.

    Raises:
        Refusal: as in ``compose``.
    """
    choices = []
    for override in parse(arguments):
        if override.is_sweep_override():
            if not override.is_choice_sweep() and not override.is_range_sweep():
                raise Refusal(f"{override.input_line}: a sweep names its values: a,b,c.")
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([str(override.input_line)])
    runs = [_compose_one(list(combination)) for combination in itertools.product(*choices)]
    return [_matched(settings, match) for settings in runs]


def _compose_one(overrides: list[str]) -> Settings:
    plugins = find_plugins(overrides)
    for text in match_targets(overrides):
        read_target(text)
    preset, expanded = expand_preset([o for o in overrides if not match_targets([o])])
    expanded = expand_plan(expanded)
    catalogs = {kind: part_catalog(kind, plugins) for kind in KINDS}
    backbone = chosen_backbone(expanded, catalogs["backbone"])
    check_names(expanded, catalogs, backbone)
    with _hydra(catalogs, backbone):
        try:
            config = hydra.compose("train", expanded)
            content: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise Refusal(explain(expanded, error)) from None
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
    if digests:  # else the model's fingerprint stays as it is without plugins
        model["plugins"] = digests
    settings.label = (
        model_label(model, settings.protocol.patch_size, catalogs)
        if preset is None
        else preset_label(preset, overrides)
    )
    return settings


def _matched(settings: Settings, match: Match | None) -> Settings:
    """The settings with the size that ``match`` finds instead of ``match=...``.

    Labels, fingerprints and recorded commands then show the numbers of that size.
    """
    texts = match_targets(settings.overrides)
    if not texts:
        return settings
    if match is None:
        raise Refusal(
            f"match={texts[-1]}: only train, profile and suite look for a size; name it here."
        )
    before = settings.model["size"]
    numbers = match(settings, read_target(texts[-1])).written_as(before)
    found = {f"size.{key}": value for key, value in numbers.items() if value != before[key]}
    kept = [o for o in settings.overrides if key_of(o) not in {"match", *found}]
    return _compose_one([*kept, *(f"{key}={in_hydras_words(n)}" for key, n in found.items())])


@contextmanager
def _hydra(catalogs: Mapping[str, Mapping[str, Spec]], backbone: str) -> Iterator[None]:
    """Hydra, with what can be chosen here: registered parts, sizes of the backbone, YAML files."""
    store = ConfigStore.instance()
    for group in PARTS:
        store.repo.pop(group, None)  # may hold the plugins of an earlier call
    store.store("schema", Composed)
    divisor = catalogs["backbone"][backbone].facts["stem_divisor"]
    for kind in ("backbone", "stem", "mixer"):
        for name, entry in catalogs[kind].items():
            store.store(name, option_node(entry, divisor), group=kind)
    plans = {name: list(schedule.plan) for name, schedule in SCHEDULES.items()} | {PLAN: []}
    for name, plan in plans.items():
        store.store(name, {"name": name, "plan": plan}, group="mixer")
    for name, row in catalogs["backbone"][backbone].facts["sizes"].items():
        store.store(name, size_node(name, row), group="size")
    OmegaConf.register_new_resolver("finer_patch_size", finer_patch_size, replace=True)
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield
