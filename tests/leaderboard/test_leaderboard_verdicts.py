"""A bare rank is a verdict: it comes from tests that were made, and from nothing else."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_stores import MadeStore, made_predictions
from scipy.stats import binomtest

import leaderboard
from leaderboard import render
from leaderboard.ranking.board import Board
from leaderboard.ranking.boards import boards
from leaderboard.ranking.entries import Entry
from leaderboard.reading import predictions as reading
from leaderboard.reading.cache import Cache
from leaderboard.reading.curves import Curves
from leaderboard.reading.results import Reading, TrainedRun
from mixerbench.tracking.keys import Artifact, Metric, Prediction, Tag

YEAR_2100 = 4_102_444_800_000
IMAGES = 539
_ids = count()

Rows = Mapping[str, Any]


class Made:
    """A source in memory: runs, and the predictions of each; None: it logged none."""

    name = "made"

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, Cache(str(folder))
        self.runs: list[TrainedRun] = []
        self.rows: dict[str, Rows | None] = {}
        self.asked: list[str] = []
        self.is_down = False

    def log(self, model: str, rows: Rows | None, *, seed: int = 0, **changes: Any) -> TrainedRun:
        run_id, fields = f"run{next(_ids)}", dict.fromkeys(("model", "mixer"), model)
        top1 = 100 * float(np.mean(rows["target"] == rows["top1"])) if rows else 80.0
        run = TrainedRun(
            **{"run_id": run_id, "experiment_id": "1", "name": run_id, "experiment": "digits"},
            **{"started": 0, "finished": 1000 + len(self.runs), "size": "micro", "stem": "patch"},
            **{"backbone": "vit", "protocol_name": "digits", "protocol_fingerprint": "p" * 16},
            **{"seed": str(seed), "synthetic": False, "hardware": "CPU", "params": {}, **fields},
            **{"model_fingerprint": model, "tags": {}},
            metrics={Metric.FINAL_TOP1: top1, Metric.VAL_IMAGES: float(IMAGES)},
        )
        run = replace(run, **changes)
        self.runs.append(run)
        self.rows[run_id] = rows
        return run

    def read(self) -> Reading:
        return Reading(tuple(self.runs), {})

    def curves(self, run: TrainedRun) -> Curves:
        return {}

    def artifact(self, run: TrainedRun, name: str, *, again: bool = False) -> Path | None:
        self.asked.append(run.run_id)
        if self.is_down:
            raise ValueError("the store does not answer")
        rows = self.rows[run.run_id]
        if name != Artifact.PREDICTIONS or rows is None:
            return None
        path = self.folder / run.run_id / name
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(dict(rows)), path)
        return path

    def board(self) -> Board:
        (found,) = boards(self.runs, source=self)
        return found


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def rows(accuracy: float, seed: int, **more: Any) -> dict[str, Any]:
    return made_predictions(accuracy, seed=seed, **more)[0]


def without(table: Rows, images: int) -> dict[str, Any]:
    """As if the first images could not be read."""
    return {key: values[images:] for key, values in table.items()}


def ranks(board: Board) -> dict[str, str]:
    return {entry.label: entry.ranks for entry in board.entries}


LIKE = {"one": 0.900, "two": 0.903, "three": 0.897}  # nobody can tell them apart
APART = {"one": 0.90, "two": 0.70, "three": 0.50}


def fill(made: Made, accuracies: Mapping[str, float], change: Callable[[str, Rows], Any]) -> Board:
    """Each of two seeds; ``change`` makes what is logged of each model's second seed."""
    for place, (label, accuracy) in enumerate(accuracies.items()):
        for seed in (0, 1):
            table = rows(accuracy, 10 * place + seed)
            run = made.log(label, table, seed=seed)
            if seed:
                made.rows[run.run_id] = change(label, table)
    return made.board()


def test_seeds_that_answer_alike_to_the_last_digit_are_no_test(made: Made):
    board = fill(made, APART, lambda label, own: rows(0.90, seed=0) if label == "one" else own)
    assert ranks(board) == {"one": "1–3 ?", "two": "1–2 ?", "three": "2–3 ?"}
    assert any(
        note.startswith("one:") and "seeds 0 and 1 have the same predictions" in note
        for note in board.notes
    )


def test_with_every_prediction_there_is_no_mark(made: Made):
    board = fill(made, LIKE, lambda _, table: table)
    assert ranks(board) == dict.fromkeys(("two", "one", "three"), "1–3")
    assert board.notes == ()
    assert all(entry.rank_tested for entry in board.entries)


