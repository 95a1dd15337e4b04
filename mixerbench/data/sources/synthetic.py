"""Random images for measuring speed."""

import numpy as np

from mixerbench.config.schema import Data
from mixerbench.data.images import Splits
from mixerbench.errors import Refusal


class _Synthetic:
    def __init__(self, count: int, size: int, classes: int, seed: int) -> None:
        self.targets = [index % classes for index in range(count)]
        self.classes = [str(label) for label in range(classes)]
        noise = np.random.RandomState(seed).randint(0, 256, (size, size, 3), dtype=np.uint8)
        self._noise = noise

    def load(self, index: int) -> np.ndarray:
        return np.roll(self._noise, index, axis=0)

    def name(self, index: int) -> str:
        return f"random-{index}"


def open_synthetic(data: Data, image_size: int) -> Splits:
    if data.train_images is None or data.val_images is None or data.num_classes is None:
        raise Refusal("synthetic data needs train_images, val_images and num_classes.")
    return Splits(
        _Synthetic(data.train_images, image_size, data.num_classes, seed=0),
        _Synthetic(data.val_images, image_size, data.num_classes, seed=1),
    )
