"""Whoever tells a run to stop is obeyed within a step, wherever the run is, and nothing is lost."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import CLOCKS

from leaderboard import read_runs
from mixerbench.errors import PREEMPTED, Interrupted, Preempted, Refusal, StopRequested, exit_code
from mixerbench.objectives.classification import Classification, loss
from mixerbench.stopping import SIGNALS, Stop
from mixerbench.tracking.journal import FILE_NAME, read
from mixerbench.training import checkpoint, run, trainer
from mixerbench.training.checkpoint import CHECKPOINTS
from mixerbench.training.launch import may_be_a_restart
from mixerbench.training.run import run_training

ROOT = Path(__file__).parents[2]
WINDOW = "run.log_every_steps=3"  # of four steps an epoch: a stop falls between two lines


def _metrics(folder: Path) -> list[tuple[str, int, float]]:
    return [
        (key, record["step"], value)
        for record, _ in read(folder / FILE_NAME)
        if record["kind"] == "metrics"
        for key, value in record["values"].items()
        if not key.startswith((*CLOCKS, "measure/"))
    ]


def _assert_same_run(one: Path, other: Path) -> None:
    assert sorted(_metrics(one)) == sorted(_metrics(other))
    for name in ("model.safetensors", "ema.safetensors"):
        ours, theirs = (checkpoint.load(folder / name)[0] for folder in (one, other))
        assert all((ours[key] == theirs[key]).all() for key in ours | theirs)


def _tell(number: signal.Signals, calls: int, original: Callable[..., Any]) -> Callable[..., Any]:
    """``original``, which sends this process a signal when it is called the ``calls``-th time."""
    count = iter(range(1, 10_000))

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(count) == calls:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    return call


@pytest.mark.parametrize(
    ("number", "step"),
    [*((signal.SIGTERM, step) for step in (1, 5, 8, 12)), *((other, 5) for other in SIGNALS)],
)
def test_a_run_that_is_told_to_stop_saves_that_step_and_goes_on_as_if_it_had_not(
    number: signal.Signals,
    step: int,
    tiny: Callable[..., Any],
    trained: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = trained(WINDOW)
    handlers = [signal.getsignal(one) for one in SIGNALS]
    # seed_generators is called for each of two virtual ranks a step
    told = _tell(number, 2 * step, trainer.seed_generators)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "seed_generators", told)
        with pytest.raises(Preempted, match=rf"{number.name}.*step {step} .*run\.resume=") as error:
            run_training(tiny(WINDOW))
    assert [signal.getsignal(one) for one in SIGNALS] == handlers
    assert isinstance(error.value, Interrupted) == (number == signal.SIGINT)
    folder = Path(re.search(r"run\.resume=(\S+)", str(error.value))[1])  # type: ignore[index]
    newest = checkpoint.newest(folder / CHECKPOINTS)
    assert newest is not None
    assert newest.name == f"step-{step:09d}.safetensors"
    resumed = trained(WINDOW, f"run.resume={folder}")
    _assert_same_run(whole.folder, resumed.folder)


@pytest.mark.parametrize("evaluation", [1, 2, 4, 6])  # weights and average, after each epoch
def test_a_run_that_is_told_to_stop_in_an_evaluation_makes_up_for_it(
    evaluation: int,
    tiny: Callable[..., Any],
    trained: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = trained()
    with monkeypatch.context() as patch:
        told = _tell(signal.SIGTERM, evaluation, Classification.evaluate)
        patch.setattr(Classification, "evaluate", told)
        with pytest.raises(Preempted):
            run_training(tiny())
    _assert_same_run(whole.folder, trained("run.resume=auto").folder)


@pytest.mark.parametrize("place", ["keep", "measure"])
def test_a_run_that_is_told_to_stop_behind_its_training_trains_nothing_again(
    place: str,
    tiny: Callable[..., Any],
    trained: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = ("run.measure=true", "run.measure_seconds=0.05")
    whole = trained(*measured)
    with monkeypatch.context() as patch:
        patch.setattr(run, place, _tell(signal.SIGTERM, 1, getattr(run, place)))
        with pytest.raises(Preempted, match=r"told to stop \(SIGTERM\)\. .*run\.resume=") as error:
            run_training(tiny(*measured))
    folder = Path(re.search(r"run\.resume=(\S+)", str(error.value))[1])  # type: ignore[index]
    assert [r["status"] for r, _ in read(folder / FILE_NAME) if r["kind"] == "end"] == ["KILLED"]
    with monkeypatch.context() as patch:
        patch.setattr(loss, "create_loss", lambda recipe: _Never())
        resumed = trained(*measured, "run.resume=auto")
    assert resumed.folder == folder
    _assert_same_run(whole.folder, folder)
    assert b"measure/parameters" in (folder / FILE_NAME).read_bytes()


class _Never(torch.nn.Module):
    def forward(self, *_: Any) -> Any:
        raise AssertionError("a step was trained")


def test_what_was_trained_and_not_uploaded_is_uploaded_and_not_trained_again(
    tiny: Callable[..., Any], trained: Callable[..., Any], tmp_path: Path
) -> None:
    folder = trained().folder  # and then it was killed
    journal = (folder / FILE_NAME).read_bytes()
    online = ("tracking.offline=false", f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}")
    settings = tiny(*online, "tracking.flush_seconds=60", "run.resume=auto")
    finished = run_training(settings)
    assert (finished.folder, finished.result) == (folder, None)
    assert "was finished before" in finished.summary(settings)
    assert (folder / FILE_NAME).read_bytes() == journal
    (logged,) = read_runs(online[1].removeprefix("tracking.uri=")).runs
    assert logged.name.endswith("seed0")
    with pytest.raises(Refusal, match="is finished"):  # and everywhere
        run_training(tiny(*online, f"run.resume={folder}"))


@pytest.mark.parametrize("number", SIGNALS)
def test_before_there_is_anything_to_save_a_signal_ends_the_process_in_a_line(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    with Stop(at_once=True):
        code = exit_code(lambda: os.kill(os.getpid(), number))
    assert code == (130 if number == signal.SIGINT else PREEMPTED)
    what = "interrupted" if number == signal.SIGINT else f"told to stop ({number.name})"
    assert capsys.readouterr().err == f"mixerbench: {what}.\n"


def test_once_told_only_a_second_ctrl_c_counts(capfd: pytest.CaptureFixture[str]) -> None:
    with Stop() as stop:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(StopRequested, match="SIGINT"):
            stop.check()
    assert "Ctrl-C once more stops at once" in capfd.readouterr().err


def test_what_is_told_within_is_known_outside() -> None:
    """Elastic agents tell their workers again and again: saving and closing go on undisturbed."""
    with Stop(at_once=True):
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StopRequested, match="SIGTERM"):
            stop.check()


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As nohup has it, and a script that starts a run in its background."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop(at_once=True), Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            stop.check()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}, False),  # srun --pty bash
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_RESTART_COUNT": "1"}, True),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}, False),
        ({"SLURM_STEP_ID": "0", "SLURM_RESTART_COUNT": "1"}, False),
        ({"TORCHELASTIC_RUN_ID": "none"}, False),
        ({"TORCHELASTIC_RUN_ID": "ab12"}, True),
    ],
)
def test_only_a_launch_that_was_started_again_goes_on_by_itself(
    environment: dict[str, str], expected: bool
) -> None:
    assert may_be_a_restart(environment) is expected


def test_a_second_start_in_an_interactive_step_is_a_run_of_its_own(
    trained: Callable[..., Any], stopped: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    begun = stopped("train/loss", 6)
    assert trained().folder != begun
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert trained().folder == begun


@pytest.mark.parametrize("name", ["lab/digits", "../../x", ".hidden", "a b", ""])
def test_a_protocol_whose_name_is_no_folder_is_refused(name: str, tiny: Callable[..., Any]) -> None:
    with pytest.raises(Refusal, match=r"protocol\.name=.*it names a folder"):
        tiny(f"protocol.name='{name}'")


@pytest.mark.slow
def test_the_command_line_saves_and_exits_with_75(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "mixerbench.cli", "train", "size.depth=1", "size.dim=16",
        "size.num_heads=2", "recipe.epochs=1000", "run.log_every_steps=1", "run.measure=false",
        "run.progress=false", "tracking.offline=true", f"run.root={tmp_path}",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        journals = list(tmp_path.glob(f"*/*/{FILE_NAME}"))
        if journals and b'"step": 3' in journals[0].read_bytes():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "told to stop (SIGTERM)" in errors
    assert list(tmp_path.glob(f"*/*/{CHECKPOINTS}/step-*.safetensors"))
