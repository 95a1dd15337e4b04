"""Disks that are soon full: a tmpfs of some kilobytes or megabytes."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Disk:
    """A small disk of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._filler = root / "filler"

    def fill(self, left: int = 0) -> None:
        """Take all but so many bytes; with 0 files can still be made, but not written."""
        free = shutil.disk_usage(self.root).free
        self._filler.write_bytes(b"x" * (free - left))

    def make_room(self) -> None:
        self._filler.unlink()


@contextmanager
def mounted(root: Path, size: str) -> Iterator[Disk]:
    """A disk of ``size``, as mount(8) has it, at ``root``; skips the test where it cannot be."""
    root.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(root)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small disk, outside of most containers")
    try:
        yield Disk(root)
    finally:
        # a journal may be open still
        subprocess.run(["umount", "--lazy", str(root)], check=True)
