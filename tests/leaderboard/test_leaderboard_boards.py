import re
import statistics
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from made_runs import DIGITS, LONGER, RANDOM

from leaderboard.ranking.board import Board
from leaderboard.ranking.boards import boards
from leaderboard.ranking.columns import COLUMNS
from leaderboard.ranking.entries import Entry
from leaderboard.reading.results import Measurement, Reading, TrainedRun
from mixerbench.tracking.keys import Metric


def board(runs: Iterable[TrainedRun], fingerprint: str = DIGITS, sort: str = "top1") -> Board:
    return next(b for b in boards(runs, sort=sort) if b.fingerprint == fingerprint)


def entry(reading: Reading, mixer: str) -> Entry:
    return next(entry for entry in board(reading.runs).entries if entry.mixer == mixer)


def shown(reading: Reading, *filters: str) -> dict[str, list[str]]:
    return {
        b.fingerprint: [e.mixer for e in b.entries] for b in boards(reading.runs, filters=filters)
    }


def test_protocols_that_differ_in_one_field_never_share_a_board(reading: Reading):
    found = boards(reading.runs)
    assert len({b.fingerprint for b in found}) == len(found) == 3
    for b in found:
        for e in b.entries:
            assert {run.protocol_fingerprint for run in e.runs} == {b.fingerprint}
    assert board(reading.runs, DIGITS).fields["protocol.recipe.epochs"] == "30"
    assert board(reading.runs, LONGER).fields["protocol.recipe.epochs"] == "40"


def test_mean_and_sample_standard_deviation_over_seeds(reading: Reading):
    top1 = entry(reading, "attention").summary(Metric.FINAL_TOP1)
    assert top1 and top1.values == {"0": 80.1, "1": 81.7, "2": 79.4}
    assert top1.mean == pytest.approx(statistics.mean([80.1, 81.7, 79.4]))
    assert top1.std == pytest.approx(statistics.stdev([80.1, 81.7, 79.4]))
    assert entry(reading, "attention").seeds == 3


def test_a_single_seed_has_no_spread(reading: Reading):
    assert entry(reading, "shift").top1_std is None


def test_the_newest_run_of_a_seed_counts_and_the_others_are_counted(reading: Reading):
    pooling = entry(reading, "pooling")
    assert [run.name for run in pooling.runs] == ["new"]
    assert pooling.superseded == 1
    assert any("superseded" in note and note.endswith(": 1") for note in board(reading.runs).notes)


def test_speed_is_of_one_hardware_only_and_accuracy_of_all(reading: Reading):
    speed = next(column for column in COLUMNS if column.key == Metric.IMAGES_PER_SECOND)
    on_gpu, on_cpu = (
        next(e for e in boards(reading.runs, hardware=name)[0].entries if e.mixer == "fourier")
        for name in ("GPU", "2 x CPU")
    )
    assert (on_gpu.hardware, on_gpu.value(speed)) == ("1 x GPU", 9000.0)
    assert (on_cpu.hardware, on_cpu.value(speed)) == ("2 x CPU", 1000.0)
    assert on_gpu.efficiency and Metric.LATENCY_MS not in on_gpu.efficiency.metrics
    top1 = on_gpu.summary(Metric.FINAL_TOP1)
    assert top1 and len(top1.values) == 3


def test_the_hardware_that_most_were_measured_on_is_shown_and_the_others_are_named(
    reading: Reading,
):
    shown = board(reading.runs)
    assert shown.hardwares == {"2 x CPU": 1, "1 x GPU": 1}
    assert shown.hardware == "1 x GPU"  # as many, and newer
    (note,) = [note for note in shown.notes if "no two hardwares compare" in note]
    assert "1 measured on 2 x CPU" in note
    (named,) = re.findall(r"--hardware (\w+)", note)
    assert boards(reading.runs, hardware=named)[0].hardware == "2 x CPU"
    assert board(reading.runs, LONGER).hardware == ""  # nobody measured anything
    with pytest.raises(ValueError, match="nothing was measured on 'TPU'"):
        boards(reading.runs, hardware="TPU")


def test_another_measuring_batch_is_other_hardware(reading: Reading):
    run = next(run for run in reading.runs if run.name == "longer")
    speeds = {Metric.IMAGES_PER_SECOND: 10.0}
    one = replace(run, metrics=run.metrics | speeds)
    other = replace(one, seed="1", metrics=one.metrics | {Metric.MEASURE_BATCH_SIZE: 8.0})
    assert set(board([one, other], LONGER).hardwares) == {"2 x CPU", "2 x CPU · batch 8"}


def measurement(entry: Entry, session: str, speed: float, **changes: Any) -> Measurement:
    content = {
        "run_id": f"{session}-{entry.mixer}",
        "finished": 2_000_000_000_000,
        "protocol_fingerprint": DIGITS,
        "model_fingerprint": entry.model_fingerprint,
        "hardware": "2 x CPU",
        "session": session,
        "metrics": {
            Metric.IMAGES_PER_SECOND: speed,
            Metric.IMAGES_PER_SECOND + Metric.LOWER_QUARTILE: speed - 1,
            Metric.IMAGES_PER_SECOND + Metric.UPPER_QUARTILE: speed + 2,
        },
    }
    return Measurement(**(content | changes))


def test_entries_that_were_measured_in_one_session_are_ranked_by_it(reading: Reading):
    entries = board(reading.runs).entries
    one = [measurement(entry, "one", 100.0 + i) for i, entry in enumerate(entries)]
    shown = boards(reading.runs, one, sort="images_per_second")[0]
    assert shown.hardware == "2 x CPU"  # four entries, against one on the GPU
    speed = next(column for column in COLUMNS if column.name == "images_per_second")
    assert [e.value(speed) for e in shown.entries] == [103.0, 102.0, 101.0, 100.0]
    assert shown.entries[0].interval(speed) == (102.0, 105.0)
    assert any("all in one session" in note for note in shown.notes)
    newer = measurement(entries[0], "two", 500.0, finished=2_000_000_000_001)
    mixed = boards(reading.runs, [*one, newer], sort="images_per_second")[0]
    assert mixed.entries[0].value(speed) == 500.0
    assert any("3 in one session, 1 in one session" in note for note in mixed.notes)


