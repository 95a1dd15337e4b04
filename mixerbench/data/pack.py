"""Packing an image folder into shards that ``shards.py`` reads: resumable, in many processes."""

import errno
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    as_completed,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import PIL
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout
from PIL import Image, features

from mixerbench.config.checks import JOURNAL_FILE, PACK_FILE
from mixerbench.data.images import Images, Splits, UnreadableImageError, printable
from mixerbench.data.shards import (
    ABOUT,
    FILE,
    FORMAT,
    INDEX_SCHEMA,
    JPEG,
    RAW,
    SHARD_SCHEMA,
    SPLITS,
    UNREADABLE,
    description_of,
    file_sha256,
    open_as_claimed,
    read_about,
    understood,
)
from mixerbench.errors import Refusal, TrainingStopped, how_told, told_to_stop
from mixerbench.files import write_whole
from mixerbench.stopping import SIGNALS

FORMATS = ("jpeg", "raw")
QUALITY = 90  # of JPEGs, when none is given
_SUBSAMPLING = "4:2:0"  # of colours; Pillow's default, and what most photographs have anyway
_INTERPOLATION = "bicubic"  # with Pillow's antialiasing; DeiT's evaluation resizes by it too

_LOCK = ".lock"
_INDEX = "{}.index.arrow"
_BATCH_ROWS = 64  # of a record batch: what a reader of Arrow files finds at once
_BATCH_BYTES = 2**24  # ... unless its images are large: what a process has in memory
_POLL_SECONDS = 0.2
_LOCK_SECONDS = 3  # until the processes of a packing that was killed have noticed

Progress = Callable[[int, int], None]
"""Told how much of how much is done, several times a second."""


