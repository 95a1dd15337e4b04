"""What may stand on one board, and what an entry is made of."""

from collections.abc import Mapping
from itertools import count
from typing import Any

from leaderboard.runs import Reading, State, reading_of
from mixerbench.tracking.keys import MEASUREMENT, SCHEMA_VERSION, Metric, Tag

_second = count(1)


def state(
    *, tags: Mapping[str, str] = {}, metrics: Mapping[str, float] = {}, finished: int = 0
) -> State:
    """Of a finished run of attention; each ends a second after the one before."""
    own = {
        Tag.SCHEMA: SCHEMA_VERSION,
        Tag.PROTOCOL: "digits",
        Tag.PROTOCOL_FINGERPRINT: "p" * 16,
        Tag.MODEL: "attention_micro",
        Tag.MODEL_FINGERPRINT: "a" * 16,
        Tag.MIXER: "attention",
        Tag.SIZE: "micro",
        Tag.BACKBONE: "vit",
        Tag.STEM: "patch",
        Tag.SEED: "0",
        Tag.HARDWARE: "2 x CPU",
    }
    return {
        "experiment": "1",
        "name": "",
        "status": "FINISHED",
        "deleted": False,
        "started": 0,
        "finished": finished or 1000 * next(_second),
        "tags": own | dict(tags),
        "params": {},
        "metrics": {Metric.FINAL_TOP1: 90.0} | dict(metrics),
    }


def read(**states: State) -> Reading:
    return reading_of(states, {}, {"1": "digits"})


def kept(**pixels: str) -> tuple[set[str], Mapping[str, int]]:
    """Which runs are on a board: of each its digest, with a leading ! if it was imported."""
    states = {}
    for name, digest in pixels.items():
        tags = {Tag.VAL_PIXELS: digest.lstrip("!")} if digest.lstrip("!") else {}
        if digest.startswith("!"):
            tags[Tag.IMPORTED] = "theirs"
        states[name] = state(tags=tags)
    reading = read(**states)
    return {run.run_id for run in reading.runs}, reading.skipped


def test_runs_that_saw_other_pixels_than_most_are_not_on_the_board_and_counted():
    found, skipped = kept(one="a1", two="b2", three="b2", old="")
    assert found == {"two", "three", "old"}
    assert skipped == {"evaluated on validation images of other pixels": 1}
    # As many of each: those that were there first stay.
    assert kept(one="b2", two="a1")[0] == {"one"}
    assert kept(one="a1", two="b2", three="b2", four="a1")[0] == {"one", "four"}
    assert kept(one="a1", two="a1", old="") == ({"one", "two", "old"}, {})


def test_imported_runs_do_not_outvote_ones_own():
    assert kept(one="!b2", two="!b2", mine="a1")[0] == {"mine"}
    assert kept(one="!b2", two="!b2", three="!a1")[0] == {"one", "two"}


def test_other_protocols_have_other_images():
    other = {Tag.PROTOCOL_FINGERPRINT: "q" * 16, Tag.VAL_PIXELS: "b2"}
    reading = read(one=state(tags={Tag.VAL_PIXELS: "a1"}), two=state(tags=other))
    assert len(reading.runs) == 2


def test_what_was_measured_here_counts_before_a_later_measurement_of_others():
    def measured(speed: float, finished: int, **more: str) -> Any:
        tags = {Tag.KIND: MEASUREMENT, Tag.SESSION: "s", **more}
        return state(tags=tags, metrics={Metric.IMAGES_PER_SECOND: speed}, finished=finished)

    theirs = {Tag.IMPORTED: "theirs"}
    year_2100 = 4_102_444_800_000
    elsewhere = {**theirs, Tag.HARDWARE: "1 x GPU"}
    reading = read(
        own=measured(100, 1000), later=measured(999, year_2100, **theirs),
        gpu=measured(5000, year_2100, **elsewhere),
    )  # fmt: skip
    assert {one.run_id for one in reading.measurements} == {"own", "gpu"}
