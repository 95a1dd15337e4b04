"""Runs as jobs of a SLURM cluster, submitted through submitit; knows torch in the job only.

A job has one task on each machine, which starts torch's elastic agent. When SLURM wants the
machines back, or the time is nearly over, the workers save their state and the job ends with
exit code 75; its script asks for the job to be run again, and it goes on.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

from mixerbench.config.schema import Settings, fingerprint
from mixerbench.errors import PREEMPTED, Preempted, Refusal, TrainingStopped
from mixerbench.launching.child import Child
from mixerbench.launching.job import Job

# submitit's own way, a checkpoint() called in the midst of the task by a signal handler, knows
# nothing of SIGTERM and deadlocks with a parent that is waiting for its children.
_REQUEUE = [
    "code=$?",
    f'if [ "$code" = {PREEMPTED} ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
    'exit "$code"',
]
_WARNING = "USR1"  # as torch's workers are told elsewhere; submitit's own choice is USR2
_QUEUED = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED")


class SlurmJob:
    """One run in SLURM's queue; the same run is submitted once, however often it is asked for."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.name = job_name(settings)
        path = Path(settings.launcher.folder).expanduser().absolute() / self.name
        self.job = Job(path)
        self._id_file = path / "job_id"

    @property
    def identifier(self) -> str | None:
        """SLURM's number for it, None before it is submitted."""
        return self._id_file.read_text() if self._id_file.exists() else None

    @property
    def log(self) -> Path:
        return self.job.path / f"{self.identifier}_0_log.out"

    def submit(self) -> str:
        """Put it into the queue, where it is not there already; returns its number.

        Raises:
            Refusal: SLURM is not here, or refuses the job.
        """
        if self.identifier is not None and self.is_queued():
            return self.identifier
        Job.create(self.job.path, self._settings)
        self.job.forget_outcome()
        import submitit

        launcher, run = self._settings.launcher, self._settings.run
        options = {
            "job_name": self.name,
            "nodes": launcher.nodes,
            "ntasks_per_node": 1,
            "cpus_per_task": launcher.cpus_per_device * run.devices,
            "gpus_per_node": None if run.device == "cpu" else run.devices,
            "mem": None if launcher.memory_gib is None else f"{launcher.memory_gib}G",
            "time": launcher.minutes,
            "partition": launcher.partition,
            "account": launcher.account,
            "stderr_to_stdout": True,
            "setup": launcher.setup,
            "teardown": _REQUEUE,
        }
        sbatch = {
            "requeue": True,
            "open-mode": "append",
            "signal": f"{_WARNING}@{launcher.warning_seconds}",
            **dict(map(_option, launcher.options)),
        }
        try:
            executor = submitit.SlurmExecutor(folder=self.job.path, python=sys.executable)
            executor.update_parameters(
                **{key: value for key, value in options.items() if value is not None},
                additional_parameters=sbatch,
            )
            where = {key: value for key, value in os.environ.items() if key == "SLURM_CONF"}
            with submitit.helpers.clean_env():  # it may be submitted from within a job
                os.environ.update(where)
                submitted = executor.submit(_train_on_node, str(self.job.path))
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            reason = str(error).strip().splitlines()
            raise Refusal(
                f"SLURM does not take the job ({reason[-1] if reason else type(error).__name__}): "
                "look at the launcher settings, or use launcher=local."
            ) from None
        self._id_file.write_text(submitted.job_id)
        return str(submitted.job_id)

    def state(self) -> str:
        """What squeue calls its state; empty when it has left the queue."""
        found = subprocess.run(
            ["squeue", "--noheader", "--states=all", f"--jobs={self.identifier}", "--format=%T"],
            capture_output=True,
            text=True,
        )
        return found.stdout.strip() if found.returncode == 0 else ""

    def is_queued(self) -> bool:
        """Waiting, running or about to run again."""
        return self.state() in _QUEUED

    def message(self) -> str:
        """Why it did not finish; empty if it did."""
        try:
            self.job.outcome()
        except (Refusal, TrainingStopped) as error:
            return str(error)
        except FileNotFoundError:
            return f"SLURM ended job {self.identifier} ({self.state() or 'gone'}): see {self.log}"
        return ""


class QueuedRun(Child):
    """A run in SLURM's queue among others that are watched; it stays there when they are not."""

    def __init__(self, name: str, settings: Settings) -> None:
        self._queued = SlurmJob(settings)
        super().__init__(name, settings, self._queued.job)

    def start(self, slot: str | None) -> "QueuedRun":
        self._queued.submit()
        return self

    def has_ended(self) -> bool:
        return not self._queued.is_queued()

    def message(self) -> str:
        return self._queued.message()

    def tell_to_stop(self) -> None:
        pass  # SLURM goes on with it, and the next one who watches finds it

    def wait(self) -> None:
        pass


def job_name(settings: Settings) -> str:
    """The same for the same model, protocol and seed, in every process."""
    identity = fingerprint(
        [settings.model, dataclasses.asdict(settings.protocol), settings.run.seed]
    )
    return f"mixerbench-{settings.label}-seed{settings.run.seed}-{identity[:8]}"


def _option(text: str) -> tuple[str, str | bool]:
    """``--qos=high`` -> ("qos", "high"), ``--exclusive`` -> ("exclusive", True)."""
    name, equals, value = text.removeprefix("--").partition("=")
    return name, value if equals else True


def _train_on_node(path: str) -> str:
    """The task of one machine."""
    import submitit

    from mixerbench.launching.elastic import run_processes

    here = submitit.JobEnvironment()
    try:
        return run_processes(
            Job(Path(path)),
            nodes=here.num_nodes,
            is_host=here.node == 0,
            rendezvous=f"{here.hostnames[0]}:{20000 + int(here.raw_job_id) % 40000}",
            launch_id=f"slurm-{here.raw_job_id}",
        )
    except Preempted as told:
        print(told, file=sys.stderr)
        sys.exit(PREEMPTED)  # not an exception: submitit would write it down as the job's result
