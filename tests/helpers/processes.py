"""Processes that start in milliseconds: forked from a server that has imported everything."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["mixerbench.training.run", "mixerbench.config.compose", __name__])

JOIN_SECONDS = 300


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
