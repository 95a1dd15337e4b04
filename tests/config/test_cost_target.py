"""``match=...`` as composition sees it: read, asked about, and replaced by a size."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from mixerbench.config.compose import compose, compose_sweep
from mixerbench.config.cost_target import Target, read_target
from mixerbench.config.schema import Settings, fingerprint
from mixerbench.config.sizes import Size
from mixerbench.errors import Refusal


class Asked:
    """Stands for the search: remembers what it is asked and answers with one size."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.questions: list[tuple[str, Target]] = []

    def __call__(self, settings: Settings, target: Target) -> Size:
        self.questions.append((settings.label, target))
        return self.size


WIDER = Size((80,), (4,), (5,))


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("params:22M", "params", 22_000_000),
        ("params:5.7M", "params", 5_700_000),
        ("params:500k", "params", 500_000),
        ("params:500K", "params", 500_000),
        ("params:123456", "params", 123_456),
        ("params:1.1G", "params", 1_100_000_000),
        ("flops:4.6G", "flops", 4_600_000_000),
        ("flops:30M", "flops", 30_000_000),
    ],
)
def test_a_target_is_a_kind_and_a_number(text: str, kind: str, value: int) -> None:
    assert read_target(text) == Target(text, kind, value)


BAD = ["", "22M", "params", "params:", "params:22X", "params:-1", "params:0", "params:0.1",
       "gflops:4.6", "flops:4,6G", "flops=4.6G", "params:22MM", "[1,2]"]  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_a_target_that_cannot_be_read_is_refused_with_an_example(
    text: str, refused: Callable[..., str]
) -> None:
    message = refused("train", "--cfg", f"match={text}")
    if "=" not in text and "," not in text:
        for words in (f"match={text}:", "params:NUMBER", "flops:NUMBER", "match=params:22M"):
            assert words in message


def test_the_size_that_is_found_is_a_size_like_any_other() -> None:
    asked = Asked(WIDER)
    found = compose(["mixer=patch_ff", "match=params:500k"], asked)
    assert asked.questions == [("patch_ff_micro", Target("params:500k", "params", 500_000))]
    by_hand = compose(["mixer=patch_ff", "size.dim=80", "size.num_heads=5"])
    assert found == by_hand
    assert fingerprint(found.model) == fingerprint(by_hand.model)
    assert found.label == "patch_ff_micro_dim=80_num_heads=5"
    assert found.overrides == ["mixer=patch_ff", "size.dim=80", "size.num_heads=5"]


def test_saying_it_again_asks_nobody() -> None:
    found = compose(["mixer=patch_ff", "match=params:500k"], Asked(WIDER))
    assert compose(found.overrides) == found


def test_the_named_size_stays_where_it_fits() -> None:
    found = compose(["match=params:500k", "run.seed=1"], Asked(Size((64,), (4,), (4,))))
    assert found == compose(["run.seed=1"])


def test_what_is_given_of_the_size_is_where_the_search_starts() -> None:
    starts: list[Any] = []

    def match(settings: Settings, target: Target) -> Size:
        starts.append(dict(settings.model["size"]))
        return WIDER

    found = compose(["size.dim=32", "match=params:500k", "size.depth=3"], match)
    assert starts == [{"name": "micro", "dim": 32, "depth": 3, "num_heads": 4}]
    assert found.overrides == ["size.dim=80", "size.depth=4", "size.num_heads=5"]


def test_a_presets_label_shows_what_was_found() -> None:
    asked = Asked(Size((48, 96, 200, 384), (2, 2, 7, 2), (2, 3, 6, 12)))
    found = compose(["preset=lit_s", "protocol=imagenet_lit", "match=flops:1G"], asked)
    assert found.label == "lit_s_dims=48-96-200-384_depths=2-2-7-2_num_heads=2-3-6-12"
    assert found.model["size"]["dims"] == [48, 96, 200, 384]
    assert found.model["mixer"] == compose(["preset=lit_s", "protocol=imagenet_lit"]).model["mixer"]


def test_every_run_of_a_sweep_is_matched() -> None:
    asked = Asked(WIDER)
    runs = compose_sweep(["mixer=patch_ff,attention", "match=params:1M,flops:20M"], asked)
    assert [(label, target.kind) for label, target in asked.questions] == [
        ("patch_ff_micro", "params"), ("patch_ff_micro", "flops"),
        ("attention_micro", "params"), ("attention_micro", "flops"),
    ]  # fmt: skip
    assert {run.model["size"]["dim"] for run in runs} == {80}


def test_a_sweep_is_refused_before_anything_is_searched() -> None:
    asked = Asked(WIDER)
    with pytest.raises(Refusal, match="'pach_ff'"):
        compose_sweep(["mixer=attention,pach_ff", "match=params:1M"], asked)
    assert asked.questions == []


def test_who_cannot_search_refuses() -> None:
    with pytest.raises(Refusal, match="train, profile and suite"):
        compose(["match=params:1M"])


def test_settings_do_not_know_that_they_were_matched() -> None:
    assert not [f.name for f in dataclasses.fields(Settings) if "match" in f.name]
