"""Many runs, some of them side by side, each a process of its own.

Knows no torch: the parent composes and watches, the children train.
"""

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Protocol

from mixerbench.config.schema import Settings
from mixerbench.errors import StopRequested, TrainingStopped, exit_code, told_to_stop
from mixerbench.launching.child import Child, View
from mixerbench.launching.forks import ForkServer
from mixerbench.launching.job import Job, child_environment, end_with_parent
from mixerbench.process import thread_variables
from mixerbench.stopping import Stop
from mixerbench.training.progress import ProgressView

_POLL_SECONDS = 0.5

PRELOAD = (
    *("mixerbench.launching.local", "mixerbench.training.run", "fvcore.nn"),
    *("mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store"),
)
"""What a run imports, at once or when it needs it, and takes seconds."""


class Process(Protocol):
    """A started run, as ``subprocess.Popen`` has it."""

    def poll(self) -> int | None: ...
    def wait(self) -> int: ...
    def terminate(self) -> None: ...


class Start(Protocol):
    """Starts the process that trains the job in the folder ``job``."""

    def __call__(self, job: Path, environment: Mapping[str, str], errors: IO[bytes]) -> Process: ...


def run_sweep(sweep: Sequence[Settings], start: Start | None = None) -> None:
    """Train every run of ``sweep``, ``launcher.jobs`` at a time.

    Args:
        start: as in ``run_jobs``.

    Raises:
        TrainingStopped: some runs did not finish; says which, after all have ended.
        Preempted: a scheduler said so; the running ones have saved their state.
    """
    names = names_of(sweep)
    with ProgressView(sweep[0].run.progress) as view:
        failures = run_jobs(dict(zip(names, sweep, strict=True)), view, start)
    if failures:
        raise TrainingStopped(
            f"{len(failures)} of {len(sweep)} runs did not finish: {', '.join(failures)}."
        )


def run_jobs(runs: dict[str, Settings], view: View, start: Start | None = None) -> dict[str, str]:
    """Train all runs, and show them by their names.

    Args:
        start: how processes of this machine are started; None: forked where ``can_fork``, else
            afresh.

    Returns:
        the message of each run that did not finish, by its name.

    Raises:
        Preempted: a scheduler said so; the running ones have saved their state.
    """
    failures: dict[str, str] = {}
    with ExitStack() as held:
        scratch = held.enter_context(tempfile.TemporaryDirectory())
        stop = held.enter_context(Stop())
        if start is None:
            is_forked = can_fork(list(runs.values()))
            start = held.enter_context(_forking()) if is_forked else start_afresh
        waiting: list[Child] = []
        for number, (name, settings) in enumerate(runs.items()):
            view.expect(name)
            if settings.launcher.name == "slurm":
                from mixerbench.launching.slurm import QueuedRun

                waiting.append(QueuedRun(name, settings))
            else:
                waiting.append(LocalRun(name, settings, Path(scratch) / str(number), start))
        free = _slots(next(iter(runs.values())), len(runs)) if runs else []
        running: list[Child] = []
        try:
            while waiting or running:
                while waiting and free:
                    running.append(waiting.pop(0).start(free.pop(0)))
                time.sleep(_POLL_SECONDS)
                stop.check()  # before the children, who got the signal as well, are looked at
                for child in list(running):
                    child.report(view)
                    if child.has_ended():
                        running.remove(child)
                        free.append(child.slot)
                        message = child.message()
                        view.ended(child.name, message)
                        if message:
                            failures[child.name] = message
        except StopRequested as signal:
            raise told_to_stop(
                signal,
                f"told to stop ({signal}): the running ones of {len(runs)} runs have saved their "
                "state. Continue each with run.resume=auto.",
            ) from None
        finally:
            for child in running:  # all of them save their state at the same time
                child.tell_to_stop()
            for child in running:
                child.wait()
    return failures


