"""Image files in class folders, or what packing made of them."""

import hashlib
import os
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mixerbench.config.sources import is_packed
from mixerbench.data.decode import UnreadableImageError, decode, printable, reason_of
from mixerbench.data.images import Splits
from mixerbench.data.packing.opening import open_packed
from mixerbench.data.source import DataSource, register_data
from mixerbench.errors import Refusal


@register_data("folder")
class Folder(DataSource):
    """Any images in root/train/<class>/ and root/val/<class>/, or what packing made of them.

    Args:
        exif_orientation: turn an image as its tag says, as viewers do.
    """

    class_folders = True

    def __init__(self, *, root: str, exif_orientation: bool = False) -> None:
        self._root = Path(root).expanduser()
        self._exif_orientation = exif_orientation

    def open(self) -> Splits:
        if is_packed(self._root):
            return open_packed(self._root, self._exif_orientation)
        train, val = (
            _ClassFolders(self._root / split, self._exif_orientation) for split in ("train", "val")
        )
        if train.classes != val.classes:
            differing = sorted(set(train.classes) ^ set(val.classes))
            raise Refusal(
                f"{self._root}: train/ and val/ have different classes, {differing[0]!r} among "
                "them: both need the same class folders."
            )
        return Splits(train, val, content=_content(train, val))


class _ClassFolders:
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

    def file_sizes(self) -> list[int]:
        """In bytes, -1 for a file that is not there; in the order of the images."""
        chunks = [
            self._paths[i : i + _PATHS_AT_ONCE] for i in range(0, len(self._paths), _PATHS_AT_ONCE)
        ]
        with ThreadPoolExecutor(_THREADS) as pool:
            return [size for sizes in pool.map(_sizes, chunks) for size in sizes]

    def name(self, index: int) -> str:
        return Path(self._paths[index]).relative_to(self._root).as_posix()


_THREADS = 16  # a network file system answers many questions at once
_PATHS_AT_ONCE = 1000


def _sizes(paths: list[str]) -> list[int]:
    sizes = []
    for path in paths:
        try:
            sizes.append(os.stat(path).st_size)
        except OSError:  # a link to nowhere, which is no image
            sizes.append(-1)
    return sizes


def _content(*splits: _ClassFolders) -> str:
    """The sizes of all files, in 16 hex digits: other files under the same names are told apart."""
    sha = hashlib.sha256()
    for images in splits:
        sha.update(f"{images.file_sizes()}\n".encode())
    return f"files {sha.hexdigest()[:16]}"
