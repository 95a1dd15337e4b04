"""Whether somebody has started this process as one of several, and as which; knows no torch."""

import os
from collections.abc import Mapping
from typing import NamedTuple


class Place(NamedTuple):
    """The number of this process among ``size``, and on its machine."""

    rank: int
    size: int
    local_rank: int


def find_place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """What an elastic agent, torchrun or srun says; None for a process of its own."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        return Place(*(int(environment.get(name, 0)) for name in names))
    if "SLURM_STEP_ID" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        return Place(*(int(environment[name]) for name in names))
    return None


def launch_id(environment: Mapping[str, str] = os.environ) -> str | None:
    """What whoever started this process calls the launch, the same after a restart or requeue."""
    name = environment.get("TORCHELASTIC_RUN_ID", "none")
    if name != "none":  # torchrun's default, which is nobody's own
        return name
    return f"slurm-{environment['SLURM_JOB_ID']}" if "SLURM_STEP_ID" in environment else None
