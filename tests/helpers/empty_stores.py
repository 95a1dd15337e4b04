"""Empty MLflow databases in milliseconds: MLflow itself needs a second of CPU for each."""

import shutil
import tempfile
import warnings
from functools import cache
from pathlib import Path

SQLITE = "sqlite:///"


def prepare(uri: str) -> None:
    """Put an empty database where ``uri`` has none yet; does nothing for servers."""
    path = Path(uri.removeprefix(SQLITE))
    if uri.startswith(SQLITE) and not path.exists():
        shutil.copy(_template(), path)


@cache
def _template() -> Path:
    from mlflow import MlflowClient

    path = Path(tempfile.mkdtemp(prefix="mixerbench-tests-")) / "empty.db"
    with warnings.catch_warnings():  # MLflow 3.17 uses what SQLAlchemy 2.1 will remove
        warnings.simplefilter("ignore", DeprecationWarning)
        MlflowClient(f"{SQLITE}{path}").search_experiments()
    return path
