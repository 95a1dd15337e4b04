"""Writing shards in many processes."""

import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mixerbench.data.decode import printable
from mixerbench.data.packing.job import PackingJob, Shard
from mixerbench.data.packing.shard import write_shard
from mixerbench.errors import TrainingStopped, how_told, told_to_stop
from mixerbench.stopping import SIGNALS

Progress = Callable[[int, int], None]
"""Called several times a second with the amount done and the total amount."""

_POLL_SECONDS = 0.2


@dataclass
class _Shared:
    """What forked processes inherit, so that a million paths need not be sent to them."""

    job: PackingJob
    done: Any  # number of images written, by shard
    stop: Any  # not 0: processes end at their next image


_shared: _Shared | None = None


class _Stopped(Exception):  # noqa: N818 - it is no error
    """The parent has asked its processes to stop."""


def write_all(job: PackingJob, missing: Sequence[Shard], jobs: int, progress: Progress) -> None:
    """Write the missing shards in ``jobs`` processes, and note each in the job's journal.

    Raises:
        BrokenProcessPool: a process was killed.
        OSError: of reading or writing.
    """
    global _shared
    fork = multiprocessing.get_context("fork")
    _shared = _Shared(job, fork.RawArray("q", len(job.shards)), fork.RawValue("b", 0))
    written = sum(shard.images for shard in job.shards if shard.file in job.written)
    total = sum(shard.images for shard in job.shards)
    # Done before forking, or each process would: a digest of all names, Arrow's import of pandas.
    _ = job.head, pa.array([0])
    pool = ProcessPoolExecutor(
        min(jobs, len(missing)), fork, initializer=_enter, initargs=(os.getpid(),)
    )
    try:
        waiting: set[Future[dict[str, Any]]] = {
            pool.submit(_write_numbered, shard.number) for shard in missing
        }
        while waiting:
            progress(written + sum(_shared.done), total)
            done, waiting = wait(waiting, _POLL_SECONDS, FIRST_COMPLETED)
            for future in done:
                job.add(future.result())
        progress(total, total)
    finally:
        _shared.stop.value = 1
        pool.shutdown(cancel_futures=True)
        _shared = None


def _enter(parent: int) -> None:
    """Set up a new process: it leaves signals to its parent, and ends when that has ended."""
    for number in SIGNALS:  # a terminal sends them to all at once
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    warnings.simplefilter("ignore")  # Pillow's, of odd files: they would break the progress bar

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_numbered(number: int) -> dict[str, Any]:
    shared = _shared
    assert shared is not None  # inherited

    def tick(done: int) -> None:
        if shared.stop.value:
            raise _Stopped
        shared.done[number] = done

    return write_shard(shared.job, shared.job.shards[number], tick)


@contextmanager
def one_line_if_stopped(job: PackingJob) -> Iterator[None]:
    """Turn whatever ends a packing early into one line that says how to go on.

    Raises:
        TrainingStopped: instead of KeyboardInterrupt, OSError, MemoryError or BrokenProcessPool.
    """

    def line(what: str) -> str:
        return (
            f"{what} {len(job.written)} of {len(job.shards)} shards are whole in {job.out}, and "
            "the same command goes on with the others."
        )

    try:
        yield
        return
    except KeyboardInterrupt as stop:
        raise told_to_stop(stop, line(f"{how_told(stop)}.")) from None
    except BrokenProcessPool:
        what = "a process was killed, maybe for want of memory: set jobs lower."
    except MemoryError:
        what = "there is no memory left: set jobs lower."
    except OSError as error:
        file = f" ({error.filename})" if error.filename else ""
        advice = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
        what = printable(f"{error.strerror or error}{file}: {advice}.")
    raise TrainingStopped(line(what)) from None


def usable_cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
