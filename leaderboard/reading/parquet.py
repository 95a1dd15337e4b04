"""The Parquet files of runs and of bundles: their columns, and how much of them is ever read.

Parquet packs repeated values so well that 16 MB can hold 600 million rows. So what a file's own
metadata says is compared with what a run can have before any column is read, and texts are read as
a dictionary of the different ones before they are spread over the rows.
"""

import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from leaderboard.reading.curves import CURVE_POINTS, CURVES
from leaderboard.text import plain
from mixerbench.tracking.keys import Artifact, Hardest, Prediction
from mixers.core.errors import Refusal

if TYPE_CHECKING:
    import pyarrow as pa


CURVES_FILE = "curves.parquet"
RUN_ID = "run_id"
TABLES: Mapping[str, Mapping[str, str]] = {
    Artifact.PREDICTIONS: {
        RUN_ID: "string",
        Prediction.IMAGE: "string",
        Prediction.TARGET: "int64",
        Prediction.TOP1: "int64",
        Prediction.CONFIDENCE: "float",
        Prediction.TARGET_PROBABILITY: "float",
        Prediction.IN_TOP5: "bool",
        Prediction.CHECKSUM: "int64",
    },
    Artifact.HARDEST: {
        RUN_ID: "string",
        Hardest.IMAGE: "string",
        Hardest.TARGET: "int64",
        Hardest.TARGET_NAME: "string",
        Hardest.TOP1: "int64",
        Hardest.TOP1_NAME: "string",
        Hardest.TARGET_PROBABILITY: "double",
        Hardest.THUMBNAIL: "binary",
    },
    CURVES_FILE: {RUN_ID: "string", "metric": "string", "step": "int64", "value": "double"},
}
"""Columns and types of each Parquet file of a bundle; a row group holds rows of one run."""
MAY_LACK = (Hardest.THUMBNAIL, Prediction.CHECKSUM)
"""Columns that may lack values: no thumbnail of an unreadable image, no checksum in older runs."""
ADDED = {Prediction.CHECKSUM: 2}
"""Columns that came with a later schema of bundles."""


class Limits(NamedTuple):
    """How much of a file is read for one run."""

    rows: int
    mib: int  # as columns in memory


LIMITS: Mapping[str, Limits] = {
    # ImageNet has 50,000 validation images, of 60 bytes each; the largest set of photographs that
    # is validated on whole, ImageNet-21k's, half a million.
    Artifact.PREDICTIONS: Limits(rows=1_000_000, mib=256),
    # A run logs 12, with pictures of 48 pixels.
    Artifact.HARDEST: Limits(rows=100, mib=8),
    CURVES_FILE: Limits(rows=CURVE_POINTS * len(CURVES), mib=1),
}
GROUPS = 64  # row groups of one run: the writers make one of a million rows
FOOTER = 16 * 2**20  # bytes of a text in a file's metadata; ours has none above 2 KiB
PICTURE_BYTES = 64 * 1024  # 48 x 48 pixels take 7 KiB without any compression
PICTURE_PIXELS = 256  # of a side: a small file may be a picture of 30,000 x 30,000
_PNG = b"\x89PNG\r\n\x1a\n"


class TableError(Refusal):
    """What is wrong with a file, in a line."""


def schema_of(name: str, version: int = max(ADDED.values())) -> "pa.Schema":
    """The columns and types of a file in a bundle of this version."""
    import pyarrow as pa

    columns = {k: kind for k, kind in TABLES[name].items() if ADDED.get(k, 1) <= version}
    return pa.schema([(key, pa.type_for_alias(kind)) for key, kind in columns.items()])


def is_small_png(content: bytes) -> bool:
    head = content[:24]
    if len(head) < 24 or len(content) > PICTURE_BYTES or head[:8] != _PNG or head[12:16] != b"IHDR":
        return False
    return all(0 < side <= PICTURE_PIXELS for side in struct.unpack(">II", head[16:]))


class BundleTable:
    """A Parquet file of a bundle, read run by run."""

    def __init__(self, path: Path, version: int) -> None:
        """Check the columns, and find the row groups of each run.

        Raises:
            TableError: it has other columns, more than any run has, or several runs in a group.
        """
        self._path = path
        self._groups = defaultdict(list)
        with _errors(path):
            self._file = _File(path)
            self._schema = schema_of(path.name, version)
            if not self._file.schema.equals(self._schema):
                raise Refusal("its columns are others than those of this version")
            for group in range(self._file.groups):
                ids = self._file.read([group], [RUN_ID]).column(0).unique().to_pylist()
                if len(ids) > 1:
                    raise Refusal("a row group is not of one run")
                for run_id in ids:
                    self._groups[run_id].append(group)

    @property
    def run_ids(self) -> set[str]:
        return set(self._groups)

    def rows(self, run_id: str) -> int:
        """The number of rows of a run, from the metadata only."""
        return self._file.rows(self._groups.get(run_id, ()))

    def of(self, run_id: str) -> "pa.Table | None":
        """The rows of a run; None: there are none.

        Raises:
            TableError: they are malformed, or more than any run has.
        """
        if run_id not in self._groups:
            return None
        with _errors(self._path):
            table = self._file.read(self._groups[run_id]).cast(self._schema)
            for name in table.column_names:
                if table.column(name).null_count and name not in MAY_LACK:
                    raise Refusal(f"column {name} lacks a value")
        return table


