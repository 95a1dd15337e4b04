"""One run, written down for the process that trains it: a folder of small files.

``settings.yaml`` the resolved settings, ``folder`` the run's folder as soon as there is one,
``outcome.json`` how it ended. Knows no torch.
"""

import ctypes
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from mixerbench.config.schema import Settings, build
from mixerbench.errors import Interrupted, Preempted, Refusal, TrainingStopped, called_exit
from mixerbench.files import write_whole
from mixerbench.tracking.passwords import without_password

_KINDS = {kind.__name__: kind for kind in (Refusal, TrainingStopped, Preempted, Interrupted)}
_FINISHED = "finished"
PARENT = "MIXERBENCH_PARENT"
"""The variable that tells a process which one it ends with."""


class Job:
    """The files of one run that another process trains."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._settings = path / "settings.yaml"
        self._folder = path / "folder"
        self._outcome = path / "outcome.json"

    @classmethod
    def create(cls, path: Path, settings: Settings) -> "Job":
        path.mkdir(parents=True, exist_ok=True)
        job = cls(path)
        text = yaml.safe_dump(dataclasses.asdict(settings), sort_keys=False)
        write_whole(job._settings, text, private=True)  # the store's password is in it
        return job

    def settings(self) -> Settings:
        return build(Settings, yaml.safe_load(self._settings.read_text()))

    def folder(self) -> Path | None:
        """The run's folder, once there is one."""
        return Path(self._folder.read_text()) if self._folder.exists() else None

    def note_folder(self, folder: Path) -> None:
        write_whole(self._folder, str(folder))

    def note_outcome(self, work: Callable[[], str], is_first: bool = True) -> None:
        """Do ``work``, and write down what it returns, or why it refused or stopped.

        Args:
            is_first: of several processes only the first one's success is the run's.
        """
        try:
            kind, message = _FINISHED, work()
        except (Refusal, TrainingStopped) as error:
            kind, message = type(error).__name__, without_password(str(error))
        except SystemExit as end:
            kind, message = TrainingStopped.__name__, called_exit(end)
        if is_first or kind != _FINISHED:
            write_whole(self._outcome, json.dumps({"kind": kind, "message": message}))

    def has_outcome(self) -> bool:
        return self._outcome.exists()

    def forget_outcome(self) -> None:
        """Before another attempt."""
        self._outcome.unlink(missing_ok=True)

    def outcome(self) -> str:
        """What the work returned.

        Raises:
            Refusal, TrainingStopped, Preempted: what it raised.
            FileNotFoundError: it has not ended by itself.
        """
        content = json.loads(self._outcome.read_text())
        if content["kind"] == _FINISHED:
            return str(content["message"])
        raise _KINDS[content["kind"]](content["message"])


def child_environment() -> dict[str, str]:
    """Of a process that will call ``end_with_parent``."""
    return {**os.environ, PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """Let this process be told to stop (SIGTERM) when the one that started it is gone.

    Linux only; elsewhere it goes on and finishes its run.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG, prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
        parent = str(os.getppid())
        if os.environ.get(PARENT, parent) != parent:  # it has gone already
            os.kill(os.getpid(), signal.SIGTERM)