def test_a_run_without_predictions_leaves_a_range_a_mark_and_a_line(made: Made):
    board = fill(made, LIKE, lambda label, table: None if label == "two" else table)
    assert ranks(board) == dict.fromkeys(("two", "one", "three"), "1–3 ?")
    assert board.notes == (
        "two: no test of its rank: seed 1 logged no predictions",
        "? behind a rank: a pair without a test counts as not told apart",
    )
    # What has no test counts in the correction all the same: 1 of 3 pairs is tested.
    (one,) = board.analysis.comparisons.values()
    assert one.p_corrected == pytest.approx(min(1, 3 * one.p))


def test_the_mark_is_in_every_format(made: Made):
    board = fill(made, LIKE, lambda label, table: None if label == "two" else table)
    for format in ("terminal", "markdown", "csv"):
        text = render.render([board], format=format, width=120).replace("\\", "")
        assert text.count("1–3 ?") == 3, text
    for format in ("terminal", "markdown"):
        text = render.render([board], format=format, width=120).replace("\\", "")
        assert "two: no test of its rank: seed 1 logged no predictions" in text
    (content,) = json.loads(render.json([board]))["boards"]
    assert [e["ranks"] for e in content["entries"]] == ["1–3 ?"] * 3
    assert [e["rank_range"] for e in content["entries"]] == [[1, 3]] * 3
    assert [e["rank_tested"] for e in content["entries"]] == [False] * 3
    assert list(board.frame()["ranks"]) == ["1–3 ?"] * 3


def test_one_missing_image_is_left_out_of_the_test(made: Made):
    """Of two models with one run each, the test is McNemar's on the 538 common images."""
    table, other = rows(0.80, 1), without(rows(0.84, 2), 1)
    made.log("one", table)
    made.log("two", other)
    board = made.board()
    (found,) = board.analysis.comparisons.values()
    right = [np.array(t["top1"]) == np.array(t["target"]) for t in (without(table, 1), other)]
    only = [int((a & ~b).sum()) for a, b in (right, right[::-1])]
    assert found.p_images == pytest.approx(binomtest(only[0], sum(only)).pvalue)
    assert (found.only_a, found.only_b) == tuple(only)
    assert found.difference == pytest.approx(100 * (only[0] - only[1]) / 538)
    assert all(entry.rank_tested for entry in board.entries)


def test_a_seed_that_lacks_an_image_is_tested_on_the_others(made: Made):
    board = fill(made, LIKE, lambda _, table: table)
    whole = board.analysis
    made.runs.clear()

    for place, (label, accuracy) in enumerate(LIKE.items()):
        for seed in (0, 1):
            table = rows(accuracy, 10 * place + seed)
            made.log(label, without(table, 1) if label == "two" and seed else table, seed=seed)
    board = made.board()
    assert ranks(board) == dict.fromkeys(("two", "one", "three"), "1–3")
    assert board.notes == ()
    for pair, one in board.analysis.comparisons.items():
        assert one.p_images == pytest.approx(whole.comparisons[pair].p_images, abs=0.2)


def test_too_few_common_images_are_no_test(made: Made):
    for label in LIKE:
        table = rows(LIKE[label], len(label))
        made.log(label, without(table, 6) if label == "two" else table)
    board = made.board()
    assert set(ranks(board).values()) == {"1–3 ?"}
    assert board.notes[0] == (
        "two: no test of its rank against one, three: evaluated on other images: "
        "at most 533 of 539 in common"
    )
    assert len(board.analysis.comparisons) == 1


def test_seeds_of_other_images_are_no_test_of_their_entry(made: Made):
    made.log("one", rows(0.9, 1))
    for seed in (0, 1):
        made.log("two", without(rows(0.8, seed), 100 * seed), seed=seed)
    board = made.board()
    assert board.notes[0] == (
        "two: no test of its rank: seeds 0 and 1 were evaluated on other images: "
        "439 of 539 in common"
    )
    assert set(ranks(board).values()) == {"1–2 ?"}


