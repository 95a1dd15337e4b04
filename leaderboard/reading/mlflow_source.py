"""Reads an MLflow store through MLflow's public client; of a database also which runs it lists.

What was read stays in a cache, and only what is new is asked for: a SQLite store that has not
changed is not even opened.
"""

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaderboard.reading.cache import Cache
from leaderboard.reading.curves import CURVES, Curves, read_curves, thinned
from leaderboard.reading.mlflow_client import (
    QUIET,
    check_exists,
    environment,
    http_limits,
    local_path,
    mirror_of,
)
from leaderboard.reading.mlflow_pages import batches, pages, state_of
from leaderboard.reading.results import Reading, State, TrainedRun
from leaderboard.reading.states import reading_of
from mixerbench.tracking.keys import Metric
from mixerbench.tracking.passwords import without_password
from mixers.core.errors import Refusal

if TYPE_CHECKING:
    from mlflow import MlflowClient


NEWEST = 3  # runs that a server is asked for, one by one, each time
_NAMES = "names.json"  # of the artifacts that a run has
CLOCK_SKEW_MS = 10 * 60 * 1000  # between the machines that upload to one store


class MlflowSource:
    """An MLflow store, and what was read of it before.

    The first reading takes about 2 ms a run, after 3 s for importing mlflow. Later ones ask for
    what ended or was uploaded since, for what runs, for what is deleted, and whether what was read
    is still there and as it was: of a database for every run, of a server for the newest ones.
    After ``refresh`` only is seen: a tag or a metric that somebody changed by hand, and of a server
    a run that was deleted and removed for good (``mlflow gc``) between two readings.
    """

    def __init__(self, tracking_uri: str, *, refresh: bool = False) -> None:
        """Prepare to read; a server is not asked yet.

        Raises:
            Refusal: there is no store at this address.
        """
        check_exists(tracking_uri)
        self.uri = tracking_uri
        path = local_path(tracking_uri)
        self.name = path.name if path else without_password(tracking_uri)
        self.cache = Cache(f"store {path.resolve()}" if path else tracking_uri)
        if refresh:
            self.cache.clear()
            self.cache.forget(f"artifacts/*/{_NAMES}")

    def read(self) -> Reading:
        """All finished runs and measurements.

        Raises:
            Refusal: MLflow refuses to read the store, or the server does not answer.
        """
        try:
            return self._read()
        except (OSError, sqlite3.Error) as error:  # the cache's: MLflow's are ValueErrors here
            self.cache.replace(error)
            return self._read()

    def _read(self) -> Reading:
        with self.cache.alone():  # the second of two processes finds everything done
            facts, version = self.cache.facts(), self._version()
            if version is None or facts.get("version") != version:
                with self._client() as client:
                    self._update(client, facts, version)
        experiments = json.loads(self.cache.facts()["experiments"])
        return reading_of(self.cache.runs(), self.cache.parts(), experiments)

    def artifact(self, run: TrainedRun, name: str, *, again: bool = False) -> Path | None:
        """Downloaded once: a finished run keeps its artifacts.

        Raises:
            Refusal: as `read`.
        """

        def list_names(path: Path) -> None:
            with self._client() as client:
                found = [artifact.path for artifact in client.list_artifacts(run.run_id)]
            path.write_text(json.dumps(found))

        def download(path: Path) -> None:
            with self._client() as client:
                client.download_artifacts(run.run_id, name, str(path.parent))

        kept = ("artifacts", _version_of(run))
        listing = self.cache.file(*kept, _NAMES, make=list_names, again=again)
        if name not in json.loads(listing.read_text()):
            return None
        return self.cache.file(*kept, "files", name, make=download, again=again)

    def curves(self, run: TrainedRun) -> Curves:
        """The curves of a run, each of at most `CURVE_POINTS` points; downloaded once.

        Raises:
            Refusal: as `read`.
        """

        def download(path: Path) -> None:
            with self._client() as client:
                curves = {
                    key: [(m.step, m.value) for m in client.get_metric_history(run.run_id, key)]
                    for key in CURVES
                    if key in run.metrics
                }
            path.write_text(json.dumps({k: thinned(points) for k, points in curves.items()}))

        path = self.cache.file("artifacts", _version_of(run), "curves.json", make=download)
        return read_curves(path)

    def _version(self) -> str | None:
        """Changes whenever a SQLite store does; None: nobody can tell without asking."""
        if not self.uri.startswith("sqlite"):
            return None
        parts = []
        for suffix in ("", "-wal"):
            path = Path(f"{local_path(self.uri)}{suffix}")
            if path.exists():
                stat = path.stat()
                with open(path, "rb") as file:
                    # Counts SQLite's writes: times of files stand still for some milliseconds.
                    counter = file.read(28)[24:].hex()
                parts.append(f"{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}-{counter}")
        return " ".join(parts)

    @contextmanager
    def _client(self) -> Iterator["MlflowClient"]:
        import mlflow

        try:
            with mirror_of(self.uri) as uri, environment(**QUIET):
                with environment(**http_limits(timeout_s=10, retries=0)):
                    client = mlflow.MlflowClient(tracking_uri=uri)
                    if uri.startswith("http"):
                        client.search_experiments(max_results=1)  # is anybody there?
                with environment(**http_limits(timeout_s=30, retries=1)):
                    yield client
        # ImportError: a database's driver; OSError: an artifact that cannot be reached.
        except (mlflow.MlflowException, ImportError, OSError) as error:
            # One line and no password: the message may be a page of HTML, and repeats the URI.
            reason = " ".join(str(error).split())[:300]
            message = (
                f"cannot read MLflow at {self.uri}: expected a running server, or a store of this "
                "MLflow version. Check the address and `mlflow --version`. "
                f"MLflow says: {reason}"
            )
            raise Refusal(without_password(message)) from None

    def _update(
        self, client: "MlflowClient", facts: Mapping[str, str], version: str | None
    ) -> None:
        from mlflow.entities import ViewType

        listed = list(pages(client.search_experiments))
        experiments = {e.experiment_id: e.name for e in listed}
        born = {e.experiment_id: e.creation_time for e in listed}
        before = json.loads(facts.get("born", "{}"))
        if any(before.get(experiment, born[experiment]) != born[experiment] for experiment in born):
            self.cache.clear()  # another store stands where this one was
            facts, before = {}, {}
        cached, there = self.cache.runs(), self._listed()
        if there is None and _newest_are_gone(client, cached):
            self.cache.clear()  # a backup of it was put back: what else is gone, nobody tells
            facts, before, cached = {}, {}, {}
        new = [experiment for experiment in experiments if experiment not in before]
        old = [experiment for experiment in experiments if experiment in before]
        since = int(facts.get("since", 0))
        searches: list[tuple[list[str], dict[str, Any]]] = [(new, {})]
        searches += [
            (old, {"filter_string": text})
            for text in (
                f"attributes.end_time > {since}",
                f"metrics.`{Metric.UPLOADED_AT}` > {since / 1000}",
                "attributes.status = 'RUNNING'",
                "attributes.status = 'SCHEDULED'",
            )
        ]
        searches.append((list(experiments), {"run_view_type": ViewType.DELETED_ONLY}))

        known = set(self.cache.parts())
        seen: set[str] = set()
        latest = since + CLOCK_SKEW_MS
        for ids, arguments in searches:
            if not ids:
                continue
            found = pages(client.search_runs, experiment_ids=ids, **arguments)
            for page in batches(found):
                states: dict[str, State] = {}
                parts: dict[str, dict[str, str]] = {}
                for run in page:
                    state, own = state_of(run)
                    states[run.info.run_id] = state
                    parts |= {digest: own[digest] for digest in own.keys() - known}
                    uploaded = state["metrics"].get(Metric.UPLOADED_AT, 0) * 1000
                    latest = max(latest, state["finished"], int(uploaded))
                self.cache.update(states, parts)
                known |= parts.keys()
                seen |= states.keys()
        # Runs that the searches did not return although they must have changed: they ran or were
        # deleted before, or their experiment was restored. Each is asked for.
        restless = ("RUNNING", "SCHEDULED")
        lost = [
            run_id
            for run_id, state in cached.items()
            if run_id not in seen
            and state["experiment"] in experiments
            and (state["status"] in restless or state["deleted"] or state["experiment"] in new)
        ]
        if there is not None:
            self.cache.update(gone=cached.keys() - there.keys())
            lost = [run_id for run_id in lost if run_id in there]
            # Runs that differ from what was read, as after a backup was put back.
            lost += [
                run_id
                for run_id, now in there.items()
                if now[0] in experiments
                and run_id not in seen
                and now != _listed_as(cached.get(run_id, {}))
            ]
        for run_id in lost:
            self._update_one(client, run_id)
        # Of a run whose clock is wrong, "until 2030" would hide all that comes before.
        latest = min(latest, int(time.time() * 1000))
        self.cache.update(
            facts={
                "experiments": json.dumps(experiments),
                "born": json.dumps(born),
                "since": str(latest - CLOCK_SKEW_MS),
                "version": version or "",
            }
        )

    def _listed(self) -> dict[str, tuple[Any, ...]] | None:
        """Every run that a database has, as `_listed_as`; None: it is no database.

        MLflow's client makes objects of a run's metrics, 2 ms a run; these four columns take 5 µs.
        """
        if self.uri.startswith(("http", "file")):
            return None
        from sqlalchemy import create_engine, text
        from sqlalchemy.exc import SQLAlchemyError

        columns = "run_uuid, experiment_id, status, COALESCE(end_time, 0), lifecycle_stage"
        try:
            engine = create_engine(self.uri)
            with engine.connect() as connection:
                rows = connection.execute(text(f"SELECT {columns} FROM runs")).all()
            engine.dispose()
        except SQLAlchemyError:  # tables of another MLflow: its client may read them still
            return None
        return {
            run_id: (str(experiment), status, finished, stage == "deleted")
            for run_id, experiment, status, finished, stage in rows
        }

    def _update_one(self, client: "MlflowClient", run_id: str) -> None:
        import mlflow

        try:
            run = client.get_run(run_id)
        except mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.cache.update(gone=[run_id])
            return
        state, parts = state_of(run)
        self.cache.update({run_id: state}, parts)


def _listed_as(state: State) -> tuple[Any, ...]:
    """What tells whether a run is still as it was read."""
    return tuple(state.get(key) for key in ("experiment", "status", "finished", "deleted"))


def _newest_are_gone(client: "MlflowClient", cached: Mapping[str, State]) -> bool:
    """Are the runs that ended last not there any more? A backup is older than they are."""
    import mlflow

    for run_id in sorted(cached, key=lambda run_id: cached[run_id]["finished"])[-NEWEST:]:
        try:
            client.get_run(run_id)
        except mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return True
    return False


def _version_of(run: TrainedRun) -> str:
    """A run that was resumed has other artifacts than before."""
    return f"{run.run_id}-{run.finished}"
