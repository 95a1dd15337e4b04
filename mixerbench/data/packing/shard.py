"""Writing one shard."""

import errno
import io
import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
from PIL import Image

from mixerbench.data.decode import UnreadableImageError
from mixerbench.data.packing.format import FILE, JPEG, METADATA_KEY, RAW, SHARD_SCHEMA, UNREADABLE
from mixerbench.data.packing.job import PackingJob, Shard
from mixerbench.data.packing.settings import SUBSAMPLING
from mixerbench.files import hashed_file

_BATCH_ROWS = 64  # of a record batch: what a reader of Arrow files finds at once
_BATCH_BYTES = 2**24  # ... unless its images are large: what a process has in memory


def write_shard(job: PackingJob, shard: Shard, tick: Callable[[int], None]) -> dict[str, Any]:
    """Write one shard.

    Args:
        tick: called before each image with the number of images done, and once at the end.

    Returns:
        The shard's entry for the journal.

    Raises:
        OSError: an image or the shard's own file cannot be read or written now.
    """
    schema = SHARD_SCHEMA.with_metadata({METADATA_KEY: job.metadata(shard)})
    with hashed_file(job.out / shard.file) as sink, pa.ipc.new_file(sink, schema) as writer:
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


def _row(job: PackingJob, split: str, index: int) -> tuple[Any, ...]:
    """One image's values for the columns of ``SHARD_SCHEMA``."""
    images = job.images(split)
    kind, height, width, data = _stored(job, split, index)
    name, target = os.fsencode(images.name(index)), images.targets[index]
    return name, target, kind, height, width, zlib.crc32(data), data


_FILE_ERRORS = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENAMETOOLONG}
)
"""Errors of one file. Any other means that the file system is unavailable, maybe for a while."""


def _stored(job: PackingJob, split: str, index: int) -> tuple[str, int, int, bytes]:
    """What a shard stores for one image: kind, height, width (pixels) and bytes.

    Raises:
        OSError: the file system is unavailable, which says nothing about the image.
    """
    images, folder = job.images(split), job.root / split
    path = folder / images.name(index)
    try:
        data = path.read_bytes()
    except OSError as error:
        if error.errno not in _FILE_ERRORS or not folder.is_dir():
            raise
        data = b""
    try:
        # Every image is decoded once, so that unreadable ones are stored with the folder's reason.
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
    """Width and height in pixels with that shorter side, rounded as torchvision's Resize does."""
    width, height = size
    if width <= height:
        return short_side, int(short_side * height / width)
    return int(short_side * width / height), short_side


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=SUBSAMPLING)
    return buffer.getvalue()
