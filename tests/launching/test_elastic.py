"""Several processes of one run, of which one dies, or which are told to stop."""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from processes import differences, finish, start, start_group
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from mixerbench.config.compose import compose
from mixerbench.config.schema import Settings
from mixerbench.errors import exit_code
from mixerbench.launching.elastic import root_cause, run_processes
from mixerbench.launching.job import Job
from mixerbench.tracking.journal import FILE_NAME, is_finished, read
from mixerbench.training import checkpoint
from mixerbench.training.checkpoint import CHECKPOINTS
from mixerbench.training.group import join
from mixerbench.training.run import run_training

pytestmark = pytest.mark.xdist_group("elastic")  # which share an undisturbed run

TINY = [
    "data=synthetic", "data.train_images=64", "data.val_images=24", "data.num_classes=4",
    "protocol.image_size=16", "size.depth=1", "size.dim=16", "size.num_heads=2",
    "recipe.epochs=10", "recipe.batch.size=16", "recipe.batch.micro_batch_size=4",
    "recipe.augmentation.repeats=2", "recipe.mixup.prob=1", "recipe.ema.decay=0.9",
    "tracking.offline=true", "run.measure=false", "run.progress=false", "run.device=cpu",
    "run.log_every_steps=1", "run.checkpoint_every_steps=2",
]  # fmt: skip


class Launch:
    """A job with its processes, started in a process of its own as the command line does it."""

    def __init__(self, place: Path, *overrides: str) -> None:
        self.root = place / "runs"
        self._said = place / "said"
        settings = compose([*TINY, f"run.root={self.root}", *overrides])
        Job.create(place / "job", settings)
        self._agent = start(_launch, place / "job", self._said)

    def worker(self, rank: int, after: int) -> psutil.Process:
        """The process of that rank, after so many steps of the run or the end of it."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if _steps(self.root) >= after:
                for child in psutil.Process(self._agent.pid).children():
                    with suppress(psutil.Error):
                        if child.environ().get("RANK") == str(rank):
                            return child
            time.sleep(0.01)
        raise AssertionError(f"no process {rank} after {after} steps: {self._said.read_text()}")

    def tell(self, number: signal.Signals, after: int) -> None:
        """Send a signal to the agent, after so many steps."""
        self.worker(0, after)
        os.kill(self._agent.pid, number)

    def end(self) -> tuple[int, str]:
        """Its exit code, and what a user has read."""
        (code,) = finish([self._agent])
        return code, self._said.read_text()

    def folder(self) -> Path:
        (path,) = self.root.glob(f"*/*/{FILE_NAME}")
        return path.parent


def _launch(place: Path, said: Path) -> None:
    file = os.open(said, os.O_CREAT | os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.exit(exit_code(lambda: print(run_processes(Job(place)))))


def _steps(root: Path) -> int:
    """How many steps are in the journal."""
    return max(
        (r.get("step", 0) for path in root.glob(f"*/*/{FILE_NAME}") for r, _ in read(path)),
        default=0,
    )


def _starts(folder: Path) -> int:
    return sum(record["kind"] == "start" for record, _ in read(folder / FILE_NAME))


def _train(settings: Settings) -> None:
    with join() as group:
        run_training(settings, group)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run, undisturbed and without an agent: its processes start fast."""
    place = tmp_path_factory.mktemp("whole")
    settings = compose([*TINY, f"run.root={place}", "run.devices=2"])
    assert finish(start_group(_train, 2, settings)) == [0, 0]
    (path,) = place.glob(f"*/*/{FILE_NAME}")
    return path.parent


@pytest.mark.slow
@pytest.mark.everything  # kill loop
def test_after_the_death_of_a_process_all_go_on_in_the_same_folder(
    whole: Path, tmp_path: Path
) -> None:
    launch = Launch(tmp_path, "run.devices=2")
    launch.worker(0, after=5).kill()
    launch.worker(1, after=15).kill()
    code, said = launch.end()
    print(said)
    assert code == 0, said
    folder = launch.folder()  # there is one
    assert is_finished(folder / FILE_NAME)
    assert _starts(folder) == 3
    assert differences(whole, folder) == []


@pytest.mark.everything  # kill loop
def test_too_many_deaths_stop_the_run_with_its_checkpoints(tmp_path: Path) -> None:
    launch = Launch(tmp_path, "run.devices=2", "run.max_restarts=0")
    launch.worker(1, after=5).kill()
    code, said = launch.end()
    print(said)
    assert code == 1
    assert "process 1 of 2" in said
    assert "run.max_restarts" in said
    assert f"run.resume={launch.folder()}" in said
    assert len(said.splitlines()) <= 2, said
    assert checkpoint.load(checkpoint.newest(launch.folder() / CHECKPOINTS))


def _failure(folder: Path, exitcode: int, said: str | None, timestamp: int) -> ProcessFailure:
    """As the agent makes it of a dead process and of the file that the process may have left."""
    path = folder / f"{exitcode}.json"
    if said is not None:
        extra = {"py_callstack": "", "timestamp": str(timestamp)}
        path.write_text(json.dumps({"message": {"message": said, "extraInfo": extra}}))
    return ProcessFailure(local_rank=0, pid=1, exitcode=exitcode, error_file=str(path))


def test_a_killed_process_is_the_cause_though_another_noticed_first(tmp_path: Path) -> None:
    lost = _failure(tmp_path, 1, "RuntimeError: Connection closed by peer\nGLHF", timestamp=5)
    killed = _failure(tmp_path, -signal.SIGKILL, None, timestamp=0)
    assert killed.timestamp > lost.timestamp
    rank, reason = root_cause(ChildFailedError("train", {0: lost, 1: killed}))
    assert (rank, "SIGKILL" in reason) == (1, True)
    assert root_cause(ChildFailedError("train", {2: lost})) == (
        2,
        "RuntimeError: Connection closed by peer",
    )


@pytest.mark.everything  # kill loop
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_agent_saves_the_state_within_the_step(
    number: signal.Signals, whole: Path, tmp_path: Path
) -> None:
    launch = Launch(tmp_path, "run.devices=2", "run.checkpoint_every_steps=null")
    launch.tell(number, after=6)
    code, said = launch.end()
    print(said)
    assert code == 75, said
    folder = launch.folder()
    assert f"told to stop ({number.name})" in said
    assert f"run.resume={folder}" in said
    assert len(said.splitlines()) == 1, said
    newest = checkpoint.newest(folder / CHECKPOINTS)
    assert newest == checkpoint.path_of(folder / CHECKPOINTS, _steps(launch.root))
    again = ["run.devices=2", "run.checkpoint_every_steps=null"]
    settings = compose([*TINY, *again, f"run.root={launch.root}", f"run.resume={folder}"])
    assert finish(start_group(_train, 2, settings)) == [0, 0]
    assert differences(whole, folder) == []
