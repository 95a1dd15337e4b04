"""Several processes for one run, started, watched and restarted by torch's elastic agent."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mixerbench.errors import TrainingStopped
from mixerbench.launching.job import Job

_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")
_SHUTDOWN_SECONDS = 600  # for the rest of a step and a checkpoint, before SIGKILL


def run_processes(
    job: Job, *, nodes: int = 1, rendezvous: str = "localhost:0", launch_id: str | None = None
) -> str:
    """Train the job's run with ``run.devices`` processes here; on several nodes all call this.

    Args:
        rendezvous: HOST:PORT where the agents of several nodes meet.
        launch_id: the same on all nodes, and of this launch only; None: a new one.

    Returns:
        the run's summary.

    Raises:
        UserError, TrainingStopped, Preempted: what the run raised; or a process has died, and
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
        local_addr="localhost" if nodes == 1 else None,
        max_restarts=run.max_restarts,
        signals_to_handle=",".join(_SIGNALS),
        shutdown_timeout=_SHUTDOWN_SECONDS,
        logs_specs=DefaultLogsSpecs(
            log_dir=str(job.place / "logs"),
            redirects=dict.fromkeys(range(1, run.devices), Std.ERR),
        ),
    )
    start = elastic_launch(config, sys.executable)
    os.environ.setdefault("OMP_NUM_THREADS", str(run.threads))
    failure = "its processes ended without a word"
    try:
        with _own_signals():
            start("-m", "mixerbench.launching.rank", str(job.place))
    except SignalException as error:
        failure = f"told to stop ({error.sigval.name}) before a state could be saved"
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        failure = (
            f"process {rank} of {run.devices * nodes} failed, and all of them had been restarted "
            f"{run.max_restarts} times (run.max_restarts). {first.message.strip()}"
        )
    if job.has_outcome():
        return job.outcome()
    folder = job.folder()
    where = f" Continue with run.resume={folder}" if folder else ""
    raise TrainingStopped(f"{failure}.{where}")


@contextmanager
def _own_signals() -> Iterator[None]:
    """The agent's handlers for as long as there is an agent."""
    before = {name: signal.getsignal(getattr(signal, name)) for name in _SIGNALS}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
