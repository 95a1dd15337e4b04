"""What may stand on one board, and what an entry is made of."""

from collections.abc import Mapping
from itertools import count
from typing import Any

from made_runs import recorded

from leaderboard.reading.results import Reading, State, digest_of
from leaderboard.reading.states import reading_of
from mixerbench.tracking.keys import MEASUREMENT, Metric, Tag

START_MS = 1_700_000_000_000

_second = count(1)


def state(
    *,
    tags: Mapping[str, str] = {},
    metrics: Mapping[str, float] = {},
    finished: int = 0,
    epochs: int = 30,
) -> State:
    """Of a finished run of attention; each ends a second after the one before."""
    made = recorded(epochs=epochs)
    return {
        "experiment": "1",
        "name": "",
        "status": "FINISHED",
        "deleted": False,
        "started": START_MS,
        "finished": finished or START_MS + 1000 * next(_second),
        "tags": made.tags | dict(tags),
        "params": made.params,  # `read` puts them where readings look for them
        "metrics": {Metric.FINAL_TOP1: 90.0} | dict(metrics),
    }


def read(**states: State) -> Reading:
    parts: dict[str, dict[str, str]] = {}
    digested = {}
    for run_id, one in states.items():
        groups: dict[str, dict[str, str]] = {}
        for key, value in one["params"].items():
            groups.setdefault(key.partition(".")[0], {})[key] = value
        digests = {name: digest_of(group) for name, group in groups.items()}
        parts |= {digests[name]: group for name, group in groups.items()}
        digested[run_id] = {**one, "params": digests}
    return reading_of(digested, parts, {"1": "digits"})


def kept(**pixels: str) -> tuple[set[str], Mapping[str, int]]:
    """Which runs are on a board: of each its digest, with a leading ! if it was imported."""
    states = {}
    for name, digest in pixels.items():
        own = digest.lstrip("!")
        tags = {Tag.VAL_PIXELS: own.ljust(16, "0")} if own else {}
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
    one, other = ({Tag.VAL_PIXELS: digit * 16} for digit in "ab")
    reading = read(one=state(tags=one), two=state(tags=other, epochs=40))
    assert len(reading.runs) == 2


def test_what_was_measured_here_counts_before_a_later_measurement_of_others():
    def measured(speed: float, finished: int, **more: str) -> Any:
        tags = {Tag.KIND: MEASUREMENT, Tag.SESSION: "s", **more}
        return state(tags=tags, metrics={Metric.IMAGES_PER_SECOND: speed}, finished=finished)

    theirs = {Tag.IMPORTED: "theirs"}
    later = START_MS + 24 * 3600 * 1000
    elsewhere = {**theirs, Tag.HARDWARE: "1 x GPU"}
    reading = read(
        own=measured(100, START_MS), later=measured(999, later, **theirs),
        gpu=measured(5000, later, **elsewhere),
    )  # fmt: skip
    assert {one.run_id for one in reading.measurements} == {"own", "gpu"}
