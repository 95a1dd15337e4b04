"""``launcher=slurm`` on a real SLURM: jobs of one and of two machines, preempted and requeued.

The cluster signals a task's own process group only, as the control groups of real sites do:
torch's workers hear nothing but what their parent passes on.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from slurm import Cluster, slurm_cluster
from tiny_runs import DATA, MODEL, losses

from mixerbench.tracking.journal import FILE_NAME, read
from mixerbench.training import checkpoint

pytestmark = [pytest.mark.everything, pytest.mark.xdist_group("slurm")]

TINY = [
    *DATA, *MODEL,
    "recipe.batch.size=16", "recipe.batch.micro_batch_size=4", "recipe.optimizer.lr=2e-4",
    "run.device=cpu", "run.measure=false", "run.log_every_steps=1", "tracking.offline=true",
]  # fmt: skip
SHORT = ["recipe.epochs=2", "run.precision=fp64"]
SLURM = ["launcher=slurm", "launcher.cpus_per_device=1", "launcher.minutes=10"]


@pytest.fixture(scope="module")
def cluster(slurm_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("slurm")
    with slurm_cluster(folder, nodes=2, proctrack="pgid", grace_time=60) as cluster:
        yield cluster


def _train(cluster: Cluster, place: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mixerbench", "train", *TINY, *settings],
        cwd=place, env={**os.environ, **cluster.environment}, capture_output=True, text=True,
    )  # fmt: skip


def _number(submitted: subprocess.CompletedProcess[str]) -> int:
    assert submitted.returncode == 0, submitted.stderr
    return int(submitted.stdout.split()[1].rstrip(":"))


def _folder(place: Path) -> Path:
    (folder,) = place.glob("runs/*/*")
    return folder


@pytest.fixture(scope="module")
def alone(train_alone: Callable[..., Path]) -> Path:
    """The folder of a short run in one process."""
    return train_alone(*TINY, *SHORT)


def test_a_run_of_two_machines_has_the_numbers_of_one_process(
    cluster: Cluster, alone: Path, tmp_path: Path
) -> None:
    submitted = _train(cluster, tmp_path, *SHORT, *SLURM, "launcher.nodes=2", "run.devices=2")
    cluster.wait(_number(submitted), "COMPLETED", timeout=300)
    two = _folder(tmp_path)
    assert len(losses(two)) == 8
    assert losses(two) == pytest.approx(losses(alone), rel=1e-9)
    tags = [r["values"] for r, _ in read(two / FILE_NAME) if r["kind"] == "tags"]
    assert tags[0]["mixerbench.processes"] == "4"


def test_srun_starts_the_processes_of_a_run(cluster: Cluster, alone: Path, tmp_path: Path) -> None:
    """The same command line, by whoever prefers to write the batch script."""
    settings = [*TINY, *SHORT, f"run.root={tmp_path}/runs"]
    srun = ["srun", "--nodes=2", "--ntasks-per-node=1"]
    cluster.run(*srun, sys.executable, "-m", "mixerbench", "train", *settings, timeout=300)
    assert losses(_folder(tmp_path)) == pytest.approx(losses(alone), rel=1e-9)


def test_a_preempted_job_saves_its_state_and_goes_on(
    cluster: Cluster, train_alone: Callable[..., Path], tmp_path: Path
) -> None:
    epochs, place = ["recipe.epochs=60"], tmp_path
    submitted = _train(cluster, place, *epochs, *SLURM, 'launcher.options=["--exclusive"]')
    number = _number(submitted)
    # Asked for again while it is in the queue, it is the same job.
    assert _number(_train(cluster, place, *epochs, *SLURM)) == number
    cluster.wait_until(
        lambda: bool(list(place.glob("runs/*/*/checkpoints/*.safetensors"))), "a checkpoint", 120
    )
    folder = _folder(place)
    urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null")
    cluster.run("sbatch", *urgent, "--wrap=sleep 1")
    cluster.wait_requeued(number, timeout=120)
    (job,) = place.glob("slurm/*/outcome.json")
    assert json.loads(job.read_text())["kind"] == "Preempted"
    stopped_at = checkpoint.header(checkpoint.newest_first(folder / "checkpoints")[0])
    assert 0 < stopped_at["progress"]["step"] < 240
    cluster.start_soon(number)
    assert cluster.wait(number, "COMPLETED", timeout=300)["Restarts"] == "1"
    assert _folder(place) == folder
    whole = train_alone(*TINY, *epochs)
    assert losses(folder) == losses(whole)
    own, others = (checkpoint.load(f / "model.safetensors")[0] for f in (folder, whole))
    assert all(torch.equal(own[name], others[name]) for name in others)


def test_what_slurm_refuses_is_said_in_one_line(cluster: Cluster, tmp_path: Path) -> None:
    refused = _train(cluster, tmp_path, *SLURM, "launcher.partition=nowhere")
    assert refused.returncode == 2
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("mixerbench: SLURM does not take the job")
    assert "partition" in last
