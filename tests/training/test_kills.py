"""A run that is killed, at any moment and any number of times, ends as if nobody had."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from processes import differences, finish, start

from mixerbench.config.schema import Settings
from mixerbench.errors import UserError
from mixerbench.tracking.journal import FILE_NAME, is_finished, read
from mixerbench.tracking.upload import RUN_FILE
from mixerbench.training.run import run_training

KILLS = 30
IN_A_CHECKPOINT = 10  # of them, at least
RUN = ["run.checkpoint_every_steps=1", "run.resume=auto"]


def _train(settings: Settings, flush_seconds: float) -> None:
    """In a process of its own, on a disk that takes so long to flush a file."""
    flush = os.fsync

    def slow(file: int) -> None:
        time.sleep(flush_seconds)
        flush(file)

    os.fsync = slow
    run_training(settings)


def _half_written(root: Path) -> set[tuple[Path, int]]:
    """Checkpoints in the making, or left by a kill, and when they were last written to."""
    found = set()
    for path in root.glob("*/*/checkpoints/*.part"):
        with suppress(FileNotFoundError):  # it has become whole
            found.add((path, path.stat().st_mtime_ns))
    return found


def _unfinished(root: Path) -> list[Path]:
    return [
        path.parent
        for path in root.glob(f"*/*/{RUN_FILE}")
        if not is_finished(path.parent / FILE_NAME)
    ]


@pytest.mark.slow
def test_killed_thirty_times_at_random_a_run_ends_bit_identical(
    tmp_path: Path, tiny: Callable[..., Settings], trained: Callable[..., Any]
) -> None:
    whole = trained(*RUN, f"run.root={tmp_path / 'whole'}").folder
    settings, root = tiny(*RUN), tmp_path / "runs"
    began = time.monotonic()
    assert finish([start(_train, settings, 0.02)]) == [0]
    longest = time.monotonic() - began

    draw = random.Random(0)
    kills, in_a_checkpoint = 0, 0
    while kills < KILLS or in_a_checkpoint < IN_A_CHECKPOINT:
        before = _half_written(root)
        process = start(_train, settings, 0.02)
        time.sleep(draw.uniform(0, longest))
        if kills % 2:
            while process.is_alive() and not _half_written(root) - before:
                time.sleep(0.001)
        process.kill()
        if finish([process]) == [-signal.SIGKILL]:  # else it had ended: the next one is a new run
            kills += 1
            in_a_checkpoint += bool(_half_written(root) - before)
    while _unfinished(root):
        assert finish([start(_train, settings, 0.0)]) == [0]

    folders = [path.parent for path in root.glob(f"*/*/{RUN_FILE}")]
    print(f"{kills} kills, {in_a_checkpoint} while a checkpoint was written, {len(folders)} runs")
    for folder in folders:
        assert differences(whole, folder) == []
        assert not list(folder.rglob("*.part"))
