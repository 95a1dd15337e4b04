"""Data sets as lists of images with a label and a name each."""

import hashlib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO
from typing import Protocol as Interface

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from mixerbench.config.checks import check_data, is_packed
from mixerbench.config.schema import Data, Protocol
from mixerbench.data.jpeg import decode_jpeg
from mixerbench.errors import Refusal

_VAL_SHARE = 0.3  # of the digits, in each class
_SPLIT_SEED = 0

# Pillow's limit protects servers from strangers' files, and these are the user's own. What is left
# of it tells damaged headers: a warning above 2**29 pixels, refused above 2**30, 4 GiB as RGB.
# It is set for the whole process because the transforms' crops are held to it as well.
Image.MAX_IMAGE_PIXELS = 2**29


class UnreadableImageError(Refusal):
    """A file that cannot be decoded as an image: one line with its path and the reason."""

    def __init__(self, message: str, reason: str = "") -> None:  # a loader passes the message only
        super().__init__(message)
        self.reason = reason


class Images(Interface):
    """One split of a data set."""

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
        """What the data set calls the image: its path, or its number."""
        ...


@dataclass(frozen=True)
class Splits:
    train: Images
    val: Images
    packed: str | None = None  # what packing did to the training images

    def digest(self) -> str:
        """16 hex digits of all names and labels of both splits."""
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


def open_images(protocol: Protocol) -> Splits:
    """Open the protocol's data set; CIFAR is downloaded where it is missing.

    Raises:
        Refusal: it is not there, or its splits or classes do not fit the settings.
    """
    data = protocol.data
    check_data(data)
    if data.source == "digits":
        splits = _digits()
    elif data.source == "folder":
        splits = _folder(data)
    elif data.source == "synthetic":
        splits = _synthetic(data, protocol.image_size)
    else:
        splits = _cifar(data)
    found = len(splits.train.classes)
    if data.num_classes is not None and found != data.num_classes:
        raise Refusal(
            f"data set {data.name!r} has {found} classes and the settings say {data.num_classes}: "
            "set protocol.data.num_classes, or point protocol.data.root to the right folder."
        )
    batch = protocol.recipe.batch.size
    if len(splits.train.targets) < batch:
        raise Refusal(
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

    def load(self, index: int) -> np.ndarray:
        return self._pixels[index]

    def name(self, index: int) -> str:
        return self._names[index]


def _digits() -> Splits:
    # scikit-learn's file without scikit-learn, whose import takes longer than an epoch.
    folder = find_spec("sklearn").submodule_search_locations[0]  # type: ignore[union-attr,index]
    path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(path, delimiter=",", dtype=np.int64)  # 64 levels and the digit
    digits, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1]
    pixels = np.round(digits * (255 / 16)).astype(np.uint8)  # published as 0..16
    pixels = np.repeat(pixels[..., None], 3, axis=-1)
    val = np.zeros(len(pixels), dtype=bool)
    random = np.random.RandomState(_SPLIT_SEED)  # frozen: the same split in every NumPy version
    for label in range(10):
        members = random.permutation(np.flatnonzero(labels == label))
        val[members[: round(_VAL_SHARE * len(members))]] = True
    classes = [str(label) for label in range(10)]

    def split(chosen: np.ndarray) -> _Arrays:
        numbers = np.flatnonzero(chosen)
        names = [str(number) for number in numbers]
        return _Arrays(pixels[numbers], labels[numbers].tolist(), classes, names)

    return Splits(split(~val), split(val))


# --- folders --------------------------------------------------------------------------------