def default_jobs(settings: Settings) -> int:
    """One run at a time on GPUs; on the CPU as many as there are cores for their threads."""
    if _is_on_gpu(settings):
        return 1
    run = settings.run
    return max((os.cpu_count() or 1) // (run.threads * run.devices), 1)


def can_fork(runs: Sequence[Settings]) -> bool:
    """May the processes of these runs be forked from one that has imported torch?

    Several runs on the CPU of a Linux machine, each of one process, all with as many threads: a
    GPU that was touched does not survive a fork, and torch reads the number of threads once.
    """
    return (
        sys.platform == "linux"
        and len(runs) > 1
        and len({settings.run.threads for settings in runs}) == 1
        and all(
            settings.launcher.name == "local"
            and settings.run.devices == 1
            and not _is_on_gpu(settings)
            for settings in runs
        )
    )


def _is_on_gpu(settings: Settings) -> bool:
    device = settings.run.device
    return device.startswith("cuda") or (device == "auto" and bool(shutil.which("nvidia-smi")))


def names_of(runs: Sequence[Settings]) -> list[str]:
    """The label of each run, with what else tells them apart where it must."""
    labels = [settings.label for settings in runs]
    if max(Counter(labels).values()) > 1:
        labels = [f"{s.label} seed {s.run.seed}" for s in runs]
    counts = Counter(labels)
    return [
        label if counts[label] == 1 else f"{label} #{number + 1}"
        for number, label in enumerate(labels)
    ]


def _slots(settings: Settings, runs: int) -> list[str | None]:
    """One entry for each run that may go on at a time: the GPUs that it sees, None for all."""
    launcher, each = settings.launcher, settings.run.devices
    if launcher.name == "slurm":
        return [None] * (launcher.jobs or runs)
    if launcher.devices is None:
        return [None] * (launcher.jobs or default_jobs(settings))
    starts = range(0, len(launcher.devices) - each + 1, each)
    slots = [",".join(map(str, launcher.devices[start : start + each])) for start in starts]
    return list(slots[: launcher.jobs])


class LocalRun(Child):
    """A run in a process of this machine."""

    def __init__(self, name: str, settings: Settings, folder: Path, start: Start) -> None:
        quiet = dataclasses.replace(settings.run, progress=False)
        super().__init__(name, dataclasses.replace(settings, run=quiet), Job(folder))
        self._start = start
        self._process: Process

    def start(self, slot: str | None) -> "LocalRun":
        self.slot = slot
        Job.create(self.job.path, self.settings)
        environment = child_environment() | thread_variables(self.settings.run.threads)
        if slot is not None:
            environment["CUDA_VISIBLE_DEVICES"] = slot
        with open(self._errors, "wb") as errors:
            self._process = self._start(self.job.path, environment, errors)
        return self

    @property
    def _errors(self) -> Path:
        return self.job.path / "errors"

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def message(self) -> str:
        code = self._process.poll()
        if code == 0:
            return ""
        errors = self._errors.read_text(errors="replace").strip()
        return errors.removeprefix("mixerbench: ") or f"ended with exit code {code}"

    def tell_to_stop(self) -> None:
        if not self.has_ended():
            self._process.terminate()

    def wait(self) -> None:
        self._process.wait()


def start_afresh(job: Path, environment: Mapping[str, str], errors: IO[bytes]) -> Process:
    """A process that imports everything itself."""
    return subprocess.Popen(
        [sys.executable, "-m", "mixerbench.launching.local", str(job)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        env=environment,
    )


@contextmanager
def _forking() -> Iterator[Start]:
    """Forks processes from a server, which is started with the first of them."""
    with ExitStack() as held, open(os.devnull, "r+b") as null:
        servers: list[ForkServer] = []

        def start(job: Path, environment: Mapping[str, str], errors: IO[bytes]) -> Process:
            if not servers:
                servers.append(held.enter_context(ForkServer(PRELOAD, environment)))
            return servers[0].start(
                "mixerbench.launching.local:main",
                [str(job)],
                environment=environment,
                streams=(null, null, errors),
            )

        yield start


def train_job(job: Job) -> str:
    """Train a job's run with as many processes of this machine as it asks for.

    Returns:
        the run's summary.

    Raises:
        Refusal, TrainingStopped: as ``run_training``.
    """
    settings = job.settings()
    if settings.run.devices > 1:
        from mixerbench.launching.elastic import run_processes

        return run_processes(job)
    from mixerbench.training.run import run_training

    return run_training(settings, on_folder=job.note_folder).summary(settings)


def main() -> None:
    """Train the job whose folder is the first argument."""
    with Stop(at_once=True):
        code = exit_code(_train_as_child)
    sys.exit(code)


def _train_as_child() -> None:
    end_with_parent()
    train_job(Job(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