def test_a_measurement_of_another_protocol_is_no_business_of_this_board(reading: Reading):
    entries = board(reading.runs).entries
    foreign = measurement(entries[0], "one", 1.0, protocol_fingerprint="other", hardware="TPU")
    assert "TPU" not in boards(reading.runs, [foreign])[0].hardwares


def test_ranks_are_by_top1_of_the_whole_board_and_ties_share_one(reading: Reading):
    ranks = {e.mixer: e.rank for e in board(reading.runs).entries}
    assert ranks == {"attention": 1, "pooling": 2, "shift": 3, "fourier": 4}
    filtered = boards(reading.runs, filters=["mixer=fourier"])
    assert filtered[0].entries[0].rank == 4
    run = next(run for run in reading.runs if run.name == "longer")
    tie = replace(run, run_id="other", model_fingerprint="other")
    assert [e.rank for e in board([run, tie], LONGER).entries] == [1, 1]


def test_different_models_of_one_label_are_told_apart(reading: Reading):
    run = next(run for run in reading.runs if run.name == "longer")
    twin = replace(run, run_id="other", model_fingerprint="other")
    labels = {e.label for e in board([run, twin], LONGER).entries}
    own = run.model_fingerprint[:6]
    assert labels == {f"attention_micro_patch [{own}]", "attention_micro_patch [other]"}


@pytest.mark.parametrize(
    ("sort", "first", "last"),
    [
        ("top1", "attention", "fourier"),
        ("mixer", "attention", "shift"),
        ("parameters", "shift", "fourier"),
        ("images_per_second", "fourier", "shift"),  # missing values last
        ("top1_std", "fourier", "shift"),  # here too, though low comes first
        ("seeds", "attention", "shift"),
    ],
)
def test_sorting_puts_the_best_first(reading: Reading, sort: str, first: str, last: str):
    order = [e.mixer for e in board(reading.runs, sort=sort).entries]
    assert (order[0], order[-1]) == (first, last)


def test_every_column_can_be_sorted_by(reading: Reading):
    for column in COLUMNS:
        assert len(board(reading.runs, sort=column.name).entries) == 4


def test_an_unknown_column_names_the_nearest():
    with pytest.raises(ValueError, match=r"cannot sort by 'top_1': did you mean top1"):
        boards([], sort="top_1")


def test_filters_of_one_field_widen_and_of_several_narrow(reading: Reading):
    assert shown(reading, "mixer=shift", "mixer=pooling") == {DIGITS: ["pooling", "shift"]}
    assert shown(reading, "size=large", "stem=conv") == {DIGITS: ["shift"]}
    assert shown(reading, "mixer=attention", "size=large") == {}
    assert set(shown(reading, "backbone=vit")) == {DIGITS, LONGER, RANDOM}


def test_entries_of_equal_cost_are_those_within_one_percent(reading: Reading):
    run = next(run for run in reading.runs if run.name == "longer")
    costs = {"a": 22_150_000.0, "b": 21_700_000.0, "c": 22_000_000.0}
    runs = [
        replace(run, run_id=name, mixer=name, model_fingerprint=name,
                metrics=run.metrics | {Metric.PARAMETERS: cost, Metric.GMACS: cost / 5e6})
        for name, cost in costs.items()
    ]  # fmt: skip
    (found,) = boards(runs, filters=["params=22M"])
    assert {entry.mixer for entry in found.entries} == {"a", "c"}
    (found,) = boards(runs, filters=["flops=4.4G"])
    assert {entry.mixer for entry in found.entries} == {"a", "c"}
    assert {entry.rank for entry in found.entries} == {1}  # of the whole board: all are equal


def test_a_protocol_is_filtered_by_name_or_by_the_beginning_of_its_fingerprint(reading: Reading):
    assert set(shown(reading, "protocol=digits")) == {DIGITS, LONGER}
    assert set(shown(reading, f"protocol={LONGER[:6]}")) == {LONGER}
    assert set(shown(reading, "protocol=a")) == {DIGITS, LONGER}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mixr=shift", "did you mean mixer"),
        ("nonsense", "expected FIELD=VALUE"),
        ("mixer=atention", "did you mean attention"),
        ("size=huge", "known: micro, large"),
        ("protocol=digit", "did you mean digits"),
        ("protocol=", "no finished run"),
        ("params=2000", "known: 0.001M, 1e-05M"),
        ("params=many", "give a number such as 22M or 4.6G"),
    ],
)
def test_an_unknown_filter_names_what_is_known(reading: Reading, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        boards(reading.runs, filters=[text])


def test_random_images_come_last_and_are_marked(reading: Reading):
    *real, fake = boards(reading.runs)
    assert fake.fingerprint == RANDOM
    assert "random images: accuracy means nothing" in fake.title
    assert not any("random images" in b.title for b in real)


def test_the_front_is_of_any_two_columns_and_leaves_out_what_was_not_measured(reading: Reading):
    shown = board(reading.runs)
    # shift costs 10 parameters for 65 %, attention 1000 for 80 %: nobody else is on the front.
    assert [e.mixer for e in shown.front("parameters")] == ["shift", "attention"]
    assert [e.mixer for e in shown.front("images_per_second")] == ["fourier"]
    with pytest.raises(ValueError, match="did you mean parameters"):
        shown.front("parameter")
