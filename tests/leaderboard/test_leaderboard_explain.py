from dataclasses import replace
from typing import Any

import pytest
from made_runs import DIGITS, LONGER

from leaderboard import explain_text
from leaderboard.explain import Difference, explain
from leaderboard.reading.results import Reading

EPOCHS = Difference("protocol.recipe.epochs", "30", "40")


def test_exactly_the_field_that_differs_is_named(reading: Reading):
    found = explain(reading.runs, "attention-0", "longer")
    assert found.differences == (EPOCHS,)
    assert not found.same_protocol
    assert "protocol.recipe.epochs  30  40" in found.text()
    assert "protocol.data.name" not in found.text()


def test_a_run_can_be_named_in_each_way(reading: Reading):
    ids = {run.name: run.run_id for run in reading.runs}
    for a in (ids["attention-0"], ids["attention-0"][:12], DIGITS, DIGITS[:6]):
        for b in (ids["longer"], ids["longer"][:12], LONGER, LONGER[:6]):
            assert explain(reading.runs, a, b).differences == (EPOCHS,)


def test_runs_of_one_protocol_may_share_a_board(reading: Reading):
    found = explain(reading.runs, "attention-0", "new")
    assert found.same_protocol and not found.differences
    assert "may share a board" in found.text()


def test_a_field_outside_the_fingerprint_is_told_apart(reading: Reading):
    run = next(run for run in reading.runs if run.name == "longer")
    moved = replace(
        run,
        name="moved",
        params={**run.params, "protocol": {**run.protocol, "protocol.data.root": "/b"}},
    )
    found = explain([run, moved], "longer", "moved")
    assert found.differences == (Difference("protocol.data.root", None, "/b"),)
    assert found.same_protocol
    assert "outside the fingerprint" in found.text()
    assert "(absent)" in found.text()


def test_an_unknown_name_gives_the_nearest(reading: Reading):
    with pytest.raises(ValueError, match=r"'atention-0': did you mean attention-"):
        explain(reading.runs, "atention-0", "longer")
    with pytest.raises(ValueError, match="no finished run"):
        explain(reading.runs, "longer", "")


def test_a_name_of_several_protocols_lists_them(reading: Reading):
    with pytest.raises(ValueError, match="2 protocols") as error:
        explain(reading.runs, "digits", "longer")
    assert DIGITS in str(error.value)
    assert LONGER in str(error.value)


def test_one_call_goes_from_store_to_explanation(store: Any):
    assert "protocol.recipe.epochs  40  30" in explain_text(store.uri, "longer", "new")
