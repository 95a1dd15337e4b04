"""From logged predictions to intervals, verdicts and rank ranges."""

from pathlib import Path

import numpy as np
import pytest
from made_stores import MadeStore, fill, made_predictions

import leaderboard
from leaderboard.ranking import analysis, statistics
from leaderboard.ranking.board import Board
from leaderboard.reading.mlflow_source import MlflowSource
from mixerbench.tracking.keys import Metric


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeStore:
    """Three models of three seeds: one far behind, two that nobody can tell apart."""
    store = MadeStore(tmp_path_factory.mktemp("made"))
    for label, accuracy in (("far", 0.70), ("near", 0.900), ("nearer", 0.902)):
        for seed in range(3):
            predictions, top1 = made_predictions(accuracy + 0.01 * seed, seed=hash_of(label, seed))
            store.log(label, seed=seed, top1=top1, predictions=predictions)
    return store


def hash_of(label: str, seed: int) -> int:
    return 100 * len(label) + seed


@pytest.fixture(scope="module")
def board(made: MadeStore) -> Board:
    (found,) = leaderboard.read_boards(made.uri)
    return found


def test_entries_that_chance_explains_share_their_ranks(board: Board):
    assert {entry.label: entry.ranks for entry in board.entries} == {
        "nearer": "1–2",
        "near": "1–2",
        "far": "3",
    }


def test_a_comparison_says_how_much_how_sure_and_on_which_images(board: Board):
    ids = {entry.label: entry.model_fingerprint for entry in board.entries}
    one = board.analysis.compare(ids["near"], ids["far"])
    other = board.analysis.compare(ids["far"], ids["near"])
    assert one and other and one.differ and other.differ
    assert one.difference == pytest.approx(20, abs=0.3)
    assert one.interval.low < one.difference < one.interval.high
    assert one.interval.low > 10
    assert other.difference == -one.difference
    assert other.interval == (-one.interval.high, -one.interval.low)
    assert (other.only_a, other.only_b) == (one.only_b, one.only_a)
    images = 539
    assert one.only_a - one.only_b == pytest.approx(images * one.difference / 100, abs=1e-6)
    assert 0 < one.error_consistency < 1
    assert one.p == max(one.p_images, one.p_seeds or 0)
    same = board.analysis.compare(ids["near"], ids["nearer"])
    assert same and not same.differ and same.p_corrected <= 1


def test_p_values_are_corrected_for_all_pairs_of_the_board(board: Board):
    comparisons = list(board.analysis.comparisons.values())
    assert len(comparisons) == 3
    assert [c.p_corrected for c in comparisons] == pytest.approx(
        statistics.holm([c.p for c in comparisons])
    )


def test_a_filtered_board_keeps_the_ranks_of_the_whole(made: MadeStore):
    (board,) = leaderboard.read_boards(made.uri, filters=["mixer=attention"], sort="parameters")
    assert sorted(entry.ranks for entry in board.entries) == ["1–2", "1–2", "3"]


def test_every_accuracy_has_an_interval(board: Board, tmp_path: Path):
    for entry in board.entries:
        top1 = entry.summary(Metric.FINAL_TOP1)
        assert entry.top1_interval and top1
        assert entry.top1_interval == pytest.approx(
            statistics.seed_interval([*top1.values.values()])
        )
    store = MadeStore(tmp_path)
    store.log("alone", top1=90.0)  # of one seed, without predictions
    (entry,) = leaderboard.read_boards(store.uri)[0].entries
    low, high = statistics.wilson_interval(485, 539)
    assert entry.top1_interval == pytest.approx((100 * low, 100 * high))
    assert entry.ranks == "1"


def test_the_frames_hold_what_the_board_shows(board: Board):
    frame = board.frame()
    assert list(frame.index) == [entry.label for entry in board.entries]
    assert frame.loc["far", "ranks"] == "3"
    assert frame["top1"].is_monotonic_decreasing
    assert (frame["top1_low"] < frame["top1"]).all()
    pairs = board.comparisons_frame()
    assert len(pairs) == 3
    assert pairs["differ"].sum() == 2
    assert set(pairs.columns) > {"a", "b", "difference", "low", "high", "p_corrected", "agreement"}


