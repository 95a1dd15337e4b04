"""Files that are whole or not there, also after the machine has crashed."""

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str, *, private: bool = False) -> None:
    """Write a file beside its place and move it there; a kill or a crash leaves the earlier one.

    Args:
        private: nobody else on this machine may read it.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.touch(0o600 if private else 0o666)
        part.write_text(text)
        _flush(part)
        os.replace(part, path)
        _flush(path.parent)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def to_disk(*paths: Path) -> None:
    """Return when files and their names are on the disk, and not only on their way there."""
    for path in paths:
        _flush(path)
    for folder in {path.parent for path in paths}:
        _flush(folder)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class HashedFile(io.RawIOBase):
    """A file that is written from its beginning to its end, and its SHA-256."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")
        self._sha = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._sha.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self._file.closed:
            try:
                self._file.flush()
                os.fsync(self._file.fileno())  # before its name says that it is whole
            finally:
                self._file.close()
        super().close()

    def hexdigest(self) -> str:
        return self._sha.hexdigest()


@contextmanager
def hashed_file(path: Path) -> Iterator[HashedFile]:
    """A file to write that gets its name when all of it is on the disk."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        sink = HashedFile(part)
        try:
            yield sink
        finally:
            sink.close()
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
