"""Standard output and error of a command: closed, full or gone, they end nothing by surprise."""

import errno
import io
import os
import sys
from typing import Any

from mixerbench.errors import ReaderGone, TrainingStopped


def prepare() -> None:
    """Make the streams of this process safe; those that somebody has replaced stay as they are.

    A closed one becomes the null device: else the next file that is opened takes its number, and
    whatever is printed. Letters that the terminal's encoding lacks are written as escapes.
    """
    # To a closed output nothing can be written; that it is so is said once there is something.
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest number that is free: this one
            os.set_inheritable(number, True)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(_Output(1, "wb", closefd=False), sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Messages(2, "wb", closefd=False), sys.stderr)


def _text(raw: io.FileIO, before: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(before, "encoding", "utf-8"),
        errors="backslashreplace",
        line_buffering=raw.isatty() or isinstance(raw, _Messages),
    )


class _Output(io.FileIO):
    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the rest, at exit, goes nowhere
            if error.errno == errno.EPIPE:
                raise ReaderGone from None
            raise TrainingStopped(
                f"cannot write to the standard output: {error.strerror}."
            ) from None


class _Messages(io.FileIO):
    """What is for a person, whose terminal may be gone: no reason to stop."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError:
            return memoryview(content).nbytes
