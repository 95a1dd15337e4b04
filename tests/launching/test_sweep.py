"""Many runs side by side. The children are stand-ins here: a sweep of real ones is in tests/cli."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

from mixerbench.config.compose import compose_sweep
from mixerbench.config.schema import Settings, build
from mixerbench.errors import PREEMPTED, Interrupted, Refusal, TrainingStopped
from mixerbench.launching.local import (
    LocalRun,
    default_jobs,
    names_of,
    run_jobs,
    run_sweep,
    start_afresh,
)

# Writes when it began and ended and what it was told; seed 1 fails, seed 2 ends without a word.
CHILD = """
import json, pathlib, sys, time, yaml
scratch, log = map(pathlib.Path, sys.argv[1:])
settings = yaml.safe_load((scratch / "settings.yaml").read_text())
began = time.time()
time.sleep(0.3)
seed = settings["run"]["seed"]
with open(log, "a") as file:
    file.write(json.dumps([seed, began, time.time(), settings]) + "\\n")
if seed == 1:
    sys.exit("mixerbench: the loss became nan at step 7.")
sys.exit(3 if seed == 2 else 0)
"""


@dataclass
class StandIns:
    """Starts stand-ins for the training processes, and remembers them."""

    log: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(
        self, job: Path, environment: Mapping[str, str], errors: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", CHILD, str(job), str(self.log)]
        process = subprocess.Popen(command, env=environment, stderr=errors)
        self.started.append(process)
        return process

    def rows(self) -> list[Any]:
        """What they have written."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def children(tmp_path: Path) -> StandIns:
    return StandIns(tmp_path / "log")


def _sweep(*overrides: str) -> list[Settings]:
    return compose_sweep(["run.progress=false", *overrides])


def _most_at_once(rows: list[Any]) -> int:
    events = [(began, 1) for _, began, _, _ in rows] + [(ended, -1) for _, _, ended, _ in rows]
    running = most = 0
    for _, change in sorted(events):
        running += change
        most = max(most, running)
    return most


@pytest.mark.parametrize("jobs", [1, 2])
def test_so_many_run_side_by_side_as_the_setting_says(jobs: int, children: StandIns) -> None:
    run_sweep(_sweep("run.seed=0,3,4,5", f"launcher.jobs={jobs}"), children.start)
    rows = children.rows()
    assert sorted(seed for seed, *_ in rows) == [0, 3, 4, 5]
    assert _most_at_once(rows) <= jobs
    if jobs == 1:
        assert [seed for seed, *_ in rows] == [0, 3, 4, 5]


def test_a_child_gets_the_resolved_settings_and_draws_no_bars(
    children: StandIns,
) -> None:
    (settings,) = compose_sweep(["mixer=patch_ff", "recipe.epochs=2"])
    run_sweep([settings], children.start)
    ((_, _, _, told),) = children.rows()
    found = build(Settings, told)
    assert not found.run.progress
    found.run.progress = True
    assert found == settings


def test_runs_that_fail_are_named_and_the_others_finish(
    children: StandIns, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TrainingStopped) as stop:
        run_sweep(_sweep("run.seed=1,2,3", "launcher.jobs=1"), children.start)
    assert [seed for seed, *_ in children.rows()] == [1, 2, 3]
    assert "2 of 3" in str(stop.value)
    said = " ".join((str(stop.value) + capsys.readouterr().err).split())
    for words in ("seed 1", "seed 2", "nan at step 7", "exit code 3"):
        assert words in said
    assert "seed 3" not in said


def test_an_interrupt_ends_the_children(children: StandIns) -> None:
    def start(*given: Any) -> Any:
        process = children.start(*given)
        if len(children.started) == 2:
            signal.raise_signal(signal.SIGINT)
        return process

    with pytest.raises(Interrupted):
        run_sweep(_sweep("run.seed=0,3", "launcher.jobs=2"), start)
    assert len(children.started) == 2
    assert all(process.poll() is not None for process in children.started)


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ("mixer=patch_ff,attention", ["patch_ff_micro", "attention_micro"]),
        ("run.seed=0,1", ["attention_micro seed 0", "attention_micro seed 1"]),
        ("recipe.epochs=1,2", ["attention_micro seed 0 #1", "attention_micro seed 0 #2"]),
    ],
)
def test_runs_have_names_that_tell_them_apart(
    overrides: str, names: list[str], children: StandIns
) -> None:
    class View:
        def __init__(self) -> None:
            self.expected: list[str] = []
            self.ended_names: list[str] = []

        def expect(self, name: str) -> None:
            self.expected.append(name)

        def show(self, name: str, record: Any) -> None: ...

        def ended(self, name: str, message: str) -> None:
            self.ended_names.append(name)

    sweep, view = _sweep(overrides, "launcher.jobs=2"), View()
    assert names_of(sweep) == names
    run_jobs(dict(zip(names, sweep, strict=True)), view, children.start)
    assert view.expected == names
    assert sorted(view.ended_names) == sorted(names)
    assert len(children.started) == len(names)


@pytest.mark.parametrize(
    ("overrides", "jobs"), [(["run.threads=1"], 8), (["run.threads=3"], 2), (["run.threads=99"], 1),
                            (["run.device=cuda"], 1)],
)  # fmt: skip
def test_without_a_number_there_is_a_run_per_core_or_gpu(
    overrides: list[str], jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("shutil.which", lambda _: None)
    (settings,) = _sweep(*overrides)
    assert default_jobs(settings) == jobs


def test_progress_is_read_from_the_childs_journal(
    tmp_path: Path,
) -> None:
    from mixerbench.tracking.journal import FILE_NAME, Journal

    (settings,) = _sweep()
    scratch, folder = tmp_path / "0", tmp_path / "run"
    scratch.mkdir()
    folder.mkdir()
    child = LocalRun("name", settings, scratch, start_afresh)
    shown: list[tuple[str, Any]] = []

    class View:
        def show(self, name: str, record: Any) -> None:
            shown.append((name, record.get("step")))

    child.report(View())  # type: ignore[arg-type]  # no folder yet
    (scratch / "folder").write_text(str(folder))
    child.report(View())  # type: ignore[arg-type]  # no journal yet
    journal = Journal(folder / FILE_NAME)
    for step in (1, 2):
        journal.metrics(step, {"loss": 1.0})
        child.report(View())  # type: ignore[arg-type]
    assert shown == [("name", 1), ("name", 2)]


@pytest.mark.parametrize("jobs", ["0", "-1"])
def test_less_than_one_job_is_refused(jobs: str) -> None:
    with pytest.raises(Refusal, match="1 or more"):
        _sweep(f"launcher.jobs={jobs}")


PARENT = """
import subprocess, sys
from mixerbench.config.compose import compose_sweep
from mixerbench.errors import exit_code
from mixerbench.launching import local

def start(job, environment, errors):
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    child = subprocess.Popen(command, env=environment, stderr=errors)
    print(child.pid, flush=True)
    return child

runs = compose_sweep(["run.progress=false", "run.seed=0,1", "launcher.jobs=2"])
sys.exit(exit_code(lambda: local.run_sweep(runs, start)))
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_a_sweep_that_is_told_to_end_ends_its_children() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    children = [int(parent.stdout.readline()) for _ in range(2)]
    parent.terminate()  # what a scheduler does
    assert parent.wait(30) == PREEMPTED
    try:
        deadline = time.monotonic() + 5
        while any(_is_running(child) for child in children) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not [child for child in children if _is_running(child)]
    finally:
        for child in children:
            if _is_running(child):
                os.kill(child, signal.SIGKILL)


def _is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