@dataclass(frozen=True)
class Packing:
    """What is done to the training images; validation images keep their files.

    Args:
        short_side: in pixels; larger images are resized to it, smaller ones never. None: none is.
        format: jpeg or raw. JPEGs are made of resized images only: others keep their files.
        quality: of JPEGs, 1..100; None where none is made.
        shard_images: in each shard; None: about 256 MiB of ImageNet.

    Raises:
        Refusal: what came, and what fits.
    """

    short_side: int | None = None
    format: str = "jpeg"
    quality: int | None = None
    shard_images: int | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise Refusal(f"format={self.format}: choose one of {', '.join(FORMATS)}.")
        for name in ("short_side", "shard_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise Refusal(f"{name}={value}: give 1 or more.")
        if self.quality is not None:
            if not self._encodes:
                raise Refusal(
                    f"quality={self.quality} is for images that become other JPEGs: set "
                    "short_side=PIXELS and format=jpeg beside it, or leave it out."
                )
            if not 1 <= self.quality <= 100:
                raise Refusal(f"quality={self.quality}: give a number from 1 to 100.")

    @property
    def _encodes(self) -> bool:
        return self.short_side is not None and self.format == "jpeg"

    @property
    def description(self) -> str | None:
        """What becomes of the pixels, for the protocol's fingerprint; None if they stay equal."""
        return description_of(self.settings(exif_orientation=False))

    def settings(self, exif_orientation: bool) -> dict[str, Any]:
        """All that the shards' bytes depend on, beside the images.

        Turning a file by its tag is left to its reader, hence None for ``exif_orientation``.
        """
        turned = self.short_side is not None or self.format == "raw"
        default = {
            "jpeg": 4096 if self.short_side else 2048,
            "raw": 1024 if self.short_side else 512,
        }
        encoder = f"libjpeg {features.version('libjpeg_turbo') or features.version('jpg')}"
        return {
            "short_side": self.short_side,
            "format": self.format if turned else "files",
            "quality": self.quality or QUALITY if self._encodes else None,
            "subsampling": _SUBSAMPLING if self._encodes else None,
            "interpolation": _INTERPOLATION if self.short_side else None,
            "exif_orientation": exif_orientation if turned else None,
            "shard_images": self.shard_images or default[self.format],
            # A packing is not continued by another version: its pixels may differ.
            "pillow": PIL.__version__ if self.short_side else None,
            "encoder": encoder if self._encodes else None,
        }


@dataclass(frozen=True)
class Packed:
    """What ``pack`` has done."""

    images: Mapping[str, int]  # by split
    shards: int
    bytes: int
    unreadable: Sequence[str]  # "train/flower/1.JPEG (reason)"
    new_shards: int  # written now; the others were there


def pack(
    splits: Splits,
    root: Path,
    out: Path,
    packing: Packing,
    exif_orientation: bool,
    jobs: int,
    progress: Progress = lambda done, total: None,
) -> Packed:
    """Write the shards that are missing in ``out``; the same bytes with any number of jobs.

    Args:
        splits: those of the image folder ``root``.
        jobs: processes.
        progress: of images, those in shards that were there included.

    Raises:
        Refusal: ``out`` holds something else, or another process writes to it.
        TrainingStopped: it was interrupted, or a disk is full or failing. The shards that are
            finished stay, and the same call goes on with the others.
    """
    job = _Job(splits, root, out, packing, exif_orientation)
    for split in SPLITS:
        if (root / split).resolve() in (out.resolve(), *out.resolve().parents):
            raise Refusal(f"out={out} lies among the images: give a folder outside of {root}.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / _LOCK).acquire(timeout=_LOCK_SECONDS)
    except Timeout:
        raise Refusal(f"{out} is being packed by another process: wait for it.") from None
    except OSError as error:
        raise Refusal(f"out={out} cannot be written to: {error.strerror}.") from None
    with lock:
        job.check_folder()
        with _explained(job):
            return _pack(job, jobs, progress)


def _pack(job: "_Job", jobs: int, progress: Progress) -> Packed:
    for part in job.out.glob("*.part"):  # of a process that was killed
        part.unlink()
    job.find_written()
    missing = [shard for shard in job.shards if shard.file not in job.written]
    if missing or not job.is_finished():
        job.begin()
        if missing:
            _write_all(job, missing, jobs, progress)
        job.finish()
    return job.summary(len(missing))


@dataclass(frozen=True)
class _Shard:
    number: int  # among all
    file: str
    split: str
    first: int
    images: int


class _Job:
    """One packing: what is to be written where, and what is there."""

    def __init__(
        self, splits: Splits, root: Path, out: Path, packing: Packing, exif_orientation: bool
    ) -> None:
        self.splits, self.root, self.out = splits, root, out
        self.packing, self.settings = packing, packing.settings(exif_orientation)
        self.written: dict[str, dict[str, Any]] = {}  # by file; entries of the journal
        self.shards: list[_Shard] = []
        for split in SPLITS:
            total = len(self.images(split).targets)
            step = self.settings["shard_images"]
            if split == "val" and packing.shard_images is None:
                step = Packing().settings(False)["shard_images"]
            for number, first in enumerate(range(0, total, step)):
                file = f"{split}-{number:05}.arrow"
                count = min(step, total - first)
                self.shards.append(_Shard(len(self.shards), file, split, first, count))

    def images(self, split: str) -> Images:
        images: Images = getattr(self.splits, split)
        return images

    @cached_property
    def head(self) -> dict[str, Any]:
        """What all that is written for this packing has in common."""
        return {"format": FORMAT, "settings": self.settings, "source": self.splits.digest()}

    def metadata(self, shard: _Shard) -> bytes:
        part = {"split": shard.split, "first": shard.first, "images": shard.images}
        return json.dumps({**self.head, **part}).encode()

    def check_folder(self) -> None:
        """Refuse a folder that holds anything but this packing."""
        names = {path.name for path in self.out.iterdir() if path.suffix != ".part"}
        begun = self._begun()
        if begun is None:
            if names - {_LOCK}:
                other = min(names - {_LOCK})
                raise Refusal(
                    f"{self.out} holds {other!r}: give an empty or a new folder, out=FOLDER."
                )
            return
        if begun.get("format") != FORMAT:
            raise Refusal(f"{self.out} holds images in another format: give another out=FOLDER.")
        if begun.get("source") != self.head["source"]:
            raise Refusal(
                f"{self.out} holds other images: names or labels differ from those of {self.root}. "
                "Give another out=FOLDER."
            )
        before: dict[str, Any] = begun.get("settings", {})
        for key, value in self.settings.items():
            if before.get(key) != value:
                raise Refusal(
                    f"{self.out} was packed with {key}={_word(before.get(key))}, and now it is "
                    f"{_word(value)}: give another out=FOLDER, or what it was packed with."
                )

    def _begun(self) -> dict[str, Any] | None:
        """The head of the packing that is there; None if there is none."""
        if (self.out / PACK_FILE).is_file():
            try:
                return read_about(self.out)
            except ValueError as error:
                raise Refusal(str(error)) from None
        lines = self._journal()
        return lines[0] if lines else None

    def _journal(self) -> list[dict[str, Any]]:
        path = self.out / JOURNAL_FILE
        found = []
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                found.append(json.loads(line))
            except ValueError:  # the end of a disk or a kill: the shard is found by itself
                continue
        return found

    def find_written(self) -> None:
        """Fill ``written`` with the shards that are there and whole."""
        if (self.out / PACK_FILE).is_file():
            splits = read_about(self.out)["splits"].values()
            entries = [shard for split in splits for shard in split["shards"]]
        else:
            entries = self._journal()[1:]
        known = {entry.get("file"): entry for entry in entries}
        for shard in self.shards:
            path, entry = self.out / shard.file, known.get(shard.file)
            if not path.is_file() or not self._is_own(path, shard):
                continue
            if entry is None:  # it was killed before it could say so
                self.written[shard.file] = self.entry(shard, file_sha256(path))
            elif entry.get("bytes") == path.stat().st_size:
                self.written[shard.file] = entry

    def _is_own(self, path: Path, shard: _Shard) -> bool:
        try:
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
                metadata = (table.schema.metadata or {}).get(ABOUT)
                return bool(metadata == self.metadata(shard) and len(table) == shard.images)
        except (OSError, pa.ArrowInvalid):
            return False

    def entry(self, shard: _Shard, sha256: str) -> dict[str, Any]:
        size = (self.out / shard.file).stat().st_size
        return {"file": shard.file, "images": shard.images, "bytes": size, "sha256": sha256}

    def is_finished(self) -> bool:
        """Is there also what is written behind the shards?"""
        files = (PACK_FILE, *(_INDEX.format(split) for split in SPLITS))
        return all((self.out / file).is_file() for file in files)

    def begin(self) -> None:
        """Say what is being written here; from now on it is unfinished."""
        lines = [self.head, *self.written.values()]
        write_whole(self.out / JOURNAL_FILE, "".join(f"{json.dumps(line)}\n" for line in lines))
        (self.out / PACK_FILE).unlink(missing_ok=True)

    def add(self, entry: dict[str, Any]) -> None:
        with open(self.out / JOURNAL_FILE, "a") as file:
            file.write(f"{json.dumps(entry)}\n")
        self.written[entry["file"]] = entry

    def finish(self) -> None:
        """Write the indices and, when all else is there, ``pack.json``."""
        about: dict[str, Any] = {
            **self.head,
            "description": self.packing.description,
            "classes": list(self.splits.train.classes),
            "splits": {},
        }
        for split in SPLITS:
            shards = [shard for shard in self.shards if shard.split == split]
            parts = [_index_part(self.out / shard.file, k) for k, shard in enumerate(shards)]
            batch = pa.Table.from_batches(parts).combine_chunks().to_batches()[0]
            path = self.out / _INDEX.format(split)
            with _whole(path) as sink, pa.ipc.new_file(sink, INDEX_SCHEMA) as writer:
                writer.write_batch(batch)
            about["splits"][split] = {
                "images": len(self.images(split).targets),
                "index": {
                    "file": path.name, "bytes": path.stat().st_size, "sha256": sink.hexdigest()
                },
                "shards": [self.written[shard.file] for shard in shards],
            }  # fmt: skip
        write_whole(self.out / PACK_FILE, json.dumps(about, indent=1))
        (self.out / JOURNAL_FILE).unlink(missing_ok=True)

    def summary(self, new_shards: int) -> Packed:
        unreadable = []
        for split in SPLITS:
            path = self.out / _INDEX.format(split)
            with pa.memory_map(str(path)) as file:
                index = pa.ipc.open_file(file).get_batch(0)
                kinds, names = index["kind"], index["name"]
                for place in pc.indices_nonzero(pc.equal(kinds, UNREADABLE)):
                    name = os.fsdecode(names[place.as_py()].as_py())
                    unreadable.append(printable(f"{split}/{name}"))
        return Packed(
            images={split: len(self.images(split).targets) for split in SPLITS},
            shards=len(self.shards),
            bytes=sum(entry["bytes"] for entry in self.written.values()),
            unreadable=unreadable,
            new_shards=new_shards,
        )


def _word(value: Any) -> str:
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


# --- one shard ------------------------------------------------------------------------------


class _Hashed(io.RawIOBase):
    """A file that is written from its beginning to its end, and its SHA-256."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")
        self._sha = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._sha.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self._file.closed:
            try:
                self._file.flush()
                os.fsync(self._file.fileno())  # before its name says that it is whole
            finally:
                self._file.close()
        super().close()

    def hexdigest(self) -> str:
        return self._sha.hexdigest()


@contextmanager
def _whole(path: Path) -> Iterator[_Hashed]:
    """A file to write that gets its name when all of it is on the disk."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        sink = _Hashed(part)
        try:
            yield sink
        finally:
            sink.close()
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _write_shard(job: _Job, shard: _Shard, tick: Callable[[int], None]) -> dict[str, Any]:
    """Write it; returns its entry in the journal.

    Args:
        tick: called for each image, with how many are done.
    """
    schema = SHARD_SCHEMA.with_metadata({ABOUT: job.metadata(shard)})
    with _whole(job.out / shard.file) as sink, pa.ipc.new_file(sink, schema) as writer:
        rows: list[tuple[Any, ...]] = []
        for index in range(shard.first, shard.first + shard.images):
            tick(index - shard.first)
            rows.append(_row(job, shard.split, index))
            if len(rows) == _BATCH_ROWS or sum(len(row[-1]) for row in rows) >= _BATCH_BYTES:
                writer.write_batch(_batch(rows, schema))
                rows = []
        if rows:
            writer.write_batch(_batch(rows, schema))
    tick(shard.images)
    return job.entry(shard, sink.hexdigest())


def _batch(rows: Sequence[tuple[Any, ...]], schema: Any) -> Any:
    columns = zip(*rows, strict=True)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema=schema)


def _row(job: _Job, split: str, index: int) -> tuple[Any, ...]:
    """The values of ``SHARD_SCHEMA``."""
    images = job.images(split)
    kind, height, width, data = _stored(job, split, index)
    name, target = os.fsencode(images.name(index)), images.targets[index]
    return name, target, kind, height, width, zlib.crc32(data), data


_OF_THE_FILE = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENAMETOOLONG}
)
"""Why one file cannot be opened; all else is a file system that has gone, and may come back."""


