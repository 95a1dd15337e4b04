"""Whether somebody has started this process as one of several, and as which; knows no torch."""

import os
from collections.abc import Mapping
from typing import NamedTuple

from mixerbench.errors import Refusal


class Place(NamedTuple):
    """The number of this process among ``size``, and on its machine."""

    rank: int
    size: int
    local_rank: int


_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")


def find_place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """What an elastic agent, torchrun or srun says; None for a process of its own.

    Raises:
        Refusal: what it says cannot be; a process that guessed would train another's share.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        place = _place(environment, {"LOCAL_RANK": "0"}, _TORCHRUN)
        meeting = ("MASTER_ADDR", "SLURM_JOB_ID")  # of srun's processes submitit knows where
        if place.size > 1 and not any(name in environment for name in meeting):
            raise _refusal(environment, _TORCHRUN, "MASTER_ADDR is missing, where they meet")
        return place
    if "SLURM_STEP_ID" in environment:
        if "SLURM_JOB_ID" not in environment:
            raise _refusal(environment, ("SLURM_STEP_ID",), "SLURM_JOB_ID is missing")
        if environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
            return _place(environment, {}, _SRUN)
    return None


def _place(
    environment: Mapping[str, str], defaults: Mapping[str, str], names: tuple[str, str, str]
) -> Place:
    """The place that the variables ``names`` give: rank, size and rank on the machine."""
    numbers = []
    for name in names:
        text = environment.get(name, defaults.get(name))
        if text is None:
            raise _refusal(environment, names, f"{name} is missing")
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise _refusal(environment, names, f"{name} is no number")
        numbers.append(int(text))
    place = Place(*numbers)
    if max(place.rank, place.local_rank) >= place.size:
        raise _refusal(environment, names, f"ranks count from 0 to {names[1]} - 1")
    return place


def _refusal(environment: Mapping[str, str], names: tuple[str, ...], reason: str) -> Refusal:
    found = [name for name in names if name in environment]
    return Refusal(
        f"{', '.join(f'{name}={environment[name]}' for name in found)}: {reason}. torchrun or srun "
        f"sets these variables; to train without them: unset {' '.join(found)}"
    )


def launch_id(environment: Mapping[str, str] = os.environ) -> str | None:
    """What whoever started this process calls the launch, the same after a restart or requeue."""
    if (name := _elastic_launch(environment)) is not None:
        return name
    job = environment.get("SLURM_JOB_ID")
    return f"slurm-{job}" if job is not None and "SLURM_STEP_ID" in environment else None


def may_be_a_restart(environment: Mapping[str, str] = os.environ) -> bool:
    """Can an earlier start of this launch have begun a run that is meant to go on?

    An elastic agent starts processes anew by itself, SLURM only a job that was requeued. In a job
    that was not, such as an interactive one, every start is somebody's own.
    """
    if _elastic_launch(environment) is not None:
        return True
    return environment.get("SLURM_RESTART_COUNT", "0") != "0" and launch_id(environment) is not None


def _elastic_launch(environment: Mapping[str, str]) -> str | None:
    name = environment.get("TORCHELASTIC_RUN_ID", "none")
    return None if name == "none" else name  # torchrun's default, which is nobody's own
