"""Reading every byte of a packed data set, and comparing checksums."""

import os
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pyarrow as pa

from mixerbench.data.decode import printable
from mixerbench.data.packing.format import read_manifest, refusing_malformed
from mixerbench.data.packing.index import index_of_shard
from mixerbench.data.packing.opening import open_checked
from mixerbench.data.packing.processes import Progress
from mixerbench.errors import Refusal
from mixerbench.files import file_sha256

_CHECKED_COLUMNS = ("name", "crc32", "image")


def verify(
    out: Path, jobs: int, progress: Progress = lambda done, total: None
) -> tuple[int, list[str]]:
    """Read every byte of a packed data set and compare its checksums.

    Args:
        jobs: threads.
        progress: called with bytes.

    Returns:
        The number of files, and one line for each that is damaged.

    Raises:
        Refusal: it is not finished, or ``pack.json`` does not agree with the files.
    """
    manifest = read_manifest(out)
    with refusing_malformed(out):
        files, damaged = _verify_files(out, manifest["splits"].values(), jobs, progress)
        if not damaged:  # by pack.json's checksums; was pack.json itself changed?
            open_checked(out, manifest, exif_orientation=False)
            for split in manifest["splits"].values():
                _verify_index(out, split)
    return files, damaged


def _verify_index(out: Path, split: Mapping[str, Any]) -> None:
    """Compare the index with the rows of its shards, and these with their images.

    Raises:
        Refusal: a row or a checksum differs.
    """
    parts = [index_of_shard(out / shard["file"], k) for k, shard in enumerate(split["shards"])]
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
                for name, crc, image in zip(*(batch[c] for c in _CHECKED_COLUMNS), strict=True):
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
