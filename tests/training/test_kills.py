"""A run that is killed, at any moment and any number of times, ends as if nobody had."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import differences, finish, start

from mixerbench.config.schema import Settings
from mixerbench.tracking.journal import FILE_NAME, is_finished, read
from mixerbench.tracking.upload import RUN_FILE
from mixerbench.training import provenance
from mixerbench.training.run import run_training

KILLS = 34
SHORT = ["recipe.epochs=1", "data.train_images=32"]  # two steps
RUN = ["run.checkpoint_every_steps=1", "run.resume=auto"]


def _train(settings: Settings, killed_in: int | None = None, written: float = 1.0) -> None:
    """Train; or be killed in the writing of a checkpoint, of which that share is on the disk."""
    flush, seen = os.fsync, 0

    def flush_or_die(file: int) -> None:
        nonlocal seen
        path = Path(os.readlink(f"/proc/self/fd/{file}"))
        if path.suffixes == [".part"]:  # of a checkpoint; other files have their own before it
            seen += 1
            if seen == killed_in:
                os.truncate(path, int(path.stat().st_size * written))
                os.kill(os.getpid(), signal.SIGKILL)
        flush(file)

    os.fsync = flush_or_die
    run_training(settings)


def _half_written(root: Path) -> set[tuple[Path, int]]:
    return {(path, path.stat().st_mtime_ns) for path in root.rglob("*.part")}


def _folders(root: Path) -> list[Path]:
    return [path.parent for path in root.glob(f"*/*/{RUN_FILE}")]


def _bytes_written(root: Path) -> int:
    return sum(path.stat().st_size for path in root.glob(f"*/*/{FILE_NAME}"))


def _kill_after(process: Any, root: Path, size: int, seconds: float) -> None:
    """Once the journals below ``root`` have grown by so many bytes, and then so many seconds."""
    before = _bytes_written(root)
    while process.is_alive() and _bytes_written(root) - before < size:
        time.sleep(0.002)
    time.sleep(seconds)
    process.kill()


@pytest.mark.everything  # kill loop
def test_killed_thirty_times_at_random_a_run_ends_bit_identical(
    tmp_path: Path, tiny: Callable[..., Settings], trained: Callable[..., Any]
) -> None:
    whole = trained(*RUN, f"run.root={tmp_path / 'whole'}").folder
    settings, root = tiny(*RUN), tmp_path / "runs"
    draw = random.Random(0)
    kills, in_a_checkpoint = 0, 0
    while kills < KILLS:
        before = _half_written(root)
        if kills % 3 == 0:
            process = start(_train, settings, draw.randint(1, 3), draw.random())
        else:
            process = start(_train, settings)
            # A process that goes on writes about 2000 bytes before, and 300 with, its first step.
            _kill_after(process, root, draw.randint(0, 3000), draw.uniform(0, 0.05))
        if finish([process]) == [-signal.SIGKILL]:  # else it had ended: the next one is a new run
            kills += 1
            in_a_checkpoint += bool(_half_written(root) - before)
    while any(not is_finished(folder / FILE_NAME) for folder in _folders(root)):
        assert finish([start(_train, settings)]) == [0]

    print(f"{kills} kills, {in_a_checkpoint} left half a checkpoint, {len(_folders(root))} runs")
    assert in_a_checkpoint >= 8
    for folder in _folders(root):
        assert differences(whole, folder) == []


def test_half_a_checkpoint_is_removed_by_the_next_process(
    tmp_path: Path, tiny: Callable[..., Settings]
) -> None:
    # The last checkpoint is written twice, by its step and by its epoch.
    assert finish([start(_train, tiny(*RUN, *SHORT), 3)]) == [-signal.SIGKILL]
    assert list(tmp_path.rglob("*.part"))
    assert finish([start(_train, tiny(*RUN, *SHORT))]) == [0]
    assert not list(tmp_path.rglob("*.part"))


# --- every moment at which the files of a run change ------------------------------------------


def _train_until(settings: Settings, changes: int) -> None:
    """Train, and be killed instead of the so many-th change of a file of the run.

    Where the change is that a file is written anew, it is empty by then.
    """
    root, seen, write = settings.run.root, 0, os.write

    def count(path: str, empty: bool = False) -> None:
        nonlocal seen
        if path.startswith(root):
            seen += 1
            if seen == changes:
                if empty:
                    os.truncate(path, 0)
                os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, values: tuple[Any, ...]) -> None:
        if event in ("os.rename", "os.remove", "os.mkdir"):
            count(str(values[0]))
        elif event == "open" and isinstance(values[0], str) and values[2] & os.O_ACCMODE:
            count(values[0], bool(values[2] & os.O_TRUNC) and os.path.exists(values[0]))

    def write_or_die(file: int, content: bytes) -> int:
        count(os.readlink(f"/proc/self/fd/{file}"))
        return write(file, content)

    os.write = write_or_die  # what the journal is written with
    provenance.installed_packages = lambda: ""  # half a second
    sys.addaudithook(watch)
    run_training(settings)


@pytest.mark.everything  # kill loop
def test_killed_at_any_change_of_a_file_a_run_is_taken_up_or_begun_again(
    tmp_path: Path, tiny: Callable[..., Settings], trained: Callable[..., Any]
) -> None:
    whole = trained(*RUN, *SHORT, f"run.root={tmp_path / 'whole'}")
    wrong = []
    for change in range(1, 1000, 3):  # of about 50
        root = tmp_path / str(change)
        settings = tiny(*RUN, *SHORT, f"run.root={root}")
        if finish([start(_train_until, settings, change)]) == [0]:
            break
        if finish([start(_train_until, settings, 0)]) != [0]:
            wrong.append(f"{change}: it is not taken up")
            continue
        (folder,) = _folders(root)
        wrong += [f"{change}: {one}" for one in differences(whole.folder, folder)]
        missing = _told(whole.folder) - _told(folder)
        wrong += [f"{change}: not in the journal: {one}" for one in missing]
    assert change > 30
    assert wrong == []


def _told(folder: Path) -> set[str]:
    """What else the journal says of a run: the names of its tags, parameters and files."""
    told = set()
    for record, _ in read(folder / FILE_NAME):
        told |= {f"{record['kind']} {name}" for name in record.get("values", [record.get("path")])}
    return told
