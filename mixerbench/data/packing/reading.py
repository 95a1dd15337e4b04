"""The images of one split of a packed data set."""

import functools
import io
import os
import zlib
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mixerbench.data.decode import UnreadableImageError, decode, printable, reason_of
from mixerbench.data.packing.format import FILE, JPEG, RAW, UNREADABLE

_OPEN_SHARDS = 128  # of one split in one process; a process may often open 1,024 files in all


class Stored(NamedTuple):
    """An image as it lies in a shard."""

    data: bytes
    kind: str  # FILE, JPEG or RAW
    height: int
    width: int

    def pixels(self) -> np.ndarray:
        """RAW data as (height, width, 3) of uint8: not a copy, hence not to be written to."""
        return np.frombuffer(self.data, np.uint8).reshape(self.height, self.width, 3)


class PackedImages:
    """One split of a packed data set; an ``Images``.

    Bytes are read from their offset (pread), not mapped into memory. A shard that was cut short
    or lies on a failing disk then raises an error, where a map ends the process (SIGBUS); a
    thousand shards do not need a thousand open files; and it takes a third of the time. Several
    processes may read at once, forked or spawned.

    Args:
        root: folder of the packed data set.
        split: train or val.
        manifest: the content of ``pack.json``.
        exif_orientation: turn images that are stored as their original files by their EXIF tag.
    """

    def __init__(
        self, root: Path, split: str, manifest: dict[str, Any], exif_orientation: bool
    ) -> None:
        self._arguments = (root, split, manifest, exif_orientation)
        self._folder, self._exif_orientation = root / split, exif_orientation
        self._shards = [root / shard["file"] for shard in manifest["splits"][split]["shards"]]
        self._file = functools.lru_cache(_OPEN_SHARDS)(lambda shard: _File(self._shards[shard]))
        index = _read_index(root / manifest["splits"][split]["index"]["file"])
        self._names, self._kinds = index["name"], index["kind"]
        self._shard, self._offset, self._length, self._crc32, self._height, self._width = (
            _numbers(index[name])
            for name in ("shard", "offset", "length", "crc32", "height", "width")
        )
        self.targets = array("i", _numbers(index["target"]).tobytes())
        self.classes: list[str] = manifest["classes"]

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedImages, self._arguments  # a process opens files and index for itself

    def name(self, index: int) -> str:
        return os.fsdecode(self._names[index].as_py())

    def fault(self, part: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
        """What is wrong with the index, given the shards in ``pack.json``; None if nothing is.

        Args:
            part: this split's entry in ``pack.json``.
            settings: how it was packed.
        """
        counts = np.array([shard["images"] for shard in part["shards"]], np.int64)
        if not len(self.targets) == part["images"] == counts.sum():
            return f"its index lists {len(self.targets)} images, pack.json {part['images']}"
        if not np.array_equal(self._shard, np.repeat(np.arange(len(counts)), counts)):
            return "its index lists images in other shards than pack.json"
        sizes = np.repeat([shard["bytes"] for shard in part["shards"]], counts)
        if (np.minimum(self._offset, self._length) < 0).any() or (
            self._offset + self._length > sizes
        ).any():
            return "its index lists images beyond the end of their shard"
        is_train = self._folder.name == "train"
        made = {"files": (), "jpeg": (JPEG,), "raw": (RAW,)}[
            settings["format"] if is_train else "files"
        ]
        unexpected = set(self._kinds.unique().to_pylist()).difference(made, (FILE, UNREADABLE))
        if unexpected:
            return f"it holds images of the kind {min(unexpected)!r}"
        short_side = settings["short_side"] if is_train else None
        sides = np.minimum(self._height, self._width)
        large = np.flatnonzero(sides > short_side) if short_side is not None else ()
        if any(self._kinds[int(index)].as_py() != FILE for index in large):
            return f"it holds images that are larger than short_side={short_side}"
        return None

    def read(self, index: int) -> Stored:
        """The image as it is stored.

        Raises:
            UnreadableImageError: it could not be read when it was packed, or the shard is now
                missing or damaged.
        """
        kind = self._kinds[index].as_py()
        try:
            file = self._file(int(self._shard[index]))
            data = file.read(int(self._length[index]), int(self._offset[index]))
        except OSError as error:
            raise self._unreadable(index, reason_of(error)) from None
        if zlib.crc32(data) != self._crc32[index]:
            shard = self._shards[self._shard[index]].name
            raise self._unreadable(index, f"its checksum in {shard} differs")
        if kind == UNREADABLE:
            raise self._unreadable(index, data.decode())
        return Stored(data, kind, int(self._height[index]), int(self._width[index]))

    def load(self, index: int) -> np.ndarray:
        """(height, width, 3) of uint8, equal to what the image folder gives.

        Raises:
            UnreadableImageError: as ``read`` does, or the stored file cannot be decoded.
        """
        stored = self.read(index)
        if stored.kind == RAW:
            return stored.pixels()
        turn = stored.kind == FILE and self._exif_orientation
        try:
            return decode(io.BytesIO(stored.data), turn)
        except MemoryError:  # says nothing of the image
            raise
        except Exception as error:  # an image that only another version of Pillow can decode
            raise self._unreadable(index, reason_of(error)) from None

    def _unreadable(self, index: int, reason: str) -> UnreadableImageError:
        path = self._folder / self.name(index)
        return UnreadableImageError(printable(f"{path}: {reason}"), printable(reason))


class _File:
    """A file open for reading, closed when the last reference to it goes, in whichever thread."""

    def __init__(self, path: Path) -> None:
        self._number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "_number"):
            os.close(self._number)

    def read(self, length: int, offset: int) -> bytes:
        """``length`` bytes from ``offset`` on; fewer if the file ends before."""
        data = os.pread(self._number, length, offset)
        while len(data) < length:  # the system gives at most 2 GiB at once
            more = os.pread(self._number, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data


def _read_index(path: Path) -> Any:
    """The index's record batch; the file is mapped, so all processes share its memory."""
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


def _numbers(column: Any) -> np.ndarray:
    # Arrow's own to_numpy() would import pandas in each loader process.
    return np.frombuffer(column.buffers()[1], str(column.type), len(column))
