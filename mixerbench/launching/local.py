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
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from mixerbench.config.schema import Settings
from mixerbench.errors import StopRequested, TrainingStopped, exit_code, told_to_stop
from mixerbench.launching.job import Job, child_environment, end_with_parent
from mixerbench.stopping import Stop
from mixerbench.tracking.journal import FILE_NAME, Record, read
from mixerbench.training.progress import ProgressView

_POLL_SECONDS = 0.5


class View(Protocol):
    """What shows many runs."""

    def expect(self, name: str) -> None: ...
    def show(self, name: str, record: Record) -> None: ...
    def ended(self, name: str, message: str) -> None: ...


def run_sweep(sweep: Sequence[Settings]) -> None:
    """Train every run of ``sweep``, ``launcher.jobs`` at a time.

    Raises:
        TrainingStopped: some runs did not finish; says which, after all have ended.
        Preempted: a scheduler said so; the running ones have saved their state.
    """
    names = names_of(sweep)
    with ProgressView(sweep[0].run.progress) as view:
        failures = run_jobs(dict(zip(names, sweep, strict=True)), view)
    if failures:
        raise TrainingStopped(
            f"{len(failures)} of {len(sweep)} runs did not finish: {', '.join(failures)}."
        )


def run_jobs(runs: dict[str, Settings], view: View) -> dict[str, str]:
    """Train all runs, and show them by their names.

    Returns:
        what each run that did not finish said.

    Raises:
        Preempted: a scheduler said so; the running ones have saved their state.
    """
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch, Stop() as stop:
        waiting: list[Child] = []
        for number, (name, settings) in enumerate(runs.items()):
            view.expect(name)
            if settings.launcher.name == "slurm":
                from mixerbench.launching.slurm import QueuedRun

                waiting.append(QueuedRun(name, settings))
            else:
                waiting.append(_Process(name, settings, Path(scratch) / str(number)))
        free = _slots(next(iter(runs.values())), len(runs)) if runs else []
        running: list[Child] = []
        try:
            while waiting or running:
                while waiting and free:
                    running.append(waiting.pop(0).start(free.pop(0)))
                time.sleep(_POLL_SECONDS)
                stop.check()  # before the children are looked at, who were told as well
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
    run = settings.run
    if run.device.startswith("cuda") or (run.device == "auto" and shutil.which("nvidia-smi")):
        return 1
    return max((os.cpu_count() or 1) // (run.threads * run.devices), 1)


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


class Child(ABC):
    """A run that is trained elsewhere, and watched from here."""

    def __init__(self, name: str, settings: Settings, job: Job) -> None:
        self.name, self.settings, self.job = name, settings, job
        self.slot: str | None = None
        self._offset = 0

    @abstractmethod
    def start(self, slot: str | None) -> "Child":
        """Let it begin on the GPUs ``slot``."""

    @abstractmethod
    def has_ended(self) -> bool: ...

    @abstractmethod
    def message(self) -> str:
        """Why it failed; empty if it did not."""

    @abstractmethod
    def tell_to_stop(self) -> None:
        """Let it save its state and end, as the one who watches has to."""

    @abstractmethod
    def wait(self) -> None:
        """After ``tell_to_stop``, until it has ended."""

    def report(self, view: View) -> None:
        """Show what the journal says since the last call."""
        folder = self.job.folder()
        if folder is not None:
            for record, offset in read(folder / FILE_NAME, self._offset):
                self._offset = offset
                view.show(self.name, record)


class _Process(Child):
    def __init__(self, name: str, settings: Settings, place: Path) -> None:
        quiet = dataclasses.replace(settings.run, progress=False)
        super().__init__(name, dataclasses.replace(settings, run=quiet), Job(place))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, slot: str | None) -> "_Process":
        self.slot = slot
        Job.create(self.job.place, self.settings)
        environment = {**child_environment(), "OMP_NUM_THREADS": str(self.settings.run.threads)}
        if slot is not None:
            environment["CUDA_VISIBLE_DEVICES"] = slot
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mixerbench.launching.local", str(self.job.place)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=open(self.job.place / "errors", "wb"),
            env=environment,
        )
        return self

    def has_ended(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None

    def message(self) -> str:
        assert self._process is not None
        if self._process.returncode == 0:
            return ""
        errors = (self.job.place / "errors").read_text(errors="replace").strip()
        return (
            errors.removeprefix("mixerbench: ")
            or f"ended with exit code {self._process.returncode}"
        )

    def tell_to_stop(self) -> None:
        if not self.has_ended():
            assert self._process is not None
            self._process.terminate()

    def wait(self) -> None:
        assert self._process is not None
        self._process.wait()


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


def _work(place: Path) -> None:
    end_with_parent()
    train_job(Job(place))


if __name__ == "__main__":
    with Stop(at_once=True):
        code = exit_code(lambda: _work(Path(sys.argv[1])))
    sys.exit(code)
