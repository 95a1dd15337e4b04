"""The append-only record of a run."""

import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixerbench.errors import TrainingStopped
from mixerbench.tracking.journal import FILE_NAME, Journal, Record, is_finished, read


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FILE_NAME


def _records(path: Path) -> list[Record]:
    return [record for record, _ in read(path)]


def _metrics(path: Path) -> list[tuple[str, int, float]]:
    return [
        (key, record["step"], value)
        for record in _records(path)
        if record["kind"] == "metrics"
        for key, value in record["values"].items()
    ]


def test_every_record_has_its_kind_its_time_and_its_content(path: Path) -> None:
    before = int(time.time() * 1000)
    journal = Journal(path)
    journal.start("attention_micro", 80)
    journal.tags({"mixer": "attention"})
    journal.params({"run.seed": "0"})
    journal.metrics(5, {"train/loss": 2.25, "train/lr": 1})
    journal.artifact(path.parent / "plugins" / "mine.py", "plugins")
    journal.end("FINISHED")
    journal.close()
    records = _records(path)
    times = [record.pop("time") for record in records]
    assert records == [
        {"kind": "start", "label": "attention_micro", "total_steps": 80},
        {"kind": "tags", "values": {"mixer": "attention"}},
        {"kind": "params", "values": {"run.seed": "0"}},
        {"kind": "metrics", "step": 5, "values": {"train/loss": 2.25, "train/lr": 1.0}},
        {"kind": "artifact", "path": "plugins/mine.py", "folder": "plugins"},
        {"kind": "end", "status": "FINISHED"},
    ]
    assert before <= times[0] <= times[-1] <= int(time.time() * 1000)
    assert times == sorted(times)


def test_a_record_is_in_the_file_before_the_call_returns(path: Path) -> None:
    journal = Journal(path)
    for step in range(3):
        journal.metrics(step, {"loss": step})
        assert len(path.read_text().splitlines()) == step + 1  # without close or flush


@pytest.mark.parametrize("tail", ["{", '{"time": 1, "kind": "metrics", "step": 2, "val', "garbage"])
def test_a_line_that_was_cut_off_is_dropped_when_the_run_goes_on(path: Path, tail: str) -> None:
    journal = Journal(path)
    journal.metrics(1, {"loss": 1.0})
    whole = path.read_text()
    path.write_text(whole + tail)
    assert _metrics(path) == [("loss", 1, 1.0)]  # a reader leaves it out too

    again = Journal(path)
    assert path.read_text() == whole
    again.metrics(2, {"loss": 2.0})
    assert _metrics(path) == [("loss", 1, 1.0), ("loss", 2, 2.0)]


def test_a_journal_of_half_a_line_begins_anew(path: Path) -> None:
    path.write_text('{"time": 1, "ki')
    Journal(path).end("FAILED")
    assert [record["kind"] for record in _records(path)] == ["end"]


def test_steps_that_are_there_are_not_repeated_key_by_key(path: Path) -> None:
    first = Journal(path)
    first.metrics(10, {"loss": 1.0})
    first.metrics(20, {"loss": 2.0, "top1": 50.0})
    first.metrics(30, {"loss": 3.0})
    again = Journal(path)  # goes on from a checkpoint at step 10
    again.metrics(20, {"loss": 2.0, "top1": 50.0})
    again.metrics(30, {"loss": 3.0, "top1": 60.0})
    again.metrics(40, {"loss": 4.0})
    assert _metrics(path) == [
        ("loss", 10, 1.0), ("loss", 20, 2.0), ("top1", 20, 50.0), ("loss", 30, 3.0),
        ("top1", 30, 60.0), ("loss", 40, 4.0),
    ]  # fmt: skip


def test_step_0_is_written_once(path: Path) -> None:
    Journal(path).metrics(0, {"parameters": 7})
    Journal(path).metrics(0, {"parameters": 7})
    assert _metrics(path) == [("parameters", 0, 7.0)]


def test_tags_and_ends_may_repeat(path: Path) -> None:
    for _ in range(2):
        journal = Journal(path)
        journal.tags({"a": "b"})
        journal.end("FAILED")
    assert [record["kind"] for record in _records(path)] == ["tags", "end"] * 2


def test_values_that_are_no_numbers_come_back(path: Path) -> None:
    Journal(path).metrics(1, {"nan": math.nan, "inf": math.inf, "minus": -math.inf})
    values = {key: value for key, _, value in _metrics(path)}
    assert math.isnan(values["nan"])
    assert (values["inf"], values["minus"]) == (math.inf, -math.inf)


def test_reading_goes_on_from_an_offset(path: Path) -> None:
    journal = Journal(path)
    journal.metrics(1, {"loss": 1.0})
    *_, (_, offset) = read(path)
    assert offset == path.stat().st_size
    assert list(read(path, offset)) == []
    journal.metrics(2, {"loss": 2.0})
    ((record, end),) = read(path, offset)
    assert (record["step"], end) == (2, path.stat().st_size)


