"""``launcher=slurm`` on a real SLURM: jobs of one and of two machines, preempted and requeued.

The cluster signals a task's own process group only, as the control groups of real sites do:
torch's workers hear nothing but what their parent passes on.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from slurm import Cluster, slurm_cluster
from tiny_runs import DATA, MODEL, losses

from mixerbench.tracking.journal import FILE_NAME, read
from mixerbench.training import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

TINY = [
    *DATA, *MODEL,
    "recipe.batch.size=16", "recipe.batch.micro_batch_size=4", "recipe.optimizer.lr=2e-4",
    "run.device=cpu", "run.measure=false", "run.log_every_steps=1", "tracking.offline=true",
]  # fmt: skip
SLURM = ["launcher=slurm", "launcher.cpus_per_device=1", "launcher.minutes=10"]


@pytest.fixture(scope="module")
def cluster(slurm_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("slurm")
    with slurm_cluster(folder, nodes=2, proctrack="pgid", grace_time=60) as cluster:
        yield cluster


def _train(cluster: Cluster, place: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    place.mkdir(exist_ok=True)
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


def test_a_run_of_two_machines_has_the_numbers_of_one_process(
    cluster: Cluster, tmp_path: Path
) -> None:
    settings = ["recipe.epochs=2", "run.precision=fp64"]
    submitted = _train(
        cluster, tmp_path / "two", *settings, *SLURM, "launcher.nodes=2", "run.devices=2"
    )
    alone = _train(cluster, tmp_path / "one", *settings)
    assert alone.returncode == 0, alone.stderr
    cluster.wait(_number(submitted), "COMPLETED", timeout=300)
    one, two = _folder(tmp_path / "one"), _folder(tmp_path / "two")
    assert len(losses(two)) == 8
    assert losses(two) == pytest.approx(losses(one), rel=1e-9)
    tags = [r["values"] for r, _ in read(two / FILE_NAME) if r["kind"] == "tags"]
    assert tags[0]["mixerbench.processes"] == "4"


def test_srun_starts_the_processes_of_a_run(cluster: Cluster, tmp_path: Path) -> None:
    """The same command line, by whoever prefers to write the batch script."""
    settings = [*TINY, "recipe.epochs=2", "run.precision=fp64", f"run.root={tmp_path}/srun/runs"]
    srun = ["srun", "--nodes=2", "--ntasks-per-node=1"]
    cluster.run(*srun, sys.executable, "-m", "mixerbench", "train", *settings, timeout=300)
    alone = _train(cluster, tmp_path / "one", "recipe.epochs=2", "run.precision=fp64")
    assert alone.returncode == 0, alone.stderr
    assert losses(_folder(tmp_path / "srun")) == pytest.approx(
        losses(_folder(tmp_path / "one")), rel=1e-9
    )


def test_a_preempted_job_saves_its_state_and_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    epochs = ["recipe.epochs=60"]
    place = tmp_path / "preempted"
    submitted = _train(cluster, place, *epochs, *SLURM, 'launcher.options=["--exclusive"]')
    number = _number(submitted)
    cluster.wait_until(
        lambda: bool(list(place.glob("runs/*/*/checkpoints/*.safetensors"))), "a checkpoint", 120
    )
    folder = _folder(place)
    # Asked for again while it is in the queue, it is the same job.
    assert _number(_train(cluster, place, *epochs, *SLURM)) == number
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
    alone = _train(cluster, tmp_path / "alone", *epochs)
    assert alone.returncode == 0, alone.stderr
    whole = _folder(tmp_path / "alone")
    assert losses(folder) == losses(whole)
    own, others = (checkpoint.load(f / "model.safetensors")[0] for f in (folder, whole))
    assert all(torch.equal(own[name], others[name]) for name in others)


def test_what_slurm_refuses_is_said_in_one_line(cluster: Cluster, tmp_path: Path) -> None:
    refused = _train(cluster, tmp_path, *SLURM, "launcher.partition=nowhere")
    assert refused.returncode == 2
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("mixerbench: SLURM does not take the job")
    assert "partition" in last
