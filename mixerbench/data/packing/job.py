"""The state of one packing: which shards it consists of, and which are written."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mixerbench.config.sources import JOURNAL_FILE, PACK_FILE
from mixerbench.data.decode import printable
from mixerbench.data.images import Images, Splits
from mixerbench.data.packing.format import (
    FORMAT,
    INDEX_SCHEMA,
    METADATA_KEY,
    SPLITS,
    UNREADABLE,
    read_manifest,
)
from mixerbench.data.packing.index import INDEX_FILE, index_of_shard
from mixerbench.data.packing.settings import Packing
from mixerbench.errors import Refusal
from mixerbench.files import file_sha256, hashed_file, write_whole

LOCK_FILE = ".lock"


@dataclass(frozen=True)
class Packed:
    """What ``pack`` has done."""

    images: Mapping[str, int]  # by split
    shards: int
    bytes: int
    unreadable: Sequence[str]  # "train/flower/1.JPEG (reason)"
    new_shards: int  # written by this call


@dataclass(frozen=True)
class Shard:
    """A part of one split, written to one file."""

    number: int  # counts through both splits
    file: str
    split: str  # train or val
    first: int  # index of its first image in the split
    images: int


class PackingJob:
    """Which shards a packing consists of, and which of them ``out`` holds already."""

    def __init__(
        self, splits: Splits, root: Path, out: Path, packing: Packing, exif_orientation: bool
    ) -> None:
        self.splits, self.root, self.out = splits, root, out
        self.packing, self.settings = packing, packing.settings(exif_orientation)
        self.written: dict[str, dict[str, Any]] = {}  # by file; entries of the journal
        self.shards: list[Shard] = []
        for split in SPLITS:
            total = len(self.images(split).targets)
            step = self.settings["shard_images"]
            if split == "val" and packing.shard_images is None:
                step = Packing().settings(False)["shard_images"]
            for number, first in enumerate(range(0, total, step)):
                file = f"{split}-{number:05}.arrow"
                count = min(step, total - first)
                self.shards.append(Shard(len(self.shards), file, split, first, count))

    def images(self, split: str) -> Images:
        """The images of train or val."""
        images: Images = getattr(self.splits, split)
        return images

    @cached_property
    def head(self) -> dict[str, Any]:
        """What identifies this packing: part of the journal, ``pack.json`` and every shard."""
        return {
            "format": FORMAT,
            "settings": self.settings,
            "source": self.splits.digest(),
            "content": self.splits.content,
        }

    def metadata(self, shard: Shard) -> bytes:
        """What is stored in the shard itself, under ``METADATA_KEY``."""
        part = {"split": shard.split, "first": shard.first, "images": shard.images}
        return json.dumps({**self.head, **part}).encode()

    def check_folder(self) -> None:
        """Refuse a folder that holds anything but a part of this packing.

        Raises:
            Refusal: which file, image or setting is another one.
        """
        files = {path.name for path in self.out.iterdir() if path.suffix != ".part"}
        begun = self._begun()
        if begun is None:
            if files - {LOCK_FILE}:
                foreign = min(files - {LOCK_FILE})
                raise Refusal(
                    f"{self.out} holds {foreign!r}: give an empty or a new folder, out=FOLDER."
                )
            return
        if begun.get("format") != FORMAT:
            raise Refusal(f"{self.out} holds images in another format: give another out=FOLDER.")
        for key, what in (("source", "names or labels"), ("content", "the sizes of files")):
            if begun.get(key) != self.head[key]:
                raise Refusal(
                    f"{self.out} holds other images: {what} differ from those of {self.root}. "
                    "Give another out=FOLDER."
                )
        before: dict[str, Any] = begun.get("settings", {})
        for key, value in self.settings.items():
            if before.get(key) != value:
                raise Refusal(
                    f"{self.out} was packed with {key}={_shown(before.get(key))}, and now it is "
                    f"{_shown(value)}: give another out=FOLDER, or what it was packed with."
                )

    def _begun(self) -> dict[str, Any] | None:
        """The head of the packing that was begun in ``out``; None if none was.

        Raises:
            Refusal: its ``pack.json`` cannot be read.
        """
        if (self.out / PACK_FILE).is_file():
            return read_manifest(self.out)
        lines = self._journal()
        return lines[0] if lines else None

    def _journal(self) -> list[dict[str, Any]]:
        path = self.out / JOURNAL_FILE
        entries = []
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                entries.append(json.loads(line))
            except ValueError:  # cut off by a kill or a full disk; the shard itself is looked for
                continue
        return entries

    def find_written(self) -> None:
        """Fill ``written`` with the shards that are complete in ``out``."""
        if (self.out / PACK_FILE).is_file():
            splits = read_manifest(self.out)["splits"].values()
            entries = [shard for split in splits for shard in split["shards"]]
        else:
            entries = self._journal()[1:]
        known = {entry.get("file"): entry for entry in entries}
        for shard in self.shards:
            path, entry = self.out / shard.file, known.get(shard.file)
            if not path.is_file() or not self._is_written(path, shard):
                continue
            if entry is None:  # killed between writing the shard and its line in the journal
                self.written[shard.file] = self.entry(shard, file_sha256(path))
            elif entry.get("bytes") == path.stat().st_size:
                self.written[shard.file] = entry

    def _is_written(self, path: Path, shard: Shard) -> bool:
        try:
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
                metadata = (table.schema.metadata or {}).get(METADATA_KEY)
                return bool(metadata == self.metadata(shard) and len(table) == shard.images)
        except (OSError, pa.ArrowInvalid):
            return False

    def entry(self, shard: Shard, sha256: str) -> dict[str, Any]:
        """What the journal and ``pack.json`` say of a shard that is written."""
        size = (self.out / shard.file).stat().st_size
        return {"file": shard.file, "images": shard.images, "bytes": size, "sha256": sha256}

    def is_finished(self) -> bool:
        """Are ``pack.json`` and the indices written, too?"""
        files = (PACK_FILE, *(INDEX_FILE.format(split) for split in SPLITS))
        return all((self.out / file).is_file() for file in files)

    def begin(self) -> None:
        """Begin the journal; from now on the folder counts as unfinished."""
        lines = [self.head, *self.written.values()]
        write_whole(self.out / JOURNAL_FILE, "".join(f"{json.dumps(line)}\n" for line in lines))
        (self.out / PACK_FILE).unlink(missing_ok=True)

    def add(self, entry: dict[str, Any]) -> None:
        """Note in the journal that a shard is written."""
        with open(self.out / JOURNAL_FILE, "a") as file:
            file.write(f"{json.dumps(entry)}\n")
        self.written[entry["file"]] = entry

    def finish(self) -> None:
        """Write the indices and, last of all, ``pack.json``."""
        manifest: dict[str, Any] = {
            **self.head,
            "description": self.packing.description,
            "classes": list(self.splits.train.classes),
            "splits": {},
        }
        for split in SPLITS:
            shards = [shard for shard in self.shards if shard.split == split]
            parts = [index_of_shard(self.out / shard.file, k) for k, shard in enumerate(shards)]
            batch = pa.Table.from_batches(parts).combine_chunks().to_batches()[0]
            path = self.out / INDEX_FILE.format(split)
            with hashed_file(path) as sink, pa.ipc.new_file(sink, INDEX_SCHEMA) as writer:
                writer.write_batch(batch)
            manifest["splits"][split] = {
                "images": len(self.images(split).targets),
                "index": {
                    "file": path.name, "bytes": path.stat().st_size, "sha256": sink.hexdigest()
                },
                "shards": [self.written[shard.file] for shard in shards],
            }  # fmt: skip
        write_whole(self.out / PACK_FILE, json.dumps(manifest, indent=1))
        (self.out / JOURNAL_FILE).unlink(missing_ok=True)

    def summary(self, new_shards: int) -> Packed:
        """What the finished packing holds."""
        unreadable = []
        for split in SPLITS:
            path = self.out / INDEX_FILE.format(split)
            with pa.memory_map(str(path)) as file:
                index = pa.ipc.open_file(file).get_batch(0)
                kinds, names = index["kind"], index["name"]
                for row in pc.indices_nonzero(pc.equal(kinds, UNREADABLE)):
                    name = os.fsdecode(names[row.as_py()].as_py())
                    unreadable.append(printable(f"{split}/{name}"))
        return Packed(
            images={split: len(self.images(split).targets) for split in SPLITS},
            shards=len(self.shards),
            bytes=sum(entry["bytes"] for entry in self.written.values()),
            unreadable=unreadable,
            new_shards=new_shards,
        )


def _shown(value: Any) -> str:
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
