"""Mixer plans: which mixer each block of a model gets. No torch here.

A plan is one choice for all blocks, or a list that is spread evenly over the depth:
four choices over twelve blocks are three blocks each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mixers.core.errors import Refusal
from mixers.core.names import nearest


@dataclass(frozen=True)
class Schedule:
    """A plan with a name."""

    plan: tuple[str, ...]
    summary: str
    paper: str
    formula: str
    """As a mixer's; block (or stage) ℓ of L."""


SCHEDULES: Mapping[str, Schedule] = MappingProxyType(
    {
        "lit": Schedule(
            ("none", "none", "attention", "attention"),
            "No mixer in the first half of the blocks, attention in the second.",
            "Less is More: Pay Less Attention in Vision Transformers, arXiv:2105.14217",
            "y_ℓ = 0 for ℓ < L/2, y_ℓ = attention(x_ℓ) for ℓ ≥ L/2, ℓ = 0, …, L − 1",
        ),
    }
)

PLAN = "plan"
"""The mixer name of a plan without one: ``{"name": "plan", "plan": [...]}``."""


@dataclass(frozen=True)
class MixerChoice:
    """A mixer's name and its options."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


MixerSpec = str | Mapping[str, Any] | Sequence["str | Mapping[str, Any]"]
"""``"attention"``, ``"lit"``, ``{"name": "local_attention", "window": 5}``, or a list of these."""


def read_plan(spec: MixerSpec) -> tuple[MixerChoice, ...]:
    """The choices of a plan, schedules resolved, not yet spread over blocks.

    Raises:
        Refusal: a choice has no name, a schedule has options, or the plan is empty.
    """
    if isinstance(spec, str):
        if spec in SCHEDULES:
            return read_plan(SCHEDULES[spec].plan)
        return (MixerChoice(spec),)
    if isinstance(spec, Mapping):
        name = spec.get("name")
        options = {key: value for key, value in spec.items() if key != "name"}
        if "plan" in options or name in SCHEDULES:
            plan = options.pop("plan", name)
            if options:
                raise Refusal(
                    f"a schedule ({name or plan}) has no option {next(iter(options))!r}: give "
                    "options to the mixers in its plan, {name: ..., option: ...}."
                )
            return read_plan(plan)
        if name is None:
            raise Refusal(f"a mixer needs a name: {dict(spec)} has none.")
        return (MixerChoice(str(name), options),)
    if not isinstance(spec, Sequence):
        raise Refusal(f"a mixer plan is a name, a mapping or a list of these, not {spec!r}.")
    choices = tuple(choice for part in spec for choice in read_plan(part))
    if not choices:
        raise Refusal("a mixer plan needs at least one mixer.")
    return choices


def plan_name(spec: MixerSpec) -> str:
    """A plan in a word: the mixer, the schedule, or the mixers one after the other."""
    if isinstance(spec, str):
        return spec
    names = [choice.name for choice in read_plan(spec)]
    if isinstance(spec, Mapping) and "plan" not in spec:
        return names[0]
    for name, schedule in SCHEDULES.items():
        if names == list(schedule.plan):
            return name
    return "-".join(name for i, name in enumerate(names) if i == 0 or name != names[i - 1])


def spread(
    plan: Sequence[MixerChoice], depth: int, units: str = "blocks"
) -> tuple[MixerChoice, ...]:
    """One choice per block of an isotropic model, or per stage of a staged one.

    Raises:
        Refusal: the plan has more choices than there are blocks or stages.
    """
    if len(plan) > depth:
        raise Refusal(
            f"a mixer plan of {len(plan)} choices does not fit {depth} {units}: "
            "shorten the plan or choose a deeper size."
        )
    return tuple(plan[block * len(plan) // depth] for block in range(depth))


def check_names(plan: Sequence[MixerChoice], known: Sequence[str]) -> None:
    """Refuse a name that is neither a mixer nor a schedule.

    Raises:
        Refusal: names the nearest known one.
    """
    for choice in plan:
        if choice.name not in known:
            raise Refusal(
                f"unknown mixer {choice.name!r}. {nearest(choice.name, {*known, *SCHEDULES})}"
            )


def check_prefix(
    plan: Sequence[MixerChoice], facts: Callable[[str], Mapping[str, Any]], pool: str
) -> None:
    """Refuse a class token that some mixer cannot take, or that none would fill.

    A fact that ``facts`` does not know (source text does not show what is inherited) passes.

    Raises:
        Refusal: says which mixer, and what to choose instead.
    """
    if pool != "token":
        return
    mixing = [choice.name for choice in plan if facts(choice.name).get("adds_sub_layer", True)]
    deaf = [name for name in mixing if not facts(name).get("mixes_prefix", True)]
    if deaf or not mixing:
        name = deaf[0] if deaf else "none"
        raise Refusal(
            f"mixer {name!r} cannot take a class token: it does not carry the image to it. "
            "Pool by average instead (pool='avg', on the command line backbone.pool=avg)."
        )
