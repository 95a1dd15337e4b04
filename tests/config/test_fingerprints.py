"""The hashes that decide what may be compared."""

import copy
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixerbench.config.compose import compose
from mixerbench.config.schema import (
    Protocol,
    build,
    fingerprint,
    flatten,
    protocol_fingerprint,
)
from mixerbench.training.folder import identity_of

RECORDED = {
    "digits": "63fd6f4bea047532",
    "imagenet_deit": "f34a67bd543e530b",
    "imagenet_lit": "1d4828c6337ede33",
    "imagenet_sasa": "372571f6c2d4756f",
}
"""Before data is opened, which fills in its digest. A change here closes every leaderboard of the
protocol: change it only together with the protocol's own file, or PROTOCOL_VERSION."""

NOT_HASHED = {
    "name",
    "description",
    "patch_size",
    "data.root",
    "data.download",
    "data.max_corrupt",
    "recipe.name",
    "recipe.distillation.teacher_checkpoint",
}
"""Written down a second time, so that a field leaves the hash only on purpose."""

PROTOCOL = compose(["protocol=imagenet_deit"]).protocol
LEAVES = dict(flatten(dataclasses.asdict(PROTOCOL)))

SCALARS = {
    bool: st.booleans(),
    int: st.integers(-(10**6), 10**6),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(max_size=20),
}


def _other_value(value: Any) -> st.SearchStrategy[Any]:
    if value is None:
        return st.one_of(*SCALARS.values())
    if isinstance(value, list):
        return st.lists(SCALARS[float], max_size=4).filter(lambda new: new != value)
    return (SCALARS[type(value)] | st.none()).filter(lambda new: new != value)


CHANGES = st.sampled_from(sorted(LEAVES)).flatmap(
    lambda path: st.tuples(st.just(path), _other_value(LEAVES[path]))
)


def _changed(path: str, value: Any) -> dict[str, Any]:
    content = copy.deepcopy(dataclasses.asdict(PROTOCOL))
    *groups, name = path.split(".")
    group = content
    for key in groups:
        group = group[key]
    assert name in group
    group[name] = value
    return content


@pytest.mark.parametrize("name", RECORDED)
def test_a_fingerprint_is_what_it_was(name: str) -> None:
    assert protocol_fingerprint(compose([f"protocol={name}"]).protocol) == RECORDED[name]


def test_fields_that_are_not_hashed_exist() -> None:
    assert set(LEAVES) >= NOT_HASHED


@settings(max_examples=300, deadline=None)
@given(CHANGES)
def test_another_value_is_another_fingerprint_except_for_names_and_places(
    change: tuple[str, Any],
) -> None:
    path, value = change
    same = protocol_fingerprint(_changed(path, value)) == protocol_fingerprint(PROTOCOL)
    assert same == (path in NOT_HASHED)


@pytest.mark.parametrize("path", sorted(LEAVES))
def test_every_single_field_is_hashed_or_named_above(path: str) -> None:
    same = protocol_fingerprint(_changed(path, "another")) == protocol_fingerprint(PROTOCOL)
    assert same == (path in NOT_HASHED)


def test_a_field_that_came_later_counts_only_where_it_is_not_as_before() -> None:
    before = dataclasses.asdict(PROTOCOL)
    for path in ("pixels", "packed"):  # runs of that time have no such field
        del before["data"][path]
    assert protocol_fingerprint(before) == protocol_fingerprint(PROTOCOL)
    found = {protocol_fingerprint(PROTOCOL)}
    for pixels, packed in [("same-law", None), ("exact", "short_side=256"), ("same-law", "raw")]:
        other = copy.deepcopy(PROTOCOL)
        other.data.pixels, other.data.packed = pixels, packed
        found.add(protocol_fingerprint(other))
    assert len(found) == 4


def test_a_protocol_and_its_dictionary_have_one_fingerprint() -> None:
    content = dataclasses.asdict(PROTOCOL)
    through_json = json.loads(json.dumps(content))
    backwards = _reversed(content)
    assert list(backwards) != list(content)
    expected = protocol_fingerprint(PROTOCOL)
    for form in (content, through_json, backwards, build(Protocol, backwards)):
        assert protocol_fingerprint(form) == expected


def _reversed(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _reversed(value) if isinstance(value, Mapping) else value
        for key, value in reversed(content.items())
    }


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.floats(0, 1))))
def test_a_fingerprint_is_16_hex_digits(content: dict[str, Any]) -> None:
    digits = fingerprint(content)
    assert len(digits) == 16
    assert set(digits) <= set("0123456789abcdef")


SPELLINGS = [
    ("recipe.optimizer.lr=0.001", "recipe.optimizer.lr=1e-3"),
    ("recipe.mixup.cutmix=1", "recipe.mixup.cutmix=1.0"),
    ("recipe.loss.label_smoothing=0", "recipe.loss.label_smoothing=0.0"),
    ("recipe.optimizer.clip_grad_norm=1", "recipe.optimizer.clip_grad_norm=1.0"),
    ("recipe.augmentation.scale=[0.5,1]", "recipe.augmentation.scale=[0.5,1.0]"),
    ("recipe.augmentation.crop=padded", "recipe.augmentation.crop='padded'"),
    ("recipe=deit", "protocol.recipe=deit"),
    ("data=digits", "run.seed=0"),
]


@pytest.mark.parametrize(("one", "other"), SPELLINGS)
def test_how_a_value_is_written_does_not_matter(one: str, other: str) -> None:
    assert protocol_fingerprint(compose([one]).protocol) == protocol_fingerprint(
        compose([other]).protocol
    )


HARMLESS = [
    "run.seed=4", "run.precision=bf16", "run.device=cpu", "run.workers=3", "run.compile=true",
    "run.log_every_steps=1", "tracking.offline=true", "data.root=/elsewhere", "data.download=true",
    "protocol.name=mine", "protocol.description=mine", "recipe.name=mine", "protocol.patch_size=8",
    "mixer=patch_ff", "size=tiny", "stem=conv", "backbone.pool=token",
]  # fmt: skip


def test_run_model_names_and_places_leave_the_protocol_alone() -> None:
    assert protocol_fingerprint(compose(HARMLESS).protocol) == RECORDED["digits"]


IDENTITY = [
    (["run.seed=1"], {"seed"}),
    (["mixer=patch_ff"], {"model_fingerprint"}),
    (["mixer.qkv_bias=false"], {"model_fingerprint"}),
    (["size.depth=2"], {"model_fingerprint"}),
    (["protocol.patch_size=8"], {"model_fingerprint"}),
    (["recipe.epochs=3"], {"protocol_fingerprint"}),
    (["run.precision=bf16", "run.log_every_steps=7", "tracking.offline=true"], set()),
]


@pytest.mark.parametrize(("overrides", "differing"), IDENTITY)
def test_a_runs_identity_is_model_protocol_and_seed(
    overrides: list[str], differing: set[str]
) -> None:
    plain, other = identity_of(compose([])), identity_of(compose(overrides))
    assert {key for key in plain if plain[key] != other[key]} == differing