def read_logged(
    path: Path, columns: Sequence[str] | None = None, optional: Sequence[str] = ()
) -> "pa.Table":
    """A file as a run logged it: ``predictions.parquet`` or ``hardest_images.parquet``.

    Args:
        columns: those that are needed; None: all that there are.
        optional: those that are read, too, where it has them.

    Raises:
        TableError: it is no Parquet file, lacks a column, or is larger than any run's.
    """
    with _errors(path):
        file = _File(path)
        if missing := set(columns or ()) - {*file.schema.names}:
            raise Refusal(f"it has no column {min(missing)}")
        if columns is not None:
            columns = [*columns, *(name for name in optional if name in file.schema.names)]
        return file.read(range(file.groups), columns)


class _File:
    """A Parquet file of which no more is read than one run can have."""

    def __init__(self, path: Path) -> None:
        """Open it and check the types of its columns.

        Raises:
            Refusal: a column is of a type whose size the metadata do not tell.
            ArrowException: it is no Parquet file.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._limits = LIMITS[path.name]
        plain_file = pq.ParquetFile(path, thrift_string_size_limit=FOOTER)
        self.schema, metadata = plain_file.schema_arrow, plain_file.metadata
        kinds = (pa.types.is_string, pa.types.is_binary, pa.types.is_large_string)
        texts = {column.name for column in self.schema if any(kind(column.type) for kind in kinds)}
        for index in range(metadata.num_columns):
            column = metadata.schema.column(index)
            is_text = column.physical_type == "BYTE_ARRAY"
            if is_text != (column.path in texts) or column.physical_type not in _TYPES:
                raise Refusal(f"column {column.path:.80} is of a type that no run logs")
        self._file = pq.ParquetFile(
            path, read_dictionary=sorted(texts), thrift_string_size_limit=FOOTER
        )
        self.groups = metadata.num_row_groups

    def rows(self, groups: Sequence[int]) -> int:
        return sum(self._file.metadata.row_group(group).num_rows for group in groups)

    def read(self, groups: Sequence[int], columns: Sequence[str] | None = None) -> "pa.Table":
        """The rows of these groups, which are all of one run.

        Raises:
            Refusal: they are more than a run has.
        """
        import pyarrow as pa

        self._check(groups)
        table = self._file.read_row_groups(list(groups), columns=columns)
        table.validate(full=True)
        spread = sum(_bytes(column) for column in table.columns)
        if spread > self._limits.mib * 2**20:
            raise Refusal(f"its texts would take {spread / 2**20:.0f} MiB, beyond any run's")
        fields = [self.schema.field(name) for name in table.column_names]
        return table.cast(pa.schema(fields))

    def _check(self, groups: Sequence[int]) -> None:
        """Compare the metadata of these groups with what a run can have."""
        limits, metadata = self._limits, self._file.metadata
        if len(groups) > GROUPS:
            raise Refusal(f"it has {len(groups)} row groups of one run, more than {GROUPS}")
        if (rows := self.rows(groups)) > limits.rows:
            raise Refusal(f"it has {rows:,} rows of one run, more than {limits.rows:,}")
        total = 0
        for group in map(metadata.row_group, groups):
            for column in map(group.column, range(group.num_columns)):
                if column.num_values != group.num_rows:
                    raise Refusal(f"column {column.path_in_schema:.80} has no value for a row")
                total += column.total_uncompressed_size
        if total > limits.mib * 2**20:
            raise Refusal(f"it has {total / 2**20:.0f} MiB of one run, more than {limits.mib} MiB")


_TYPES = ("BOOLEAN", "INT32", "INT64", "FLOAT", "DOUBLE", "BYTE_ARRAY")
"""Types of columns. No run logs values of a fixed length, which could be a megabyte each."""


def _bytes(column: "pa.ChunkedArray") -> int:
    """Bytes of a column after its dictionary's texts are copied to their rows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    total = 0
    for chunk in column.chunks:
        total += chunk.nbytes
        if pa.types.is_dictionary(chunk.type):
            lengths = pc.binary_length(chunk.dictionary).cast("int64")
            total += pc.sum(lengths.take(chunk.indices)).as_py() or 0
    return total


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise TableError(f"cannot read {path}: {plain(str(error))[:300]}.") from None
