"""The boards that the repository carries are checked as anybody's are."""

from pathlib import Path

import pytest

import leaderboard
from mixerbench.config.compose import compose
from mixerbench.config.schema import fingerprint
from mixerbench.launching.suite import read_suite

PUBLISHED = Path(__file__).parents[2] / "leaderboard" / "published"


def test_there_is_one():
    assert (PUBLISHED / "digits_micro").is_dir()


@pytest.mark.parametrize("folder", [path for path in PUBLISHED.iterdir() if path.is_dir()])
def test_a_published_board_passes_its_checks_and_can_be_ranked(folder: Path):
    reading = leaderboard.open_source(str(folder)).read()  # every check of an import
    (board,) = leaderboard.read_boards(str(folder))
    assert sum(entry.seeds for entry in board.entries) == len(reading.runs)
    assert all(entry.rank_range for entry in board.entries)
    assert any("all in one session" in note for note in board.notes)
    for run in reading.runs:
        assert run.tags["mixerbench.git.dirty"] == "false"


def test_the_digits_board_holds_what_its_suite_trains_and_today_would_be_the_same_models():
    (board,) = leaderboard.read_boards(str(PUBLISHED / "digits_micro"))
    suite = read_suite("published", [])
    expected = {(fingerprint(one.model), str(one.run.seed)) for one in suite.runs.values()}
    assert {(e.model_fingerprint, run.seed) for e in board.entries for run in e.runs} == expected


def test_a_run_of_the_board_is_repeated_by_its_own_command():
    (board,) = leaderboard.read_boards(str(PUBLISHED / "digits_micro"))
    run = board.entries[0].runs[0]
    program, command, *arguments = run.tags["mixerbench.command"].split()
    assert (program, command) == ("mixerbench", "train")
    assert fingerprint(compose(arguments).model) == run.model_fingerprint
