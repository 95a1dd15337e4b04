"""Feeding MLflow from a journal: in order, in batches, from the background, repeatable.

Metrics keep the time at which they were measured, and MLflow drops exact repetitions, so
a batch that is sent twice is stored once. Where the upload stands is written down after
every batch; a failing server is asked again later and never makes training wait.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from mixerbench.config.schema import Tracking
from mixerbench.files import write_whole
from mixerbench.tracking import keys
from mixerbench.tracking.journal import FILE_NAME, Record, read
from mixerbench.tracking.store import Store, resolve_uri

RUN_FILE = "run.json"
"""What a run is called and where it goes, written when its folder is made."""

CURSOR_FILE = "upload.json"
_METRICS_PER_BATCH = 1000  # MLflow's limits for one call
_PARAMS_PER_BATCH = 100
_PARAM_LENGTH = 6000
_TAG_LENGTH = 8000
_MAX_PAUSE_SECONDS = 60.0


class Upload:
    """Brings the journal of one run folder to MLflow.

    Any number of processes may do so at once, ``mixerbench sync`` beside the run itself.
    """

    def __init__(self, folder: Path, tracking: Tracking) -> None:
        self.folder = folder
        self._tracking = tracking
        self._store: Store | None = None
        self._run: dict[str, Any] = json.loads((folder / RUN_FILE).read_text())
        self._offset = 0
        self.uri = resolve_uri(tracking.uri)
        self.run_id: str | None = None
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
            for records, offset in _batches(read(self.folder / FILE_NAME, self._offset)):
                self._send(records)
                self._offset = offset
                self._remember()

    def _send(self, records: list[Record]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        client, run_id = self._connect(records[0]["time"])
        metrics, params, tags = [], [], []
        for record in records:
            kind, values = record["kind"], record.get("values", {})
            if kind == "metrics":
                metrics += [
                    Metric(key, value, record["time"], record["step"])
                    for key, value in values.items()
                ]
            elif kind == "params":
                params += [Param(k, str(v)[:_PARAM_LENGTH]) for k, v in values.items()]
            elif kind == "tags":
                tags += [RunTag(k, str(v)[:_TAG_LENGTH]) for k, v in values.items()]
        for start in range(0, len(params), _PARAMS_PER_BATCH):
            client.log_batch(run_id, params=params[start : start + _PARAMS_PER_BATCH])
        if metrics or tags:
            client.log_batch(run_id, metrics=metrics, tags=tags)
        for record in records:
            if record["kind"] == "artifact":
                path = self.folder / record["path"]
                if path.exists():  # a checkpoint may have been replaced by a newer one
                    client.log_artifact(run_id, str(path), record["folder"] or None)
            elif record["kind"] == "start":
                client.update_run(run_id, status="RUNNING")
            elif record["kind"] == "end":
                client.log_metric(run_id, keys.Metric.UPLOADED_AT, time.time())
                client.set_terminated(run_id, record["status"], record["time"])
                self._delete_doubles(client, run_id)

    def _connect(self, start_time: int) -> tuple[Any, str]:
        if self._store is None or self._store.uri != self.uri:
            self._store = Store(self.uri, self._tracking.timeout_seconds)
        client = self._store.client
        if self.run_id is None:
            run = self._run
            experiment = self._store.experiment(
                run["experiment"], run["protocol"], run["description"]
            )
            # A run that was made just before this process died is found again.
            found = self._find(client, experiment)
            self.run_id = (
                found[0]
                if found
                else client.create_run(
                    experiment, start_time, {keys.Tag.UID: run["uid"]}, run["name"]
                ).info.run_id
            )
            self._remember()
        return client, self.run_id

    def _find(self, client: Any, experiment: str) -> list[str]:
        """The MLflow runs that were made for this folder."""
        found = client.search_runs([experiment], f"tags.`{keys.Tag.UID}` = '{self._run['uid']}'")
        return [run.info.run_id for run in found]

    def _delete_doubles(self, client: Any, run_id: str) -> None:
        """A server that was too slow made an empty run for every time that it was asked."""
        for other in self._find(client, client.get_run(run_id).info.experiment_id):
            if other != run_id:
                client.delete_run(other)

    def _recall(self) -> None:
        """Go on where this process or another one has come to."""
        try:
            state = json.loads((self.folder / CURSOR_FILE).read_text())
        except (FileNotFoundError, ValueError):
            return  # never written, or emptied by a crash: what is there already is found
        self._offset = max(self._offset, state["offset"])
        self.uri = state["uri"]
        self.run_id = state["run_id"]

    def _remember(self) -> None:
        state = {"uri": self.uri, "run_id": self.run_id, "offset": self._offset}
        # A full disk is no reason to stop: from an old cursor, more is sent than needed.
        with suppress(OSError):
            write_whole(self.folder / CURSOR_FILE, json.dumps(state))


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
    """Records in order, as many at once as one call may hold metrics."""
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
