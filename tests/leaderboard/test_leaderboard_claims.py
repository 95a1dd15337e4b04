"""What a run may claim: what cannot be is off the board and named, and the rest is shown."""

import dataclasses
import json
import time
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import DIGITS, Recorded, recorded

from leaderboard import leaderboard_text
from leaderboard.claims import of_settings as claims
from leaderboard.reading.results import Reading, digest_of, skipped_line
from leaderboard.reading.states import reading_of
from mixerbench.config import schema
from mixerbench.config.compose import compose
from mixerbench.tracking.keys import MEASUREMENT, Metric, Param, Tag
from mixers.core.plan import plan_name

END = 1_700_000_000_000


def read(
    made: Recorded | None = None,
    *,
    tags: Mapping[str, str] = {},
    params: Mapping[str, str | None] = {},
    metrics: Mapping[str, float] = {},
    **more: Any,
) -> Reading:
    """A run that is right, and one that is changed; None leaves a parameter out."""
    parts, states = {}, {}
    made = made or recorded()
    changed = {k: v for k, v in {**made.params, **params}.items() if v is not None}
    for run_id, own in (("right", made.params), ("changed", changed)):
        groups: dict[str, dict[str, str]] = {}
        for key, value in own.items():
            groups.setdefault(key.partition(".")[0], {})[key] = value
        digests = {name: digest_of(content) for name, content in groups.items()}
        parts |= {digests[name]: content for name, content in groups.items()}
        states[run_id] = {
            **{"experiment": "1", "name": run_id, "status": "FINISHED", "deleted": False},
            **{"started": END - 1000, "finished": END, "params": digests},
            **{"tags": made.tags, "metrics": {Metric.FINAL_TOP1: 90.0}},
        }
    states["changed"] |= {
        "tags": {**made.tags, **tags},
        "metrics": {Metric.FINAL_TOP1: 90.0, **metrics},
        **more,
    }
    return reading_of(states, parts, {"1": "digits"})


def refused(**changes: Any) -> str:
    """Why the changed run is not on the board, as it is counted."""
    reading = read(**changes)
    assert [run.name for run in reading.runs] == ["right"]
    assert list(reading.refused) == ["changed"]
    (reason,) = reading.skipped
    assert f"1 {reason}" in skipped_line(reading.skipped)
    return reason


def test_a_run_whose_settings_are_what_it_claims_is_read():
    reading = read()
    assert {run.name for run in reading.runs} == {"right", "changed"}
    assert (reading.skipped, reading.refused) == ({}, {})


# --- settings -------------------------------------------------------------------------------


def test_a_copied_fingerprint_does_not_make_another_protocol_the_same():
    reading = read(params={"protocol.recipe.epochs": "3000"}, metrics={Metric.FINAL_TOP1: 123.4})
    assert reading.skipped == {"whose settings hash to another protocol": 1}
    assert "its protocol hashes to" in reading.refused["changed"]
    assert refused(params={"model.size.dim": "9"}) == "whose settings hash to another model"
    assert refused(params={"model.plugins": "['0123456789abcdef']"}) == (
        "whose settings hash to another model"
    )


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        *((Tag.SEED, "1"), (Tag.MIXER, "fourier"), (Tag.SIZE, "large"), (Tag.STEM, "conv")),
        *((Tag.BACKBONE, "pyramid"), (Tag.PROTOCOL, "imagenet_deit"), (Tag.SYNTHETIC, "true")),
    ],
)
def test_tags_that_say_something_else_than_the_settings_are_refused(tag: str, value: str):
    assert refused(tags={tag: value}) == f"whose settings say another {tag}"


@pytest.mark.parametrize("group", ["protocol", "model", "run"])
def test_a_run_without_recorded_settings_cannot_be_checked(group: str):
    params = dict.fromkeys((k for k in recorded().params if k.startswith(f"{group}.")), None)
    assert refused(params=params) == "without recorded settings"


def test_settings_that_mlflow_cut_off_cannot_be_checked():
    assert refused(params={"model.mixer.note": "x" * 6000}) == (
        "with settings too long to be checked"
    )


@pytest.mark.parametrize(
    "params",
    [
        {"model.mixer": "a name"},
        {"model.mixer.name": None},
        {"protocol.recipe.epochs": "-1"},
        {"protocol.recipe.epochs": "1.5"},
        {"protocol.data.num_classes": "many"},
        {"model.mixer.plan": "[]"},
        {"run.seed": None, "run.root": "runs"},
    ],
)
def test_settings_of_no_run_are_refused_and_break_nothing(params: Mapping[str, str | None]):
    assert refused(params=params) == "with settings of no run"


