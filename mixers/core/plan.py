"""Mixer plans: which mixer each block of a model gets. No torch here.

A plan is one choice for all blocks, or a list that is spread evenly over the depth (four choices
over twelve blocks are three blocks each), in a staged model over the stages. A choice may be a
cycle, ``{"cycle": [a, b]}``: a, b, a, b, ... from the first of its blocks to the last.
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


@dataclass(frozen=True)
class Cycle:
    """Mixers that take turns, block by block."""

    choices: tuple[MixerChoice, ...]


Plan = tuple[MixerChoice | Cycle, ...]

MixerSpec = str | Mapping[str, Any] | Sequence["str | Mapping[str, Any]"]
"""``"attention"``, ``"lit"``, ``{"name": "local_attention", "window": 5}``,
``{"cycle": ["local_attention", "attention"]}``, or a list of these."""


def read_plan(spec: MixerSpec) -> Plan:
    """The choices of a plan, schedules resolved, not yet spread over blocks.

    Raises:
        Refusal: a choice has no name, a schedule has options, the plan or a cycle is empty.
    """
    if isinstance(spec, str):
        if spec in SCHEDULES:
            return read_plan(SCHEDULES[spec].plan)
        return (MixerChoice(spec),)
    if isinstance(spec, Mapping) and "cycle" in spec:
        return (_read_cycle(spec),)
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
    plan = tuple(choice for part in spec for choice in read_plan(part))
    if not plan:
        raise Refusal("a mixer plan needs at least one mixer.")
    return plan


def _read_cycle(spec: Mapping[str, Any]) -> Cycle:
    mixers = spec["cycle"]
    if len(spec) > 1:
        raise Refusal(
            f"a cycle has no option {next(key for key in spec if key != 'cycle')!r}: give options "
            "to the mixers in it, {cycle: [{name: ..., option: ...}, ...]}."
        )
    if isinstance(mixers, (str, Mapping)) or not isinstance(mixers, Sequence) or len(mixers) < 2:
        raise Refusal(f"a cycle is a list of two mixers or more, not {mixers!r}.")
    choices = []
    for mixer in mixers:
        plan = read_plan(mixer)
        if len(plan) != 1 or isinstance(plan[0], Cycle):
            raise Refusal(f"a cycle holds single mixers, no plan, schedule or cycle: {mixer!r}.")
        choices.append(plan[0])
    return Cycle(tuple(choices))


def choices_in(plan: Plan) -> list[MixerChoice]:
    """All mixers of a plan, those of its cycles included."""
    return [
        choice
        for entry in plan
        for choice in (entry.choices if isinstance(entry, Cycle) else (entry,))
    ]


def plan_name(spec: MixerSpec) -> str:
    """A plan in a word: the mixer, the schedule, or the mixers one after the other.

    ``a-b`` is a, then b; ``a+b`` is a and b in turn.
    """
    if isinstance(spec, str):
        return spec
    plan = read_plan(spec)
    names = list(map(entry_name, plan))
    if isinstance(spec, Mapping) and "plan" not in spec:
        return names[0]
    for name, schedule in SCHEDULES.items():
        if names == list(schedule.plan):
            return name
    return "-".join(name for i, name in enumerate(names) if i == 0 or name != names[i - 1])


def entry_name(entry: MixerChoice | Cycle) -> str:
    """``a``, or ``a+b`` for a cycle."""
    return "+".join(choice.name for choice in choices_in((entry,)))


def assign(plan: Plan, depths: Sequence[int]) -> list[list[MixerChoice]]:
    """The mixer of every block, stage by stage.

    Several stages share the plan; of a model with one stage the blocks do. A plan that is one
    cycle goes on from stage to stage.

    Args:
        depths: blocks of each stage; an isotropic model has one.

    Raises:
        Refusal: the plan has more choices than there are stages or blocks, or a cycle has more
            mixers than it has blocks.
    """
    if len(plan) == 1:
        mixers = iter(_fill(plan[0], sum(depths)))
        return [[next(mixers) for _ in range(depth)] for depth in depths]
    units, length = ("stages", len(depths)) if len(depths) > 1 else ("blocks", depths[0])
    if len(plan) > length:
        raise Refusal(
            f"a mixer plan of {len(plan)} choices does not fit {length} {units}: "
            "shorten the plan or choose a deeper size."
        )
    shares = [number * len(plan) // length for number in range(length)]
    if units == "stages":
        return [_fill(plan[share], depth) for share, depth in zip(shares, depths, strict=True)]
    return [[own for i, entry in enumerate(plan) for own in _fill(entry, shares.count(i))]]


def _fill(entry: MixerChoice | Cycle, blocks: int) -> list[MixerChoice]:
    choices = choices_in((entry,))
    if len(choices) > blocks > 0:
        raise Refusal(
            f"a cycle of {len(choices)} mixers does not fit {blocks} "
            f"block{'s' if blocks > 1 else ''}: shorten it or choose a deeper size."
        )
    return [choices[block % len(choices)] for block in range(blocks)]


def check_names(plan: Plan, known: Sequence[str]) -> None:
    """Refuse a name that is neither a mixer nor a schedule.

    Raises:
        Refusal: names the nearest known one.
    """
    for choice in choices_in(plan):
        if choice.name not in known:
            raise Refusal(
                f"unknown mixer {choice.name!r}. {nearest(choice.name, {*known, *SCHEDULES})}"
            )


def check_prefix(
    plan: Sequence[MixerChoice], facts: Callable[[str], Mapping[str, Any]], pool: str
) -> None:
    """Refuse a class token that some mixer cannot take, or that none would fill.

    A fact that ``facts`` does not know passes: a base class of another package is not read.

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
