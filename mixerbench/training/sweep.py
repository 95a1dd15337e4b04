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
from collections.abc import Sequence
from pathlib import Path

import yaml

from mixerbench.config.schema import Settings, build
from mixerbench.errors import Preempted, TrainingStopped, exit_code
from mixerbench.tracking.journal import FILE_NAME, read
from mixerbench.training.preemption import Preemption, StopRequested
from mixerbench.training.progress import ProgressView

_POLL_SECONDS = 0.5


def run_sweep(sweep: Sequence[Settings], jobs: int | None) -> None:
    """Train every run of ``sweep``, ``jobs`` at a time.

    Raises:
        TrainingStopped: some runs did not finish; says which, after all have ended.
        Preempted: a scheduler said so; the running ones have saved their state.
    """
    jobs = jobs or default_jobs(sweep[0])
    names = _names(sweep)
    failures: dict[str, str] = {}
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProgressView(sweep[0].run.progress) as view,
        Preemption() as preemption,
    ):
        for name in names:
            view.expect(name)
        waiting = [
            _Child(name, settings, Path(scratch) / str(number))
            for number, (name, settings) in enumerate(zip(names, sweep, strict=True))
        ]
        running: list[_Child] = []
        try:
            while waiting or running:
                preemption.check()
                while waiting and len(running) < jobs:
                    running.append(waiting.pop(0).start())
                time.sleep(_POLL_SECONDS)
                for child in list(running):
                    child.report(view)
                    if child.has_ended():
                        running.remove(child)
                        if child.message():
                            failures[child.name] = child.message()
                            view.note(f"{child.name}: {child.message()}")
        except StopRequested as signal:
            raise Preempted(
                f"told to stop ({signal}): the running ones of {len(sweep)} runs have saved their "
                "state. Continue each with run.resume=auto."
            ) from None
        finally:
            for child in running:
                child.stop()
    if failures:
        raise TrainingStopped(
            f"{len(failures)} of {len(sweep)} runs did not finish: {', '.join(failures)}."
        )


def default_jobs(settings: Settings) -> int:
    """One run at a time on a GPU; on the CPU as many as there are cores for their threads."""
    device = settings.run.device
    if device.startswith("cuda") or (device == "auto" and shutil.which("nvidia-smi")):
        return 1
    return max((os.cpu_count() or 1) // settings.run.threads, 1)


def _names(sweep: Sequence[Settings]) -> list[str]:
    """The label of each run, with what else tells them apart where it must."""
    labels = [settings.label for settings in sweep]
    if max(Counter(labels).values()) > 1:
        labels = [f"{s.label} seed {s.run.seed}" for s in sweep]
    counts = Counter(labels)
    return [
        label if counts[label] == 1 else f"{label} #{number + 1}"
        for number, label in enumerate(labels)
    ]


class _Child:
    def __init__(self, name: str, settings: Settings, scratch: Path) -> None:
        self.name = name
        self._settings = settings
        self._scratch = scratch
        self._process: subprocess.Popen[bytes] | None = None
        self._offset = 0

    def start(self) -> "_Child":
        self._scratch.mkdir()
        quiet = dataclasses.replace(self._settings.run, progress=False)
        content = dataclasses.asdict(dataclasses.replace(self._settings, run=quiet))
        (self._scratch / "settings.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mixerbench.training.sweep", str(self._scratch)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=open(self._scratch / "errors", "wb"),
            env={**os.environ, "OMP_NUM_THREADS": str(self._settings.run.threads)},
        )
        return self

    def report(self, view: ProgressView) -> None:
        """Show what the journal says since the last call."""
        folder = self._scratch / "folder"
        if folder.exists():
            journal = Path(folder.read_text()) / FILE_NAME
            for record, offset in read(journal, self._offset):
                self._offset = offset
                view.show(self.name, record)

    def has_ended(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None

    def message(self) -> str:
        """Why it failed; empty if it did not."""
        assert self._process is not None
        if self._process.returncode == 0:
            return ""
        errors = (self._scratch / "errors").read_text(errors="replace").strip()
        return (
            errors.removeprefix("mixerbench: ")
            or f"ended with exit code {self._process.returncode}"
        )

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()


def _work(scratch: Path) -> None:
    """The child: train what the parent has written down."""
    from mixerbench.training.run import run_training

    settings = build(Settings, yaml.safe_load((scratch / "settings.yaml").read_text()))
    run_training(settings, on_folder=lambda folder: _write_whole(scratch / "folder", str(folder)))


def _write_whole(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text)
    os.replace(part, path)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: _work(Path(sys.argv[1]))))
