"""The processes that train one run together, and what they tell each other.

Messages between them go through gloo, from memory to memory: none waits for a GPU.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed as dist
from torch import nn

from mixerbench.devices import choose_device
from mixerbench.errors import Refusal, TrainingStopped
from mixerbench.stopping import deadly_signals
from mixerbench.training.place import find_place

T = TypeVar("T")
_TIMEOUT = timedelta(minutes=30)  # the first process may evaluate, write and upload meanwhile


@dataclass(frozen=True)
class Group:
    """This process among those of its run; by itself it is a group of one.

    All processes call the same methods in the same order.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on its machine

    @property
    def is_first(self) -> bool:
        """Is this the one that writes the journal and the checkpoints?"""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """This process's device for the setting ``run.device``.

        Raises:
            Refusal: one device for several processes, or none for this one.
        """
        if self.size > 1 and ":" in name:
            raise Refusal(
                f"run.device={name} is one device for {self.size} processes: give auto, cuda or "
                "cpu, and choose among GPUs with CUDA_VISIBLE_DEVICES."
            )
        device = choose_device(name)
        return torch.device("cuda", self.local_rank) if device.type == "cuda" else device

    def gather(self, value: T) -> list[T]:
        """Everybody's value, to everybody, in the order of the ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def largest(self, number: int) -> int:
        """The largest of everybody's numbers, to everybody."""
        if self.size == 1:
            return number
        tensor = torch.tensor(number)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def together(self, work: Callable[[], T]) -> T:
        """Everybody works; what stops one stops all, with the same message.

        Raises:
            Refusal, TrainingStopped: the first one that anybody met.
        """
        value, error = None, None
        try:
            value = work()
        except (Refusal, TrainingStopped) as met:
            error = met
        met_by_anybody = next((one for one in self.gather(error) if one is not None), None)
        if met_by_anybody is not None:
            raise met_by_anybody
        return value  # type: ignore[return-value]  # None only where work returns it

    def first(self, work: Callable[[], T]) -> T:
        """The first process works, and everybody gets what it returns or raises."""
        value = self.together(lambda: work() if self.is_first else None)
        return self.gather(value)[0]  # type: ignore[return-value]

    def share_buffers(self, *modules: nn.Module) -> None:
        """Everybody's buffers become those of the first process."""
        if self.size > 1:
            for module in modules:
                for buffer in module.buffers():
                    dist.broadcast(buffer, 0)


ALONE = Group()


@contextmanager
def join() -> Iterator[Group]:
    """The group that an elastic agent, torchrun or srun has put this process into.

    An exception that is not everybody's leaves without a word: the others notice the closed
    connection, and whoever started them restarts all.
    """
    place = find_place()
    group = Group(*place) if place is not None else ALONE
    if group.size == 1:
        yield group
        return
    if "MASTER_ADDR" not in os.environ:  # srun says who is there, and not where to meet
        import submitit

        os.environ.setdefault("SUBMITIT_EXECUTOR", "slurm")
        submitit.helpers.TorchDistributedEnvironment().export(overwrite=True)
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(group.local_rank % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    with deadly_signals():
        dist.init_process_group(backend, rank=group.rank, world_size=group.size, timeout=_TIMEOUT)
    try:
        yield group
    except (Refusal, TrainingStopped):
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()