def test_an_entry_without_predictions_is_on_the_board_and_not_compared(tmp_path: Path):
    store = MadeStore(tmp_path)
    for label, accuracy in (("one", 0.7), ("two", 0.9)):
        predictions, top1 = made_predictions(accuracy, seed=len(label))
        store.log(label, top1=top1, predictions=predictions)
    store.log("silent", top1=80.0)
    (board,) = leaderboard.read_boards(store.uri)
    # "two" is better than "one"; "silent" may be anywhere, and so each of them may be one further.
    assert [entry.ranks for entry in board.entries] == ["1–2 ?", "1–3 ?", "2–3 ?"]
    assert board.notes[:2] == (
        "silent: no test of its rank: seed 0 logged no predictions",
        "? behind a rank: a pair without a test counts as not told apart",
    )
    assert len(board.analysis.comparisons) == 1
    assert {e.label: e.calibration_error is None for e in board.entries} == {
        "two": False, "silent": True, "one": False,
    }  # fmt: skip


def test_other_validation_images_are_not_compared(tmp_path: Path):
    store = MadeStore(tmp_path)
    for label in ("one", "two"):
        predictions, top1 = made_predictions(0.8, images=200 if label == "one" else 300)
        store.log(label, top1=top1, predictions=predictions)
    (board,) = leaderboard.read_boards(store.uri)
    assert board.analysis.comparisons == {}


def test_with_one_run_each_the_verdict_is_mcnemars(tmp_path: Path):
    store = MadeStore(tmp_path)
    rows = {}
    for label, accuracy in (("one", 0.80), ("two", 0.84)):
        rows[label], top1 = made_predictions(accuracy, seed=len(label) * 7 + ord(label[0]))
        store.log(label, top1=top1, predictions=rows[label])
    (board,) = leaderboard.read_boards(store.uri)
    (found,) = board.analysis.comparisons.values()
    right = [np.array(row["top1"]) == np.array(row["target"]) for row in rows.values()]
    only = [int((a & ~b).sum()) for a, b in (right, right[::-1])]
    from scipy.stats import binomtest

    assert found.p_images == pytest.approx(binomtest(only[0], sum(only)).pvalue)
    assert found.p_seeds is None
    assert found.p == found.p_corrected == found.p_images


def test_what_was_computed_is_kept_and_belongs_to_these_runs(
    made: MadeStore, board: Board, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(analysis, "_analyse", fail)
    (again,) = leaderboard.read_boards(made.uri)
    assert again.analysis == board.analysis
    fewer = {e.model_fingerprint: e.runs[:2] for e in board.entries}
    with pytest.raises(AssertionError, match="computed again"):
        analysis.analyse(fewer, MlflowSource(made.uri))


def test_a_board_too_large_for_pairs_says_so(made: MadeStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("leaderboard.ranking.analysis.MOST_ENTRIES", 2)
    monkeypatch.setattr("leaderboard.ranking.marks.MOST_ENTRIES", 2)
    monkeypatch.setattr("leaderboard.ranking.analysis.VERSION", -1)
    (board,) = leaderboard.read_boards(made.uri)
    assert [entry.ranks for entry in board.entries] == ["1–3 ?"] * 3
    assert board.entries[0].top1_interval
    assert "3 entries: pairs are tested up to 2" in board.notes[0]


def test_a_large_board_is_filled_by_the_generator(tmp_path: Path):
    store = MadeStore(tmp_path)
    fill(store, entries=6, seeds=2, images=100)
    (board,) = leaderboard.read_boards(store.uri)
    assert [entry.seeds for entry in board.entries] == [2] * 6
    assert len(board.analysis.comparisons) == 15
