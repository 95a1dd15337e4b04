"""The work of ``mixerbench leaderboard export`` and ``import``: results as a folder for others."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from leaderboard.bundles.reader import Bundle, is_bundle
from leaderboard.bundles.writer import export
from leaderboard.opening import open_source
from leaderboard.ranking.boards import boards
from leaderboard.reading.mlflow_pages import pages
from leaderboard.reading.results import MEASUREMENT_TAGS, Measurement, TrainedRun
from leaderboard.repeat import command_of
from mixerbench.config.schema import Tracking, fingerprint
from mixerbench.errors import Refusal, TrainingStopped, first_line
from mixerbench.tracking.journal import FILE_NAME
from mixerbench.tracking.keys import MEASUREMENT, SCHEMA_VERSION, Artifact, Metric, Tag
from mixerbench.tracking.measurements import DESCRIPTION, EXPERIMENT
from mixerbench.tracking.passwords import without_password
from mixerbench.tracking.store import Store, check_reachable
from mixerbench.tracking.upload import RUN_FILE, Upload

_TIMEOUT_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Imported:
    """How many came into the store: runs and measurements, and what was there before."""

    runs: int
    measurements: int
    already_there: int


def export_bundle(uri: str, filters: Sequence[str], out: Path) -> str:
    """Write the runs of the boards that match ``filters`` into the new folder ``out``.

    Args:
        uri: a store, or another bundle.

    Raises:
        Refusal: nothing matches, ``out`` exists, or a run cannot be checked by others.
    """
    source = open_source(uri)
    reading = source.read()
    found = boards(reading.runs, filters=filters)
    runs = [run for board in found for run in board.results]
    models = {(run.protocol_fingerprint, run.model_fingerprint) for run in runs}
    measurements = [
        one
        for one in reading.measurements
        if (one.protocol_fingerprint, one.model_fingerprint) in models
    ]
    try:
        done = export(source, runs, out, measurements)
    except OSError as error:
        raise Refusal(f"cannot write {out} ({error.strerror or error}).") from None
    size = sum(path.stat().st_size for path in out.iterdir()) / 2**20
    backwards = sum(run.started == run.finished for run in runs)  # as a reading mends it
    clocks = f"runs whose clock went back, written as begun at their end: {backwards}\n"
    return (clocks if backwards else "") + (
        f"{out}: runs: {done.runs}, models: {len(models)}, protocols: {len(found)}, "
        f"measurements: {done.measurements}, {size:.1f} MiB\n"
        f"'mixerbench leaderboard --uri {out}' shows it."
    )


def import_bundle_folder(folder: Path, uri: str) -> str:
    """Take somebody else's bundle into the store at ``uri``.

    Raises:
        Refusal: it is no bundle, one of its runs is refused, or there is no such store.
        TrainingStopped: the store failed in between; doing it again does the rest.
    """
    if not is_bundle(folder):
        raise Refusal(f"{folder} is no bundle: give a folder with a bundle.json.")
    check_reachable(uri, _TIMEOUT_SECONDS)
    done = import_bundle(Bundle(folder), uri)
    return (
        f"{without_password(uri)}: imported runs: {done.runs}, measurements: {done.measurements}; "
        f"there already: {done.already_there}"
    )


def import_bundle(bundle: Bundle, tracking_uri: str) -> Imported:
    """Make an MLflow run of each run and measurement that the store has not.

    Each is uploaded as a run that was trained here is, from a journal: what a kill has left
    unfinished, an earlier one of the same uid, is found and completed.

    Raises:
        ValueError: a run is refused; nothing has been written then.
        TrainingStopped: the store failed.
    """
    reading = bundle.read()
    counts = {"runs": 0, "measurements": 0, "already_there": 0}
    try:
        store = Store(tracking_uri, _TIMEOUT_SECONDS)
        if reading.measurements:
            store.plain_experiment(EXPERIMENT, DESCRIPTION)
        experiments = [one.experiment_id for one in pages(store.client.search_experiments)]
        for kind, ones in (("runs", reading.runs), ("measurements", reading.measurements)):
            for one in ones:
                is_there = _is_there(store, experiments, one)
                counts["already_there" if is_there else kind] += 1
                if not is_there:
                    _upload(bundle, one, tracking_uri)
    except Exception as error:  # whatever MLflow raises
        raise TrainingStopped(
            f"{without_password(tracking_uri)} failed after {counts['runs']} runs "
            f"({without_password(first_line(error))}). What came "
            "before is whole: import it again for the rest."
        ) from None
    return Imported(**counts)


def _is_there(store: Store, experiments: list[str], one: TrainedRun | Measurement) -> bool:
    """Also where it was trained or is being trained; not if an import of it is unfinished."""
    if isinstance(one, TrainedRun):
        # A run of before there were uids was exported with its id as one.
        searches = [f"tags.`{Tag.UID}` = '{_uid(one)}'", f"attributes.run_id = '{_uid(one)}'"]
    else:
        same = (Tag.SESSION, Tag.PROTOCOL_FINGERPRINT, Tag.MODEL_FINGERPRINT)
        tags = _measurement_tags(one)
        searches = [" AND ".join(f"tags.`{tag}` = '{tags[tag]}'" for tag in same)]
    found = [run for text in searches for run in store.client.search_runs(experiments, text)]
    return any(run.info.status == "FINISHED" or _is_own(run.data.tags) for run in found)


def _is_own(tags: Mapping[str, str]) -> bool:
    # An import that has just begun has no tags yet.
    return Tag.SCHEMA in tags and Tag.IMPORTED not in tags


def _uid(one: TrainedRun | Measurement) -> str:
    """The same in every store."""
    if isinstance(one, TrainedRun):
        return one.tags[Tag.UID]
    return fingerprint([one.session, one.protocol_fingerprint, one.model_fingerprint])


def _measurement_tags(one: Measurement) -> dict[str, str]:
    tags = {tag: str(getattr(one, field)) for field, tag in MEASUREMENT_TAGS.items()}
    return tags | {Tag.SCHEMA: SCHEMA_VERSION, Tag.KIND: MEASUREMENT}


def _upload(bundle: Bundle, one: TrainedRun | Measurement, uri: str) -> None:
    if isinstance(one, TrainedRun):
        name, experiment, protocol = one.name, one.experiment, one.protocol_name
        description = one.protocol.get("protocol.description", "")
        files: Sequence[Path] = _files(bundle, one)
        records = _run_records(bundle, one)
    else:
        name, experiment, protocol = "measurement", EXPERIMENT, EXPERIMENT
        description = DESCRIPTION
        records, files = _measurement_records(bundle, one), []
    about = {
        **{"uid": _uid(one), "name": name, "experiment": experiment},
        **{"protocol": protocol, "description": description},
    }
    with tempfile.TemporaryDirectory(prefix="mixerbench-") as place:
        folder = Path(place)
        (folder / RUN_FILE).write_text(json.dumps(about))
        for path in files:  # a journal lists files of its own folder only
            shutil.copy(path, folder / path.name)
        (folder / FILE_NAME).write_text("".join(f"{json.dumps(record)}\n" for record in records))
        Upload(folder, Tracking(uri=uri, timeout_seconds=_TIMEOUT_SECONDS)).advance()


def _run_records(bundle: Bundle, run: TrainedRun) -> Iterator[dict[str, Any]]:
    """The journal of a run of a bundle."""
    yield _start(run.name, run.started)
    tags = {key: value for key, value in run.tags.items() if key != Tag.COMMAND}  # anybody's text
    if command := command_of(run, bundle.plugins(run)):
        tags[Tag.COMMAND] = command
    yield _at(run, "tags", {**tags, Tag.IMPORTED: bundle.folder.resolve().name})
    yield _at(run, "params", {k: v for group in run.params.values() for k, v in group.items()})
    single = {k: [(0, value)] for k, value in run.metrics.items() if k != Metric.UPLOADED_AT}
    for key, points in {**single, **bundle.curves(run)}.items():
        for step, value in points:
            yield _at(run, "metrics", {key: value}) | {"step": step}
    for path in _files(bundle, run):
        yield {"kind": "artifact", "time": run.finished, "path": path.name, "folder": ""}
    yield {"kind": "end", "time": run.finished, "status": "FINISHED"}


def _files(bundle: Bundle, run: TrainedRun) -> Sequence[Path]:
    """The artifacts that a bundle holds of a run."""
    names = (Artifact.CONFIG, Artifact.PREDICTIONS, Artifact.HARDEST)
    return [path for name in names if (path := bundle.artifact(run, name)) is not None]


def _start(label: str, time: int) -> dict[str, Any]:
    return {"kind": "start", "time": time, "label": label, "total_steps": 0}


def _measurement_records(bundle: Bundle, one: Measurement) -> Iterator[dict[str, Any]]:
    yield _start("measurement", one.finished)
    yield _at(one, "tags", {**_measurement_tags(one), Tag.IMPORTED: bundle.folder.resolve().name})
    metrics = {k: value for k, value in one.metrics.items() if k != Metric.UPLOADED_AT}
    yield _at(one, "metrics", metrics) | {"step": 0}
    yield {"kind": "end", "time": one.finished, "status": "FINISHED"}


def _at(one: TrainedRun | Measurement, kind: str, values: Mapping[str, object]) -> dict[str, Any]:
    return {"kind": kind, "time": one.finished, "values": dict(values)}
