"""A real SLURM on this machine, for as long as a block lasts.

``slurm_cluster(folder)`` starts munged, slurmctld and one slurmd per node from the distribution's
packages, everything below ``folder`` and on loopback ports, without systemd, control groups or a
data base. Jobs start about a second after their submission. Two partitions: ``normal``, and
``urgent``, whose jobs preempt those of ``normal``; ``RequeueExit`` is 75.

What a site's SLURM does at its own pace does not become faster here: slurmctld looks at time
limits every 30 seconds and rounds them up to minutes, and since there is no accounting, ``sacct``
knows nothing (``scontrol show job`` does, for two minutes; then ``Cluster.history``).
"""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

REQUEUE_EXIT = 75  # os.EX_TEMPFAIL: a batch script that exits so runs again
PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client")  # of Debian and Ubuntu
_DAEMONS = ("munged", "slurmctld", "slurmd")
_CLIENTS = ("sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
_SOCKET_PATH_LENGTH = 107  # of sockaddr_un

_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/history
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
GresTypes=gpu
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
JobRequeue=1
RequeueExit={requeue_exit}
MinJobAge=120
KillWait=5
SlurmdTimeout=120
NodeName=DEFAULT CPUs={cpus} RealMemory=16000 Gres=gpu:{gpus}
{nodes}
PartitionName=DEFAULT Nodes=ALL MaxTime=60 DefaultTime=5
PartitionName=normal Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace_time}
PartitionName=urgent PriorityTier=10 PreemptMode=OFF
"""


class SlurmMissingError(RuntimeError):
    """SLURM or MUNGE is not installed on this machine."""


class SlurmStartError(RuntimeError):
    """The cluster did not come up; the message has the ends of the daemons' logs."""


@dataclass(frozen=True)
class Cluster:
    """A running cluster: its folder, its nodes and what points SLURM's commands to it."""

    folder: Path
    nodes: tuple[str, ...]
    environment: dict[str, str]

    def run(
        self, *command: str, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command that talks to this cluster; a failure shows what it said."""
        result = subprocess.run(
            command,
            env=_without_slurm(os.environ) | self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and result.returncode != 0:
            raise RuntimeError(
                f"{' '.join(command)}: exit code {result.returncode}\n{result.stdout}"
                f"{result.stderr}\n{self.logs()}"
            )
        return result

    def submit(self, script: str, *options: str) -> int:
        """Submit a batch script given as text; returns the job's number."""
        path = self.folder / f"script-{secrets.token_hex(4)}.sh"
        path.write_text(script)
        return int(self.run("sbatch", "--parsable", *options, str(path)).stdout)

    def job(self, number: int) -> dict[str, str]:
        """What ``scontrol show job`` says about a job, field by field."""
        words = self.run("scontrol", "--oneliner", "show", "job", str(number)).stdout.split(" ")
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number: int, *states: str, timeout: float = 60) -> dict[str, str]:
        """Wait until a job is in one of these states; returns ``job(number)``."""
        self.wait_until(
            lambda: self.job(number)["JobState"] in states,
            f"job {number} to be {' or '.join(states)}",
            timeout,
        )
        return self.job(number)

    def wait_requeued(self, number: int, times: int = 1, timeout: float = 60) -> None:
        """Wait until a job has left its nodes and is in the queue again."""

        def requeued() -> bool:
            job = self.job(number)
            return job["JobState"] == "PENDING" and int(job["Restarts"]) >= times

        self.wait_until(requeued, f"job {number} to be requeued", timeout)

    def wait_until(self, done: Callable[[], bool], what: str, timeout: float = 60) -> None:
        """Wait for anything.

        Raises:
            TimeoutError: what was waited for, the queue and the ends of the daemons' logs.
        """
        deadline = time.monotonic() + timeout
        while not done():
            if time.monotonic() > deadline:
                queue = self.run("scontrol", "show", "job", check=False).stdout
                raise TimeoutError(f"waited {timeout:g} s for {what}\n{queue}\n{self.logs()}")
            time.sleep(0.1)

    def start_soon(self, number: int) -> None:
        """Let a requeued job start in two seconds and not, as SLURM has it, in two minutes.

        Not at once: slurmd takes a start in the second of the requeue for the cancelled one.
        """
        self.run("scontrol", "update", f"JobId={number}", "StartTime=now+2")

    def history(self) -> str:
        """One line for every run of a job that ended, requeued ones included."""
        path = self.folder / "history"
        return path.read_text() if path.exists() else ""

    def logs(self, lines: int = 15) -> str:
        """The ends of all daemons' logs."""
        return _ends_of_logs(self.folder, lines)


