"""Files that are whole or not there, also after the machine has crashed."""

import os
from pathlib import Path


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
