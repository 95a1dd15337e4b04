"""A data set as two lists of images, each with a label and a name."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol as Interface

import numpy as np


class Images(Interface):
    """One split of a data set: ``targets`` are class numbers, ``classes`` their names."""

    @property
    def targets(self) -> Sequence[int]: ...

    @property
    def classes(self) -> Sequence[str]: ...

    def load(self, index: int) -> np.ndarray:
        """(height, width, 3) of uint8: red, green, blue.

        Raises:
            UnreadableImageError: it is a file that cannot be decoded.
        """
        ...

    def name(self, index: int) -> str:
        """The image's name in the data set: its path below the split, or its number."""
        ...


@dataclass(frozen=True)
class Splits:
    """A data set: training and validation images, and what its fingerprint needs to know."""

    train: Images
    val: Images
    packed: str | None = None  # what packing did to the training images
    content: str | None = None  # beyond names and labels: files' sizes, or their generator

    def digest(self) -> str:
        """16 hex digits that depend on all names, labels and their order, in both splits."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        sha = hashlib.sha256()
        for split, images in (("train", self.train), ("val", self.val)):
            for index, target in enumerate(images.targets):
                sha.update(
                    f"{split}\0{images.name(index)}\0{target}\n".encode(errors="surrogateescape")
                )
        return sha.hexdigest()[:16]


class Arrays:
    """Images that lie in memory, (count, height, width, 3) of uint8."""

    def __init__(
        self, pixels: np.ndarray, targets: Sequence[int], classes: Sequence[str], names: list[str]
    ) -> None:
        self._pixels = pixels
        self.targets = [int(target) for target in targets]
        self.classes = classes
        self._names = names

    def load(self, index: int) -> np.ndarray:
        return self._pixels[index]

    def name(self, index: int) -> str:
        return self._names[index]
