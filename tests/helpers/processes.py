"""Processes that start in milliseconds: forked from a server that has imported everything."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from mixerbench.tracking.journal import FILE_NAME, read
from mixerbench.tracking.keys import Artifact, Metric
from mixerbench.training import checkpoint
from mixerbench.training.checkpoint import CHECKPOINTS

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["mixerbench.training.run", "mixerbench.config.compose", __name__])

JOIN_SECONDS = 300
_WEIGHTS = (Artifact.MODEL, Artifact.EMA)


def start(work: Callable[..., Any], *arguments: Any) -> Any:
    """``work(*arguments)`` in a process of its own, which is returned."""
    process = CONTEXT.Process(target=work, args=arguments, daemon=False)
    process.start()
    return process


def start_group(work: Callable[..., Any], size: int, *arguments: Any) -> list[Any]:
    """``work(*arguments)`` in ``size`` processes that are told of each other as torchrun does."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [start(_enter, work, rank, size, port, arguments) for rank in range(size)]


def finish(processes: Sequence[Any]) -> list[int]:
    """Wait for all; their exit codes."""
    for process in processes:
        process.join(JOIN_SECONDS)
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.exitcode is None:
            process.kill()
    return codes


def _enter(work: Callable[..., Any], rank: int, size: int, port: int, arguments: Any) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    work(*arguments)


# --- what they leave behind -------------------------------------------------------------------

CLOCKS = (
    *(Metric.TRAIN_IMAGES_PER_SECOND, Metric.MFU),
    *(Metric.TRAIN_SECONDS, Metric.TRAINING_SECONDS),
    Metric.SYSTEM,
)
"""Metrics of the machine and its day, which no two runs share."""


def differences(one: Path, other: Path) -> list[str]:
    """In what two finished runs differ, bit by bit: weights, averages, optimizer and curves."""
    last = [checkpoint.newest(folder / CHECKPOINTS) for folder in (one, other)]
    names = [(folder / name for folder in (one, other)) for name in _WEIGHTS]
    found = [
        f"{ours.name}: {key}"
        for ours, theirs in (*names, last)
        for key in _different(checkpoint.load(ours)[0], checkpoint.load(theirs)[0])
    ]
    if last[0].name != last[1].name:
        found.append(f"{last[0].name}, {last[1].name}")
    progress = [checkpoint.header(path)["progress"] for path in last]
    curves = [_metrics(folder) for folder in (one, other)]
    for ours, theirs in (progress, curves):
        found += _different(ours, theirs)
    return found


def _different(ours: dict[Any, Any], theirs: dict[Any, Any]) -> list[str]:
    return [
        str(key)
        for key in ours.keys() | theirs.keys()
        if not (key in ours and key in theirs and _equal(ours[key], theirs[key]))
        and key != "training_seconds"
    ]


def _equal(one: Any, other: Any) -> bool:
    return bool(torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other)


def _metrics(folder: Path) -> dict[tuple[str, int], list[float]]:
    """Every value by its key and step: one written twice makes a list of two."""
    found: dict[tuple[str, int], list[float]] = {}
    for record, _ in read(folder / FILE_NAME):
        for key, value in record["values"].items() if record["kind"] == "metrics" else ():
            if not key.startswith(CLOCKS):
                found.setdefault((key, record["step"]), []).append(value)
    return found