def _stored(job: _Job, split: str, index: int) -> tuple[str, int, int, bytes]:
    """Kind, height, width and bytes.

    Raises:
        OSError: the file system has gone: nothing is said of the image.
    """
    images, folder = job.images(split), job.root / split
    path = folder / images.name(index)
    try:
        data = path.read_bytes()
    except OSError as error:
        if error.errno not in _OF_THE_FILE or not folder.is_dir():
            raise
        data = b""
    try:
        # All are decoded, and so found out; the reason is then the one that the folder gives.
        image = Image.fromarray(images.load(index))
    except UnreadableImageError as error:
        return UNREADABLE, 0, 0, error.reason.encode()
    short_side = job.packing.short_side if split == "train" else None
    if short_side is not None and min(image.size) > short_side:
        image = image.resize(_resized(image.size, short_side), Image.Resampling.BICUBIC)
        if job.packing.format == "jpeg":
            return JPEG, image.height, image.width, _jpeg(image, job.settings["quality"])
    if split == "train" and job.packing.format == "raw":
        return RAW, image.height, image.width, image.tobytes()
    with Image.open(io.BytesIO(data)) as header:
        return FILE, header.height, header.width, data


def _resized(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Width and height, rounded as torchvision's Resize does."""
    width, height = size
    if width <= height:
        return short_side, int(short_side * height / width)
    return int(short_side * width / height), short_side


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=_SUBSAMPLING)
    return buffer.getvalue()


