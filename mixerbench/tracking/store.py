"""Where MLflow's store is, whether it answers, and the experiment that runs go to."""

import http.client
import logging
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from mixerbench.errors import Refusal
from mixerbench.tracking.passwords import without_password
from mixerbench.tracking.views import NOTE, missing_tags

ARTIFACTS = "mlartifacts"
"""The folder of artifacts beside a SQLite store."""

_SQLITE = "sqlite:///"
_SCHEMES = ("postgresql", "mysql", "mssql", "databricks")
_SQLITE_MAGIC = b"SQLite format 3\x00"


def resolve_uri(uri: str | None) -> str:
    """An absolute tracking URI: the setting, else $MLFLOW_TRACKING_URI, else ./mlflow.db.

    ``mlflow ui`` finds ./mlflow.db by itself when it is started in the same folder.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}mlflow.db"
    if uri.startswith(_SQLITE):
        return _SQLITE + str(Path(uri.removeprefix(_SQLITE)).expanduser().absolute())
    return uri


def store_folder(uri: str) -> Path:
    """The folder that a SQLite store lies in."""
    return Path(uri.removeprefix(_SQLITE)).parent


def check_reachable(uri: str, timeout_seconds: float) -> None:
    """Refuse a store that cannot be written to, before any training is done.

    Cheap: MLflow itself takes seconds to import, so a server is asked for its health and one
    experiment, and of a SQLite file the folder and the first bytes are looked at.

    Raises:
        Refusal: it does not answer, or is no store.
    """
    shown = without_password(uri)
    hint = "or train with tracking.offline=true and upload later with 'mixerbench sync'."
    if uri.startswith(("http://", "https://")):
        try:
            _ask_server(uri.rstrip("/"), timeout_seconds)
        except (urllib.error.URLError, OSError, ValueError, http.client.HTTPException) as error:
            status = isinstance(error, urllib.error.HTTPError)
            reason = str(error if status else getattr(error, "reason", error)).strip()
            raise Refusal(
                f"the MLflow server {shown} does not answer ({without_password(reason)}): "
                f"start it, set tracking.uri, {hint}"
            ) from None
    elif uri.startswith(_SQLITE):
        path = Path(uri.removeprefix(_SQLITE))
        if path.is_dir():
            raise Refusal(f"{shown} is a folder: set tracking.uri=sqlite:///FILE.db, {hint}")
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise Refusal(f"no place for {path}: its folder is missing or not writable, {hint}")
        if path.is_file() and path.stat().st_size:
            with open(path, "rb") as file:
                if file.read(len(_SQLITE_MAGIC)) != _SQLITE_MAGIC:
                    raise Refusal(f"{path} is no SQLite database: set tracking.uri, {hint}")
    elif uri.startswith("file:") or "://" not in uri:
        raise Refusal(
            f"tracking.uri={shown}: MLflow no longer writes to plain folders. "
            "Give sqlite:///FILE.db or a server's address."
        )
    elif uri.partition(":")[0].partition("+")[0] not in _SCHEMES:
        raise Refusal(
            f"tracking.uri={shown} is no address of a store: "
            f"give sqlite:///FILE.db, http://HOST:PORT, or a database ({', '.join(_SCHEMES)})."
        )


def _ask_server(uri: str, timeout_seconds: float) -> None:
    parts = urlsplit(uri)  # urllib would take a user and a password for a part of the host
    uri = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    urllib.request.urlopen(f"{uri}/health", timeout=timeout_seconds).close()
    search = f"{uri}/api/2.0/mlflow/experiments/search?max_results=1"
    try:  # a server calls itself healthy also when its database is gone
        urllib.request.urlopen(search, timeout=timeout_seconds).close()
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise  # else it wants a password, which MLflow's own client knows


class Store:
    """A connection to MLflow through its public client; imports MLflow.

    Raises:
        Exception: whatever MLflow raises when the store does not answer.
    """

    def __init__(self, uri: str, timeout_seconds: float) -> None:
        # MLflow's own defaults wait for 247 seconds, and repeating a call whose answer was lost
        # makes a second run. The upload repeats a call by itself, and first looks whether it has
        # succeeded.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(int(max(timeout_seconds, 1))))
        for chatty in ("mlflow", "alembic"):  # they announce every table of a new store
            logging.getLogger(chatty).setLevel(logging.WARNING)
        from filelock import FileLock
        from mlflow import MlflowClient

        self.uri = uri
        if uri.startswith(_SQLITE):
            path = Path(uri.removeprefix(_SQLITE))
            # Processes that make a new SQLite store at the same time break each other.
            with FileLock(f"{path}.lock"):
                if not path.exists() or path.stat().st_size == 0:
                    _make(path)
                self.client: MlflowClient = MlflowClient(uri)
                self.client.search_experiments(max_results=1)
        else:
            self.client = MlflowClient(uri)

    def experiment(self, name: str, protocol: str, description: str) -> str:
        """The id of the experiment ``name``, made and described where it is new or outdated."""
        identifier, tags = self._find_or_make(name)
        for key, value in missing_tags(tags, protocol, description, identifier).items():
            self.client.set_experiment_tag(identifier, key, value)
        return identifier

    def plain_experiment(self, name: str, note: str) -> str:
        """The id of an experiment that holds no training runs; ``note`` describes it."""
        identifier, tags = self._find_or_make(name)
        if NOTE not in tags:
            self.client.set_experiment_tag(identifier, NOTE, note)
        return identifier

    def _find_or_make(self, name: str) -> tuple[str, Mapping[str, str]]:
        from mlflow.exceptions import MlflowException

        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            options: dict[str, Any] = {}
            if self.uri.startswith(_SQLITE):
                # MLflow would write artifacts below the folder that this process is in.
                options["artifact_location"] = (store_folder(self.uri) / ARTIFACTS).as_uri()
            try:
                self.client.create_experiment(name, **options)
            except MlflowException:
                if self.client.get_experiment_by_name(name) is None:
                    raise  # else another process was faster
            experiment = self.client.get_experiment_by_name(name)
            assert experiment is not None
        identifier = str(experiment.experiment_id)
        if experiment.lifecycle_stage == "deleted":
            self.client.restore_experiment(identifier)
        return identifier, experiment.tags


def _make(path: Path) -> None:
    """Make a new SQLite store; after an interruption there is none rather than half of one.

    MLflow makes its tables in many steps. Killed between two of them, it leaves a store that
    nobody can open again, so it works on another file, which is then moved.
    """
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory(prefix=f"{path.name}.new-", dir=path.parent) as folder:
        new = Path(folder) / path.name
        MlflowClient(f"{_SQLITE}{new}").search_experiments(max_results=1)
        os.replace(new, path)