def test_a_journal_that_is_not_there_is_empty(path: Path) -> None:
    assert list(read(path)) == []
    assert not is_finished(path)


def test_several_threads_write_whole_lines(path: Path) -> None:
    journal = Journal(path)
    heard: list[Record] = []
    journal.listen(heard.append)

    def write(key: str) -> None:
        for step in range(200):
            journal.metrics(step, {key: float(step), "padding": 1.0} if step % 2 else {key: step})

    threads = [threading.Thread(target=write, args=(f"key{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        steps = [step for key, step, _ in _metrics(path) if key == f"key{number}"]
        assert steps == list(range(200))
    assert len(heard) == len(_records(path))


def test_a_listener_hears_what_is_new(path: Path) -> None:
    Journal(path).metrics(1, {"loss": 1.0})
    journal = Journal(path)
    heard: list[Record] = []
    journal.listen(heard.append)
    journal.metrics(1, {"loss": 1.0})  # there already
    journal.metrics(2, {"loss": 2.0})
    journal.end("FINISHED")
    assert heard == [
        {"kind": "metrics", "step": 2, "values": {"loss": 2.0}},
        {"kind": "end", "status": "FINISHED"},
    ]


def test_age_counts_from_the_first_record_also_after_a_resume(path: Path) -> None:
    assert Journal(path).age_seconds() == 0
    an_hour_ago = int((time.time() - 3600) * 1000)
    path.write_text(json.dumps({"time": an_hour_ago, "kind": "end", "status": "FAILED"}) + "\n")
    assert 3600 <= Journal(path).age_seconds() < 3660


ENDINGS = [
    ([], False),
    (["start"], False),
    (["start", "FINISHED"], True),
    (["start", "FAILED"], False),
    (["start", "KILLED", "start", "FINISHED"], True),
    (["start", "FINISHED", "start"], False),
]


@pytest.mark.parametrize(("history", "finished"), ENDINGS)
def test_finished_is_what_the_last_process_said(
    path: Path, history: list[str], finished: bool
) -> None:
    journal = Journal(path)
    for event in history:
        if event == "start":
            journal.start("attention_micro", 1)
        else:
            journal.end(event)
        journal.metrics(len(history), {"loss": 1.0})
    assert is_finished(path) == finished


VALUES = st.dictionaries(st.text(max_size=8), st.floats(allow_nan=False), min_size=1, max_size=3)


@settings(max_examples=50, deadline=None)
@given(st.lists(VALUES, max_size=6), st.data())
def test_a_file_cut_anywhere_keeps_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, content: list[dict[str, float]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / FILE_NAME
    journal = Journal(path)
    for step, values in enumerate(content):
        journal.metrics(step, values)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    Journal(path)
    kept = path.read_bytes()
    assert whole.startswith(kept)
    assert kept.count(b"\n") == whole[:cut].count(b"\n")
    assert kept == b"" or kept.endswith(b"\n")


# --- a full disk ----------------------------------------------------------------------------


def _write_until_the_disk_is_full(journal: Journal) -> int:
    """The step that did not fit."""
    for step in range(10_000):
        try:
            journal.metrics(step, {"train/loss": step / 7})
        except OSError:
            return step
    pytest.fail("no disk is so large")


def test_a_full_disk_stops_the_run_with_a_clear_error_and_the_journal_stays_whole(
    small_disk: Any,
) -> None:
    path = small_disk.root / FILE_NAME
    journal = Journal(path)
    heard: list[Record] = []
    journal.listen(heard.append)
    count = _write_until_the_disk_is_full(journal)
    assert count > 100
    assert path.read_bytes().endswith(b"\n")
    assert _metrics(path) == [("train/loss", step, step / 7) for step in range(count)]
    assert len(heard) == count

    with pytest.raises(TrainingStopped) as stopped:  # exit code 1, no traceback
        journal.metrics(count, {"train/loss": 0.0})
    message = str(stopped.value)
    assert len(message.splitlines()) == 1
    for words in (str(path), "No space left", f"run.resume={path.parent}"):
        assert words in message

    with pytest.raises(OSError, match="No space left"):  # a run that cannot say so is not finished
        journal.end("FINISHED")
    journal.end("FAILED")  # the run ends by the first error, which nothing may hide
    journal.close()
    assert len(_records(path)) == count


@pytest.mark.parametrize("by", ["the same process", "a new one"])
def test_a_journal_goes_on_once_there_is_room_again(small_disk: Any, by: str) -> None:
    path = small_disk.root / FILE_NAME
    journal = Journal(path)
    journal.metrics(0, {"train/loss": 0.0})
    small_disk.fill()
    count = _write_until_the_disk_is_full(journal)
    assert 1 < count < 200  # what was left of one page
    small_disk.make_room()

    if by == "a new one":
        journal.close()
        journal = Journal(path)
    for step in range(count + 3):
        journal.metrics(step, {"train/loss": step / 7})
    journal.end("FINISHED")
    journal.close()
    assert _metrics(path) == [("train/loss", step, step / 7) for step in range(count + 3)]
    assert is_finished(path)
