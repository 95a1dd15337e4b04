"""Packed data sets: images in a few large Arrow files instead of a million small ones, read.

A packed root holds, for each split, shards (``train-00000.arrow``, ...), an index of them
(``train.index.arrow``), and for both ``pack.json``, which is written last. Any Arrow
implementation reads the shards as they are. ``pack.py`` writes them.
"""

import functools
import hashlib
import io
import json
import os
import zlib
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from mixerbench.config.checks import JOURNAL_FILE, PACK_FILE
from mixerbench.config.schema import Data, flatten
from mixerbench.data.images import (
    Splits,
    UnreadableImageError,
    decode,
    printable,
    reason_of,
)
from mixerbench.errors import Refusal

FORMAT = 1
SPLITS = ("train", "val")

FILE, JPEG, RAW, UNREADABLE = "file", "jpeg", "raw", "unreadable"
"""Kinds of rows: the original file's bytes; a JPEG made when packing; pixels, (height, width, 3)
of uint8; no image but the reason for that, in UTF-8."""

ROW = (
    pa.field("name", pa.binary()),  # the path in the split's folder; not always UTF-8
    pa.field("target", pa.int32()),
    pa.field("kind", pa.string()),
    pa.field("height", pa.int32()),  # a file's as its header says, before the EXIF tag turns it
    pa.field("width", pa.int32()),
    pa.field("crc32", pa.uint32()),  # of the image's bytes
)
SHARD_SCHEMA = pa.schema([*ROW, pa.field("image", pa.large_binary())])
INDEX_SCHEMA = pa.schema(
    [
        *ROW,
        pa.field("shard", pa.int32()),
        pa.field("row", pa.int32()),
        pa.field("offset", pa.int64()),  # of the image's bytes in the shard's file
        pa.field("length", pa.int64()),
    ]
)

