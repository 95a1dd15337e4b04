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
    return None
