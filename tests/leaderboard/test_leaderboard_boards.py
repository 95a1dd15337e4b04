import statistics
from collections.abc import Iterable
from dataclasses import replace

import pytest

from leaderboard.board import COLUMNS, Board, Entry, boards
from leaderboard.query import Reading, Run
from mixerbench.tracking.keys import Metric

DIGITS, LONGER, RANDOM = "aaaa000011112222", "aabb000011112222", "cccc000011112222"


def board(runs: Iterable[Run], fingerprint: str = DIGITS, sort: str = "top1") -> Board:
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


def test_speed_is_of_the_newest_runs_hardware_only_and_accuracy_of_all(reading: Reading):
    fourier = entry(reading, "fourier")
    speed, top1 = fourier.summary(Metric.IMAGES_PER_SECOND), fourier.summary(Metric.FINAL_TOP1)
    assert fourier.hardware == "1 x GPU"
    assert speed and speed.values == {"2": 9000.0}
    assert fourier.summary(Metric.LATENCY_MS) is None  # the CPU's is not this hardware's
    assert top1 and len(top1.values) == 3
    assert any("fourier_micro_patch" in n and "1 of 3" in n for n in board(reading.runs).notes)


def test_a_board_of_several_hardwares_says_what_cannot_be_compared(reading: Reading):
    mixed, uniform = board(reading.runs), board(reading.runs, LONGER)
    assert any(note.startswith("not comparable") for note in mixed.notes)
    assert {"h1: 2 x CPU", "h2: 1 x GPU"} <= set(mixed.notes)
    assert uniform.notes == ("measured on 2 x CPU",)


def test_another_measuring_batch_is_other_hardware(reading: Reading):
    run = next(run for run in reading.runs if run.name == "longer")
    other = replace(run, seed="1", metrics={**run.metrics, Metric.MEASURE_BATCH_SIZE: 8.0})
    assert len(board([run, other], LONGER).entries[0].runs_on_hardware) == 1


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
    assert labels == {"attention_micro_patch [attent]", "attention_micro_patch [other]"}


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


def test_a_protocol_is_filtered_by_name_or_by_the_beginning_of_its_fingerprint(reading: Reading):
    assert set(shown(reading, "protocol=digits")) == {DIGITS, LONGER}
    assert set(shown(reading, "protocol=aab")) == {LONGER}
    assert set(shown(reading, "protocol=aa")) == {DIGITS, LONGER}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mixr=shift", "did you mean mixer"),
        ("nonsense", "expected FIELD=VALUE"),
        ("mixer=atention", "did you mean attention"),
        ("size=huge", "known: micro, large"),
        ("protocol=digit", "did you mean digits"),
        ("protocol=", "no finished run"),
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
