"""Random images for measuring speed."""

import numpy as np

from mixerbench.data.images import Splits
from mixerbench.data.source import DataSource, register_data


@register_data("synthetic")
class Synthetic(DataSource):
    """Random images of the models' size, for measuring speed. Accuracy on them means nothing."""

    is_noise = True
    generator_version = 1

    def __init__(
        self, *, train_images: int, val_images: int, num_classes: int, image_size: int
    ) -> None:
        self._counts = train_images, val_images
        self._classes, self._size = num_classes, image_size

    def open(self) -> Splits:
        train, val = (
            _Noise(count, self._size, self._classes, seed)
            for seed, count in enumerate(self._counts)
        )
        return Splits(train, val)


class _Noise:
    """Image ``index`` is one random image, moved down by ``index`` rows: made in no time."""

    def __init__(self, count: int, size: int, classes: int, seed: int) -> None:
        self.targets = [index % classes for index in range(count)]
        self.classes = [str(label) for label in range(classes)]
        noise = np.random.RandomState(seed).randint(0, 256, (size, size, 3), dtype=np.uint8)
        self._noise = noise

    def load(self, index: int) -> np.ndarray:
        return np.roll(self._noise, index, axis=0)

    def name(self, index: int) -> str:
        return f"random-{index}"
