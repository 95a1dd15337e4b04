"""Data sets as lists of images with a label and a name each."""

import hashlib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol as Interface

import numpy as np
from PIL import Image

from mixerbench.config.checks import check_data
from mixerbench.config.schema import Data, Protocol

_VAL_SHARE = 0.3  # of the digits, in each class
_SPLIT_SEED = 0


class Images(Interface):
    """One split of a data set."""

    @property
    def targets(self) -> Sequence[int]: ...

    @property
    def classes(self) -> Sequence[str]: ...

    def load(self, index: int) -> Image.Image:
        """The image as RGB."""
        ...

    def name(self, index: int) -> str:
        """What the data set calls the image: its path, or its number."""
        ...


@dataclass(frozen=True)
class Splits:
    train: Images
    val: Images

    def digest(self) -> str:
        """16 hex digits of all names and labels of both splits."""
        sha = hashlib.sha256()
        for split, images in (("train", self.train), ("val", self.val)):
            for index, target in enumerate(images.targets):
                sha.update(
                    f"{split}\0{images.name(index)}\0{target}\n".encode(errors="surrogateescape")
                )
        return sha.hexdigest()[:16]


def open_images(protocol: Protocol) -> Splits:
    """Open the protocol's data set; CIFAR is downloaded where it is missing.

    Raises:
        ValueError: it is not there, or its splits or classes do not fit the settings.
    """
    data = protocol.data
    check_data(data)
    if data.source == "digits":
        splits = _digits()
    elif data.source == "folder":
        splits = _folder(Path(str(data.root)).expanduser())
    elif data.source == "synthetic":
        splits = _synthetic(data, protocol.image_size)
    else:
        splits = _cifar(data)
    found = len(splits.train.classes)
    if data.num_classes is not None and found != data.num_classes:
        raise ValueError(
            f"data set {data.name!r} has {found} classes and the settings say {data.num_classes}: "
            "set protocol.data.num_classes, or point protocol.data.root to the right folder."
        )
    batch = protocol.recipe.batch.size
    if len(splits.train.targets) < batch:
        raise ValueError(
            f"data set {data.name!r} has {len(splits.train.targets)} training images, fewer than "
            f"one batch of {batch}: set protocol.recipe.batch.size (and micro_batch_size) lower."
        )
    return splits


# --- digits ---------------------------------------------------------------------------------


class _Arrays:
    """Images that lie in memory, (count, height, width, 3) of uint8."""

    def __init__(
        self, pixels: np.ndarray, targets: Sequence[int], classes: Sequence[str], names: list[str]
    ) -> None:
        self._pixels = pixels
        self.targets = [int(target) for target in targets]
        self.classes = classes
        self._names = names

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(self._pixels[index])

    def name(self, index: int) -> str:
        return self._names[index]


def _digits() -> Splits:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # published as 0..16
    pixels = np.repeat(pixels[..., None], 3, axis=-1)
    val = np.zeros(len(pixels), dtype=bool)
    random = np.random.RandomState(_SPLIT_SEED)  # frozen: the same split in every NumPy version
    for label in range(10):
        members = random.permutation(np.flatnonzero(digits.target == label))
        val[members[: round(_VAL_SHARE * len(members))]] = True
    classes = [str(label) for label in range(10)]

    def split(chosen: np.ndarray) -> _Arrays:
        numbers = np.flatnonzero(chosen)
        names = [str(number) for number in numbers]
        return _Arrays(pixels[numbers], digits.target[numbers], classes, names)

    return Splits(split(~val), split(val))


# --- folders --------------------------------------------------------------------------------


class _Folder:
    def __init__(self, root: Path) -> None:
        from torchvision.datasets import ImageFolder

        try:
            listing = ImageFolder(str(root))
        except FileNotFoundError as error:  # a class folder without images
            # torchvision names every such class, which can be hundreds
            raise ValueError(
                textwrap.shorten(f"{root}: {error}", 300, placeholder=" ...")
            ) from None
        self._root = root
        self._paths = [path for path, _ in listing.samples]
        self.targets = listing.targets
        self.classes = listing.classes

    def load(self, index: int) -> Image.Image:
        with Image.open(self._paths[index]) as image:
            return image.convert("RGB")

    def name(self, index: int) -> str:
        return Path(self._paths[index]).relative_to(self._root).as_posix()


def _folder(root: Path) -> Splits:
    train, val = _Folder(root / "train"), _Folder(root / "val")
    if train.classes != val.classes:
        differing = sorted(set(train.classes) ^ set(val.classes))
        raise ValueError(
            f"{root}: train/ and val/ have different classes, {differing[0]!r} among them: "
            "both need the same class folders."
        )
    return Splits(train, val)


# --- CIFAR ----------------------------------------------------------------------------------


def _cifar(data: Data) -> Splits:
    from torchvision import datasets

    cls = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[data.source]
    root = Path(data.root or "data").expanduser()

    def split(train: bool) -> _Arrays:
        try:
            images = cls(str(root), train=train, download=data.download)
        except (RuntimeError, OSError) as error:
            tried = " and could not be downloaded" if data.download else ""
            raise ValueError(
                f"data set {data.name!r} is not in {root}{tried} ({str(error).splitlines()[0]}): "
                "put it there, set protocol.data.root, or set protocol.data.download=true."
            ) from None
        names = [str(number) for number in range(len(images.targets))]
        return _Arrays(images.data, images.targets, images.classes, names)

    return Splits(split(True), split(False))


# --- synthetic ------------------------------------------------------------------------------


class _Synthetic:
    def __init__(self, count: int, size: int, classes: int, seed: int) -> None:
        self.targets = [index % classes for index in range(count)]
        self.classes = [str(label) for label in range(classes)]
        noise = np.random.RandomState(seed).randint(0, 256, (size, size, 3), dtype=np.uint8)
        self._noise = noise

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(np.roll(self._noise, index, axis=0))

    def name(self, index: int) -> str:
        return f"random-{index}"


def _synthetic(data: Data, image_size: int) -> Splits:
    if data.train_images is None or data.val_images is None or data.num_classes is None:
        raise ValueError("synthetic data needs train_images, val_images and num_classes.")
    return Splits(
        _Synthetic(data.train_images, image_size, data.num_classes, seed=0),
        _Synthetic(data.val_images, image_size, data.num_classes, seed=1),
    )
