"""What the environment says of a process's rank among others, right, half or wrong."""

from collections.abc import Callable

import pytest

from mixerbench.training.launch import ProcessRank, find_rank

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "SLURM_JOB_ID", "SLURM_STEP_ID")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ("", None),
        ("SLURM_JOB_ID=7", None),  # within sbatch's script
        ("SLURM_JOB_ID=7 SLURM_STEP_ID=0", None),
        ("SLURM_JOB_ID=7 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=1", None),
        ("RANK=0 WORLD_SIZE=1", ProcessRank(0, 1, 0)),
        ("RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 MASTER_ADDR=localhost", ProcessRank(3, 4, 1)),
        ("RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 SLURM_JOB_ID=7", ProcessRank(3, 4, 1)),
        (
            "SLURM_JOB_ID=7 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2 SLURM_PROCID=1 SLURM_LOCALID=1",
            ProcessRank(1, 2, 1),
        ),
    ],
)
def test_a_rank_is_read_as_it_is_said(environment: str, expected: ProcessRank | None) -> None:
    assert find_rank(dict(one.split("=") for one in environment.split())) == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ("RANK=abc", "RANK=abc: RANK is no number"),
        ("RANK=0", "RANK=0: WORLD_SIZE is missing"),
        ("WORLD_SIZE=2", "WORLD_SIZE=2: RANK is missing"),
        ("RANK=2 WORLD_SIZE=2", "RANK=2, WORLD_SIZE=2: ranks count from 0 to WORLD_SIZE - 1"),
        ("RANK=-1 WORLD_SIZE=2", "RANK=-1, WORLD_SIZE=2: RANK is no number"),
        ("RANK=0 WORLD_SIZE=0", "ranks count from 0"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=x", "LOCAL_RANK is no number"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0", "MASTER_ADDR is missing"),
        ("SLURM_STEP_ID=0", "SLURM_STEP_ID=0: SLURM_JOB_ID is missing"),
        ("SLURM_JOB_ID=7 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2", "SLURM_PROCID is missing"),
        ("SLURM_JOB_ID=7 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=x", "SLURM_PROCID is missing"),
    ],
)
def test_half_a_rank_is_refused_and_named(
    environment: str,
    expected: str,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for one in environment.split():
        monkeypatch.setenv(*one.split("="))
    message = refused("train", "mixer=attention")
    assert expected in message
    assert f"unset {environment.split('=')[0]}" in message or "unset SLURM" in message
