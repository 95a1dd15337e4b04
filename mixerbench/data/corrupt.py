"""Which images could not be read, and when they are too many."""

from collections.abc import Iterable
from typing import Final

from torch import Tensor

from mixerbench.data.decode import UnreadableImageError, printable
from mixerbench.data.images import Images
from mixerbench.errors import Refusal

MAX_UNREADABLE_VAL: Final = 0.01
"""Share of the validation images at most, whatever ``data.max_corrupt`` says.

Unreadable images are left out of the accuracy. They may all be of one class, and two models can be
compared only on the images that both have seen.
"""


class TooManyCorruptError(Refusal):
    """More images of a split cannot be read than its limit allows."""


class CorruptImages:
    """The images of one split that could not be read, collected in the main process.

    Each item of a loader says which image was asked for and which one was loaded, so the number
    of loader processes does not matter.

    Args:
        split: what the split is called in messages: train or val.
        max_share: ``data.max_corrupt``, 0..1; with 0 a single corrupt one is too many.
    """

    def __init__(self, images: Images, split: str, max_share: float) -> None:
        self._images, self._split, self._setting = images, split, max_share
        self._max_share = min(max_share, MAX_UNREADABLE_VAL) if split == "val" else max_share
        self._indices: set[int] = set()

    @property
    def indices(self) -> list[int]:
        """Of the unreadable images, in ascending order; what ``restore`` and ``merge`` take."""
        return sorted(self._indices)

    def add(self, indices: Tensor, sources: Tensor) -> None:
        """Note which images of a batch were replaced; both tensors are (B,), on the CPU."""
        replaced = indices[indices != sources]
        self._indices.update(replaced.tolist())

    def merge(self, indices: Iterable[int]) -> None:
        """Add the unreadable images of other processes."""
        self._indices.update(indices)

    def restore(self, indices: Iterable[int]) -> None:
        """Go back to the unreadable images that were known when a run stopped."""
        self._indices = set(indices)

    def check(self) -> None:
        """Refuse to go on with too many unreadable images; cheap enough to call every batch.

        Raises:
            TooManyCorruptError: how many there are, the first one and the reason, what to do.
        """
        count, total = len(self._indices), len(self._images.targets)
        if not count or count / total <= self._max_share:  # a product would round 29 of 100 off
            return
        name, index = self._by_name()[0]
        if self._max_share < self._setting:
            limit = f"the {self._max_share:.2%} of validation images that an accuracy may lack"
            way_out = ""
        else:
            limit = f"protocol.data.max_corrupt={self._setting} ({self._setting:.2%}) allows"
            way_out = ", or set protocol.data.max_corrupt higher"
        raise TooManyCorruptError(
            f"{count} of {total} {self._split} images could not be read, which is "
            f"{count / total:.2%} and more than {limit}. The first is {name} "
            f"({self._reason(index)}). Repair or remove such files{way_out}."
        )

    def report(self) -> str:
        """One line for each image, by path: ``train/n01440764/x.JPEG``, a tab, the reason."""
        return "".join(f"{name}\t{self._reason(index)}\n" for name, index in self._by_name())

    def _by_name(self) -> list[tuple[str, int]]:
        return sorted(
            (printable(f"{self._split}/{self._images.name(index)}"), index)
            for index in self._indices
        )

    def _reason(self, index: int) -> str:
        try:
            self._images.load(index)
        except UnreadableImageError as error:
            return error.reason
        return "it can be read now"  # the file was repaired, or the file system is available again