def test_a_run_of_an_earlier_version_is_what_it_was():
    made = recorded()
    fields = claims.settings_of(
        Param.PROTOCOL, {k: v for k, v in made.params.items() if k.startswith(Param.PROTOCOL)}
    )
    for version in range(1, schema.PROTOCOL_VERSION + 1):
        earlier = {Tag.PROTOCOL_FINGERPRINT: schema.protocol_fingerprint(fields, version)}
        assert read(tags=earlier).refused == {}
    later = schema.protocol_fingerprint(fields, schema.PROTOCOL_VERSION + 1)
    assert refused(tags={Tag.PROTOCOL_FINGERPRINT: later}) == (
        "whose settings hash to another protocol"
    )


COMMANDS = [
    [],
    ["preset=deit_tiny", "protocol=imagenet_deit"],
    ["preset=sasa_r26_full", "protocol=imagenet_sasa"],
    ["preset=resnet50", "protocol=imagenet_deit"],
    ["mixer=lit", "size=micro", "protocol=digits"],
    ["mixer=local_attention", "mixer.window=5", "size=micro", "protocol=digits"],
    ["mixer=plan", "mixer.plan=[{name:local_attention,window:3},attention]", "protocol=digits"],
    ["backbone=pyramid", "protocol=digits", "stem=conv"],
    ["recipe.optimizer.name=sgd", "recipe.optimizer.lr=1", "recipe.schedule.min_lr=1e-7"],
    ["protocol=cifar10", "recipe.augmentation.auto_augment=null", "data.val_images=100"],
]
"""Other presets, mixers, plans and protocols, each with values of other types."""


@pytest.fixture(scope="module")
def composed() -> list[schema.Settings]:
    return [compose(command) for command in COMMANDS]


def _logged(prefix: str, content: Mapping[str, Any]) -> dict[str, str]:
    """As training logs settings."""
    return {key: str(value) for key, value in schema.flatten(content, prefix)}


def test_settings_come_out_of_their_parameters_as_they_went_in(composed: list[schema.Settings]):
    for one in composed:
        protocol = dataclasses.asdict(one.protocol)
        assert claims.settings_of(Param.PROTOCOL, _logged(Param.PROTOCOL, protocol)) == protocol
        assert claims.settings_of(Param.MODEL, _logged(Param.MODEL, one.model)) == one.model
        model = claims.of_model(one.model)
        assert model.fingerprints == (schema.fingerprint(one.model),)
        assert model.tags[Tag.MIXER] == plan_name(one.model["mixer"])


def test_the_hash_of_every_type_of_value_survives_being_a_text(composed: list[schema.Settings]):
    text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
    number = st.floats(allow_nan=False, allow_infinity=False) | st.integers()
    leaf = {
        str: text,
        (str | None): st.none() | text.filter(lambda t: t != "None"),
        bool: st.booleans(),
        int: st.integers(),
        (int | None): st.none() | st.integers(),
        float: number,
        (float | None): st.none() | number,
        list[float]: st.lists(number, max_size=3),
        (list[float] | None): st.none() | st.lists(number, max_size=3),
    }

    def strategy(cls: Any) -> st.SearchStrategy[dict[str, Any]]:
        fields = {}
        for name, hint in typing.get_type_hints(cls).items():
            is_group = dataclasses.is_dataclass(hint)
            fields[name] = strategy(hint) if is_group else leaf[hint]
        return st.fixed_dictionaries(fields)

    @settings(max_examples=60, deadline=None)
    @given(strategy(schema.Protocol))
    def check(protocol: dict[str, Any]) -> None:
        read_back = claims.settings_of(Param.PROTOCOL, _logged(Param.PROTOCOL, protocol))
        assert schema.protocol_fingerprint(read_back) == schema.protocol_fingerprint(protocol)

    check()


# --- numbers and times ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({Metric.FINAL_TOP1: 123.4}, "final/top1 other than 0 to 100"),
        ({Metric.FINAL_TOP1: -1}, "final/top1 other than 0 to 100"),
        ({Metric.FINAL_EMA_TOP1: 250.0}, "final/ema_top1 other than 0 to 100"),
        ({Metric.BEST_TOP1: 100.1}, "best/top1 other than 0 to 100"),
        ({Metric.FINAL_TOP5: 80.0}, "final/top1 above final/top5"),
        ({Metric.PARAMETERS: 0.0}, "measure/parameters other than whole numbers from 1"),
        ({Metric.PARAMETERS: 1000.5}, "measure/parameters other than whole numbers from 1"),
        ({Metric.GMACS: 0.0}, "measure/gmacs other than numbers above 0"),
        ({Metric.GMACS: -1.0}, "measure/gmacs other than numbers above 0"),
        ({Metric.IMAGES_PER_SECOND: -5.0}, "images_per_second other than numbers above 0"),
        ({Metric.LATENCY_MS: 0.0}, "latency_ms other than numbers above 0"),
        ({Metric.MEMORY_MIB: -1.0}, "memory_mib other than numbers above 0"),
        ({Metric.JOULES_PER_IMAGE: -1.0}, "joules_per_image other than numbers above 0"),
        ({Metric.TRAINING_SECONDS: -1.0}, "training_seconds other than 0 or more"),
        ({Metric.IMAGES_SEEN: 1.5}, "images_seen other than whole numbers from 1"),
        ({Metric.VAL_IMAGES: -3}, "val_images other than whole numbers from 1"),
        ({Metric.UNREADABLE_VAL_IMAGES: -1}, "other than whole numbers from 0"),
        ({Metric.MEASURE_BATCH_SIZE: 0}, "batch_size other than whole numbers from 1"),
        (
            {
                Metric.LATENCY_MS: 1.0,
                Metric.LATENCY_MS + Metric.LOWER_QUARTILE: 2.0,
            },
            "measure/latency_ms_lower_quartile above measure/latency_ms",
        ),
    ],
)
def test_numbers_that_no_run_can_have_are_refused(metrics: Mapping[str, float], reason: str):
    assert refused(metrics=metrics).endswith(reason)


