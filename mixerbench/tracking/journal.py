"""The append-only record of a run: the truth that MLflow is fed from.

One JSON object a line, with the time it was written (``time``, milliseconds since 1970).
``kind`` says what it holds:

==========  ================================================================
start       a process began or continued the run: ``total_steps``, ``label``
tags        ``values``
params      ``values``
metrics     ``values`` at optimizer step ``step``
artifact    a file of the run's folder: ``path``, and ``folder`` to put it into
end         ``status``: FINISHED, FAILED or KILLED
==========  ================================================================
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mixerbench.errors import TrainingStopped

FILE_NAME = "journal.jsonl"
Record = dict[str, Any]


class JournalError(TrainingStopped, OSError):
    """The journal cannot be written: what a run measured from here on would be lost."""


class Journal:
    """Writes the journal of one run; safe to use from several threads.

    Opening an existing one continues it. Metrics that it holds already, key by key up to
    their last step, are not written again: a resumed run repeats its last steps exactly.

    Raises:
        JournalError: from every method that writes, if the disk does not take the record. The
            journal is as if it had never been asked for, and can be continued.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._listeners: list[Callable[[Record], None]] = []
        self._last_step: dict[str, int] = {}
        self._began = time.time()
        end = 0
        for record, offset in read(path):
            end = offset
            self._began = min(self._began, record["time"] / 1000)
            if record["kind"] == "metrics":
                for key in record["values"]:
                    self._last_step[key] = record["step"]
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        os.ftruncate(self._file, end)  # a line that was cut off when the run was killed
        os.lseek(self._file, 0, os.SEEK_END)

    def listen(self, listener: Callable[[Record], None]) -> None:
        """Call ``listener`` with every record from now on."""
        self._listeners.append(listener)

    def start(self, label: str, total_steps: int) -> None:
        self._write({"kind": "start", "label": label, "total_steps": total_steps})

    def tags(self, values: Mapping[str, str]) -> None:
        self._write({"kind": "tags", "values": dict(values)})

    def params(self, values: Mapping[str, Any]) -> None:
        self._write({"kind": "params", "values": dict(values)})

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        new = {k: float(v) for k, v in values.items() if step > self._last_step.get(k, -1)}
        if new:
            self._write({"kind": "metrics", "step": step, "values": new})
            self._last_step.update(dict.fromkeys(new, step))

    def to_disk(self) -> None:
        """Flush to the disk: after this returns, a crash of the machine loses none of it."""
        with self._explained():
            os.fsync(self._file)

    def age_seconds(self) -> int:
        """Seconds since the first record."""
        return int(time.time() - self._began)

    def artifact(self, path: Path, folder: str = "") -> None:
        name = path.relative_to(self.path.parent).as_posix()
        self._write({"kind": "artifact", "path": name, "folder": folder})

    def end(self, status: str) -> None:
        """Write the last record of this process; everything is on the disk when this returns."""
        try:
            self._write({"kind": "end", "status": status})
            self.to_disk()
        except JournalError:
            if status == "FINISHED":
                raise
            # Else the run ends by another error, which this one must not hide.

    def close(self) -> None:
        with suppress(OSError):  # end() has said it
            os.close(self._file)

    def _write(self, record: Record) -> None:
        line = json.dumps({"time": int(time.time() * 1000), **record}) + "\n"
        with self._lock:
            with self._explained():
                self._append(line.encode())
            for listener in self._listeners:
                listener(record)

    def _append(self, line: bytes) -> None:
        """Write all of a line, or nothing: a disk that becomes full takes only its beginning."""
        end = os.lseek(self._file, 0, os.SEEK_END)
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError:
            os.ftruncate(self._file, end)
            raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise JournalError(
                f"cannot write the journal {self.path} ({error.strerror}): make room for it, "
                f"then continue with run.resume={self.path.parent}"
            ) from None


class Silence(Journal):
    """The journal of a process that leaves the writing to another one."""

    def __init__(self) -> None:
        self._last_step = {}

    def to_disk(self) -> None:
        pass

    def _write(self, record: Record) -> None:
        pass


def read(path: Path, offset: int = 0) -> Iterator[tuple[Record, int]]:
    """The complete records from byte ``offset`` on, each with the offset of the byte behind it.

    A last line without an end is still being written, or was cut off: it is left out. A crash of
    the machine can leave zeros, which do no harm. Any other damaged line is left out, and its
    position is printed once.
    """
    if not path.exists():
        return
    with open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            record = _record(line)
            if record is not None:
                yield record, offset
            elif (path, offset) not in _reported:
                _reported.add((path, offset))
                print(
                    f"mixerbench: {path} has a damaged line at byte {offset - len(line)}, which is "
                    "left out; what stands before and behind it counts.",
                    file=sys.stderr,
                )


_reported: set[tuple[Path, int]] = set()
"""The damaged lines that this process has reported: path, and byte behind the line."""

_FIELDS: dict[str, dict[str, type]] = {
    "start": {"label": str, "total_steps": int},
    "tags": {"values": dict},
    "params": {"values": dict},
    "metrics": {"step": int, "values": dict},
    "artifact": {"path": str, "folder": str},
    "end": {"status": str},
}
_STATUS = ("FINISHED", "FAILED", "KILLED")
_MOST = 2**53  # a time in milliseconds, or a step


def _record(line: bytes) -> Record | None:
    """The record in a line; None: the line is damaged, or no record."""
    try:
        record = json.loads(line.strip(b"\0"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    fields: dict[str, type] = {"time": int, "kind": str}
    fields |= _FIELDS.get(str(record.get("kind")), {})
    if any(type(record.get(key)) is not kind for key, kind in fields.items()):
        return None
    if not 0 <= record["time"] < _MOST or not 0 <= record.get("step", 0) < _MOST:
        return None
    return record if record["kind"] != "end" or record["status"] in _STATUS else None


def is_finished(path: Path) -> bool:
    """Did the run come to its end?"""
    finished = False
    for record, _ in read(path):
        if record["kind"] in ("start", "end"):
            finished = record.get("status") == "FINISHED"
    return finished
