"""Any images, in the usual folders."""

import textwrap
from pathlib import Path

import numpy as np

from mixerbench.config.checks import is_packed
from mixerbench.config.schema import Data
from mixerbench.data.decode import UnreadableImageError, decode, printable, reason_of
from mixerbench.data.images import Splits
from mixerbench.data.packing.opening import open_packed
from mixerbench.errors import Refusal


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


def open_folder(data: Data) -> Splits:
    root = Path(str(data.root)).expanduser()
    if is_packed(root):
        return open_packed(root, data)
    train, val = (_Folder(root / split, data.exif_orientation) for split in ("train", "val"))
    if train.classes != val.classes:
        differing = sorted(set(train.classes) ^ set(val.classes))
        raise Refusal(
            f"{root}: train/ and val/ have different classes, {differing[0]!r} among them: "
            "both need the same class folders."
        )
    return Splits(train, val)