def test_a_model_has_a_bias_for_each_class():
    params = {"protocol.data.num_classes": "10"}
    made = recorded()
    fields = claims.settings_of(
        Param.PROTOCOL,
        {k: v for k, v in {**made.params, **params}.items() if k.startswith(Param.PROTOCOL)},
    )
    tags = {Tag.PROTOCOL_FINGERPRINT: schema.protocol_fingerprint(fields)}
    assert read(params=params, tags=tags, metrics={Metric.PARAMETERS: 10}).refused == {}
    changes: dict[str, Any] = {"params": params, "tags": tags, "metrics": {Metric.PARAMETERS: 1}}
    assert refused(**changes) == "with fewer parameters than classes"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1.797e308])
def test_what_is_no_number_is_as_if_it_had_not_been_logged(value: float):
    reading = read(metrics={Metric.FINAL_EMA_TOP1: value, Metric.GMACS: value})
    assert len(reading.runs) == 2
    assert all(Metric.GMACS not in run.metrics for run in reading.runs)


@pytest.mark.parametrize("seed", ["", " 1", "01", "+1", "1.0", "-1", "4294967296", "1e3", "٣", "x"])
def test_a_seed_is_a_whole_number_in_its_one_form(seed: str):
    reading = read(tags={Tag.SEED: seed}, params={"run.seed": seed})
    assert [run.name for run in reading.runs] == ["right"]
    assert list(reading.skipped.values()) == [1]


@pytest.mark.parametrize("tag", [Tag.MODEL_FINGERPRINT, Tag.PROTOCOL_FINGERPRINT, Tag.VAL_PIXELS])
def test_digests_have_sixteen_digits(tag: str):
    assert refused(tags={tag: "A" * 16}) == f"with a {tag} that is none"


@pytest.mark.parametrize("finished", [9_007_199_254_740_991, 4_102_444_800_000, 1000, 0])
def test_a_time_that_cannot_be_does_not_break_the_board(finished: int):
    """The year 287396 ended every page of a store in a traceback."""
    assert refused(finished=finished) == "that ended before 2020 or in the future"


def test_a_clock_of_another_time_zone_is_none_of_the_future():
    assert read(finished=int(time.time() * 1000) + 14 * 3600 * 1000).refused == {}


def test_a_run_whose_clock_went_back_began_when_it_ended():
    reading = read(started=END + 3_600_000)
    assert [(run.started, run.finished) for run in reading.runs if run.name == "changed"] == [
        (END, END)
    ]


def test_measurements_are_bounded_too():
    tags = {Tag.KIND: MEASUREMENT, Tag.SESSION: "s"}
    assert refused(tags=tags, metrics={Metric.LATENCY_MS: -1.0}) == (
        "with measure/latency_ms other than numbers above 0"
    )
    assert len(read(tags=tags, metrics={Metric.LATENCY_MS: 1.0}).measurements) == 1


def test_a_bad_run_of_a_store_is_named_and_the_rest_is_shown(store_at, tmp_path: Path):
    """Written by hand: a copied fingerprint with top-1 123.4; and an end in the year 287396."""
    store = store_at(f"sqlite:///{tmp_path / 'mlflow.db'}")
    store.log("attention")
    copied = {Tag.PROTOCOL_FINGERPRINT: DIGITS}
    false = store.log("pooling", tags=copied, metrics={Metric.FINAL_TOP1: 123.4}, epochs=3000)
    late = store.log("shift", status=None)
    store.client.set_terminated(late, end_time=9_007_199_254_740_991)
    text = leaderboard_text(store.uri, width=120)
    assert (
        "Not on a board: 1 that ended before 2020 or in the future, "
        "1 whose settings hash to another protocol." in " ".join(text.split())
    )
    content = json.loads(leaderboard_text(store.uri, format="json"))
    assert [e["model"] for e in content["boards"][0]["entries"]] == ["attention_micro_patch"]
    assert content["refused"].keys() == {false, late}
    assert "its protocol hashes to" in content["refused"][false]
