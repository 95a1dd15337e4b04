"""Write a bundle of some runs."""

import dataclasses
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaderboard.bundles.evidence import title
from leaderboard.bundles.form import (
    FILE,
    RUNS,
    SCHEMA,
    BundleError,
    checksum_of,
    one_line,
    write_json,
)
from leaderboard.bundles.public import defaults_at_machine_paths, public_tags, without_machine_paths
from leaderboard.bundles.reader import Bundle
from leaderboard.reading.curves import Curves
from leaderboard.reading.parquet import (
    ADDED,
    CURVES_FILE,
    RUN_ID,
    TableError,
    read_logged,
    schema_of,
)
from leaderboard.reading.results import Measurement, TrainedRun, digest_of
from leaderboard.reading.source import Source
from mixerbench.tracking.keys import Artifact, Metric
from mixers.core.errors import Refusal

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Exported:
    folder: Path
    runs: int
    measurements: int


def export(
    source: Source,
    runs: Iterable[TrainedRun],
    folder: Path,
    measurements: Iterable[Measurement] = (),
) -> Exported:
    """Write a bundle of these runs into a new folder, whole or not at all.

    The same results give the same bytes.

    Raises:
        BundleError: others could not check a run: it logged no predictions, or other settings than
            its fingerprint says.
        Refusal: the folder exists, or there is no run.
    """
    if folder.exists():
        raise Refusal(f"{folder} exists: give a new folder.")
    runs = sorted(runs, key=lambda run: run.run_id)
    measurements = sorted(measurements, key=lambda measurement: measurement.run_id)
    if not runs:
        raise Refusal("there is no run to export.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        new = Path(temporary) / folder.name
        new.mkdir()
        write_json(new / RUNS, _content_of(source, runs, measurements))
        for name in (Artifact.PREDICTIONS, Artifact.HARDEST):
            _write_table(new / name, ((run, _logged_table(source, run, name)) for run in runs))
        _write_table(new / CURVES_FILE, ((run, _curves_table(source.curves(run))) for run in runs))
        files = {path.name: checksum_of(path) for path in new.iterdir()}
        write_json(new / FILE, {"schema": SCHEMA, "files": files})
        Bundle(new).read()  # what leaves this machine is what others will take
        os.rename(new, folder)
    return Exported(folder, len(runs), len(measurements))


def _content_of(
    source: Source, runs: Sequence[TrainedRun], measurements: Sequence[Measurement]
) -> dict[str, Any]:
    import yaml

    states, settings = {}, {}
    parts: dict[str, Mapping[str, str]] = {}
    for run in runs:
        config = source.artifact(run, Artifact.CONFIG)
        try:
            logged: Any = yaml.safe_load(config.read_text()) if config else None
            settings[run.run_id] = without_machine_paths(logged)
        except (KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            reason = "it logged none" if config is None else f"{error!r:.100}"
            raise BundleError(f"{title(run)} has no usable {Artifact.CONFIG}: {reason}.") from None
        groups = {name: defaults_at_machine_paths(group) for name, group in run.params.items()}
        digests = {name: digest_of(group) for name, group in groups.items()}
        parts |= {digests[name]: group for name, group in groups.items()}
        states[run.run_id] = {
            "experiment": run.experiment_id,
            "name": run.name,
            "status": "FINISHED",
            "deleted": False,
            "started": run.started,
            "finished": run.finished,
            "tags": public_tags(run, settings[run.run_id]["plugins"]),
            "params": digests,
            # When it came to a store is no property of a result.
            "metrics": {k: v for k, v in run.metrics.items() if k != Metric.UPLOADED_AT},
        }
    return {
        "experiments": {run.experiment_id: run.experiment for run in runs},
        "parts": parts,
        "runs": states,
        "settings": settings,
        "measurements": {
            measurement.run_id: {
                **dataclasses.asdict(measurement),
                "metrics": dict(measurement.metrics),
            }
            for measurement in measurements
        },
    }


def _write_table(path: Path, parts: Iterable[tuple[TrainedRun, "pa.Table | None"]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = schema_of(path.name)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for run, table in parts:
            if table is None:
                continue
            try:
                table = table.add_column(0, RUN_ID, pa.array([run.run_id] * len(table), "string"))
                for name in ADDED.keys() & set(schema.names) - set(table.column_names):
                    nothing = pa.nulls(len(table), schema.field(name).type)
                    table = table.append_column(name, nothing)
                writer.write_table(table.select(schema.names).cast(schema))
            except (pa.ArrowException, KeyError) as error:
                reason = one_line(error)
                raise BundleError(f"{title(run)}: its {path.name} is none: {reason}.") from None


def _logged_table(source: Source, run: TrainedRun, name: str) -> "pa.Table | None":
    path = source.artifact(run, name)
    try:
        return read_logged(path) if path else None
    except TableError as error:
        raise BundleError(f"{title(run)}: {one_line(error)}") from None


def _curves_table(curves: Curves) -> "pa.Table":
    import pyarrow as pa

    rows = [(metric, *point) for metric, points in curves.items() for point in points]
    columns = zip(*rows, strict=True) if rows else ((), (), ())
    types = ("string", "int64", "double")
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    return pa.table(arrays, ["metric", "step", "value"])
