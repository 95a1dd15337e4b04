"""Mixer plans: from what a user writes to one choice per block."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixers import MIXERS, list_mixers
from mixers.core.catalog import mixer_catalog
from mixers.core.plan import SCHEDULES, MixerChoice, assign, check_names, check_prefix, read_plan

LIT = ["none", "none", "attention", "attention"]


def _names(plan) -> list[str]:
    return [choice.name for choice in plan]


def test_a_name_is_a_plan_of_one():
    assert read_plan("patch_ff") == (MixerChoice("patch_ff"),)


def test_a_mapping_is_a_name_and_its_options():
    plan = read_plan({"name": "local_attention", "window": 5})
    assert plan == (MixerChoice("local_attention", {"window": 5}),)


def test_a_list_may_mix_both_forms():
    plan = read_plan(["attention", {"name": "local_attention", "window": 5}])
    assert plan == (MixerChoice("attention"), MixerChoice("local_attention", {"window": 5}))


@pytest.mark.parametrize("spec", ["lit", {"name": "lit"}, {"plan": "lit"}, {"plan": LIT}, LIT])
def test_lit_is_nothing_first_and_attention_last(spec):
    assert _names(read_plan(spec)) == LIT


@pytest.mark.parametrize("depth", [4, 5, 6, 7, 12])
def test_lit_is_its_formula_for_any_depth(depth):
    assert "y_ℓ = 0 for ℓ < L/2" in SCHEDULES["lit"].formula  # ℓ counts from 0
    expected = ["none" if block < depth / 2 else "attention" for block in range(depth)]
    assert _names(assign(read_plan("lit"), [depth])[0]) == expected


def test_a_schedule_inside_a_list_is_resolved():
    assert _names(read_plan(["identity", "lit"])) == ["identity", *LIT]


def test_what_the_caller_wrote_stays_as_it_was():
    spec = {"name": "local_attention", "window": 5}
    read_plan(spec)
    assert spec == {"name": "local_attention", "window": 5}


def test_schedules_name_registered_mixers_and_take_none_of_their_names():
    for name, schedule in SCHEDULES.items():
        check_names(read_plan(name), list_mixers())
        assert schedule.summary
        assert schedule.paper
        assert schedule.formula.isprintable()
        assert all(choice in schedule.formula for choice in schedule.plan if choice != "none")
    assert not SCHEDULES.keys() & set(list_mixers())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([], "at least one mixer"),
        ({"plan": []}, "at least one mixer"),
        ({"window": 5}, "needs a name"),
        (["attention", {}], "needs a name"),
    ],
)
def test_a_plan_without_mixers_or_names_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        read_plan(spec)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.data())
def test_spread_keeps_order_and_proportions(data):
    depth = data.draw(st.integers(1, 48))
    plan = [MixerChoice(str(i)) for i in range(data.draw(st.integers(1, depth)))]
    blocks = [int(choice.name) for choice in assign(plan, [depth])[0]]
    assert len(blocks) == depth
    assert blocks == sorted(blocks)
    counts = Counter(blocks)
    assert counts.keys() == set(range(len(plan)))
    assert max(counts.values()) - min(counts.values()) <= 1


@settings(deadline=None, max_examples=50, derandomize=True)
@given(choices=st.integers(1, 12), times=st.integers(1, 6))
def test_spread_over_a_multiple_gives_each_choice_as_many_blocks(choices, times):
    plan = [MixerChoice(str(i)) for i in range(choices)]
    expected = [choice for choice in plan for _ in range(times)]
    assert assign(plan, [choices * times])[0] == expected


def test_spread_keeps_the_options():
    choice = MixerChoice("local_attention", {"window": 3})
    assert assign([choice], [2]) == [[choice, choice]]


def test_a_plan_longer_than_the_model_is_refused():
    with pytest.raises(ValueError, match="4 choices does not fit 3 blocks"):
        assign(read_plan("lit"), [3])


def test_known_names_are_accepted():
    check_names(read_plan(list_mixers()), list_mixers())


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown mixer 'patchff'\. Did you mean 'patch_ff'\?"):
        check_names(read_plan(["attention", "patchff"]), list_mixers())
    with pytest.raises(ValueError, match=r"Did you mean 'lit'\?"):
        check_names(read_plan("lits"), list_mixers())


@pytest.mark.parametrize("facts", ["registry", "catalog"])
@pytest.mark.parametrize(
    ("spec", "blamed"),
    [
        ("attention", None),
        ("patch_ff", None),
        ("lit", None),
        ("local_attention", "local_attention"),
        (["attention", "local_attention"], "local_attention"),
        ("identity", "identity"),
        ("none", "none"),
    ],
)
def test_a_class_token_needs_mixers_that_reach_it(spec, blamed, facts):
    read = MIXERS.facts if facts == "registry" else (lambda name: mixer_catalog()[name].facts)
    plan = read_plan(spec)
    check_prefix(plan, read, "avg")
    if blamed is None:
        check_prefix(plan, read, "token")
        return
    with pytest.raises(ValueError, match=f"mixer '{blamed}' cannot take a class token") as error:
        check_prefix(plan, read, "token")
    assert "\n" not in str(error.value)


def test_a_key_beside_plan_is_refused():
    with pytest.raises(ValueError, match="window"):
        read_plan({"plan": ["attention"], "window": 5})


def test_options_of_a_schedule_are_refused_by_saying_so():
    with pytest.raises(ValueError, match=r"lit.*option") as error:
        check_names(read_plan({"name": "lit", "window": 5}), list_mixers())
    assert "unknown mixer 'lit'" not in str(error.value)


@pytest.mark.parametrize("spec", [None, 3])
def test_a_plan_of_the_wrong_type_is_a_value_error(spec):
    with pytest.raises(ValueError, match="mixer"):
        read_plan(spec)
