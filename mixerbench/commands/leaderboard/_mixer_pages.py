"""What the pages of mixer families show: read from source, and measured here."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from leaderboard import Board
from leaderboard.mixer_description import MIXED, MixerDescription, Part
from leaderboard.reading.results import TrainedRun
from mixerbench.commands._listing import shown
from mixerbench.errors import first_line
from mixerbench.measure import tokens
from mixerbench.tracking.keys import Param
from mixers import MIXERS, load_plugin
from mixers.core.catalog import mixer_catalog
from mixers.core.plan import SCHEDULES, MixerChoice, Schedule, choices_in, read_plan
from mixers.core.spec import Spec

_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5}|[a-z-]+(?:\.[A-Z]{2})?/\d{7})")


def families(names: Iterable[str], plugins: Sequence[str] = ()) -> dict[str, MixerDescription]:
    """Name -> its family, in the order of ``names``; those that nobody registered are left out.

    Measures about half a second per mixer on the CPU, with default options. ``plugins`` are
    Python files that register mixers: they are run, and their mixers stay registered.

    Raises:
        ValueError: a plugin is no Python file, or takes a name that is taken.
    """
    catalog = mixer_catalog(plugins)
    for plugin in plugins:
        load_plugin(plugin)
    found = {}
    for name in names:
        if name in catalog:
            found[name] = _of_mixer(catalog[name])
        elif name in SCHEDULES:
            found[name] = _of_schedule(name, SCHEDULES[name])
    return found


def families_of(shown: Iterable[Board], plugins: Sequence[str] = ()) -> dict[str, MixerDescription]:
    """The families on some boards, as `families`; of code that is not here, what runs recorded.

    A store's own copies of plugins are never run: a plugin is one that ``plugins`` names.

    Raises:
        ValueError: as `families`.
    """
    recorded: dict[str, list[TrainedRun]] = {}
    for board in shown:
        for entry in board.entries:
            recorded.setdefault(entry.mixer, []).extend(entry.runs)
    found = families(recorded, plugins)
    known = {*mixer_catalog(plugins), *SCHEDULES}
    for name, runs in recorded.items():
        if name not in found and not known.issuperset(re.split(r"[-+]", name)):  # else it is a plan
            found[name] = _of_records(name, runs)
    return found


def _of_records(name: str, runs: Iterable[TrainedRun]) -> MixerDescription:
    prefix = f"{Param.MODEL}mixer."
    options: dict[str, set[str]] = {}
    for run in runs:
        for key, value in run.params.get("model", {}).items():
            if key.startswith(prefix) and key != f"{prefix}name":
                options.setdefault(key.removeprefix(prefix), set()).add(value)
    return MixerDescription(
        name=name,
        summary="Its code is not here: this is what its runs recorded.",
        formula="",
        paper="",
        paper_url="",
        options={key: ", ".join(sorted(values)) for key, values in options.items()},
        facts=(
            "What it costs and how far it looks is measured where the command names its file: "
            "plugins=[my_mixer.py].",
        ),
        parts=(),
        recorded=True,
    )


def _of_mixer(entry: Spec) -> MixerDescription:
    options = {option.name: shown(option.default) for option in entry.options}
    return _family(entry.name, entry, options)


def _of_schedule(name: str, schedule: Schedule) -> MixerDescription:
    return _family(name, schedule, {"plan": f"[{','.join(schedule.plan)}]"})


def _family(name: str, source: Spec | Schedule, options: Mapping[str, str]) -> MixerDescription:
    plan = choices_in(read_plan(name))
    distinct = [choice for i, choice in enumerate(plan) if choice not in plan[:i]]
    declared = [MIXERS.facts(choice.name) for choice in distinct]
    kinds = {own["family"] for own in declared}
    facts = _facts(declared) + tuple(
        f"{choice.name}: of the family {own['family']}; its cost grows with {own['complexity']}, "
        "N being the number of tokens."
        for choice, own in zip(distinct, declared, strict=True)
        if own["mixes_tokens"] and own["complexity"]
    )
    parts: tuple[Part, ...] = ()
    try:
        parts = tuple(map(_measured, distinct))
    except Exception as error:  # whatever a plugin's code raises: its page says it, others stay
        facts += (f"Could not be measured: {first_line(error)}",)
    number = _ARXIV.search(source.paper)
    return MixerDescription(
        name=name,
        family=kinds.pop() if len(kinds) == 1 else MIXED,
        summary=source.summary,
        formula=source.formula,
        paper=source.paper,
        paper_url=f"https://arxiv.org/abs/{number[1]}" if number else "",
        options=options,
        facts=facts,
        parts=parts,
    )


def _measured(choice: MixerChoice) -> Part:
    macs = tokens.macs_by_tokens(choice.name, choice.options)
    influence, share = tokens.reach(choice.name, choice.options)
    return Part(
        name=choice.name,
        dim=tokens.DIM,
        macs=macs,
        formula_macs=tokens.formula_macs_by_tokens(choice.name, choice.options),
        exponent=tokens.growth_exponent(macs),
        reach=influence,
        reach_share=share,
    )


def _facts(mixers: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Sentences about a plan of ``mixers``, from the facts that their classes declare."""
    mixing = [mixer for mixer in mixers if mixer["adds_sub_layer"]]
    alone = mixing and not any(mixer["mixes_tokens"] for mixer in mixing)
    if not mixing:
        return (
            "Runs on any grid of tokens.",
            "Adds no sub-layer: a block has no norm and no residual for it.",
            "Carries nothing to a class token.",
        )
    tying = sorted({option for mixer in mixers for option in mixer["grid_options"]})
    if not all(mixer["any_grid"] for mixer in mixers):
        grid = "Runs only on the grid of tokens that it was built for."
    elif tying:
        grid = f"Runs on any grid of tokens; with {' or '.join(tying)} only on that of training."
    else:
        grid = "Runs on any grid of tokens."
    if all(mixer["mixes_prefix"] for mixer in mixing):
        token = "Mixes a class token with the image."
    else:
        token = "Cannot mix a class token with the image: pool by average."
    return (grid, token, "Mixes no tokens, as it declares.") if alone else (grid, token)
