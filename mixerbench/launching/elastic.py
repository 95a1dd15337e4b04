"""Several processes for one run, started, watched and restarted by torch's elastic agent."""

import logging
import os
import signal
import sys
import threading
import uuid
from contextlib import suppress
from types import FrameType
from typing import Any

import psutil
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mixerbench.errors import StopRequested, TrainingStopped, told_to_stop
from mixerbench.launching.job import Job, child_environment
from mixerbench.process import limit_threads
from mixerbench.stopping import signals_to

_AGAIN_SECONDS = 5.0


def run_processes(
    job: Job,
    *,
    nodes: int = 1,
    is_host: bool = True,
    rendezvous: str = "localhost:0",
    launch_id: str | None = None,
) -> str:
    """Train the job's run with ``run.devices`` processes here; on several nodes all call this.

    Args:
        is_host: is this the node whose address is ``rendezvous``?
        rendezvous: HOST:PORT where the agents of several nodes meet.
        launch_id: the same on all nodes, and of this launch only; None: a new one.

    Returns:
        the run's summary, on the host; nothing elsewhere.

    Raises:
        Refusal, TrainingStopped, Preempted: what the run raised; or a process has died, and
            all of them have been restarted ``run.max_restarts`` times.
    """
    run = job.settings().run
    job.forget_outcome()
    if os.environ.get("MIXERBENCH_DEBUG") != "1":  # the agent's own log is for its authors
        logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=run.devices,
        run_id=launch_id or uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=rendezvous,
        rdzv_configs={"is_host": is_host},
        local_addr="localhost" if nodes == 1 else None,
        max_restarts=run.max_restarts,
        signals_to_handle="",  # see _Forwarding
        logs_specs=DefaultLogsSpecs(
            log_dir=str(job.path / "logs"),
            redirects=dict.fromkeys(range(1, run.devices), Std.ERR),
        ),
    )
    start = elastic_launch(config, sys.executable)
    limit_threads(run.threads)
    os.environ.update(child_environment())
    # Else the processes of a restart find the addresses of the dead ones in the agent's store.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    failure = "its processes ended without a word"
    with _Forwarding() as forwarding:
        try:
            start("-m", "mixerbench.launching.rank", str(job.path))
        except ChildFailedError as error:
            rank, reason = root_cause(error)
            failure = (
                f"process {rank} of {run.devices * nodes} failed ({reason}), and "
                f"run.max_restarts={run.max_restarts} restarts of all are used up"
            )
    if not is_host:
        return ""
    if job.has_outcome():
        return job.outcome()
    folder = job.folder()
    where = f" Continue with run.resume={folder}" if folder else ""
    if forwarding.told:
        stop = StopRequested(forwarding.told)
        raise told_to_stop(
            stop, f"told to stop ({stop}) before there was anything new to save.{where}"
        )
    raise TrainingStopped(f"{failure}.{where}")


def root_cause(error: ChildFailedError) -> tuple[int, str]:
    """Which process failed first, by its global rank, and what it died of, in one line.

    One that a signal killed goes before those that raised: they may only have lost it, and may
    have written so before the agent saw the death, whose time is when it was seen.
    """
    rank, failure = min(
        error.failures.items(), key=lambda item: (item[1].exitcode >= 0, item[1].timestamp)
    )
    message: str | dict[str, Any] = failure.message  # of an exception: its file's contents
    text = message if isinstance(message, str) else str(message["message"])
    return rank, (text.strip() or f"exit code {failure.exitcode}").splitlines()[0]


class _Forwarding:
    """A context that passes signals on to the workers, who save their state and end.

    The agent itself would stop to watch at the first signal, and give up what it is doing at
    the second, which SLURM does send. They are told again every few seconds, by SIGTERM: a worker
    that was still starting died of the signal, and the agent has started it again. A second
    Ctrl-C ends agent and workers at once.
    """

    def __init__(self) -> None:
        self.told = 0
        self._over = threading.Event()
        self._taken = signals_to(self._forward)

    def __enter__(self) -> "_Forwarding":
        self._taken.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._over.set()
        self._taken.__exit__(*error)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if not self.told:
            self.told = number
            threading.Thread(target=self._tell_again, daemon=True).start()
        elif number == signal.SIGINT:
            _tell_workers(number)
            raise KeyboardInterrupt

    def _tell_again(self) -> None:
        _tell_workers(self.told)
        while not self._over.wait(_AGAIN_SECONDS):
            _tell_workers(signal.SIGTERM)


def _tell_workers(number: int) -> None:
    for worker in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            worker.send_signal(number)
