"""A bundle as a source of results."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from leaderboard.bundles.evidence import check_runs, title
from leaderboard.bundles.form import (
    CONTENT_FORM,
    FILE,
    HEADER_FORM,
    MOST_RUNS,
    RUNS,
    SCHEMA,
    BundleError,
    check_form,
    checksum_of,
    misfits_of_names,
    one_line,
    read_json,
)
from leaderboard.claims.of_values import problems_of_metrics, problems_of_time
from leaderboard.reading.cache import Cache
from leaderboard.reading.curves import CURVE_POINTS, CURVES, Curves
from leaderboard.reading.parquet import (
    ADDED,
    CURVES_FILE,
    RUN_ID,
    TABLES,
    BundleTable,
    TableError,
    is_small_png,
)
from leaderboard.reading.results import (
    INFINITY,
    Measurement,
    Reading,
    TrainedRun,
    in_order,
    skipped_line,
)
from leaderboard.reading.states import reading_of
from mixerbench.tracking.keys import Artifact, Hardest, Metric

if TYPE_CHECKING:
    import pyarrow as pa


def is_bundle(folder: Path) -> bool:
    return (folder / FILE).is_file()


class Bundle:
    """A bundle as a source of results.

    Opening it checks its version, its files and their form; reading it checks every run.
    """

    def __init__(self, folder: Path) -> None:
        """Check the files and their form.

        Raises:
            BundleError: the bundle is damaged, or of another version.
        """
        self.folder = folder
        self.name = f"bundle {folder.resolve().name}"
        header = read_json(folder / FILE)
        schema = header.get("schema") if isinstance(header, dict) else None
        if type(schema) is not int or not 1 <= schema <= SCHEMA:
            raise BundleError(
                f"{folder / FILE} has schema {str(schema)[:20]}; this version reads 1 to {SCHEMA}."
            )
        check_form(header, HEADER_FORM, folder / FILE)
        self._files = header["files"]
        self._check_files()
        content = read_json(folder / RUNS)
        check_form(content, CONTENT_FORM, folder / RUNS)
        if len(content["runs"]) > MOST_RUNS:
            raise BundleError(f"{folder / RUNS} has more than {MOST_RUNS:,} runs.")
        if reason := next(misfits_of_names(content), None):
            raise BundleError(f"{folder / RUNS}: {reason}.")
        self._content = content
        with as_bundle_errors():
            self._tables = {name: BundleTable(folder / name, schema) for name in TABLES}
        for name, table in self._tables.items():
            if strange := table.run_ids - content["runs"].keys():
                line = f"{folder / name} has a run that is not in {RUNS}: {strange}."
                raise BundleError(one_line(line))

    @cached_property
    def cache(self) -> Cache:
        return Cache(f"bundle {json.dumps(self._files, sort_keys=True)}")

    def read(self) -> Reading:
        """Check and return all runs and measurements.

        Raises:
            BundleError: a run claims what it does not show, one line for each.
        """
        content = self._content
        reading = reading_of(
            *(content["runs"], content["parts"], content["experiments"]), verify=False
        )  # check_runs does, by the settings and predictions that are here
        if reading.skipped:
            line = skipped_line(reading.skipped)
            raise BundleError(f"{self.folder} holds what is no result. {line}")
        check_runs(reading.runs, content["settings"], self._predictions)
        for run in reading.runs:
            self._check_pictures_and_curves(run)
        measurements = [
            Measurement(**measurement) for measurement in content["measurements"].values()
        ]
        for measurement in measurements:
            problems = chain(
                problems_of_time(measurement.finished), problems_of_metrics(measurement.metrics)
            )
            if problem := next(problems, None):
                raise BundleError(one_line(f"measurement {measurement.run_id}: {problem.line}."))
        return reading._replace(measurements=in_order(measurements))

    def artifact(self, run: TrainedRun, name: str, *, again: bool = False) -> Path | None:
        def write(path: Path) -> None:
            import pyarrow.parquet as pq
            import yaml

            if name == Artifact.CONFIG:
                settings = self._content["settings"][run.run_id]
                path.write_text(yaml.safe_dump(settings, sort_keys=False))
            elif (rows := self._rows(name, run)) is not None:
                empty = {
                    name for name in rows.column_names if rows.column(name).null_count == len(rows)
                }
                # Of a run that had none: a column of nothing would be another file.
                left_out = [RUN_ID, *empty.intersection(ADDED)]
                pq.write_table(rows.drop_columns(left_out), path)

        table = self._tables.get(name)
        if name != Artifact.CONFIG and (table is None or run.run_id not in table.run_ids):
            return None
        return self.cache.file("artifacts", run.run_id, name, make=write, again=again)

    def plugins(self, run: TrainedRun) -> list[str]:
        """The names of the files that its mixers come from."""
        found = self._content["settings"][run.run_id].get("plugins", [])
        return [name for name in found if isinstance(name, str)]

    def curves(self, run: TrainedRun) -> Curves:
        rows = self._rows(CURVES_FILE, run)
        found: dict[str, list[tuple[int, float]]] = {}
        for row in rows.to_pylist() if rows else ():
            found.setdefault(row["metric"], []).append((row["step"], row["value"]))
        return {key: found[key] for key in CURVES if key in found}

    def _predictions(self, run: TrainedRun) -> "pa.Table | None":
        rows = self._tables[Artifact.PREDICTIONS].rows(run.run_id)
        claimed = run.metrics.get(Metric.VAL_IMAGES)
        if rows and claimed is not None and rows != claimed:  # before they are read
            raise BundleError(
                f"{title(run)}: its predictions give {Metric.VAL_IMAGES} = {rows}, but it claims "
                f"{claimed:.0f}."
            )
        return self._rows(Artifact.PREDICTIONS, run)

    def _rows(self, name: str, run: TrainedRun) -> "pa.Table | None":
        with as_bundle_errors():
            return self._tables[name].of(run.run_id)

    def _check_files(self) -> None:
        expected = {RUNS, *TABLES}
        if self._files.keys() != expected:
            raise BundleError(f"{self.folder / FILE} must list {', '.join(sorted(expected))}.")
        for name, checksum in self._files.items():
            path = self.folder / name
            if not path.is_file():
                raise BundleError(f"{self.folder} lacks its file {name}.")
            if checksum_of(path) != checksum:
                raise BundleError(f"{path} was changed or damaged: its checksum is another one.")

    def _check_pictures_and_curves(self, run: TrainedRun) -> None:
        hardest = self._rows(Artifact.HARDEST, run)
        pictures = hardest.column(Hardest.THUMBNAIL).to_pylist() if hardest else ()
        if not all(picture is None or is_small_png(picture) for picture in pictures):
            raise BundleError(f"{title(run)}: a thumbnail of its hardest images is no small PNG.")
        for metric, points in self.curves(run).items():
            steps = [step for step, _ in points]
            good = all(abs(value) < INFINITY for _, value in points)
            if not good or steps != sorted(steps) or steps[0] < 0 or len(steps) > CURVE_POINTS:
                raise BundleError(
                    f"{title(run)}: its curve of {metric} has more than {CURVE_POINTS} points, "
                    "steps out of order, or values that are no numbers."
                )


@contextmanager
def as_bundle_errors() -> Iterator[None]:
    try:
        yield
    except TableError as error:
        raise BundleError(one_line(error)) from None
