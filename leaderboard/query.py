"""Reads runs through MLflow's public client, and counts those it leaves out, with the reason."""

import math
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mixerbench.tracking.keys import SCHEMA_VERSION, Metric, Param, Tag

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql")
PAGE = 200  # runs; a server takes about 1 s, its time limit below is 30 s
INFINITY = 1.797e308  # as MLflow stores it


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One finished training run, as logged."""

    run_id: str
    name: str
    experiment: str
    finished: int  # milliseconds since 1970
    model: str
    model_fingerprint: str
    mixer: str
    size: str
    backbone: str
    stem: str
    protocol_name: str
    protocol_fingerprint: str
    seed: str
    synthetic: bool
    hardware: str
    protocol: Mapping[str, str]  # {"protocol.recipe.epochs": "300"}
    metrics: Mapping[str, float]  # last values; NaN and infinity are left out


TAGS = {
    "model": Tag.MODEL,
    "model_fingerprint": Tag.MODEL_FINGERPRINT,
    "mixer": Tag.MIXER,
    "size": Tag.SIZE,
    "backbone": Tag.BACKBONE,
    "stem": Tag.STEM,
    "protocol_name": Tag.PROTOCOL,
    "protocol_fingerprint": Tag.PROTOCOL_FINGERPRINT,
    "seed": Tag.SEED,
    "hardware": Tag.HARDWARE,
}


class Reading(NamedTuple):
    runs: tuple[Run, ...]
    skipped: Mapping[str, int]  # reason: number of runs


def read_runs(tracking_uri: str) -> Reading:
    """All finished mixerbench runs of a store or server; deleted and foreign runs are ignored.

    About 4 ms per run, after 3 s for importing mlflow. Never creates a store.
    ValueError: no store or server there, or MLflow refuses to read it.
    """
    _check_exists(tracking_uri)
    import mlflow

    try:
        with _http_limits(timeout_s=10, retries=0):
            client = mlflow.MlflowClient(tracking_uri=tracking_uri)
            client.search_experiments(max_results=1)  # is anybody there?
        with _http_limits(timeout_s=30, retries=1):
            names = {e.experiment_id: e.name for e in _pages(client.search_experiments)}
            found = _pages(client.search_runs, experiment_ids=list(names)) if names else ()
            # A run that starts meanwhile shifts the pages: one may come twice.
            logged = {run.info.run_id: run for run in found}
    except (mlflow.MlflowException, ImportError) as error:  # ImportError: a database's driver
        # One line and no password: the message may be a page of HTML, and repeats the URI.
        reason = " ".join(str(error).split())[:300]
        message = (
            f"cannot read MLflow at {tracking_uri}: expected a running server, or a store of this "
            f"MLflow version. Check the address and `mlflow --version`. MLflow says: {reason}"
        )
        raise ValueError(re.sub(r"://[^/@\s]*@", "://***@", message)) from None
    runs, skipped = [], Counter[str]()
    for run in logged.values():
        if any(tag.startswith("mixerbench.") for tag in run.data.tags):
            if reason := _reason_to_skip(run):
                skipped[reason] += 1
            else:
                runs.append(_run(names[run.info.experiment_id], run))
    return Reading(tuple(runs), dict(skipped))


def skipped_line(skipped: Mapping[str, int]) -> str:
    """``Not on a board: 2 failed, 1 of schema 0 (this is 1).``, or an empty string."""
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    return f"Not on a board: {counts}." if counts else ""


def _pages(search: Any, **arguments: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(max_results=PAGE, page_token=token, **arguments)
        yield from page
        token = page.token
        if not token:
            return


def _reason_to_skip(run: "MlflowRun") -> str:
    tags, status = run.data.tags, str(run.info.status)
    if (schema := tags.get(Tag.SCHEMA, "unknown")) != SCHEMA_VERSION:
        return f"of schema {schema} (this is {SCHEMA_VERSION})"
    if status != "FINISHED":
        return "not finished" if status in ("RUNNING", "SCHEDULED") else status.lower()
    if missing := [tag for tag in TAGS.values() if not tags.get(tag)]:
        return f"without tag {missing[0]}"
    if not _is_finite(run.data.metrics.get(Metric.FINAL_TOP1, math.nan)):
        return f"without {Metric.FINAL_TOP1}"
    return ""


def _run(experiment: str, run: "MlflowRun") -> Run:
    return Run(
        run_id=run.info.run_id,
        name=run.info.run_name or run.info.run_id,
        experiment=experiment,
        finished=run.info.end_time or 0,
        synthetic=run.data.tags.get(Tag.SYNTHETIC) == "true",
        protocol={k: v for k, v in run.data.params.items() if k.startswith(Param.PROTOCOL)},
        metrics={k: v for k, v in run.data.metrics.items() if _is_finite(v)},
        **{field: run.data.tags[tag] for field, tag in TAGS.items()},
    )


def _is_finite(value: float) -> bool:
    return abs(value) < INFINITY  # false for NaN


def _check_exists(tracking_uri: str) -> None:
    """MLflow would create a missing SQLite file, and its tables in any other SQLite file."""
    scheme, separator, rest = tracking_uri.partition("://")
    if not separator or scheme.partition("+")[0] not in SCHEMES:
        raise ValueError(
            f"cannot read MLflow at {tracking_uri!r}: expected sqlite:///PATH, http://HOST:PORT "
            "or a database URI. `mlflow migrate-filestore` converts a file store (mlruns/)."
        )
    if not scheme.startswith("sqlite"):
        return
    path = Path(rest.partition("?")[0][1:])
    problem = "there is no such file"
    if path.is_file():
        try:
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as store:
                store.execute("SELECT 1 FROM experiments LIMIT 1")
            return
        except sqlite3.DatabaseError as error:
            problem = f"this file is no MLflow store ({error})"
    raise ValueError(
        f"cannot read MLflow at {tracking_uri}: {problem}. Expected the SQLite store of a training "
        "run; train first, or give its URI (an absolute path: sqlite:////home/me/mlflow.db)."
    )


@contextmanager
def _http_limits(*, timeout_s: int, retries: int) -> Iterator[None]:
    """MLflow waits 247 s for a dead server, unless the environment says less. The user's wins."""
    limits = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
    }
    ours = {name: value for name, value in limits.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]