@pytest.mark.parametrize(("changed", "tested"), [(0, True), (5, True), (6, False)])
def test_an_image_of_other_pixels_is_another_image(made: Made, changed: int, tested: bool):
    checksum = np.arange(IMAGES)
    other = np.where(checksum < changed, -1 - checksum, checksum)
    made.log("one", rows(0.9, 1) | {Prediction.CHECKSUM: checksum})
    made.log("two", rows(0.5, 2) | {Prediction.CHECKSUM: other})
    made.log("old", rows(0.7, 3))  # of before there were checksums: by names and classes
    board = made.board()
    expected = {"one": "1", "old": "2", "two": "3"}
    if not tested:
        expected = {"one": "1–2 ?", "old": "2", "two": "2–3 ?"}
    assert ranks(board) == expected


def test_other_classes_are_other_images_and_another_order_is_none(made: Made):
    table = rows(0.9, 1)
    made.log("one", table)
    made.log("turned", {key: values[::-1] for key, values in rows(0.5, 2).items()})
    relabelled = rows(0.5, 3)
    relabelled |= {key: (relabelled[key] + 1) % 10 for key in ("target", "top1")}
    made.log("relabelled", relabelled)
    board = made.board()
    assert len(board.analysis.comparisons) == 1
    assert board.analysis.compare("one", "turned")
    assert "relabelled: no test of its rank against one, turned" in board.notes[0]
    assert "at most 0 of 539 in common" in board.notes[0]


def test_predictions_of_another_accuracy_than_the_run_claims_are_no_test(made: Made):
    made.log("one", rows(0.9, 1), metrics={Metric.FINAL_TOP1: 99.0})
    made.log("two", rows(0.5, 2))
    board = made.board()
    assert set(ranks(board).values()) == {"1–2 ?"}
    assert board.notes[0] == (
        "one: no test of its rank: the predictions of seed 0 give a top-1 of 89.98 %, "
        "but the run claims 99.00 %"
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({Prediction.CONFIDENCE: np.full(IMAGES, np.nan)}, "a confidence is not within 0 and 1"),
        ({Prediction.TARGET: np.full(IMAGES, -1)}, "it has a negative class"),
        ({Prediction.TOP1: ["x"] * IMAGES}, "its column top1 holds something else than numbers"),
        ({Prediction.IMAGE: ["0"] * IMAGES}, "an image stands twice or has no name"),
    ],
)
def test_predictions_that_are_none_are_no_test(made: Made, change: Rows, why: str):
    made.log("one", rows(0.9, 1))
    run = made.log("two", rows(0.5, 2))
    made.rows[run.run_id] = rows(0.5, 2) | dict(change)
    board = made.board()
    assert set(ranks(board).values()) == {"1–2 ?"}
    assert board.notes[0] == (
        f"two: no test of its rank: the predictions file of seed 0 cannot be read ({why})"
    )
    assert render.json([board])


def test_a_store_that_gives_no_file_is_not_asked_for_hundreds(made: Made):
    for place in range(20):
        made.log(f"m{place}", rows(0.5 + 0.02 * place, place))
    made.is_down = True
    board = made.board()
    assert set(ranks(board).values()) == {"1–20 ?"}
    assert len(set(made.asked)) == reading.MOST_FAILURES
    assert "the predictions file of seed 0 cannot be fetched" in board.notes[0]
    assert sum("no test of its rank" in note for note in board.notes) == 8
    assert "… and 12 more such lines" in board.notes
    made.is_down = False  # and is seen as soon as it does
    assert any(entry.rank_tested for entry in made.board().entries)


def test_without_a_source_nothing_is_tested_and_the_only_entry_is_the_first(made: Made):
    made.log("one", None)
    (board,) = boards(made.runs)
    assert ranks(board) == {"one": "1"}
    assert board.notes == ()
    made.log("two", None)
    (board,) = boards(made.runs)
    assert ranks(board) == {"one": "1–2 ?", "two": "1–2 ?"}
    assert board.notes[0] == "no rank is tested: predictions were not read"


