"""A scheduler that wants the machine back gets it within a step, and nothing is lost."""

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
from processes import CLOCKS

from mixerbench.errors import PREEMPTED, Preempted, exit_code
from mixerbench.tracking.journal import FILE_NAME, read
from mixerbench.training import checkpoint, loop
from mixerbench.training.loop import CHECKPOINTS
from mixerbench.training.run import run_training

ROOT = Path(__file__).parents[2]
WINDOW = "run.log_every_steps=3"  # of four steps an epoch: a stop falls between two lines


def _metrics(folder: Path) -> list[tuple[str, int, float]]:
    return [
        (key, record["step"], value)
        for record, _ in read(folder / FILE_NAME)
        if record["kind"] == "metrics"
        for key, value in record["values"].items()
        if not key.startswith(CLOCKS)
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("step", [1, 5, 8, 12])
def test_a_run_that_is_told_to_stop_saves_that_step_and_goes_on_as_if_it_had_not(
    number: signal.Signals,
    step: int,
    tiny: Callable[..., Any],
    trained: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = trained(WINDOW)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    # seed_generators is called for the weights once, then for each of two virtual ranks a step
    told = _tell(number, 1 + 2 * step, loop.seed_generators)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "seed_generators", told)
        with pytest.raises(Preempted, match=rf"{number.name}.*step {step} .*run\.resume=") as error:
            run_training(tiny(WINDOW))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == handlers
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
        patch.setattr(loop, "evaluate", _tell(signal.SIGTERM, evaluation, loop.evaluate))
        with pytest.raises(Preempted):
            run_training(tiny())
    _assert_same_run(whole.folder, trained("run.resume=auto").folder)


def test_the_exit_code_is_that_of_try_again_later(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise Preempted("told to stop")

    assert exit_code(work) == PREEMPTED == 75
    assert "told to stop" in capsys.readouterr().err


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
