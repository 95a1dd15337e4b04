"""The SLURM that other tests submit to (tests/helpers/slurm.py) does what they rely on."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from slurm import REQUEUE_EXIT, Cluster, SlurmStartError, slurm_cluster

pytestmark = [pytest.mark.everything, pytest.mark.xdist_group("slurm")]


@pytest.fixture(scope="module")
def cluster(slurm_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), nodes=2) as cluster:
        yield cluster


def test_a_step_runs_on_every_node(cluster: Cluster) -> None:
    result = cluster.run("srun", "--nodes=2", "--label", "printenv", "SLURMD_NODENAME")
    assert sorted(result.stdout.split()) == ["0:", "1:", *cluster.nodes]


def test_a_job_that_fails_shows_its_exit_code(cluster: Cluster) -> None:
    job = cluster.wait(cluster.submit("#!/bin/sh\nexit 3\n"), "FAILED")
    assert (job["ExitCode"], job["Restarts"]) == ("3:0", "0")


def test_a_job_that_asks_for_it_by_its_exit_code_runs_again(cluster: Cluster) -> None:
    script = f"#!/bin/sh\nexit $((${{SLURM_RESTART_COUNT:-0}} ? 0 : {REQUEUE_EXIT}))\n"
    number = cluster.submit(script)
    cluster.wait_requeued(number)
    cluster.start_soon(number)
    assert cluster.wait(number, "COMPLETED")["Restarts"] == "1"


def test_a_requeued_job_gets_sigterm_and_time_to_save(cluster: Cluster) -> None:
    said = _says_which_signals(cluster, "scontrol", "requeue", "{job}")
    assert "SIGTERM" in said


def test_a_more_urgent_job_preempts(cluster: Cluster) -> None:
    urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null")
    said = _says_which_signals(cluster, "sbatch", *urgent, "--wrap=sleep 1")
    assert "SIGTERM" in said


def test_a_signal_reaches_the_steps(cluster: Cluster) -> None:
    said = _says_which_signals(cluster, "scancel", "--signal=USR1", "{job}")
    assert "SIGUSR1" in said


_NOTES_SIGNALS = f"""\
import os, pathlib, signal, sys, time
if "SLURM_RESTART_COUNT" in os.environ:
    sys.exit()
said = pathlib.Path(sys.argv[1])
told = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, frame: told.append(signal.Signals(number).name))
said.write_text("ready")
while not told:
    time.sleep(0.1)
time.sleep(1)
said.write_text(told[0])
sys.exit({REQUEUE_EXIT})
"""


def _says_which_signals(cluster: Cluster, *command: str) -> str:
    """Run the command against a running job that is requeued; what its task was signalled."""
    name = "".join(character for character in command[0] + command[1] if character.isalpha())
    program, said = cluster.folder / f"{name}.py", cluster.folder / f"{name}.said"
    program.write_text(_NOTES_SIGNALS)
    number = cluster.submit(
        f"#!/bin/sh\nsrun {sys.executable} {program} {said}\n", "--nodes=1", "--exclusive"
    )
    cluster.wait_until(lambda: said.exists() and said.read_text() == "ready", "the task's start")
    cluster.run(*(word.format(job=number) for word in command))
    cluster.wait_requeued(number)
    cluster.start_soon(number)
    assert cluster.wait(number, "COMPLETED")["Restarts"] == "1"
    return said.read_text()


def test_all_sockets_are_on_the_loopback_interface(cluster: Cluster) -> None:
    listening = [
        connection.laddr.ip
        for process in _processes_of(cluster)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) == 1 + len(cluster.nodes)
    assert set(listening) == {"127.0.0.1"}


def test_nothing_outlives_the_block(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as other:
        number = other.submit("#!/bin/sh\nsrun sleep 1000 & sleep 1000\n")
        other.wait(number, "RUNNING")
        step = subprocess.Popen(["srun", "sleep", "1000"], env=os.environ | other.environment)
        other.wait_until(lambda: len(_named(other, "sleep")) >= 3, "three sleeps")
    step.wait(10)
    assert _processes_of(other) == []


def test_what_went_wrong_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slurm._CONFIGURATION", "Nonsense=1\n")
    with pytest.raises(SlurmStartError, match="Nonsense"), slurm_cluster(tmp_path):
        pass


def _processes_of(cluster: Cluster) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SLURM_CONF") == cluster.environment["SLURM_CONF"]:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def _named(cluster: Cluster, name: str) -> list[psutil.Process]:
    return [process for process in _processes_of(cluster) if process.name() == name]
