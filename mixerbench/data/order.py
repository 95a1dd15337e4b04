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
    ranks in order. The last, incomplete batch is left out.
    """

    def __init__(self, images: int, batch: Batch, repeats: int, seed: int) -> None:
        self.images = images
        self.batch_size = batch.size
        self.virtual_ranks = batch.size // batch.micro_batch_size
        self.repeats = repeats
        self.seed = seed
        self.steps_per_epoch = images // batch.size
        self._epoch = 0
        self._first_step = 0

    def start_at(self, epoch: int, step: int = 0) -> None:
        """Let the next iteration be that of ``epoch``, from its ``step`` on."""
        self._epoch, self._first_step = epoch, step

    def __len__(self) -> int:
        return (self.steps_per_epoch - self._first_step) * self.virtual_ranks

    def __iter__(self) -> Iterator[list[Sample]]:
        epoch = self._epoch
        # Frozen generator: the same order in every NumPy version.
        order = np.random.RandomState([self.seed, epoch]).permutation(self.images)
        for step in range(self._first_step, self.steps_per_epoch):
            places = step * self.batch_size + np.arange(self.batch_size)
            for rank in range(self.virtual_ranks):
                yield [
                    Sample(int(order[place // self.repeats]), epoch, int(place % self.repeats))
                    for place in places[rank :: self.virtual_ranks]
                ]
