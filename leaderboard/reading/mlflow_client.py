"""How an MLflow store is reached: addresses, time limits, MLflow's own environment."""

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote

from mixerbench.tracking.passwords import without_password
from mixers.core.errors import Refusal

SCHEMES = ("sqlite", "file", "http", "https", "postgresql", "mysql", "mssql")
QUIET = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}


def check_exists(tracking_uri: str) -> None:
    """MLflow would create a missing SQLite file, and its tables in any other SQLite file."""
    scheme, separator, _ = tracking_uri.partition("://")
    if not separator or scheme.partition("+")[0] not in SCHEMES:
        raise Refusal(
            f"cannot read MLflow at {without_password(tracking_uri)!r}: expected "
            "sqlite:///PATH, http://HOST:PORT, a database URI, file:///FOLDER (an old mlruns/), "
            "or the folder of a bundle."
        )
    problem = ""
    path = local_path(tracking_uri)
    if scheme == "file":
        if path is None or not any(path.glob("*/meta.yaml")):
            problem = "there is no folder of experiments with a meta.yaml each"
    elif path is not None:
        if not path.is_file():
            problem = "there is no such file"
        else:
            try:
                uri = f"{path.resolve().as_uri()}?mode=ro"
                with closing(sqlite3.connect(uri, uri=True)) as store:
                    store.execute("SELECT 1 FROM experiments LIMIT 1")
            except sqlite3.DatabaseError as error:
                problem = f"this file is no MLflow store ({error})"
    if problem:
        raise Refusal(
            f"cannot read MLflow at {without_password(tracking_uri)}: {problem}. "
            "Expected the store of a training run; train first, or give its URI (an absolute path: sqlite:////home/me/mlflow.db)."
        )


def local_path(tracking_uri: str) -> Path | None:
    """Of a SQLite file or a folder of this machine; None: a server's or a database's."""
    scheme, _, rest = tracking_uri.partition("://")
    if scheme == "file":
        return Path(unquote(rest))
    return Path(rest.partition("?")[0][1:]) if scheme.startswith("sqlite") else None


@contextmanager
def mirror_of(tracking_uri: str) -> Iterator[str]:
    """The same store, but of a plain folder one of links: MLflow would make a folder in it."""
    if not tracking_uri.startswith("file:"):
        yield tracking_uri
        return
    root = local_path(tracking_uri)
    assert root is not None
    # MLflow 3.17 wants to be told that a plain folder is meant.
    with (
        tempfile.TemporaryDirectory(prefix="mixerbench-") as mirror,
        environment(MLFLOW_ALLOW_FILE_STORE="true"),
    ):
        for path in root.resolve().iterdir():
            (Path(mirror) / path.name).symlink_to(path)
        yield Path(mirror).as_uri()


def http_limits(*, timeout_s: int, retries: int) -> dict[str, str]:
    """MLflow waits 247 s for a dead server, unless the environment says less."""
    return {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
    }


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Variables of the environment for a while, where the user has not set them."""
    ours = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]
