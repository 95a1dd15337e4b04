"""Reads runs through MLflow's public client, and says how many it had to leave out and why."""

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
PAGE = 200  # runs; about 1 s from a server, well below its time limit of 30 s

# MLflow stores infinity as the largest double.
LARGEST = 1.797e308


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
    protocol: Mapping[str, str]  # {"protocol.recipe.epochs": "300"}, values as logged
    metrics: Mapping[str, float]  # last values; NaN and infinite ones are left out


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
    """All finished mixerbench runs of a store or server; runs of others and deleted runs are ignored.

    Takes about 4 ms per run, after 3 s for importing mlflow.
    ValueError: no store or server there, or MLflow refuses to read it. Never creates a store.
    """
    _check_exists(tracking_uri)
    import mlflow

    try:
        with _http_limits(timeout_s=10, retries=0):
            client = mlflow.MlflowClient(tracking_uri=tracking_uri)
            client.search_experiments(max_results=1)  # is anybody there?
        with _http_limits(timeout_s=30, retries=1):
            found = dict(_all_runs(client))
    except mlflow.MlflowException as error:
        # One line and no password: MLflow's message can be a page of HTML, and repeats the URI.
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            _without_password(
                f"cannot read MLflow at {tracking_uri}: {reason}. "
                "Expected a running server or a store of this MLflow version; "
                "check the address, the network and `mlflow --version`."
            )
        ) from None
    runs, skipped = [], Counter[str]()
    for experiment, logged in found.values():
        if not any(tag.startswith("mixerbench.") for tag in logged.data.tags):
            continue
        if reason := _reason_to_skip(logged):
            skipped[reason] += 1
        else:
            runs.append(_run(experiment, logged))
    return Reading(tuple(runs), dict(skipped))


def skipped_line(skipped: Mapping[str, int]) -> str:
    """``Not on a board: 2 failed, 1 of schema 0``, or an empty string."""
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    return f"Not on a board: {counts}." if counts else ""


def _all_runs(client: Any) -> Iterator[tuple[str, tuple[str, "MlflowRun"]]]:
    """(run id, (experiment, run)); a run that starts meanwhile shifts the pages, so ids can repeat."""
    names = {e.experiment_id: e.name for e in _pages(client.search_experiments)}
    if names:
        for run in _pages(client.search_runs, experiment_ids=list(names)):
            yield run.info.run_id, (names[run.info.experiment_id], run)


def _pages(search: Any, **arguments: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(max_results=PAGE, page_token=token, **arguments)
        yield from page
        token = page.token
        if not token:
            return


def _reason_to_skip(run: "MlflowRun") -> str:
    tags = run.data.tags
    if (schema := tags.get(Tag.SCHEMA, "unknown")) != SCHEMA_VERSION:
        return f"of schema {schema} (this is {SCHEMA_VERSION})"
    if run.info.status != "FINISHED":
        return {"RUNNING": "not finished", "SCHEDULED": "not finished"}.get(
            run.info.status, run.info.status.lower()
        )
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
    return abs(value) < LARGEST  # false for NaN


def _check_exists(tracking_uri: str) -> None:
    """MLflow would create a missing SQLite file, and its tables in a file that is no MLflow store."""
    scheme, separator, rest = tracking_uri.partition("://")
    if not separator or scheme.partition("+")[0] not in SCHEMES:
        raise ValueError(
            f"cannot read MLflow at {tracking_uri!r}: expected sqlite:///PATH, http://HOST:PORT "
            "or a database URI. A file store (mlruns/) can be migrated by `mlflow migrate-filestore`."
        )
    if not scheme.startswith("sqlite"):
        return
    path = Path(rest.partition("?")[0][1:])
    problem = "there is no such file"
    if path.is_file():
        problem = "this file is no MLflow store"
        try:
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as store:
                store.execute("SELECT 1 FROM experiments LIMIT 1")
            return
        except sqlite3.DatabaseError as error:
            problem += f" ({error})"
    raise ValueError(
        f"cannot read MLflow at {tracking_uri}: {problem}. "
        "Expected the SQLite store that a training run has written; train first, or give its URI "
        "(four slashes before an absolute path: sqlite:////home/me/mlflow.db)."
    )


@contextmanager
def _http_limits(*, timeout_s: int, retries: int) -> Iterator[None]:
    """MLflow's client waits 247 s for a dead server; only the environment can tell it otherwise.

    Limits that the user has set stay.
    """
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
            os.environ.pop(name, None)


def _without_password(message: str) -> str:
    return re.sub(r"://[^/@\s]*@", "://***@", message)
