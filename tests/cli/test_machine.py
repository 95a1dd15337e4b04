"""What a command finds around it: closed and full streams, no room, no home, no place to be."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mixerbench.errors import TrainingStopped, exit_code
from mixerbench.launching.job import Job
from mixers import TokenGrid, TokenMixer, create_mixer, register_mixer

ROOT = Path(__file__).parents[2]
LOST = "mixerbench: cannot write to the standard output: "


@pytest.mark.parametrize(
    ("line", "code", "out", "err"),
    [
        ("--help >&-", 1, "", f"{LOST}Bad file descriptor.\n"),
        ("--help >/dev/full", 1, "", f"{LOST}No space left on device.\n"),
        ("train --help >/dev/full", 1, "", f"{LOST}No space left on device.\n"),
        ("list >/dev/full", 1, "", f"{LOST}No space left on device.\n"),  # more than one buffer
        ("--version 2>&-", 0, "0.", ""),
        ("nonsense 2>&-", 2, "", ""),  # and its error is not among the results
        ("nonsense 2>/dev/full", 2, "", ""),
        ("--help <&- >&- 2>&-", 1, "", ""),
        ("list | :", 0, "", ""),
    ],
)
def test_a_stream_that_is_closed_full_or_gone_ends_in_one_line(
    line: str, code: int, out: str, err: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m mixerbench {line}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (code, err)
    assert done.stdout.startswith(out) and bool(done.stdout) == bool(out)


@pytest.mark.parametrize(("name", "said"), [(b"gone", "is gone"), (b"b\xff", r"b\xff is no UTF-8")])
def test_a_working_folder_that_cannot_be_one_is_refused(
    name: bytes,
    said: str,
    refused: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = os.path.join(os.fsencode(tmp_path), name)
    os.mkdir(folder)
    monkeypatch.chdir(os.fsdecode(folder))
    if name == b"gone":
        os.rmdir(folder)
    message = refused("leaderboard")
    monkeypatch.chdir(tmp_path)
    assert said in message


def test_an_argument_that_is_no_text_is_refused(refused: Callable[..., str]) -> None:
    message = refused("train", os.fsdecode(b"data.root=/data/b\xff"))
    assert r"data.root=/data/b\xff is no UTF-8" in message


def test_no_temporary_folder_is_one_line(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def nowhere() -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", nowhere)
    monkeypatch.chdir(tmp_path)
    ended = command("train", "tracking.offline=true")
    assert ended.code == 1
    assert ended.err == (
        "mixerbench: no temporary folder takes a file: set TMPDIR to one that does, or make room.\n"
    )


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), 1, ("/tmp/x", "TMPDIR")),
        (RuntimeError("Could not determine home directory."), 2, ("HOME",)),
        (MemoryError(), 1, ("no memory left", "run.evaluation_batch_size")),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 1, ("no memory left",)),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate "
                "memory: you tried to allocate 8 bytes. Error code 12 (Cannot allocate memory)"
            ),
            1,
            ("no memory left", "you tried to allocate 8 bytes"),
        ),
    ],
)
def test_what_the_machine_lacks_is_one_line(
    error: Exception, code: int, said: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(lambda: _raise(error)) == code
    shown = capsys.readouterr().err
    assert all(words in shown for words in said), shown
    assert len(shown.splitlines()) == 1


def test_somebody_elses_exit_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: sys.exit(0)) == 1
    assert f"{__file__}:" in (shown := capsys.readouterr().err)
    assert "called sys.exit(0)" in shown


def test_one_of_several_processes_that_a_model_ends_is_no_success(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.note_outcome(lambda: sys.exit(0))
    with pytest.raises(TrainingStopped, match=r"test_machine.py:\d+ called sys.exit\(0\)"):
        job.outcome()


@pytest.mark.parametrize("error", [RuntimeError("a bug"), BrokenPipeError(), FileNotFoundError()])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        exit_code(lambda: _raise(error))


def _raise(error: Exception) -> None:
    raise error


class _Large(TokenMixer):
    any_grid = True
    mixes_prefix = True
    paper = "of no paper"

    def __init__(self, dim: int, grid: TokenGrid, num_heads: int) -> None:
        super().__init__(dim, grid, num_heads)
        raise MemoryError("12 GB")

    def forward(self, x: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
        return x


def test_a_part_that_finds_no_memory_is_not_to_blame(
    clean_registry: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def build() -> None:
        create_mixer("large", 8, TokenGrid(2, 2))

    register_mixer("large")(_Large)
    assert exit_code(build) == 1
    assert "no memory left (12 GB)" in capsys.readouterr().err


def test_a_bug_is_a_traceback_that_says_where_to_report_it() -> None:
    program = (
        "from mixerbench.errors import exit_code\n"
        "def work():\n    raise ValueError('of a bug')\n"
        "exit_code(work)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    *traceback, error, report = done.stderr.splitlines()
    assert traceback[0].startswith("Traceback")
    assert error == "ValueError: of a bug"
    assert "bug of mixerbench or of a plugin" in report
    assert "issue tracker" in report
