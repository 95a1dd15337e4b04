"""What torchrun, an elastic agent or srun says of this process in its environment.

Knows no torch.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

from mixerbench.errors import Refusal


class ProcessRank(NamedTuple):
    """The number of this process among ``size``, and on its machine."""

    rank: int
    size: int
    local_rank: int


_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")


def find_rank(environment: Mapping[str, str] = os.environ) -> ProcessRank | None:
    """The rank that an elastic agent, torchrun or srun has given; None: it was started alone.

    Raises:
        Refusal: the variables contradict each other; a process that guessed would train the
            share of another one.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        rank = _rank_in(environment, {"LOCAL_RANK": "0"}, _TORCHRUN)
        meeting = ("MASTER_ADDR", "SLURM_JOB_ID")  # of srun's processes submitit knows where
        if rank.size > 1 and not any(name in environment for name in meeting):
            raise _refusal(environment, _TORCHRUN, "MASTER_ADDR is missing, where they meet")
        return rank
    if "SLURM_STEP_ID" in environment:
        if "SLURM_JOB_ID" not in environment:
            raise _refusal(environment, ("SLURM_STEP_ID",), "SLURM_JOB_ID is missing")
        if environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
            return _rank_in(environment, {}, _SRUN)
    return None


def _rank_in(
    environment: Mapping[str, str], defaults: Mapping[str, str], names: tuple[str, str, str]
) -> ProcessRank:
    """The rank that the variables ``names`` give: rank, size and rank on the machine."""
    numbers = []
    for name in names:
        text = environment.get(name, defaults.get(name))
        if text is None:
            raise _refusal(environment, names, f"{name} is missing")
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise _refusal(environment, names, f"{name} is no number")
        numbers.append(int(text))
    rank = ProcessRank(*numbers)
    if max(rank.rank, rank.local_rank) >= rank.size:
        raise _refusal(environment, names, f"ranks count from 0 to {names[1]} - 1")
    return rank


def _refusal(environment: Mapping[str, str], names: tuple[str, ...], reason: str) -> Refusal:
    given = [name for name in names if name in environment]
    return Refusal(
        f"{', '.join(f'{name}={environment[name]}' for name in given)}: {reason}. torchrun or srun "
        f"sets these variables; to train without them: unset {' '.join(given)}"
    )


def launch_id(environment: Mapping[str, str] = os.environ) -> str | None:
    """The name of the launch that started this process; a restart or requeue keeps it."""
    if (name := _elastic_launch(environment)) is not None:
        return name
    job = environment.get("SLURM_JOB_ID")
    return f"slurm-{job}" if job is not None and "SLURM_STEP_ID" in environment else None


def may_be_a_restart(environment: Mapping[str, str] = os.environ) -> bool:
    """Can an earlier start of this launch have begun a run that is meant to go on?

    An elastic agent restarts processes by itself, SLURM only a job that was requeued. In other
    jobs, such as an interactive one, the user starts every process on purpose.
    """
    if _elastic_launch(environment) is not None:
        return True
    return environment.get("SLURM_RESTART_COUNT", "0") != "0" and launch_id(environment) is not None


def _elastic_launch(environment: Mapping[str, str]) -> str | None:
    name = environment.get("TORCHELASTIC_RUN_ID", "none")
    return None if name == "none" else name  # torchrun's default, which all launches share