def _index_part(path: Path, shard: int) -> Any:
    """The index of one shard: what it says of its images, and where in the file they lie."""
    with pa.memory_map(str(path)) as file:
        begin = file.read_buffer(1).address
        reader = pa.ipc.open_file(file)
        columns: dict[str, list[Any]] = {field.name: [] for field in INDEX_SCHEMA}
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            for name in SHARD_SCHEMA.names[:-1]:
                columns[name] += batch[name].to_pylist()
            _, offsets, data = batch["image"].buffers()
            starts = memoryview(offsets).cast("q")[: len(batch) + 1].tolist()
            first = data.address - begin if data is not None else 0  # all images are empty
            columns["offset"] += [first + start for start in starts[:-1]]
            columns["length"] += [b - a for a, b in itertools.pairwise(starts)]
    count = len(columns["name"])
    columns["shard"], columns["row"] = [shard] * count, list(range(count))
    return pa.RecordBatch.from_pydict(columns, schema=INDEX_SCHEMA)


# --- many processes -------------------------------------------------------------------------


@dataclass
class _Shared:
    """What the processes inherit: they are forked, so a million paths need not be sent."""

    job: _Job
    done: Any  # images of each shard
    stop: Any  # not 0: end at the next image


_shared: _Shared | None = None


class _Told(Exception):  # noqa: N818 - it is no error
    """A process was told to stop."""