def missing_programs() -> list[str]:
    """The programs a cluster needs that are not on this machine."""
    return [name for name in (*_DAEMONS, *_CLIENTS) if _program(name) is None]


@contextmanager
def slurm_cluster(
    folder: Path,
    *,
    nodes: int = 1,
    cpus: int = 4,
    gpus: int = 2,
    grace_time: int = 5,
    proctrack: Literal["linuxproc", "pgid"] = "linuxproc",
    start_timeout: float = 30,
) -> Iterator[Cluster]:
    """Run a SLURM cluster below ``folder`` while the block lasts.

    Args:
        folder: for everything the cluster writes; made if it is not there. Its path must be
            short, since sockets lie in it.
        nodes: how many, all on this machine. The first one's name can be resolved.
        cpus: what each node claims to have.
        gpus: the same; they are devices that do nothing.
        grace_time: seconds between SIGTERM and SIGKILL for a job that is preempted.
        proctrack: which processes of a task get a signal: all with ``linuxproc``, those of the
            task's process group with ``pgid``. With ``cgroup``, which most sites have, it is the
            task's first process only.
        start_timeout: seconds until all nodes must be idle.

    Raises:
        SlurmMissingError: a program is not installed.
        SlurmStartError: the cluster did not come up.
    """
    if missing := missing_programs():
        raise SlurmMissingError(
            f"no {', '.join(missing)} on this machine: apt-get install {' '.join(PACKAGES)}"
        )
    folder = folder.resolve()
    host = socket.gethostname().split(".")[0]
    names = (host, *(f"{host}-{index}" for index in range(2, nodes + 1)))
    # slurmstepd's socket is the longest path: SPOOL/NODE_JOB.STEP
    if len(str(folder / names[-1] / f"{names[-1]}_99999.4294967295")) > _SOCKET_PATH_LENGTH:
        raise SlurmStartError(f"the path is too long for the sockets in it: {folder}")
    for name in ("state", *names):
        (folder / name).mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # munged asks for it
    _configure(folder, names, cpus=cpus, gpus=gpus, grace_time=grace_time, proctrack=proctrack)
    cluster = Cluster(folder, names, {"SLURM_CONF": str(folder / "slurm.conf")})

    with ExitStack() as stack:
        stack.callback(_end_leftovers, cluster)
        socket_path = folder / "munge.socket"
        munged = _start(stack, cluster, "munged", *_munged_arguments(folder))
        _wait(cluster, [munged], socket_path.exists, "munged", start_timeout)
        daemons = [munged, _start(stack, cluster, "slurmctld", "-D", "-c")]
        daemons += [_start(stack, cluster, "slurmd", "-D", "-N", name) for name in names]
        stack.callback(_end_jobs, cluster)
        _wait(cluster, daemons, lambda: _all_idle(cluster), "the cluster", start_timeout)
        yield cluster


