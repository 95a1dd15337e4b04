"""Which images could not be read, and when they are too many."""

from collections.abc import Iterable
from typing import Final

from torch import Tensor

from mixerbench.data.decode import UnreadableImageError, printable
from mixerbench.data.images import Images
from mixerbench.errors import Refusal

MAX_UNREADABLE_VAL: Final = 0.01
"""Share of the validation images at most, whatever ``data.max_corrupt`` says.

They are left out of the accuracy. What is missing may all be of one class, and what can be said
of two models shrinks with every image that only one of them has seen.
"""


class TooManyCorruptError(Refusal):
    """More images of a split cannot be read than its limit allows."""


class CorruptImages:
    """The images of one split that could not be read, as the main process sees them go by.

    Each item of a loader says which image it stands for and what was really loaded, so it
    does not matter in how many processes they were loaded.

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
        """In ascending order; what ``restore`` and ``merge`` take."""
        return sorted(self._indices)

    def add(self, indices: Tensor, sources: Tensor) -> None:
        """Note which images of a batch were replaced. Both tensors lie on the CPU."""
        replaced = indices[indices != sources]
        self._indices.update(replaced.tolist())

    def merge(self, indices: Iterable[int]) -> None:
        """Add what other processes found."""
        self._indices.update(indices)

    def restore(self, indices: Iterable[int]) -> None:
        """Go back to what was known when a run stopped."""
        self._indices = set(indices)

    def check(self) -> None:
        """Cheap enough for every batch, as long as nothing is wrong.

        Raises:
            TooManyCorruptError: how many, the first of them and why, and what to do.
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
        return "it can be read now"  # a file system that was away, or a file that was mended
