"""CIFAR-10 and CIFAR-100, as torchvision downloads them."""

from pathlib import Path

from mixerbench.config.schema import Data
from mixerbench.data.images import Arrays, Splits
from mixerbench.errors import Refusal


def open_cifar(data: Data) -> Splits:
    from torchvision import datasets

    cls = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[data.source]
    root = Path(data.root or "data").expanduser()

    def split(train: bool) -> Arrays:
        try:
            images = cls(str(root), train=train, download=data.download)
        except (RuntimeError, OSError) as error:
            tried = " and could not be downloaded" if data.download else ""
            raise Refusal(
                f"data set {data.name!r} is not in {root}{tried} ({str(error).splitlines()[0]}): "
                "put it there, set protocol.data.root, or set protocol.data.download=true."
            ) from None
        names = [str(number) for number in range(len(images.targets))]
        return Arrays(images.data, images.targets, images.classes, names)

    return Splits(split(True), split(False))