@pytest.mark.everything  # boards by the dozen
@settings(max_examples=25, deadline=None)
@given(
    accuracies=st.lists(st.sampled_from([0.3, 0.5, 0.7, 0.72, 0.9]), min_size=2, max_size=5),
    data=st.data(),
)
def test_what_is_missing_never_sharpens_a_rank(
    accuracies: list[float], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
):
    made = Made(tmp_path_factory.mktemp("made"))
    for place, accuracy in enumerate(accuracies):
        for seed in range(1 + place % 2):
            made.log(f"m{place}", rows(accuracy, 7 * place + seed, images=60), seed=seed)
    before = {entry.key: entry for entry in made.board().entries}
    gone = data.draw(st.sets(st.sampled_from([run.run_id for run in made.runs]), min_size=1))
    made.cache = Cache(str(tmp_path_factory.mktemp("other")))
    made.rows |= dict.fromkeys(gone)
    for entry in made.board().entries:
        (low, high), (low_before, high_before) = entry.rank_range, before[entry.key].rank_range
        assert low <= low_before <= high_before <= high
        assert low < high and entry.ranks.endswith("?")  # somebody has no test


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("right", [0.0, 1.0])
def test_strange_numbers_make_a_board_all_the_same(made: Made, images: int, right: float):
    table = {
        Prediction.IMAGE: [str(i) for i in range(images)],
        Prediction.TARGET: np.full(images, 3),  # the others have no image
        Prediction.TOP1: np.full(images, 3 if right else 1),
        Prediction.CONFIDENCE: np.ones(images),
    }
    for label in ("one", "two"):
        for seed in (0, 1):
            made.log(label, table, seed=seed, metrics={Metric.FINAL_TOP1: 100 * right})
    board = made.board()
    assert ranks(board) == {"one": "1–2", "two": "1–2"}
    for format in render.FORMATS:
        assert render.render([board], format=format)


# --- whose runs ---------------------------------------------------------------------------------

THEIRS = {Tag.IMPORTED: "theirs"}


def test_an_import_of_the_year_2100_stands_beside_ones_own_run(made: Made):
    own, worse = rows(0.98, 1), rows(0.68, 2)
    made.log("one", own)
    made.log("one", rows(0.97, 4), finished=500)  # older, of the same seed
    made.log("one", worse, finished=YEAR_2100, tags=THEIRS)
    made.log("two", rows(0.5, 3), tags=THEIRS)
    board = made.board()
    assert ranks(board) == {
        "one": "1",
        "one (imported: theirs)": "2",
        "two (imported: theirs)": "3",
    }
    found = {entry.label: entry for entry in board.entries}
    top1 = found["one"].summary(Metric.FINAL_TOP1)
    assert top1 and round(top1.mean, 2) == 97.96
    assert [entry.superseded for entry in board.entries] == [1, 0, 0]
    assert found["one"].key == "one"
    assert len({entry.key for entry in board.entries}) == 3
    assert {entry.model_fingerprint for entry in board.entries} == {"one", "two"}
    assert any(note.startswith("imported from others: 2 of 3 entries") for note in board.notes)
    shown = boards(made.runs, filters=["mixer=one"])[0]
    assert len(shown.entries) == 2
    # A bundle of it holds one run of each model and seed, and is one's own where there is one.
    assert [run.metrics[Metric.FINAL_TOP1] for run in shown.results] == [top1.mean]


def test_bundles_do_not_replace_each_other(made: Made):
    for bundle in ("theirs", "others"):
        made.log("one", rows(0.9, len(bundle)), tags={Tag.IMPORTED: bundle})
    assert {entry.label for entry in made.board().entries} == {
        "one (imported: theirs)",
        "one (imported: others)",
    }


def test_the_key_of_an_entry_does_not_depend_on_the_others(made: Made):
    def keys() -> dict[str, str]:
        return {entry.label: entry.key for entry in made.board().entries}

    made.log("one", rows(0.9, 1), tags=THEIRS)
    alone = keys()
    made.log("one", rows(0.9, 2))
    assert keys() == alone | {"one": "one"}


# --- what an entry mixes ------------------------------------------------------------------------


def environment(**versions: str) -> dict[str, Any]:
    return {"params": {"environment": {f"environment.{k}": v for k, v in versions.items()}}}


def entry_of(made: Made) -> tuple[Entry, Board]:
    (board,) = boards(made.runs)
    return board.entries[0], board


def test_versions_stand_on_the_row_and_a_mixture_is_marked(made: Made):
    same = {"timm": "1.0.20", "pillow": "12.0"}
    made.log("one", None, **environment(torch="2.14.0", **same))
    assert entry_of(made)[0].versions == "torch 2.14.0, timm 1.0.20, pillow 12.0"
    assert entry_of(made)[0].mixed is None
    assert "seeds differ in" not in render.markdown([entry_of(made)[1]])
    made.log("one", None, seed=1, **environment(torch="2.15.0", **same))
    made.log("one", None, seed=2)  # of before versions were recorded: nothing is known
    entry, board = entry_of(made)
    assert entry.versions == "torch 2.14.0 / 2.15.0, timm 1.0.20, pillow 12.0"
    assert entry.mixed == "torch"
    assert "one: its seeds mix versions: torch 2.14.0, 2.15.0" in board.notes
    for format in render.FORMATS:
        text = render.render([board], format=format, width=80)
        assert "seeds differ in" in " ".join(text.split()) or "seeds\ndiffer in" in text
        assert ("torch 2.14.0 / 2.15.0" in text) == (format != "terminal")


