"""A suite: what its file expands to, what it skips, resumes and leaves out, and its table."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from rich.console import Console
from safetensors.torch import load_file

from mixerbench.config.files import config_names
from mixerbench.config.schema import Settings
from mixerbench.errors import Refusal, TrainingStopped
from mixerbench.launching import suite as suite_module
from mixerbench.launching.suite import Suite, find_runs, fingerprint_of, read_suite, run_suite
from mixerbench.launching.table import SuiteTable
from mixerbench.tracking.journal import FILE_NAME, Journal, read
from mixerbench.tracking.keys import Artifact, Metric
from mixerbench.training.folder import complete, is_finished, open_folder, read_settings
from mixerbench.training.run import run_training

ROOT = Path(__file__).parents[2]

TINY = {
    "protocol.image_size": 16,
    "data": "synthetic", "data.train_images": 64, "data.val_images": 24, "data.num_classes": 4,
    "size.depth": 1, "size.dim": 16, "size.num_heads": 2,
    "recipe.epochs": 3, "recipe.batch.size": 16, "recipe.batch.micro_batch_size": 8,
    "recipe.augmentation.repeats": 2, "recipe.schedule.warmup_epochs": 1,
    "tracking.offline": True, "run.measure": False, "run.log_every_steps": 1, "run.device": "cpu",
}  # fmt: skip
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a suite's file with these settings."""

    def make(settings: Mapping[str, Any], **fields: Any) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({"runs": dict(settings), **fields}))
        return path

    return make


@pytest.fixture
def tiny_suite(write: Write, tmp_path: Path) -> Callable[..., Suite]:
    """Two mixers by two seeds, below the test's own folder."""

    def make(*given: str, **settings: Any) -> Suite:
        axes = {"mixer": ["none", "identity"], "run.seed": [0, 1]}
        root = {"run.root": str(tmp_path / "runs"), "run.progress": False}
        return read_suite(str(write({**TINY, **axes, **root, **settings})), given)

    return make


def _refusal(place: Path, *given: str) -> str:
    with pytest.raises(Refusal) as refused:
        read_suite(str(place), given)
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


# --- expansion ------------------------------------------------------------------------------


def test_lists_are_axes_and_single_values_are_the_same_for_all(write: Write) -> None:
    place = write(
        {"mixer": ["attention", "patch_ff"], "size": "micro", "run.seed": [0, 3],
         "recipe.epochs": 2, "recipe.schedule.warmup_lr": "1e-3"},
        description="two by two",
    )  # fmt: skip
    suite = read_suite(str(place))
    assert (suite.name, suite.description) == ("mine", "two by two")
    assert list(suite.runs) == [
        "attention_micro seed 0", "attention_micro seed 3",
        "patch_ff_micro seed 0", "patch_ff_micro seed 3",
    ]  # fmt: skip
    assert [s.run.seed for s in suite.runs.values()] == [0, 3, 0, 3]
    for settings in suite.runs.values():
        assert settings.protocol.recipe.epochs == 2
        assert settings.protocol.recipe.schedule.warmup_lr == 1e-3


def test_an_axis_may_hold_lists_texts_and_nothing(write: Write) -> None:
    plans = [["none", "none", "attention", "attention"], ["attention"] * 4]
    place = write(
        {"mixer": "plan", "mixer.plan": plans, "run.root": "a folder, or so", "data.root": None}
    )
    runs = read_suite(str(place)).runs.values()
    assert [settings.model["mixer"]["plan"] for settings in runs] == plans
    assert {settings.run.root for settings in runs} == {"a folder, or so"}
    assert {settings.protocol.data.root for settings in runs} == {None}


def test_presets_are_an_axis_like_any_other(write: Write) -> None:
    suite = read_suite(str(write({"preset": ["lit_ti", "lit_s"], "protocol": "imagenet_lit"})))
    assert list(suite.runs) == ["lit_ti", "lit_s"]


