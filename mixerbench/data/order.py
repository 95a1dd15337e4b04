"""Which image each virtual rank sees at each step: a function of the seed and the epoch."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mixerbench.config.schema import Batch


class Sample(NamedTuple):
    """One image as one step sees it; all its random draws are functions of these numbers."""

    image: int
    epoch: int
    repeat: int


class SampleOrder:
    """The batches of one epoch after another, as the batch sampler of a loader.

    Repeated augmentation (arXiv:1901.09335): every image of a random order stands
    ``repeats`` times in a row. An epoch has as many steps as without repeats, so it sees
    1 / repeats of the images. A step takes the next ``batch.size`` samples and deals them to
    its virtual ranks in turn, as DeiT's sampler does with GPUs. Here the order also depends on
    the seed, and does not depend on the number of devices.

    Yields one list of samples per micro-batch: steps in order, within a step the virtual
    ranks of this process in order. The last, incomplete batch is left out.

    Args:
        process: this process's number among ``processes``, which divide the virtual ranks.
    """

    def __init__(
        self,
        images: int,
        batch: Batch,
        repeats: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.images = images
        self.batch_size = batch.size
        self.virtual_ranks = batch.size // batch.micro_batch_size
        share = self.virtual_ranks // processes
        self.own_ranks = range(process * share, (process + 1) * share)
        self.repeats = repeats
        self.seed = seed
        self.steps_per_epoch = images // batch.size
        self._epoch = 0
        self._first_step = 0

    def start_at(self, epoch: int, step: int = 0) -> None:
        """Make the next iteration begin at ``step`` of ``epoch``."""
        self._epoch, self._first_step = epoch, step

    def __len__(self) -> int:
        return (self.steps_per_epoch - self._first_step) * len(self.own_ranks)

    def __iter__(self) -> Iterator[list[Sample]]:
        ranks = len(self.own_ranks)
        for step in self.own_steps():
            for rank in range(ranks):
                yield step[rank::ranks]

    def chunks(self) -> "Chunks":
        """The same samples, with the copies of an image next to each other within a step."""
        return Chunks(self)

    def own_steps(self) -> Iterator[list[Sample]]:
        """This process's samples of each step, in which its virtual ranks take turns."""
        epoch = self._epoch
        order = self._permutation(epoch)
        rounds = np.arange(self.batch_size // self.virtual_ranks)[:, None] * self.virtual_ranks
        positions = (rounds + np.array(self.own_ranks)).flatten()
        for step in range(self._first_step, self.steps_per_epoch):
            yield self._samples(order, epoch, step * self.batch_size + positions)

    def micro_batch(self, epoch: int, step: int, rank: int) -> list[Sample]:
        """The samples of virtual rank ``rank`` at ``step`` of ``epoch``, in whichever process."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return self._samples(self._permutation(epoch), epoch, positions[rank :: self.virtual_ranks])

    def _permutation(self, epoch: int) -> np.ndarray:
        # Frozen generator: the same order in every NumPy version.
        return np.random.RandomState([self.seed, epoch]).permutation(self.images)

    def _samples(self, order: np.ndarray, epoch: int, positions: np.ndarray) -> list[Sample]:
        images, repeats = order[positions // self.repeats], positions % self.repeats
        return [
            Sample(image, epoch, repeat)
            for image, repeat in zip(images.tolist(), repeats.tolist(), strict=True)
        ]


class Chunks:
    """A batch sampler that keeps the copies of an image together, so it is decoded once for all.

    Per step it yields as many chunks as this process has virtual ranks, each with the size of a
    micro-batch.
    """

    def __init__(self, order: SampleOrder) -> None:
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[list[Sample]]:
        ranks = len(self._order.own_ranks)
        for step in self._order.own_steps():
            size = len(step) // ranks
            for start in range(0, len(step), size):
                yield step[start : start + size]


def evaluation_batches(
    images: int, batch_size: int, process: int = 0, processes: int = 1
) -> list[list[int]]:
    """This process's share of the images in order, batch by batch.

    Whole batches are dealt to the processes, so every image is in the same batch as on one
    process. All processes get the same number of batches, since they must call the model equally
    often: those with fewer repeat the first batch. Each image must be counted once.
    """
    batches = [
        list(range(start, min(start + batch_size, images)))
        for start in range(0, images, batch_size)
    ]
    rounds = -(-len(batches) // processes)
    share = batches[process::processes]
    return share + batches[:1] * (rounds - len(share))
