"""The processes that train one run together, and the messages between them.

Messages go through gloo, from memory to memory: none waits for a GPU.
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
from mixerbench.training.launch import find_rank

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
        """The values of all processes, in the order of their ranks; every process gets all."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def largest(self, number: int) -> int:
        """The largest of all processes' numbers; every process gets it."""
        if self.size == 1:
            return number
        tensor = torch.tensor(number)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def together(self, work: Callable[[], T]) -> T:
        """Every process calls ``work``; an error in one stops all, with the same message.

        Raises:
            Refusal, TrainingStopped: the one of the lowest rank.
        """
        value, error = None, None
        try:
            value = work()
        except (Refusal, TrainingStopped) as own:
            error = own
        first = next((other for other in self.gather(error) if other is not None), None)
        if first is not None:
            raise first
        return value  # type: ignore[return-value]  # None only where work returns it

    def first(self, work: Callable[[], T]) -> T:
        """Only the first process calls ``work``; all get what it returns or raises."""
        value = self.together(lambda: work() if self.is_first else None)
        return self.gather(value)[0]  # type: ignore[return-value]

    def share_buffers(self, *modules: nn.Module) -> None:
        """Copy the first process's buffers of ``modules`` to all processes."""
        if self.size > 1:
            for module in modules:
                for buffer in module.buffers():
                    dist.broadcast(buffer, 0)


ALONE = Group()


@contextmanager
def join() -> Iterator[Group]:
    """The group that an elastic agent, torchrun or srun has put this process into.

    An exception of this process alone ends it without telling the others: they notice the
    closed connection, and the launcher restarts all.
    """
    rank = find_rank()
    group = ALONE if rank is None else Group(*rank)
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
