"""Feeding MLflow from a journal: in order, in batches, from the background, repeatable.

Metrics keep the time at which they were measured, and MLflow drops exact repetitions, so
a batch that is sent twice is stored once. Where the upload stands is written down after
every batch; a failing server is asked again later and never makes training wait.
"""

import json
import posixpath
import re
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from mixerbench.config.schema import Tracking
from mixerbench.errors import Refusal, first_line
from mixerbench.files import write_whole
from mixerbench.tracking import keys
from mixerbench.tracking.journal import FILE_NAME, Record, read
from mixerbench.tracking.passwords import without_password
from mixerbench.tracking.store import Store, resolve_uri

RUN_FILE = "run.json"
"""What a run is called and where it goes, written when its folder is made."""

CURSOR_FILE = "upload.json"
_METRICS_PER_BATCH = 1000  # MLflow's limits for one call
_PARAMS_PER_BATCH = 100
_PARAM_LENGTH = 6000
_TAG_LENGTH = 8000
_KEY = re.compile(r"[\w.\-/: ]{1,250}")  # what MLflow takes
_MAX_PAUSE_SECONDS = 60.0


class Upload:
    """Brings the journal of one run folder to MLflow.

    Any number of processes may do so at once, ``mixerbench sync`` beside the run itself.
    """

    def __init__(self, folder: Path, tracking: Tracking) -> None:
        """
        Raises:
            Refusal: the folder's run.json is damaged, or is not one of mixerbench.
        """
        self.folder = folder
        self._tracking = tracking
        self._store: Store | None = None
        self._refused: set[str] = set()
        self._run: dict[str, str] = _read_run(folder / RUN_FILE)
        self._offset = 0
        self.uri = resolve_uri(tracking.uri)
        self.run_id: str | None = None
        self._own_run: str | None = None  # the run_id, once it is known to belong to this folder
        self._recall()

    def is_complete(self) -> bool:
        return next(read(self.folder / FILE_NAME, self._offset), None) is None

    def advance(self) -> None:
        """Send everything that is in the journal and not in MLflow yet.

        Raises:
            Exception: whatever MLflow raises; what was sent before stays sent.
        """
        # Two at once would each make an MLflow run. A process that dies leaves the lock open.
        with FileLock(self.folder / f"{CURSOR_FILE}.lock"):
            self._recall()
            self._check_run()
            for records, offset in _batches(read(self.folder / FILE_NAME, self._offset)):
                self._send(records)
                self._offset = offset
                self._remember()

    def _send(self, records: list[Record]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        client, run_id = self._connect(records[0]["time"])
        metrics, params, tags = [], [], []
        for record in records:
            kind = record["kind"]
            values = self._acceptable(record)
            if kind == "metrics":
                metrics += [
                    Metric(key, value, record["time"], record["step"])
                    for key, value in values.items()
                ]
            elif kind == "params":
                params += [Param(k, _text(v)[:_PARAM_LENGTH]) for k, v in values.items()]
            elif kind == "tags":
                tags += [RunTag(k, _text(v)[:_TAG_LENGTH]) for k, v in values.items()]
        for start in range(0, len(params), _PARAMS_PER_BATCH):
            client.log_batch(run_id, params=params[start : start + _PARAMS_PER_BATCH])
        if metrics or tags:
            client.log_batch(run_id, metrics=metrics, tags=tags)
        for record in records:
            if record["kind"] == "artifact":
                path = self._file(record["path"], record["folder"])
                if path is not None:
                    client.log_artifact(run_id, str(path), record["folder"] or None)
            elif record["kind"] == "start":
                client.update_run(run_id, status="RUNNING")
            elif record["kind"] == "end":
                client.log_metric(run_id, keys.Metric.UPLOADED_AT, time.time())
                client.set_terminated(run_id, record["status"], record["time"])
                self._delete_doubles(client, run_id)

    def _acceptable(self, record: Record) -> dict[str, Any]:
        """The values of a record that MLflow accepts; a journal may be damaged, or from a stranger.

        One value that MLflow refused would keep everything after it out of the store.
        """
        kept = {}
        for key, value in record.get("values", {}).items():
            is_number = isinstance(value, float) or (
                type(value) is int and abs(value) <= sys.float_info.max
            )
            if not _KEY.fullmatch(key) or posixpath.normpath(key) != key or key[0] in "./":
                self._refuse(f"{key!r:.60}, which is no name of a value")
            elif record["kind"] == "metrics" and not is_number:
                self._refuse(f"{key}, whose value is {value!r:.60} and no number that fits")
            elif isinstance(value, (dict, list)):
                self._refuse(f"{key}, whose value is {value!r:.60} and no single one")
            else:
                kept[key] = value
        return kept

    def _file(self, name: str, target: str) -> Path | None:
        """A file below the run's folder, links resolved, that a record wants to be uploaded.

        None if it is gone, as a checkpoint that a newer one has replaced. Files elsewhere are not
        sent: a journal from a stranger could list any file.

        Args:
            target: the folder of the store that the record asks for.
        """
        if "\0" in name + target:
            self._refuse(f"the file {name!r:.200}: that is no name")
            return None
        path = self.folder / name
        inside = path.resolve().is_relative_to(self.folder.resolve())
        below = ".." not in Path(target).parts and not Path(target).is_absolute()
        if not inside or not below or ".." in Path(name).parts:
            self._refuse(f"the file {name!r:.200}: only those below {self.folder} are uploaded")
        elif path.exists() and not path.is_file():
            self._refuse(f"{name!r:.200}: it is no file")
        elif path.exists():
            return path
        return None

    def _refuse(self, what: str) -> None:
        if what not in self._refused:
            self._refused.add(what)
            print(f"mixerbench: {self.folder}: not uploaded: {what}", file=sys.stderr)

    def _open(self) -> Store:
        if self._store is None or self._store.uri != self.uri:
            self._store = Store(self.uri, self._tracking.timeout_seconds)
        return self._store

    def _connect(self, start_time: int) -> tuple[Any, str]:
        store = self._open()
        client = store.client
        if self.run_id is None:
            run = self._run
            experiment = store.experiment(run["experiment"], run["protocol"], run["description"])
            # An earlier process may have made the run and died before it wrote that down.
            existing = self._find(client, experiment)
            self.run_id = (
                existing[0]
                if existing
                else client.create_run(
                    experiment, start_time, {keys.Tag.UID: run["uid"]}, run["name"]
                ).info.run_id
            )
            self._own_run = self.run_id
            self._remember()
        return client, self.run_id

    def _find(self, client: Any, experiment: str) -> list[str]:
        """The MLflow runs that were made for this folder."""
        runs = client.search_runs([experiment], f"tags.`{keys.Tag.UID}` = '{self._run['uid']}'")
        return [run.info.run_id for run in runs]

    def _delete_doubles(self, client: Any, run_id: str) -> None:
        """Delete the empty runs that a slow server has made for requests that were repeated."""
        for other in self._find(client, client.get_run(run_id).info.experiment_id):
            if other != run_id:
                client.delete_run(other)

    def _recall(self) -> None:
        """Go on from the point that this process or another one has reached."""
        state = read_cursor(self.folder)
        if state is None or state["uri"] != without_password(self.uri):
            return  # never written, damaged, or of another store: the store itself is asked later
        self._offset = max(self._offset, state["offset"])
        self.run_id = state["run_id"]

    def _check_run(self) -> None:
        """Start from the beginning if the cursor, a file that may be copied, names another run."""
        if self.run_id is None or self.run_id == self._own_run:
            return
        tags = self._open().client.get_run(self.run_id).data.tags
        if tags.get(keys.Tag.UID) == self._run["uid"]:
            self._own_run = self.run_id
        else:
            self.run_id, self._offset = None, 0

    def _remember(self) -> None:
        state = {"uri": without_password(self.uri), "run_id": self.run_id, "offset": self._offset}
        # A full disk is no reason to stop: from an old cursor, more is sent than needed.
        with suppress(OSError):
            write_whole(self.folder / CURSOR_FILE, json.dumps(state))


def _text(value: Any) -> str:
    return without_password(str(value))  # journals of earlier versions hold some


def read_cursor(folder: Path) -> dict[str, Any] | None:
    """How far a run's journal was uploaded, and to which store; None: not at all, or unknown."""
    try:
        state = json.loads((folder / CURSOR_FILE).read_text())
        uri, run_id, offset = state["uri"], state["run_id"], state["offset"]
        known = isinstance(uri, str) and isinstance(run_id, (str, type(None)))
        if not known or type(offset) is not int or offset < 0:
            return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return {"uri": without_password(uri), "run_id": run_id, "offset": offset}


def sync_command(folder: Path, uri: str | None) -> str:
    """The command that uploads the rest of a run to its store."""
    wanted = resolve_uri(uri)
    more = f" --uri {shlex.quote(without_password(wanted))}" if wanted != resolve_uri(None) else ""
    return f"mixerbench sync {shlex.quote(str(folder))}{more}"


def _read_run(path: Path) -> dict[str, str]:
    try:
        run = json.loads(path.read_text())
        fields = {key: run[key] for key in ("experiment", "protocol", "description", "uid", "name")}
        if not all(isinstance(value, str) for value in fields.values()):
            raise Refusal("a value is no text")
        if not re.fullmatch(r"[\w-]{1,64}", fields["uid"]):
            raise Refusal("its uid is none of ours")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise Refusal(f"{path} is damaged, or no run's ({reason}).") from None
    return fields


class BackgroundUpload:
    """An ``Upload`` that runs in a thread until it is closed."""

    def __init__(self, folder: Path, tracking: Tracking) -> None:
        self._upload = Upload(folder, tracking)
        self._every = tracking.upload_every_seconds
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="mixerbench-upload", daemon=True)
        self._thread.start()

    def close(self, timeout_seconds: float) -> bool:
        """Send the rest; False if the store did not take it in time (``error`` says why)."""
        self._closing.set()
        self._thread.join(timeout_seconds)
        self._given_up.set()
        return not self._thread.is_alive() and self.error is None

    def _work(self) -> None:
        pause = self._every
        while True:
            closing = self._closing.wait(pause)
            try:
                self._upload.advance()
                self.error = None
                pause = self._every
            except Exception as error:  # whatever MLflow raises, training goes on
                self.error = error
                pause = min(2 * pause, _MAX_PAUSE_SECONDS)
            if closing and (self.error is None or self._given_up.wait(min(self._every, 1.0))):
                return


def _batches(records: Iterator[tuple[Record, int]]) -> Iterator[tuple[list[Record], int]]:
    """Groups of records, in order; each holds at most as many metrics as MLflow takes in a call."""
    batch: list[Record] = []
    size, end = 0, 0
    for record, offset in records:
        length = len(record["values"]) if record["kind"] == "metrics" else 0
        if batch and size + length > _METRICS_PER_BATCH:
            yield batch, end
            batch, size = [], 0
        batch.append(record)
        size, end = size + length, offset
    if batch:
        yield batch, end
