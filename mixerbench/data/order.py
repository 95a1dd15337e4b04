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
        ranks = len(self.own_ranks)
        for step in self.own_steps():
            for rank in range(ranks):
                yield step[rank::ranks]

    def chunks(self) -> "Chunks":
        """The same samples in another order within a step."""
        return Chunks(self)

    def own_steps(self) -> Iterator[list[Sample]]:
        """This process's samples of each step, in which its virtual ranks take turns."""
        epoch = self._epoch
        order = self._permutation(epoch)
        rounds = np.arange(self.batch_size // self.virtual_ranks)[:, None] * self.virtual_ranks
        places = (rounds + np.array(self.own_ranks)).flatten()
        for step in range(self._first_step, self.steps_per_epoch):
            yield self._samples(order, epoch, step * self.batch_size + places)

    def micro_batch(self, epoch: int, step: int, rank: int) -> list[Sample]:
        """What virtual rank ``rank`` sees at ``step`` of ``epoch``, in any process."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return self._samples(self._permutation(epoch), epoch, places[rank :: self.virtual_ranks])

    def _permutation(self, epoch: int) -> np.ndarray:
        # Frozen generator: the same order in every NumPy version.
        return np.random.RandomState([self.seed, epoch]).permutation(self.images)

    def _samples(self, order: np.ndarray, epoch: int, places: np.ndarray) -> list[Sample]:
        images, repeats = order[places // self.repeats], places % self.repeats
        return [
            Sample(image, epoch, repeat)
            for image, repeat in zip(images.tolist(), repeats.tolist(), strict=True)
        ]


class Chunks:
    """A batch sampler of the samples of ``order``: within a step the copies of an image together.

    Whoever loads a chunk decodes an image once for all of its copies. Yields as many chunks a
    step as there are virtual ranks in this process, of a micro-batch's size.
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
