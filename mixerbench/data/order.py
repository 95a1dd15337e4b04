"""Which image each virtual rank sees at each step: a function of the seed and the epoch."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mixerbench.config.schema import Batch


class Sample(NamedTuple):
    """One image as one step sees it; all its random draws follow from these numbers."""

    image: int
    epoch: int
    repeat: int


class SampleOrder:
    """The batches of one epoch after another, as the batch sampler of a loader.

    Repeated augmentation (arXiv:1901.09335): every image of a random order stands
    ``repeats`` times in a row, and an epoch is as long as without repeats, so it sees
    1 / repeats of the images. A step takes ``batch.size`` in a row and deals them out to its
    virtual ranks in turn, which is what DeiT's sampler gives its GPUs; here the order also
    depends on the seed, and one device sees what eight see.

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
        """Let the next iteration be that of ``epoch``, from its ``step`` on."""
        self._epoch, self._first_step = epoch, step

    def __len__(self) -> int:
        return (self.steps_per_epoch - self._first_step) * len(self.own_ranks)

    def __iter__(self) -> Iterator[list[Sample]]:
        epoch = self._epoch
        order = self._permutation(epoch)
        for step in range(self._first_step, self.steps_per_epoch):
            for rank in self.own_ranks:
                yield self._samples(order, epoch, step, rank)

    def micro_batch(self, epoch: int, step: int, rank: int) -> list[Sample]:
        """What virtual rank ``rank`` sees at ``step`` of ``epoch``, in any process."""
        return self._samples(self._permutation(epoch), epoch, step, rank)

    def _permutation(self, epoch: int) -> np.ndarray:
        # Frozen generator: the same order in every NumPy version.
        return np.random.RandomState([self.seed, epoch]).permutation(self.images)

    def _samples(self, order: np.ndarray, epoch: int, step: int, rank: int) -> list[Sample]:
        places = step * self.batch_size + np.arange(self.batch_size)
        return [
            Sample(int(order[place // self.repeats]), epoch, int(place % self.repeats))
            for place in places[rank :: self.virtual_ranks]
        ]


def evaluation_batches(
    images: int, batch_size: int, process: int = 0, processes: int = 1
) -> list[list[int]]:
    """This process's share of the images in order, batch by batch.

    Whole batches are dealt out, so that every image is computed in the batch that it has on
    one process. All get equally many, since they must call the model equally often: the
    rest repeat the first batch, and whoever gathers the results counts each image once.
    """
    batches = [
        list(range(start, min(start + batch_size, images)))
        for start in range(0, images, batch_size)
    ]
    rounds = -(-len(batches) // processes)
    own = batches[process::processes]
    return own + batches[:1] * (rounds - len(own))
