"""CIFAR-10 and CIFAR-100, as torchvision downloads them."""

from pathlib import Path
from typing import ClassVar

from mixerbench.data.images import Arrays, Splits
from mixerbench.data.source import DataSource, register_data
from mixerbench.errors import Refusal


class _Cifar(DataSource):
    dataset: ClassVar[str]  # the class's name in torchvision.datasets

    def __init__(self, *, root: str = "data", download: bool = False) -> None:
        self._root, self._download = Path(root).expanduser(), download

    def open(self) -> Splits:
        return Splits(self._split(train=True), self._split(train=False))

    def _split(self, train: bool) -> Arrays:
        from torchvision import datasets

        dataset = getattr(datasets, self.dataset)
        try:
            images = dataset(str(self._root), train=train, download=self._download)
        except (RuntimeError, OSError) as error:
            tried = " and could not be downloaded" if self._download else ""
            raise Refusal(
                f"data set {self.dataset.lower()!r} is not in {self._root}{tried} "
                f"({str(error).splitlines()[0]}): put it there, set protocol.data.root, or set "
                "protocol.data.download=true."
            ) from None
        names = [str(number) for number in range(len(images.targets))]
        return Arrays(images.data, images.targets, images.classes, names)


@register_data("cifar10")
class Cifar10(_Cifar):
    """60,000 photographs of 32 x 32 pixels in 10 classes, downloaded where they are missing."""

    dataset = "CIFAR10"


@register_data("cifar100")
class Cifar100(_Cifar):
    """60,000 photographs of 32 x 32 pixels in 100 classes, downloaded where they are missing."""

    dataset = "CIFAR100"