ABOUT: Final = b"mixerbench.pack"
"""The key of a shard's metadata: what was packed, how, and which part of it the shard holds."""

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

    Bytes are read at their place (pread), not mapped: a shard that is cut short or lies on a
    failing disk then gives an error where a map gives SIGBUS, a thousand shards need no thousand
    open files, and it takes a third of the time. Forked and spawned processes may read at once.

    Args:
        about: what ``pack.json`` says.
        exif_orientation: for rows that hold the original file.
    """

    def __init__(
        self, root: Path, split: str, about: dict[str, Any], exif_orientation: bool
    ) -> None:
        self._arguments = (root, split, about, exif_orientation)
        self._folder, self._exif_orientation = root / split, exif_orientation
        self._shards = [root / shard["file"] for shard in about["splits"][split]["shards"]]
        self._file = functools.lru_cache(_OPEN_SHARDS)(lambda shard: _File(self._shards[shard]))
        index = _read_index(root / about["splits"][split]["index"]["file"])
        self._names, self._kinds = index["name"], index["kind"]
        self._shard, self._offset, self._length, self._crc32, self._height, self._width = (
            _numbers(index[name])
            for name in ("shard", "offset", "length", "crc32", "height", "width")
        )
        self.targets = array("i", _numbers(index["target"]).tobytes())
        self.classes: list[str] = about["classes"]

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedImages, self._arguments  # a process opens files and index for itself

    def name(self, index: int) -> str:
        return os.fsdecode(self._names[index].as_py())

    def fault(self, part: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
        """What of the index cannot be true of the shards that ``pack.json`` lists, or None."""
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
        others = set(self._kinds.unique().to_pylist()).difference(made, (FILE, UNREADABLE))
        if others:
            return f"it holds images of the kind {min(others)!r}"
        short_side = settings["short_side"] if is_train else None
        sides = np.minimum(self._height, self._width)
        large = np.flatnonzero(sides > short_side) if short_side is not None else ()
        if any(self._kinds[int(place)].as_py() != FILE for place in large):
            return f"it holds images that are larger than short_side={short_side}"
        return None

    def read(self, index: int) -> Stored:
        """The image as it is stored.

        Raises:
            UnreadableImageError: it could not be read when it was packed, or now: the shard is
                gone or damaged.
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
        """(height, width, 3) of uint8, as the folder's; raises as ``read`` does."""
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
    """A file that closes itself when nobody reads from it any more, whichever thread that is."""

    def __init__(self, path: Path) -> None:
        self._number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "_number"):
            os.close(self._number)

    def read(self, length: int, offset: int) -> bytes:
        """Fewer bytes where the file ends before."""
        data = os.pread(self._number, length, offset)
        while len(data) < length:  # the system gives at most 2 GiB at once
            more = os.pread(self._number, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data


def open_packed(root: Path, data: Data) -> Splits:
    """Open what ``mixerbench pack`` has written; takes a second for ImageNet.

    Raises:
        Refusal: it is unfinished or damaged, or its images were turned otherwise than
            ``data.exif_orientation`` says.
    """
    about = read_about(root)
    with understood(root):
        turned = about["settings"]["exif_orientation"]
        if turned is not None and turned != data.exif_orientation:
            raise Refusal(
                f"{root} was packed with data.exif_orientation={str(turned).lower()} and the "
                f"settings say {str(data.exif_orientation).lower()}: pack it again with theirs."
            )
        damaged = _damaged(root, about)
        if damaged is not None:
            raise Refusal(
                f"{root / damaged} is missing or damaged: 'mixerbench pack --verify out={root}' "
                "finds all such files; removed, they are written again by the command that packed "
                "them."
            )
        return open_as_claimed(root, about, data.exif_orientation)


def open_as_claimed(root: Path, about: Mapping[str, Any], exif_orientation: bool) -> Splits:
    """Open it if what ``pack.json`` says is what the shards say of themselves.

    Not of its contents, which are in no fingerprint, but of all that is: what was done to which
    images, under which names and labels. Each shard carries it since it was written.

    Raises:
        Refusal: what they disagree in.
    """
    settings = about["settings"]
    train, val = (PackedImages(root, split, dict(about), exif_orientation) for split in SPLITS)
    splits = Splits(train, val, description_of(settings))
    fault = _disagreement(root, about, splits)
    if fault is not None:
        raise Refusal(
            f"{root}: {fault}. {PACK_FILE} or a file beside it was changed or exchanged: pack the "
            "images again, into another folder."
        )
    return splits


def description_of(settings: Mapping[str, Any]) -> str | None:
    """What packing did to the training images' pixels; None if they stay equal."""
    if settings["short_side"] is None:
        return None
    resized = f"short_side={settings['short_side']}"
    if settings["quality"] is not None:
        resized += f" jpeg quality={settings['quality']} {settings['subsampling']}"
    return f"{resized} {settings['interpolation']}"


def _disagreement(root: Path, about: Mapping[str, Any], splits: Splits) -> str | None:
    description = description_of(about["settings"])
    if about["description"] != description:
        return f"{PACK_FILE} describes {about['description']}, and its settings {description}"
    for split in SPLITS:
        part, first = about["splits"][split], 0
        for shard in part["shards"]:
            claimed = {key: about[key] for key in ("format", "settings", "source")}
            claimed |= {"split": split, "first": first, "images": shard["images"]}
            found = list(_own_words(root / shard["file"]))
            if claimed not in found:
                differing = _first_difference(found[0], claimed) if found else "no such words"
                return f"{shard['file']} was written with {differing}"
            first += shard["images"]
        images: Any = getattr(splits, split)
        fault = images.fault(part, about["settings"])
        if fault is not None:
            return f"{split}: {fault}"
        # A class is the first folder of its images' names, and all of them have images.
        targets, places = np.unique(np.asarray(images.targets), return_index=True)
        classes = [images.name(int(place)).partition("/")[0] for place in places]
        if targets.tolist() != list(range(len(classes))) or classes != about["classes"]:
            return f"{split}: the classes of its images are not those in {PACK_FILE}"
    if splits.digest() != about["source"]:
        return "the indices list other names or labels than were packed"
    return None


def _own_words(shard: Path) -> Iterator[dict[str, Any]]:
    """What a shard says of itself, at its end and at its beginning: a flipped bit spoils one."""
    with pa.memory_map(str(shard)) as file:
        for read in (lambda: pa.ipc.open_file(file), lambda: _as_stream(file)):
            try:
                yield json.loads(read().schema.metadata[ABOUT])
            except (pa.ArrowException, OSError, LookupError, TypeError, ValueError):
                continue


def _as_stream(file: Any) -> Any:
    file.seek(8)  # an Arrow file is a stream between a magic number and a footer
    return pa.ipc.open_stream(file)


def _first_difference(found: Mapping[str, Any], claimed: Mapping[str, Any]) -> str:
    ours, theirs = (dict(flatten(one)) for one in (found, claimed))
    key = min(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    name = key.removeprefix("settings.")
    return f"{name}={ours.get(key)}, and {PACK_FILE} says {name}={theirs.get(key)}"


@contextmanager
def understood(root: Path) -> Iterator[None]:
    """What somebody's ``pack.json`` may lack ends in one line.

    Raises:
        Refusal: instead of whatever reading it raised.
    """
    try:
        yield
    except (pa.ArrowException, LookupError, TypeError, AttributeError, json.JSONDecodeError) as e:
        raise Refusal(
            f"{root / PACK_FILE} or a file beside it is not as it was written "
            f"({type(e).__name__}: {printable(str(e))}): pack the images again, into another "
            "folder."
        ) from None


def read_about(root: Path) -> dict[str, Any]:
    """What ``pack.json`` says.

    Raises:
        Refusal: it is not there, not readable, or of another version.
    """
    try:
        about = json.loads((root / PACK_FILE).read_text())
    except FileNotFoundError:
        if (root / JOURNAL_FILE).is_file():
            raise Refusal(
                f"{root} is not packed to its end: run the same 'mixerbench pack' again."
            ) from None
        raise Refusal(f"{root} is no packed data set: it has no {PACK_FILE}.") from None
    except (OSError, ValueError) as error:
        raise Refusal(f"{root / PACK_FILE} cannot be read ({reason_of(error)}).") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        version = about.get("format") if isinstance(about, dict) else None
        raise Refusal(
            f"{root} is packed in format {version}, and this version of mixerbench reads {FORMAT}: "
            "pack it again."
        )
    return about


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(root: Path, about: dict[str, Any]) -> str | None:
    """A file whose size is not as it was written, or an index with another checksum.

    The indices say where all images lie and what their checksums are: they are read in full.
    """
    for split in SPLITS:
        part = about["splits"][split]
        for file in (part["index"], *part["shards"]):
            path = root / file["file"]
            if not path.is_file() or path.stat().st_size != file["bytes"]:
                return str(file["file"])
        if file_sha256(root / part["index"]["file"]) != part["index"]["sha256"]:
            return str(part["index"]["file"])
    return None


def _read_index(path: Path) -> Any:
    """The index's record batch; its columns are a map of the file, shared by all processes."""
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


def _numbers(column: Any) -> np.ndarray:
    # Arrow's own to_numpy() imports pandas, in each process of a loader.
    return np.frombuffer(column.buffers()[1], str(column.type), len(column))