@pytest.mark.parametrize("given", ["recipe.epochs=5", "protocol.recipe.epochs=5"])
@pytest.mark.parametrize("own", ["recipe.epochs", "protocol.recipe.epochs"])
def test_the_command_line_replaces_and_adds(given: str, own: str, write: Write) -> None:
    place = write({"mixer": ["attention", "patch_ff"], own: 3})
    suite = read_suite(str(place), [given, "mixer=none,identity", "launcher.jobs=2"])
    assert list(suite.runs) == ["none_micro", "identity_micro"]
    for settings in suite.runs.values():
        assert settings.protocol.recipe.epochs == 5
        assert settings.launcher.jobs == 2


@pytest.mark.parametrize("name", config_names("suite"))
def test_the_suites_that_come_with_it_can_be_read(name: str) -> None:
    suite = read_suite(name)
    assert len(suite.runs) > 1
    assert suite.description


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"recipe.epochs": [1, 2]}, ("protocol.recipe.epochs", "1 in some", "2 in others")),
        ({"protocol": ["digits", "cifar10"]}, ("protocol.", "in some")),
        ({"run.precision": ["fp32", "bf16"]}, ("run.precision",)),
        ({"mixer": ["attention", "attention"]}, ("same", "attention_micro")),
        ({"mixer": []}, ("mixer", "no values")),
        ({"mixer": ["atention"]}, ("'atention'", "'attention'")),
        ({"mixr": "attention"}, ("'mixr'", "'mixer'")),
        ({"run.seed": "three"}, ("run.seed", "whole number")),
        ({"run.resume": "auto"}, ("run.resume",)),
        ({}, ("runs:",)),
    ],
)
def test_what_is_no_suite_is_refused(
    settings: dict[str, Any], words: tuple[str, ...], write: Write
) -> None:
    message = _refusal(write(settings))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a", ("runs:",)),
        ("runs: [a]", ("runs:",)),
        ("run: {mixer: none}", ("'run'", "'runs'")),
        ("runs: {mixer: [", ("cannot read", "line 1")),
    ],
)
def test_a_file_that_is_no_suite_is_refused(
    text: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    place = tmp_path / "wrong.yaml"
    place.write_text(text)
    message = _refusal(place)
    for word in (*words, "wrong.yaml"):
        assert word in message


def test_unknown_names_are_refused_with_the_nearest() -> None:
    assert "'seeds'" in _refusal(Path("seed"))
    assert "nowhere.yaml" in _refusal(Path("nowhere.yaml"))


# --- what is skipped, resumed and left out: the training is a stand-in here --------------------


@pytest.fixture
def given_to_train() -> Callable[..., dict[str, Settings]]:
    """Run a suite without training; returns what would be trained."""

    def run(suite: Suite, table: SuiteTable | None = None) -> dict[str, Settings]:
        told: list[dict[str, Settings]] = []
        table = table or SuiteTable(suite.runs, enabled=False)
        run_suite(suite, fingerprint_of(suite), table, lambda runs, view: told.append(runs) or {})
        return told[0]

    return run


def _leave(suite: Suite, name: str, status: str | None) -> Path:
    """A folder of the run, as one that ended so has left it; None: its process was killed."""
    from mixerbench.data.source import open_images

    settings = suite.runs[name]
    complete(settings.protocol, open_images(settings.protocol))
    folder, lock = open_folder(settings)
    with lock:
        journal = Journal(folder / FILE_NAME)
        journal.start(settings.label, 12)
        journal.metrics(4, {Metric.TRAIN_LOSS: 1.25, Metric.EPOCH: 1.0})
        journal.metrics(4, {Metric.VAL_TOP1: 25.0})
        if status == "FINISHED":
            journal.metrics(12, {Metric.FINAL_TOP1: 50.0, Metric.TRAINING_SECONDS: 75.0})
        if status:
            journal.end(status)
        journal.close()
    return folder


def _bytes_below(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _state(suite: Suite) -> dict[str, str]:
    return {name: one.state for name, one in find_runs(suite, fingerprint_of(suite)).items()}


def test_finished_runs_are_skipped_and_unfinished_ones_resumed(
    tiny_suite: Callable[..., Suite], given_to_train: Callable[..., dict[str, Settings]]
) -> None:
    suite = tiny_suite()
    names = list(suite.runs)
    folders = [
        _leave(tiny_suite(), name, status)
        for name, status in zip(names, ("FINISHED", "FAILED", None), strict=False)
    ]
    before = _bytes_below(folders[0])
    assert list(_state(suite).values()) == ["finished", "broken", "broken", "waiting"]
    told = given_to_train(suite)
    assert {name: settings.run.resume for name, settings in told.items()} == {
        names[1]: str(folders[1]), names[2]: str(folders[2]), names[3]: "never"
    }  # fmt: skip
    assert _bytes_below(folders[0]) == before


@pytest.mark.parametrize("order", [("FINISHED", "FAILED"), ("FAILED", "FINISHED")])
def test_one_finished_folder_is_enough(
    order: tuple[str, str], tiny_suite: Callable[..., Suite],
    given_to_train: Callable[..., dict[str, Settings]],
) -> None:  # fmt: skip
    suite = tiny_suite()
    first, *others = suite.runs
    for status in order:
        _leave(tiny_suite(), first, status)
    assert list(given_to_train(suite)) == others


def test_another_protocol_or_model_is_another_run(
    tiny_suite: Callable[..., Suite], given_to_train: Callable[..., dict[str, Settings]]
) -> None:
    first = next(iter(tiny_suite().runs))
    _leave(tiny_suite(), first, "FINISHED")
    for other in ("recipe.epochs=4", "size.dim=32", "data.val_images=20"):
        assert len(given_to_train(tiny_suite(other))) == 4
    for same in ("run.precision=bf16", "launcher.jobs=1", "run.threads=2"):
        assert len(given_to_train(tiny_suite(same))) == 3


def test_a_run_that_another_process_trains_is_left_out(
    tiny_suite: Callable[..., Suite], monkeypatch: pytest.MonkeyPatch,
    given_to_train: Callable[..., dict[str, Settings]], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(suite_module, "_PATIENCE_SECONDS", 0.1)
    suite = tiny_suite()
    first, *others = suite.runs
    folder = _leave(tiny_suite(), first, None)
    with FileLock(folder / ".lock"):
        assert _state(suite)[first] == "in use"
        assert list(given_to_train(suite)) == others
        table = SuiteTable(suite.runs, False)
        failures = run_suite(suite, fingerprint_of(suite), table, lambda *_: {})
    assert list(failures) == [first]
    assert f"{first}: left out" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("status", ["FINISHED", "KILLED"])
def test_what_a_killed_suite_has_left_is_waited_for(
    status: str, tiny_suite: Callable[..., Suite], monkeypatch: pytest.MonkeyPatch,
    given_to_train: Callable[..., dict[str, Settings]],
) -> None:  # fmt: skip
    suite = tiny_suite()
    first, *others = suite.runs
    folder = _leave(tiny_suite(), first, None)
    held = FileLock(folder / ".lock")
    held.acquire()

    def end_and_release(self: SuiteTable, name: str, message: str) -> None:
        assert name == first
        journal = Journal(folder / FILE_NAME)
        journal.end(status)
        journal.close()
        held.release()

    monkeypatch.setattr(SuiteTable, "note", end_and_release)
    told = given_to_train(suite)
    if status == "FINISHED":
        assert list(told) == others
    else:
        assert list(told) == list(suite.runs)
        assert told[first].run.resume == str(folder)


def test_show_says_what_there_is_and_trains_nothing(
    tiny_suite: Callable[..., Suite],
    tmp_path: Path,
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    first, second, *_ = tiny_suite().runs
    _leave(tiny_suite(), first, "FINISHED")
    _leave(tiny_suite(), second, None)
    before = _bytes_below(tmp_path)
    outcome = command("suite", "show", f"suite={tmp_path / 'mine.yaml'}")
    assert (outcome.code, outcome.err) == (0, "")
    rows = {line.split("  ")[0]: line.split() for line in outcome.out.splitlines()}
    assert {"finished", "50.00", "1:15"} <= set(rows[first])
    assert {"broken", "1/3", "25.00"} <= set(rows[second])
    assert "4 runs: 2 waiting, 1 finished, 1 broken" in outcome.out
    assert _bytes_below(tmp_path) == before


# --- the table ------------------------------------------------------------------------------


def _text(table: SuiteTable) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table.render())
    return capture.get()


def _at(seconds: float, **record: Any) -> dict[str, Any]:
    return {"time": int(seconds * 1000), **record}


def test_a_row_says_where_its_run_is() -> None:
    table = SuiteTable(["a", "b[0]"], enabled=False)
    now = time.time()
    assert _text(table).splitlines()[1].split()[:2] == ["a", "waiting"]
    table.show("a", _at(now - 20, kind="start", label="a", total_steps=40))
    table.show("a", _at(now - 10, kind="metrics", step=10, values={Metric.TRAIN_LOSS: 2.0}))
    trained = {Metric.TRAIN_LOSS: 1.5, Metric.EPOCH: 5.0}
    table.show("a", _at(now, kind="metrics", step=20, values=trained))
    table.show("a", _at(now, kind="metrics", step=20, values={Metric.VAL_TOP1: 31.25}))
    words = _text(table).splitlines()[1].split()
    assert words[:2] == ["a", "running"]
    assert words[-5:-2] == ["5/10", "31.25", "%"]  # epochs; before them a bar
    assert words[-2] in ("0:20", "0:21")  # ten steps in ten seconds, and twenty to go
    table.show("a", _at(now, kind="end", status="KILLED"))
    assert "broken" in _text(table)
    table.show("a", _at(now, kind="start", label="a", total_steps=40))
    assert "resumed" in _text(table)
    table.show("a", _at(now, kind="metrics", step=40, values={Metric.FINAL_TOP1: 62.5, Metric.TRAINING_SECONDS: 61}))  # fmt: skip # noqa: E501
    table.show("a", _at(now, kind="end", status="FINISHED"))
    assert {"finished", "62.50", "1:01"} <= set(_text(table).splitlines()[1].split())
    table.ended("b[0]", "the loss became nan")
    assert _text(table).splitlines()[2].split()[:2] == ["b[0]", "failed"]
    assert "2 runs: 1 finished, 1 failed" in _text(table)


def test_without_a_terminal_there_is_a_line_for_each_event_and_none_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    records = [
        _at(1, kind="start", label="a", total_steps=8),
        _at(2, kind="metrics", step=4, values={Metric.VAL_TOP1: 25.0}),
    ]
    later = [
        _at(3, kind="start", label="a", total_steps=8),
        _at(4, kind="metrics", step=8, values={Metric.VAL_TOP1: 50.0}),
        _at(5, kind="end", status="FINISHED"),
    ]
    with SuiteTable(["a"]) as table:
        table.recall("a", "broken", records)
        for record in [*records, *later]:  # a journal is read from its beginning
            table.show("a", record)
        table.ended("a", "")
    assert capsys.readouterr().err.splitlines() == [
        "a: resumed", "a: step 8/8, top-1 50.00 %", "a: finished",
    ]  # fmt: skip


def test_a_terminal_with_few_lines_keeps_the_rows_that_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("LINES", "9")
    table = SuiteTable([f"run{number}" for number in range(30)])
    table.recall("run0", "finished")
    table.recall("run20", "running")
    table.recall("run25", "failed")
    shown = _text(table)
    assert len(shown.splitlines()) <= 9
    for words in ("run20", "run25", "30 runs", "25 not shown"):
        assert words in shown
    assert "run0 " not in shown
    table.__exit__()
    assert len(_text(table).splitlines()) > 30


# --- real processes ---------------------------------------------------------------------------

BREAKABLE = """
import os
from mixers import TokenMixer, register_mixer

@register_mixer("breakable")
class Breakable(TokenMixer):
    \"\"\"Gives what is no number from the sixth step on, while there is a file of that name.\"\"\"
    any_grid = True
    mixes_prefix = mixes_tokens = False
    paper = "none"

    def __init__(self, dim, grid, num_heads, *, file: str = ""):
        super().__init__(dim, grid, num_heads)
        self.file, self.passes = file, 0

    def forward(self, x, grid):
        self.passes += self.training
        return x * float("nan") if self.passes > 5 and os.path.exists(self.file) else x
"""


def _start(place: str, cwd: Path) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    return subprocess.Popen(
        [sys.executable, "-m", "mixerbench.cli", "suite", "run", place],
        cwd=cwd,
        env={**environment, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _journals(root: Path) -> dict[str, Path]:
    """By the run's name; a second folder of a run would be a run that was repeated."""
    found: dict[str, Path] = {}
    for path in root.glob("runs/*/*/run.json"):
        name = json.loads(path.read_text())["name"]
        assert name not in found, f"{name} was trained twice"
        found[name] = path.parent
    return found


def _starts(folder: Path) -> int:
    return sum(record["kind"] == "start" for record, _ in read(folder / FILE_NAME))


@pytest.mark.everything  # kill loop
@pytest.mark.skipif(sys.platform != "linux", reason="children end with their parent")
def test_a_suite_that_is_killed_loses_nothing_and_repeats_nothing(
    write: Write, tmp_path: Path
) -> None:
    settings = {
        **TINY, "mixer": "identity", "run.seed": [0, 1, 2], "launcher.jobs": 2,
        "recipe.epochs": 40, "run.evaluate_every_epochs": 20, "recipe.regularization.dropout": 0.1,
    }  # fmt: skip
    place = f"suite={write(settings)}"

    first = _start(place, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not any(_is_under_way(folder) for folder in _journals(tmp_path).values()):
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)  # the parent only: nobody tells the children
    first.communicate()
    begun = [folder for folder in _journals(tmp_path).values() if not is_finished(folder)]
    assert begun

    out, err = (second := _start(place, cwd=tmp_path)).communicate(timeout=240)
    assert second.returncode == 0, err
    assert "resumed" in err
    folders = _journals(tmp_path)
    assert len(folders) == 3
    assert all(is_finished(folder) for folder in folders.values())
    resumed = [folder for folder in folders.values() if _starts(folder) == 2]
    assert resumed and set(resumed) <= set(begun)
    (row,) = (line for line in out.splitlines() if line.startswith("identity_micro"))
    assert row.split()[-1] == "3"  # seeds

    before = _bytes_below(tmp_path / "runs")
    out, err = (third := _start(place, cwd=tmp_path)).communicate(timeout=120)
    assert (third.returncode, err) == (0, "")
    assert _bytes_below(tmp_path / "runs") == before

    alone = read_settings(resumed[0])
    alone.run.root, alone.run.resume = str(tmp_path / "undisturbed"), "never"
    undisturbed = run_training(alone).folder
    for file in (Artifact.MODEL, Artifact.EMA):
        expected, found = load_file(undisturbed / file), load_file(resumed[0] / file)
        assert expected.keys() == found.keys()
        assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())


def _is_under_way(folder: Path) -> bool:
    return any(record.get("step", 0) >= 10 for record, _ in read(folder / FILE_NAME))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # mlflow warns about itself
def test_a_failing_run_stops_no_other_and_is_resumed_next_time(
    write: Write, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(BREAKABLE)
    switch = tmp_path / "broken"
    switch.touch()
    settings = {
        **TINY, "plugins": [["mine.py"]], "mixer": "breakable", "tracking.offline": False,
        "mixer.file": ["broken", "never"], "launcher.jobs": 2,
    }  # fmt: skip
    place = f"suite={write(settings)}"

    out, err = (first := _start(place, cwd=tmp_path)).communicate(timeout=120)
    assert first.returncode == 1, err
    last = err.splitlines()[-1]
    assert "1 of 2 runs did not finish" in last
    assert "file=broken" in last and "file=never" not in last
    assert "top-1 (%)" in out  # the leaderboard of the other one
    assert sorted(map(is_finished, _journals(tmp_path).values())) == [False, True]

    switch.unlink()
    out, err = (second := _start(place, cwd=tmp_path)).communicate(timeout=120)
    assert second.returncode == 0, err
    assert sorted(_starts(folder) for folder in _journals(tmp_path).values()) == [1, 2]
    assert "models: 2, runs: 2" in out


def test_the_refusal_of_one_run_is_told_after_the_others(
    tiny_suite: Callable[..., Suite], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mixerbench.commands import _suite_report as command

    suite = tiny_suite()
    failing = list(suite.runs)[-1]
    monkeypatch.setattr(command, "run_suite", lambda *_: {failing: "the loss became nan"})
    with pytest.raises(TrainingStopped, match=f"1 of 4 runs did not finish: {failing}"):
        command.train_suite(suite)