def _program(name: str) -> str | None:
    """Where a program is; daemons are where a user's PATH does not look."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def _without_slurm(environment: os._Environ[str]) -> dict[str, str]:
    prefixes = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "SCANCEL_", "SINFO_")
    return {name: value for name, value in environment.items() if not name.startswith(prefixes)}


def _free_ports(count: int) -> list[int]:
    """Ports on the loopback interface that nobody listens on, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _configure(
    folder: Path, names: Sequence[str], *, cpus: int, gpus: int, grace_time: int, proctrack: str
) -> None:
    """Write the keys and configuration files."""
    port, *node_ports = _free_ports(1 + len(names))
    text = _CONFIGURATION.format(
        folder=folder,
        host=names[0],
        port=port,
        user=psutil.Process().username(),
        requeue_exit=REQUEUE_EXIT,
        cpus=cpus,
        gpus=gpus,
        grace_time=grace_time,
        proctrack=proctrack,
        nodes="\n".join(
            f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={node_port}"
            for name, node_port in zip(names, node_ports, strict=True)
        ),
    )
    (folder / "slurm.conf").write_text(text)
    # A GPU needs a device file; these exist everywhere and are never opened.
    devices = f"Name=gpu File=/dev/tty[0-{gpus - 1}]\n" if gpus else ""
    (folder / "gres.conf").write_text(devices)
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # read, though unused
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))


def _munged_arguments(folder: Path) -> list[str]:
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid"}
    return [
        "--foreground",
        "--force",  # the folders above may be anybody's
        "--num-threads=2",
        f"--log-file={folder}/munged.log",
        f"--seed-file={folder}/munged.seed",
        *(f"--{option}={folder}/munge.{suffix}" for option, suffix in files.items()),
    ]


def _start(
    stack: ExitStack, cluster: Cluster, name: str, *arguments: str
) -> subprocess.Popen[bytes]:
    """Start a daemon in the foreground; the stack stops it."""
    program = _program(name)
    assert program is not None
    with (cluster.folder / f"{name}.out").open("ab") as out:
        process = subprocess.Popen(
            [program, *arguments],
            env=_without_slurm(os.environ) | cluster.environment,
            cwd=cluster.folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the terminal's Ctrl+C is not for it
        )
    stack.callback(_stop, process)
    return process


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait(
    cluster: Cluster,
    daemons: Sequence[subprocess.Popen[bytes]],
    ready: Callable[[], bool],
    what: str,
    timeout: float,
) -> None:
    """Wait until ready; a daemon that ended or the timeout is an error with the logs' ends."""
    deadline = time.monotonic() + timeout
    while not ready():
        ended = [process.args for process in daemons if process.poll() is not None]
        if ended or time.monotonic() > deadline:
            reason = f"ended: {ended}" if ended else f"not ready after {timeout:g} s"
            raise SlurmStartError(f"{what}: {reason}\n{cluster.logs()}")
        time.sleep(0.05)


def _all_idle(cluster: Cluster) -> bool:
    states = cluster.run("sinfo", "--noheader", "--Node", "--format=%N %T", check=False)
    found = {tuple(line.split()) for line in states.stdout.splitlines()}
    return states.returncode == 0 and found == {(name, "idle") for name in cluster.nodes}


def _end_jobs(cluster: Cluster) -> None:
    """Cancel what still runs, while there are daemons that can."""
    query = ("squeue", "--noheader", "--format=%A")
    for _ in range(20):
        jobs = cluster.run(*query, check=False).stdout.split()
        if not jobs:
            return
        cluster.run("scancel", "--full", "--signal=KILL", *jobs, check=False)
        cluster.run("scancel", *jobs, check=False)
        time.sleep(0.1)


def _end_leftovers(cluster: Cluster) -> None:
    """End by its id every process that was started for this cluster and outlived its daemons."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    leftovers = []
    for process in psutil.process_iter():
        try:
            configuration = process.environ().get("SLURM_CONF")
        except (psutil.Error, OSError):
            continue
        if configuration == cluster.environment["SLURM_CONF"] and process.pid not in own:
            leftovers.append(process)
    for process in leftovers:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(leftovers, timeout=5)


def _ends_of_logs(folder: Path, lines: int) -> str:
    """The last lines of every log that has any."""
    parts = []
    for path in sorted((*folder.glob("*.log"), *folder.glob("*.out"))):
        text = path.read_text(errors="replace").splitlines()
        if text:
            parts.append("\n".join((f"--- {path.name}", *text[-lines:])))
    return "\n".join(parts)