class _Folder:
    def __init__(self, root: Path, exif_orientation: bool) -> None:
        from torchvision.datasets import ImageFolder

        try:
            listing = ImageFolder(str(root))
        except FileNotFoundError as error:  # a class folder without images
            # torchvision names every such class, which can be hundreds
            raise Refusal(textwrap.shorten(f"{root}: {error}", 300, placeholder=" ...")) from None
        self._root, self._exif_orientation = root, exif_orientation
        self._paths = [path for path, _ in listing.samples]
        self.targets = listing.targets
        self.classes = listing.classes

    def load(self, index: int) -> np.ndarray:
        path = self._paths[index]
        try:
            with open(path, "rb") as file:
                return decode(file, self._exif_orientation)
        except MemoryError:  # says nothing of the file
            raise
        except Exception as error:  # damaged files make Pillow raise nearly every kind
            reason = reason_of(error)
            raise UnreadableImageError(printable(f"{path}: {reason}"), printable(reason)) from None

    def name(self, index: int) -> str:
        return Path(self._paths[index]).relative_to(self._root).as_posix()


def _folder(data: Data) -> Splits:
    root = Path(str(data.root)).expanduser()
    if is_packed(root):
        from mixerbench.data.shards import open_packed  # which needs this module

        return open_packed(root, data)
    train, val = (_Folder(root / split, data.exif_orientation) for split in ("train", "val"))
    if train.classes != val.classes:
        differing = sorted(set(train.classes) ^ set(val.classes))
        raise Refusal(
            f"{root}: train/ and val/ have different classes, {differing[0]!r} among them: "
            "both need the same class folders."
        )
    return Splits(train, val)


def decode(file: BinaryIO, exif_orientation: bool) -> np.ndarray:
    """An image file of any kind as (height, width, 3) of uint8.

    Raises:
        Exception: of nearly every kind, where the file is damaged.
    """
    data = file.read()
    # Where Pillow would find an orientation: an EXIF block, or XMP.
    has_tag = exif_orientation and (b"Exif\0\0" in data or b"tiff:Orientation" in data)
    if not has_tag and (pixels := decode_jpeg(data)) is not None:
        return pixels
    file.seek(0)
    with Image.open(file) as image:
        if image.format != "PNG":
            return np.asarray(_rgb(image, exif_orientation))
        image.verify()  # PNG has checksums, which Pillow skips otherwise
    file.seek(0)
    with Image.open(file) as image:  # verify() has used the other one up
        return np.asarray(_rgb(image, exif_orientation))


def _rgb(image: Image.Image, exif_orientation: bool) -> Image.Image:
    """The first frame; without its transparency, which is dropped and not blended."""
    image.load()  # which turns TIFF files, whatever the setting
    if exif_orientation and (tag := _orientation(image)) in _TURNS:
        image = image.transpose(_TURNS[tag])
    if image.mode.startswith("I"):  # 16 bits of grey; Pillow makes white of all above 255
        grey = np.asarray(image) // 256
        image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of that EXIF orientation upright."""


def _orientation(image: Image.Image) -> Any:
    # ImageOps.exif_transpose rewrites all tags as well, and fails on those that are damaged.
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata say nothing of the pixels
        return None


def reason_of(error: Exception) -> str:
    """Why an image cannot be decoded, without its path."""
    if isinstance(error, UnidentifiedImageError):  # of which the message is the path
        return "cannot be identified as an image"
    if isinstance(error, OSError) and error.strerror:  # of which the message ends with the path
        return error.strerror
    return f"{type(error).__name__}: {error}"


def printable(text: str) -> str:
    """``text`` with its line breaks, tabs and bytes that are no UTF-8 written as escapes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


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
            raise Refusal(
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

    def load(self, index: int) -> np.ndarray:
        return np.roll(self._noise, index, axis=0)

    def name(self, index: int) -> str:
        return f"random-{index}"


def _synthetic(data: Data, image_size: int) -> Splits:
    if data.train_images is None or data.val_images is None or data.num_classes is None:
        raise Refusal("synthetic data needs train_images, val_images and num_classes.")
    return Splits(
        _Synthetic(data.train_images, image_size, data.num_classes, seed=0),
        _Synthetic(data.val_images, image_size, data.num_classes, seed=1),
    )
