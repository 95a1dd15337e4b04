"""The index of a split: which images its shards hold, and where in their files."""

import itertools
from pathlib import Path
from typing import Any

import pyarrow as pa

from mixerbench.data.packing.format import INDEX_SCHEMA, SHARD_SCHEMA

INDEX_FILE = "{}.index.arrow"  # of the split of that name


def index_of_shard(path: Path, shard: int) -> Any:
    """A shard's rows for the index: its columns, and instead of the images where they lie.

    Args:
        path: the shard's file.
        shard: its number within the split.
    """
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
