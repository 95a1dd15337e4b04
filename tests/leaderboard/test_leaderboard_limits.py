"""How much of a stranger's file is read, and what predictions show: on a bundle of schema 1."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from leaderboard.bundles.form import FILE, RUNS, BundleError, checksum_of
from leaderboard.bundles.reader import Bundle
from leaderboard.bundles.writer import export
from leaderboard.reading.parquet import LIMITS, TableError, is_small_png, read_logged
from mixerbench.tracking.keys import Artifact, Hardest, Metric, Prediction, Tag

BUNDLE = Path(__file__).parents[1] / "golden" / "bundle_schema_1"
"""The board that the repository carried before bundles had checksums of pixels."""
MIB = 2**20

Change = Callable[[dict[str, pa.Table], Any], None]


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """A copy with other rows, by run, and another runs.json; its checksums fit."""

    def change(how: Change, name: str = Artifact.PREDICTIONS, version: int = 1) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(BUNDLE, folder)
        content = json.loads((folder / RUNS).read_text())
        file = pq.ParquetFile(folder / name)
        tables = {}
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            tables[table.column("run_id")[0].as_py()] = table
        how(tables, content)
        with pq.ParquetWriter(folder / name, next(iter(tables.values())).schema) as writer:
            for table in tables.values():
                writer.write_table(table)
        (folder / RUNS).write_text(json.dumps(content))
        return signed(folder, version)

    return change


def signed(folder: Path, version: int = 1) -> Path:
    files = {path.name: checksum_of(path) for path in folder.iterdir() if path.name != FILE}
    (folder / FILE).write_text(json.dumps({"schema": version, "files": files}))
    return folder


def seeds_of_one_model(content: Any) -> list[str]:
    """Run ids."""
    models = [run["tags"][Tag.MODEL_FINGERPRINT] for run in content["runs"].values()]
    return [
        run_id
        for run_id, run in content["runs"].items()
        if run["tags"][Tag.MODEL_FINGERPRINT] == models[0]
    ]


def test_a_bundle_of_before_there_were_checksums_is_read_and_can_be_given_on(tmp_path: Path):
    old = Bundle(BUNDLE)
    runs = old.read().runs
    export(old, runs, tmp_path / "new")
    assert json.loads((tmp_path / "new" / FILE).read_text())["schema"] == 2
    new = Bundle(tmp_path / "new")
    assert [run.metrics for run in new.read().runs] == [run.metrics for run in runs]
    path = new.artifact(runs[0], Artifact.PREDICTIONS)
    assert path is not None
    assert Prediction.CHECKSUM not in pq.read_schema(path).names


# --- bombs ----------------------------------------------------------------------------------


def test_three_million_rows_in_a_small_file_are_never_read(tmp_path: Path):
    folder = tmp_path / "bomb"
    shutil.copytree(BUNDLE, folder)
    path = folder / Artifact.PREDICTIONS
    row = pq.ParquetFile(path).read_row_group(0).slice(0, 1)
    many = row.take(pa.array(np.zeros(3_000_000, np.int64)))
    pq.write_table(many, path, row_group_size=3_000_000, compression="zstd")
    del many
    assert path.stat().st_size < MIB / 4
    bundle, before = signed(folder), pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        with pytest.raises(BundleError, match="3,000,000 rows of one run, more than 1,000,000"):
            Bundle(bundle)
        with pytest.raises(TableError, match="3,000,000 rows"):
            read_logged(path, [Prediction.IMAGE])
        assert pool.max_memory() < 4 * MIB
    finally:
        pa.set_memory_pool(before)


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        ("x" * MIB, pa.string(), r"would take 10\d MiB"),
        ([0.5] * 2000, pa.list_(pa.float64()), "of a type that no run logs|no value for a row"),
        (b"x" * MIB, pa.binary(MIB), "of a type that no run logs"),
        ("x" * MIB, pa.string_view(), "of a type that no run logs|MiB"),
    ],
    ids=["texts", "lists", "bytes", "views"],
)
def test_a_few_large_values_many_times_are_not_spread(
    tmp_path: Path, value: object, kind: pa.DataType, words: str
):
    path = tmp_path / Artifact.HARDEST
    column = pa.array([value] * LIMITS[Artifact.HARDEST].rows, kind)
    pq.write_table(pa.table({Hardest.IMAGE: column}), path, compression="zstd")
    with pytest.raises(TableError, match=words):
        read_logged(path)


def test_rows_are_counted_before_they_are_read(changed):
    def double(tables: dict[str, pa.Table], content: Any) -> None:
        first = next(iter(tables))
        tables[first] = pa.concat_tables([tables[first]] * 2)

    with pytest.raises(BundleError, match="final/val_images = 1078, but it claims 539"):
        Bundle(changed(double)).read()


def test_more_groups_than_a_writer_makes_are_refused(tmp_path: Path):
    path = tmp_path / Artifact.PREDICTIONS
    rows = read_logged(BUNDLE / Artifact.PREDICTIONS)
    pq.write_table(rows.slice(0, 65), path, row_group_size=1)
    with pytest.raises(TableError, match="65 row groups of one run"):
        read_logged(path)


@pytest.mark.parametrize("name", [FILE, RUNS])
def test_json_beyond_any_bundle_is_not_parsed(name: str, tmp_path: Path):
    for content, words in (("[" * 3_000_000, "values, more than|MiB"), (None, "MiB, more than")):
        folder = tmp_path / name / words[:3]
        shutil.copytree(BUNDLE, folder)
        with open(folder / name, "w") as file:
            if content is None:
                file.truncate(65 * MIB)  # takes no room
            else:
                file.write(content)
        if name != FILE:
            signed(folder)
        with pytest.raises(BundleError, match=words):
            Bundle(folder)


def png(width: int, height: int, size: int = 100) -> bytes:
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR"
    return (head + struct.pack(">II", width, height)).ljust(size, b"\0")


def test_pictures_are_small_on_the_disk_and_on_the_screen(changed):
    assert is_small_png(png(48, 32))
    for content in (png(30_000, 48), png(0, 5), png(48, 48, 70_000), b"GIF89a" + png(4, 4), b""):
        assert not is_small_png(content)

    def enlarge(tables: dict[str, pa.Table], content: Any) -> None:
        first, table = next(iter(tables.items()))
        place = table.column_names.index(Hardest.THUMBNAIL)
        column = pa.array([png(30_000, 30_000)] * len(table), pa.binary())
        tables[first] = table.set_column(place, Hardest.THUMBNAIL, column)

    with pytest.raises(BundleError, match="is no small PNG"):
        Bundle(changed(enlarge, Artifact.HARDEST)).read()


# --- predictions ----------------------------------------------------------------------------


def test_two_seeds_with_the_same_predictions_are_refused(changed):
    def copy(tables: dict[str, pa.Table], content: Any) -> None:
        first, second, *_ = seeds_of_one_model(content)
        rows = tables[first]
        shuffled = rows.take(np.random.default_rng(0).permutation(len(rows)))
        names = pa.array([second] * len(rows))
        tables[second] = shuffled.set_column(0, "run_id", names)
        for metric in (Metric.FINAL_TOP1, Metric.FINAL_TOP5):
            content["runs"][second]["metrics"][metric] = content["runs"][first]["metrics"][metric]

    with pytest.raises(BundleError, match=r"predictions are those of seed \d, to the last digit"):
        Bundle(changed(copy)).read()


def with_checksums(tables: dict[str, pa.Table], of: Callable[[int], list[int]]) -> None:
    for number, (run_id, table) in enumerate(tables.items()):
        checksums = pa.array(of(number)[: len(table)], "int64")
        tables[run_id] = table.append_column(Prediction.CHECKSUM, checksums)


def test_an_image_with_other_pixels_is_refused(changed):
    same = list(range(539))

    def one_differs(tables: dict[str, pa.Table], content: Any) -> None:
        with_checksums(tables, lambda number: [7, *same[1:]] if number == 3 else same)

    with pytest.raises(BundleError, match=r"image .* has other pixels than that of"):
        Bundle(changed(one_differs, version=2)).read()


def without_rows(count: int, claimed: int) -> Change:
    """The first run lacks so many of its images, and says that it could not read so many."""

    def change(tables: dict[str, pa.Table], content: Any) -> None:
        with_checksums(tables, lambda number: list(range(539)))
        first = next(iter(tables))
        rows = tables[first] = tables[first].slice(count)
        right = pc.equal(rows[Prediction.TARGET], rows[Prediction.TOP1])
        content["runs"][first]["metrics"] |= {
            Metric.FINAL_TOP1: 100 * pc.mean(right).as_py(),
            Metric.FINAL_TOP5: 100 * pc.mean(rows[Prediction.IN_TOP5]).as_py(),
            Metric.VAL_IMAGES: len(rows),
            Metric.UNREADABLE_VAL_IMAGES: claimed,
        }
        # In another order of rows, an image has the checksum that it had.
        tables[first] = rows.take(pa.array(range(len(rows))[::-1]))

    return change


def test_an_image_that_could_not_be_read_may_be_missing(changed):
    runs = Bundle(changed(without_rows(1, claimed=1), version=2)).read().runs
    assert sorted({run.metrics[Metric.VAL_IMAGES] for run in runs}) == [538, 539]


@pytest.mark.parametrize(("count", "claimed"), [(1, 0), (2, 1), (20, 20)])
def test_images_that_were_left_out_are_refused(changed, count: int, claimed: int):
    with pytest.raises(BundleError, match="evaluated on other images"):
        Bundle(changed(without_rows(count, claimed), version=2)).read()