def test_entries_of_other_versions_are_named_in_one_line(made: Made):
    made.log("one", None, **environment(torch="2.14.0", timm="1.0.20"))
    made.log("two", None, **environment(torch="2.15.0", timm="1.0.20"))
    (board,) = boards(made.runs)
    assert "versions on this board: torch 2.14.0, 2.15.0" in board.notes
    assert {entry.mixed for entry in board.entries} == {None}


def test_seeds_of_several_commits_are_marked(made: Made):
    made.log("one", None, tags={Tag.GIT_COMMIT: "a" * 40, Tag.GIT_DIRTY: "false"})
    made.log("one", None, seed=1, tags={Tag.GIT_COMMIT: "b" * 40, Tag.GIT_DIRTY: "true"})
    entry, board = entry_of(made)
    assert entry.mixed == "commit, uncommitted changes"
    assert "one: its seeds mix commits: aaaaaaaa, bbbbbbbb" in board.notes
    assert any("were run with uncommitted changes" in note for note in board.notes)


def test_unreadable_validation_images_are_counted_on_the_row(made: Made):
    metrics = {Metric.FINAL_TOP1: 90.0}
    for seed, left_out in enumerate((0.0, 2.0, 1.0)):
        made.log("one", None, seed=seed, metrics=metrics | {Metric.UNREADABLE_VAL_IMAGES: left_out})
    made.log("two", None, metrics=metrics | {Metric.UNREADABLE_VAL_IMAGES: 0.0})
    (board,) = boards(made.runs)
    assert {entry.label: entry.unreadable for entry in board.entries} == {"one": 3, "two": None}
    assert (
        "one: validation images that could not be read and are left out of its accuracy: "
        "seed 1: 2, seed 2: 1"
    ) in board.notes
    for format in render.FORMATS:
        text = render.render([board], format=format, width=100)
        assert "unreadable" in text
    (only,) = boards([run for run in made.runs if run.model == "two"])
    assert "unreadable" not in render.terminal([only], width=200)


# --- a store ------------------------------------------------------------------------------------


def test_a_damaged_file_is_named_and_its_repair_is_seen(tmp_path: Path):
    store = MadeStore(tmp_path)
    for place, (label, accuracy) in enumerate(APART.items()):
        table, top1 = made_predictions(accuracy, seed=place)
        store.log(label, top1=top1, predictions=table)
    damaged = sorted(tmp_path.glob(f"artifacts/*/artifacts/{Artifact.PREDICTIONS}"))[0]
    content = damaged.read_bytes()
    damaged.write_bytes(content[:2000])
    (board,) = leaderboard.read_boards(store.uri)
    assert all(rank.endswith("?") for rank in ranks(board).values())
    assert "the predictions file of seed 0 cannot be read (truncated or damaged)" in board.notes[0]
    damaged.write_bytes(content)
    (board,) = leaderboard.read_boards(store.uri)
    assert ranks(board) == {"one": "1", "two": "2", "three": "3"}
    assert board.notes == () or "no test" not in board.notes[0]


def test_predictions_that_come_later_are_seen_by_a_refresh(tmp_path: Path):
    from leaderboard.reading.mlflow_source import MlflowSource

    store = MadeStore(tmp_path)
    tables = {}
    for label, accuracy in (("one", 0.9), ("two", 0.5)):
        tables[label], top1 = made_predictions(accuracy, seed=len(label) + int(10 * accuracy))
        run_id = store.log(label, top1=top1, predictions=tables[label] if label == "one" else None)
    (board,) = leaderboard.read_boards(store.uri)
    assert set(ranks(board).values()) == {"1–2 ?"}
    path = tmp_path / Artifact.PREDICTIONS
    pq.write_table(pa.table(tables["two"]), path)
    store.client.log_artifact(run_id, str(path))
    source = MlflowSource(store.uri, refresh=True)
    (board,) = boards(source.read().runs, source=source)
    assert ranks(board) == {"one": "1", "two": "2"}
