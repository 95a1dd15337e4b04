"""Opening a packed data set, if it is what ``pack.json`` says."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mixerbench.config.schema import flatten
from mixerbench.config.sources import PACK_FILE
from mixerbench.data.images import Splits
from mixerbench.data.packing.format import ABOUT, SPLITS, description_of, read_about, understood
from mixerbench.data.packing.reading import PackedImages
from mixerbench.errors import Refusal
from mixerbench.files import file_sha256


def open_packed(root: Path, exif_orientation: bool) -> Splits:
    """Open what ``mixerbench pack`` has written; takes a second for ImageNet.

    Raises:
        Refusal: it is unfinished or damaged, or its images were turned otherwise than
            ``exif_orientation`` says.
    """
    about = read_about(root)
    with understood(root):
        turned = about["settings"]["exif_orientation"]
        if turned is not None and turned != exif_orientation:
            raise Refusal(
                f"{root} was packed with data.exif_orientation={str(turned).lower()} and the "
                f"settings say {str(exif_orientation).lower()}: pack it again with theirs."
            )
        damaged = _damaged(root, about)
        if damaged is not None:
            raise Refusal(
                f"{root / damaged} is missing or damaged: 'mixerbench pack --verify out={root}' "
                "finds all such files; removed, they are written again by the command that packed "
                "them."
            )
        return open_as_claimed(root, about, exif_orientation)


def open_as_claimed(root: Path, about: Mapping[str, Any], exif_orientation: bool) -> Splits:
    """Open it if what ``pack.json`` says is what the shards say of themselves.

    Not of its contents, which are in no fingerprint, but of all that is: what was done to which
    images, under which names and labels. Each shard carries it since it was written.

    Raises:
        Refusal: what they disagree in.
    """
    settings = about["settings"]
    train, val = (PackedImages(root, split, dict(about), exif_orientation) for split in SPLITS)
    splits = Splits(train, val, description_of(settings), about.get("content"))
    fault = _disagreement(root, about, splits)
    if fault is not None:
        raise Refusal(
            f"{root}: {fault}. {PACK_FILE} or a file beside it was changed or exchanged: pack the "
            "images again, into another folder."
        )
    return splits


def _disagreement(root: Path, about: Mapping[str, Any], splits: Splits) -> str | None:
    description = description_of(about["settings"])
    if about["description"] != description:
        return f"{PACK_FILE} describes {about['description']}, and its settings {description}"
    for split in SPLITS:
        part, first = about["splits"][split], 0
        for shard in part["shards"]:
            claimed = {
                key: about[key]
                for key in ("format", "settings", "source", "content")
                if key in about
            }
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