def _write_all(job: _Job, missing: Sequence[_Shard], jobs: int, progress: Progress) -> None:
    global _shared
    fork = multiprocessing.get_context("fork")
    _shared = _Shared(job, fork.RawArray("q", len(job.shards)), fork.RawValue("b", 0))
    there = sum(shard.images for shard in job.shards if shard.file in job.written)
    total = sum(shard.images for shard in job.shards)
    # What each process would do anew: a digest of all names, and an import of pandas by Arrow.
    _ = job.head, pa.array([0])
    pool = ProcessPoolExecutor(
        min(jobs, len(missing)), fork, initializer=_enter, initargs=(os.getpid(),)
    )
    try:
        waiting: set[Future[dict[str, Any]]] = {
            pool.submit(_write_numbered, shard.number) for shard in missing
        }
        while waiting:
            progress(there + sum(_shared.done), total)
            done, waiting = wait(waiting, _POLL_SECONDS, FIRST_COMPLETED)
            for future in done:
                job.add(future.result())
        progress(total, total)
    finally:
        _shared.stop.value = 1
        pool.shutdown(cancel_futures=True)
        _shared = None


def _enter(parent: int) -> None:
    """Of a new process: being told to stop is for the parent, and nothing is written without it."""
    for number in SIGNALS:  # a terminal sends them to all at once
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    warnings.simplefilter("ignore")  # Pillow's, of odd files: they would break the progress bar

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_numbered(number: int) -> dict[str, Any]:
    shared = _shared
    assert shared is not None  # inherited

    def tick(done: int) -> None:
        if shared.stop.value:
            raise _Told
        shared.done[number] = done

    return _write_shard(shared.job, shared.job.shards[number], tick)


