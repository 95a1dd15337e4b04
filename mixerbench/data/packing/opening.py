"""Opening a packed data set, after checks that its files belong together."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mixerbench.config.schema import flatten
from mixerbench.config.sources import PACK_FILE
from mixerbench.data.images import Splits
from mixerbench.data.packing.format import (
    METADATA_KEY,
    SPLITS,
    description_of,
    read_manifest,
    refusing_malformed,
)
from mixerbench.data.packing.reading import PackedImages
from mixerbench.errors import Refusal
from mixerbench.files import file_sha256


def open_packed(root: Path, exif_orientation: bool) -> Splits:
    """Open what ``mixerbench pack`` has written; takes a second for ImageNet.

    Raises:
        Refusal: it is unfinished or damaged, or its images were packed with the other
            ``exif_orientation``.
    """
    manifest = read_manifest(root)
    with refusing_malformed(root):
        turned = manifest["settings"]["exif_orientation"]
        if turned is not None and turned != exif_orientation:
            raise Refusal(
                f"{root} was packed with data.exif_orientation={str(turned).lower()} and the "
                f"settings say {str(exif_orientation).lower()}: pack it again with theirs."
            )
        damaged = _damaged(root, manifest)
        if damaged is not None:
            raise Refusal(
                f"{root / damaged} is missing or damaged: 'mixerbench pack --verify out={root}' "
                "finds all such files; removed, they are written again by the command that packed "
                "them."
            )
        return open_checked(root, manifest, exif_orientation)


def open_checked(root: Path, manifest: Mapping[str, Any], exif_orientation: bool) -> Splits:
    """Open a packed data set if ``pack.json`` and the metadata in each shard agree.

    Compared is all that a protocol's fingerprint depends on: how the images were packed, which
    ones, their names and labels. The bytes of the images have checksums of their own.

    Raises:
        Refusal: what differs.
    """
    settings = manifest["settings"]
    train, val = (PackedImages(root, split, dict(manifest), exif_orientation) for split in SPLITS)
    splits = Splits(train, val, description_of(settings), manifest.get("content"))
    fault = _disagreement(root, manifest, splits)
    if fault is not None:
        raise Refusal(
            f"{root}: {fault}. {PACK_FILE} or a file beside it was changed or exchanged: pack the "
            "images again, into another folder."
        )
    return splits


def _disagreement(root: Path, manifest: Mapping[str, Any], splits: Splits) -> str | None:
    description = description_of(manifest["settings"])
    if manifest["description"] != description:
        return f"{PACK_FILE} describes {manifest['description']}, and its settings {description}"
    for split in SPLITS:
        part, first = manifest["splits"][split], 0
        for shard in part["shards"]:
            claimed = {
                key: manifest[key]
                for key in ("format", "settings", "source", "content")
                if key in manifest
            }
            claimed |= {"split": split, "first": first, "images": shard["images"]}
            stored = list(_metadata(root / shard["file"]))
            if claimed not in stored:
                differing = _first_difference(stored[0], claimed) if stored else "no metadata"
                return f"{shard['file']} was written with {differing}"
            first += shard["images"]
        images: Any = getattr(splits, split)
        fault = images.fault(part, manifest["settings"])
        if fault is not None:
            return f"{split}: {fault}"
        # A class is the first folder of its images' names, and all of them have images.
        targets, firsts = np.unique(np.asarray(images.targets), return_index=True)
        classes = [images.name(int(first)).partition("/")[0] for first in firsts]
        if targets.tolist() != list(range(len(classes))) or classes != manifest["classes"]:
            return f"{split}: the classes of its images are not those in {PACK_FILE}"
    if splits.digest() != manifest["source"]:
        return "the indices list other names or labels than were packed"
    return None


def _metadata(shard: Path) -> Iterator[dict[str, Any]]:
    """A shard's metadata, from the end of its file and from the beginning.

    Arrow stores them twice, so that one flipped bit damages one copy at most.
    """
    with pa.memory_map(str(shard)) as file:
        for read in (lambda: pa.ipc.open_file(file), lambda: _as_stream(file)):
            try:
                yield json.loads(read().schema.metadata[METADATA_KEY])
            except (pa.ArrowException, OSError, LookupError, TypeError, ValueError):
                continue


def _as_stream(file: Any) -> Any:
    file.seek(8)  # an Arrow file is a stream between a magic number and a footer
    return pa.ipc.open_stream(file)


def _first_difference(stored: Mapping[str, Any], claimed: Mapping[str, Any]) -> str:
    in_shard, in_manifest = dict(flatten(stored)), dict(flatten(claimed))
    keys = in_shard.keys() | in_manifest.keys()
    key = min(key for key in keys if in_shard.get(key) != in_manifest.get(key))
    name = key.removeprefix("settings.")
    return f"{name}={in_shard.get(key)}, and {PACK_FILE} says {name}={in_manifest.get(key)}"


def _damaged(root: Path, manifest: dict[str, Any]) -> str | None:
    """The name of a file whose size has changed, or of an index whose checksum has; else None.

    Indices are read in full, since all images are found and checked by them.
    """
    for split in SPLITS:
        part = manifest["splits"][split]
        for file in (part["index"], *part["shards"]):
            path = root / file["file"]
            if not path.is_file() or path.stat().st_size != file["bytes"]:
                return str(file["file"])
        if file_sha256(root / part["index"]["file"]) != part["index"]["sha256"]:
            return str(part["index"]["file"])
    return None
