"""Forked processes are what fresh ones are, only sooner."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import DATA, MODEL, RECIPE, RUN

from mixerbench.config.compose import compose_sweep
from mixerbench.config.schema import Settings
from mixerbench.errors import TrainingStopped
from mixerbench.launching.forks import ForkServer
from mixerbench.launching.local import can_fork, run_sweep, start_afresh
from mixerbench.tracking.keys import Artifact

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only"),
    pytest.mark.xdist_group("forks"),  # which share a server
]

HELPERS = Path(__file__).parents[1] / "helpers"
ROOT = HELPERS.parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HELPERS}", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer(["forked"], ENVIRONMENT) as server:
        yield server


@pytest.fixture
def start(server: ForkServer, tmp_path: Path) -> Callable[..., Any]:
    """Start a function of the helpers; its output and errors are in files."""

    def start(function: str, *arguments: str, **environment: str) -> Any:
        (tmp_path / "in").write_text("what was typed")
        with (
            open(tmp_path / "in", "rb") as given,
            open(tmp_path / "out", "wb") as out,
            open(tmp_path / "errors", "wb") as errors,
        ):
            return server.start(
                f"forked:{function}",
                arguments,
                environment=ENVIRONMENT | environment,
                streams=(given, out, errors),
                folder=str(tmp_path),
            )

    return start


def test_it_has_its_own_streams_environment_folder_and_signals(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    process = start("tell", "3", CUDA_VISIBLE_DEVICES="5")
    assert process.wait(60) == 3
    told = json.loads((tmp_path / "out").read_text())
    assert told["arguments"] == ["3"]
    assert told["folder"] == str(tmp_path)
    assert told["environment"].pop("MIXERBENCH_PARENT") != str(os.getpid())  # it is the server
    assert told["environment"] == ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": "5"}
    assert told["input"] == "what was typed"
    assert all(told["are_default"]) and told["blocked"] == []
    assert told["group"] == os.getpgrp()  # Ctrl-C reaches it
    assert told["descriptors"] == 4  # its streams, and the folder that lists them
    assert (tmp_path / "errors").read_text() == "to the errors\n"


def test_a_signal_reaches_it_however_early_it_comes(start: Callable[..., Any]) -> None:
    process = start("wait", "file")
    process.terminate()
    assert process.wait(60) in (75, -signal.SIGTERM)
    process.kill()  # which comes to nobody
    assert process.poll() in (75, -signal.SIGTERM)


def test_what_ends_the_terminals_processes_does_not_end_the_server(
    start: Callable[..., Any], server: ForkServer, tmp_path: Path
) -> None:
    process = start("wait", str(tmp_path / "file"))
    _until(lambda: (tmp_path / "file").exists())
    (parent,) = (
        int(line.split()[1])
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
        if line.startswith("PPid")
    )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        os.kill(parent, number)
    process.terminate()
    assert process.wait(60) == 75
    assert start("finish").wait(60) == 0


@pytest.mark.parametrize("killed", ["the server", "its parent"])
def test_children_are_told_to_stop_when_the_others_are_gone(killed: str, tmp_path: Path) -> None:
    program = """
import os, sys, time
from mixerbench.launching.forks import ForkServer
with ForkServer(["forked"], os.environ) as server, open(os.devnull, "r+b") as null:
    child = server.start("forked:wait", ["file"], environment=os.environ, streams=(null,) * 3)
    print(child.pid, flush=True)
    child.wait()
    sys.exit(child.returncode != 9)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program], env=ENVIRONMENT, cwd=tmp_path, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    file = tmp_path / "file"
    _until(lambda: file.exists() and file.read_text() == "begun")
    status = Path(f"/proc/{child}/status").read_text()
    server = next(int(r.split()[1]) for r in status.splitlines() if r.startswith("PPid"))
    os.kill(server if killed == "the server" else parent.pid, signal.SIGKILL)
    _until(lambda: file.read_text() == "told")
    assert parent.wait(60) != 0


def test_a_server_that_cannot_import_says_why(tmp_path: Path) -> None:
    with (
        ForkServer(["no_such_module"], ENVIRONMENT) as server,
        open(os.devnull, "r+b") as null,
    ):
        child = server.start("forked:finish", [], environment=ENVIRONMENT, streams=(null,) * 3)
        with pytest.raises(TrainingStopped, match="No module named 'no_such_module'"):
            child.wait(60)
        assert child.wait(60) == 1


def _until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


# --- sweeps -----------------------------------------------------------------------------------

CLOCK = '''
import time
from pathlib import Path
from mixers import TokenMixer, register_mixer

@register_mixer("clock")
class Clock(TokenMixer):
    """Writes down what CPU time this process has needed when its first batch is there."""
    any_grid = True
    mixes_prefix = mixes_tokens = False
    paper = "none"

    def forward(self, x, grid):
        file = Path(__file__).with_name(str(time.time_ns()))
        if self.training and len(x) == 8 and not hasattr(self, "is_told"):
            self.is_told = file.write_text(str(time.process_time()))
        return x
'''


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], True),
        (["run.device=auto"], None),  # what the machine has
        (["run.device=cuda"], False),
        (["run.devices=2", "recipe.batch.micro_batch_size=8"], False),
        (["run.threads=1,2"], False),
    ],
)
def test_runs_of_one_process_on_the_cpu_are_forked(
    settings: list[str], expected: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: "/bin/nvidia-smi")
    runs = compose_sweep(["run.device=cpu", "run.seed=0,1", *settings])
    assert can_fork(runs) is bool(expected)
    assert not can_fork(runs[:1])


WEIGHTS = (Artifact.MODEL, Artifact.EMA)


def _trained(root: Path, sweep: list[Settings], **options: Any) -> list[dict[str, torch.Tensor]]:
    for settings in sweep:
        settings.run.root = str(root)
    run_sweep(sweep, **options)
    folders = sorted(root.glob("*/*"))
    return [load_file(folder / name) for folder in folders for name in WEIGHTS]


def test_forked_runs_are_those_of_fresh_processes_bit_by_bit(tmp_path: Path) -> None:
    """With drop-path and mixup, whose random numbers a fork might share."""
    sweep = compose_sweep(
        [*DATA, *MODEL, *RECIPE, *RUN, "mixer=attention", "run.seed=0,1", "launcher.jobs=2"]
    )
    assert can_fork(sweep)
    forked = _trained(tmp_path / "forked", sweep)
    fresh = _trained(tmp_path / "fresh", sweep, start=start_afresh)
    assert len(forked) == len(fresh) == 4
    for ours, theirs in zip(forked, fresh, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    assert not all(torch.equal(t, forked[2][key]) for key, t in forked[0].items())  # two seeds


def test_a_forked_run_begins_within_two_seconds_of_cpu(tmp_path: Path) -> None:
    """5.5 s were the rule when each process imported torch."""
    (tmp_path / "clock.py").write_text(CLOCK)
    plugin = f"plugins=[{tmp_path / 'clock.py'}]"
    root = f"run.root={tmp_path / 'runs'}"
    own = ["mixer=clock", "run.seed=0,1", "recipe.epochs=1", "recipe.schedule.warmup_epochs=0"]
    run_sweep(compose_sweep([*DATA, *MODEL, *RECIPE, *RUN, plugin, root, *own]))
    seconds = [float(path.read_text()) for path in tmp_path.glob("[0-9]*")]
    assert len(seconds) == 2
    assert max(seconds) < 2, seconds