@contextmanager
def _explained(job: _Job) -> Iterator[None]:
    """Whatever ends a packing early becomes one line that says how to go on."""

    def line(what: str) -> str:
        return (
            f"{what} {len(job.written)} of {len(job.shards)} shards are whole in {job.out}, and "
            "the same command goes on with the others."
        )

    try:
        yield
        return
    except KeyboardInterrupt as stop:
        raise told_to_stop(stop, line(f"{how_told(stop)}.")) from None
    except BrokenProcessPool:
        what = "a process was killed, maybe for want of memory: set jobs lower."
    except MemoryError:
        what = "there is no memory left: set jobs lower."
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        advice = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
        what = printable(f"{error.strerror or error}{place}: {advice}.")
    raise TrainingStopped(line(what)) from None


# --- verifying ------------------------------------------------------------------------------

_CHECKED = ("name", "crc32", "image")


def verify(
    out: Path, jobs: int, progress: Progress = lambda done, total: None
) -> tuple[int, list[str]]:
    """Read all of a packed data set: how many files it has, and what is wrong with which.

    Args:
        progress: of bytes.

    Raises:
        Refusal: it is no finished one, or ``pack.json`` and the files tell different stories.
    """
    about = read_about(out)
    with understood(out):
        found = _verify_files(out, about["splits"].values(), jobs, progress)
        if not found[1]:  # each is as pack.json says: is pack.json as they say?
            open_as_claimed(out, about, exif_orientation=False)
            for split in about["splits"].values():
                _verify_index(out, split)
    return found


def _verify_index(out: Path, split: Mapping[str, Any]) -> None:
    """Hold the index against the shards' own rows, and these against their images."""
    parts = [_index_part(out / shard["file"], k) for k, shard in enumerate(split["shards"])]
    table = pa.Table.from_batches(parts)
    with pa.memory_map(str(out / split["index"]["file"])) as file:
        if not pa.ipc.open_file(file).read_all().equals(table):
            raise Refusal(
                f"{out / split['index']['file']} does not list what the shards hold: pack the "
                "images again, into another folder."
            )
    for shard in split["shards"]:
        with pa.memory_map(str(out / shard["file"])) as file:
            reader = pa.ipc.open_file(file)
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                for name, crc, image in zip(*(batch[c] for c in _CHECKED), strict=True):
                    if zlib.crc32(image.as_buffer()) != crc.as_py():
                        raise Refusal(
                            f"{out / shard['file']}: the checksum of "
                            f"{printable(os.fsdecode(name.as_py()))} is not that of its bytes: "
                            "pack the images again, into another folder."
                        )


def _verify_files(
    out: Path, splits: Iterable[Mapping[str, Any]], jobs: int, progress: Progress
) -> tuple[int, list[str]]:
    files = [file for split in splits for file in (split["index"], *split["shards"])]
    total, done, damaged = sum(file["bytes"] for file in files), 0, {}
    with ThreadPoolExecutor(jobs) as pool:  # hashing needs no interpreter
        reading = {pool.submit(_fault, out / file["file"], file): file for file in files}
        try:
            for future in as_completed(reading):
                file, fault = reading[future], future.result()
                if fault is not None:
                    damaged[file["file"]] = f"{file['file']} ({fault})"
                done += file["bytes"]
                progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return len(files), [damaged[name] for name in sorted(damaged)]


def _fault(path: Path, file: Mapping[str, Any]) -> str | None:
    try:
        if path.stat().st_size != file["bytes"]:
            return f"{path.stat().st_size:,} bytes instead of {file['bytes']:,}"
        return None if file_sha256(path) == file["sha256"] else "its checksum differs"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return error.strerror or str(error)


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
