"""Real training while its MLflow server, or the PostgreSQL behind it, fails.

Training goes on, and in the end MLflow holds what the journal holds: all of it, once.
"""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from tiny_runs import DATA, MODEL

from mixerbench.commands.sync import sync
from mixerbench.config.compose import compose
from mixerbench.config.schema import Settings, Tracking
from mixerbench.errors import Preempted, Refusal
from mixerbench.tracking.journal import FILE_NAME, is_finished, read
from mixerbench.tracking.keys import Metric
from mixerbench.tracking.store import check_reachable
from mixerbench.tracking.upload import BackgroundUpload, Upload
from mixerbench.training.run import run_training

pytestmark = [
    pytest.mark.everything,  # database servers, full disks, minutes of waiting
    pytest.mark.filterwarnings("ignore"),  # mlflow warns about itself
    pytest.mark.xdist_group("mlflow-server"),  # one server, whatever the number of processes
]
WaitFor = Callable[..., None]

TINY = [
    *DATA, *MODEL,
    "recipe.epochs=3", "recipe.batch.size=16", "recipe.batch.micro_batch_size=16",
    "run.measure=false", "run.progress=false", "run.log_every_steps=1", "run.device=cpu",
    "tracking.upload_every_seconds=0.05", "tracking.system_metrics_every_seconds=0.2",
    "tracking.upload_weights=false", "tracking.timeout_seconds=60",
]  # fmt: skip
ENDLESS = ["recipe.epochs=1000000", "run.evaluate_every_epochs=1000000",
           "run.checkpoint_every_epochs=1000000"]  # fmt: skip


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a run of a second that is recorded at ``uri``."""

    def make(uri: str, *overrides: str) -> Settings:
        places = [f"run.root={tmp_path / 'runs'}", f"tracking.uri={uri}"]
        return compose([*TINY, *places, *overrides])

    return make


@pytest.fixture(autouse=True, scope="module")
def _mlflow_is_imported() -> None:
    import mlflow.store.tracking.rest_store  # noqa: F401  seconds, in which nothing is uploaded


def _steps(folder: Path) -> int:
    """How far training has come."""
    steps = [r["step"] for r, _ in read(folder / FILE_NAME) if "train/loss" in r.get("values", {})]
    return max(steps, default=0)


def _assert_mlflow_has_it_all(folder: Path, uri: str) -> None:
    """Every metric, step, value and time of the journal, once, in one run; so all the rest."""
    from mlflow import MlflowClient

    curves: dict[str, list[tuple[int, int, float]]] = {}
    params, tags, artifacts, status = {}, {}, set(), None
    for record, _ in read(folder / FILE_NAME):
        values = record.get("values", {})
        if record["kind"] == "metrics":
            for key, value in values.items():
                curves.setdefault(key, []).append((record["time"], record["step"], value))
        params |= values if record["kind"] == "params" else {}
        tags |= values if record["kind"] == "tags" else {}
        artifacts |= {record["path"]} if record["kind"] == "artifact" else set()
        status = record.get("status", status)

    about = json.loads((folder / "run.json").read_text())
    with pytest.MonkeyPatch.context() as patient:
        patient.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(about["experiment"])
        assert experiment is not None
        (run,) = client.search_runs(
            [experiment.experiment_id], f"tags.`mixerbench.uid` = '{about['uid']}'"
        )
        for key, curve in curves.items():
            found = client.get_metric_history(run.info.run_id, key)
            assert sorted((m.timestamp, m.step, m.value) for m in found) == sorted(curve)
        paths = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert set(run.data.metrics) - {Metric.UPLOADED_AT} == set(curves)
    assert run.data.params == params
    assert tags.items() <= run.data.tags.items()
    assert (run.info.status, paths) == (status, artifacts)
    cursor = json.loads((folder / "upload.json").read_text())
    assert Upload(folder, Tracking(uri=cursor["uri"])).is_complete()


@contextmanager
def _ignoring(number: signal.Signals) -> Iterator[None]:
    """Training listens to it by itself; this is for a signal that comes too late."""
    before = signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(number, before)


def _train_during(settings: Settings, events: Callable[[Path], None]) -> Path:
    """Train for as long as ``events``, in another thread, takes; returns the run's folder."""
    folders: list[Path] = []

    def work() -> None:
        try:
            events(folders[0])
        finally:
            signal.raise_signal(signal.SIGUSR1)  # the run ends after its step

    def begin(folder: Path) -> None:
        folders.append(folder)
        working.append(pool.submit(work))

    working: list[Any] = []
    with _ignoring(signal.SIGUSR1), ThreadPoolExecutor(1) as pool, pytest.raises(Preempted):
        run_training(settings, on_folder=begin)
    working[0].result()
    return folders[0]


# --- during a run ---------------------------------------------------------------------------


@pytest.fixture
def uploads_again(proxy: Any, wait_for: WaitFor) -> Callable[[], None]:
    """Wait until the server has taken some batches."""

    def wait() -> None:
        before = proxy.answered.count(200)
        wait_for(lambda: proxy.answered.count(200) > before + 10, 90)

    return wait


def test_a_run_outlives_its_database_and_its_server(
    tiny: Callable[..., Settings],
    server: Any,
    postgres: Any,
    proxy: Any,
    wait_for: WaitFor,
    uploads_again: Callable[[], None],
) -> None:
    def events(folder: Path) -> None:
        uploads_again()
        step = _steps(folder)
        postgres.stop()
        try:
            wait_for(lambda: len([s for s in proxy.answered if s >= 500]) >= 2)
            wait_for(lambda: _steps(folder) > step + 10)
        finally:
            postgres.start()
        uploads_again()

        step = _steps(folder)
        server.kill()
        try:
            wait_for(lambda: proxy.refused >= 2)
            wait_for(lambda: _steps(folder) > step + 10)
        finally:
            server.start()
        uploads_again()

    folder = _train_during(tiny(proxy.uri, *ENDLESS, "tracking.flush_seconds=120"), events)
    _assert_mlflow_has_it_all(folder, server.uri)


@pytest.mark.usefixtures("impatient")
def test_a_run_outlives_every_kind_of_bad_answer(
    tiny: Callable[..., Settings],
    server: Any,
    proxy: Any,
    wait_for: WaitFor,
    uploads_again: Callable[[], None],
) -> None:
    def suffer(fault: Any, folder: Path) -> None:
        step, calls = _steps(folder), len(proxy.asked)
        proxy.fault = fault
        try:
            wait_for(lambda: len(proxy.asked) > calls + 2)
            wait_for(lambda: _steps(folder) > step + 10)
        finally:
            proxy.fault = None

    def events(folder: Path) -> None:
        for fault in (500, 503, 429, "truncated", "slow", "silent"):
            uploads_again()
            suffer(fault, folder)

    folder = _train_during(tiny(proxy.uri, *ENDLESS, "tracking.flush_seconds=120"), events)
    _assert_mlflow_has_it_all(folder, server.uri)


# --- to the end of a run --------------------------------------------------------------------


@pytest.fixture
def callers(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the threads in which MLflow's client has called a server."""
    names: set[str] = set()
    send = requests.Session.send

    def spy(*arguments: Any, **options: Any) -> requests.Response:
        names.add(threading.current_thread().name)
        return send(*arguments, **options)

    monkeypatch.setattr(requests.Session, "send", spy)
    return names


@pytest.mark.parametrize(("fault", "patience"), [(503, "30"), ("slow", "30"), ("silent", "1")])
def test_what_a_server_missed_is_uploaded_later(
    fault: Any,
    patience: str,
    tiny: Callable[..., Settings],
    server: Any,
    proxy: Any,
    callers: set[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", patience)
    proxy.slow_seconds = 3.0

    def fail(folder: Path) -> None:
        proxy.fault = fault
        proxy.asked.clear()
        proxy.answered.clear()

    begin = time.monotonic()
    folder = run_training(tiny(proxy.uri, "tracking.flush_seconds=1"), on_folder=fail).folder
    seconds = time.monotonic() - begin
    assert is_finished(folder / FILE_NAME)
    assert callers == {"mixerbench-upload"}  # and never the thread that trains
    if fault != "slow":
        assert proxy.answered == []
    said = capsys.readouterr().err
    assert "nothing is lost" in said
    assert f"mixerbench sync {folder}" in said
    assert not Upload(folder, Tracking()).is_complete()

    proxy.fault = None
    proxy.asked.clear()
    assert "uploaded to" in sync(str(folder), proxy.uri)
    _assert_mlflow_has_it_all(folder, server.uri)
    assert seconds < proxy.slow_seconds * len(proxy.asked)
    assert "already" in sync(str(folder), proxy.uri)


def test_a_database_that_is_gone_is_told_at_the_start_and_training_offline_does_without(
    tiny: Callable[..., Settings], server: Any, postgres: Any
) -> None:
    settings = tiny(server.uri)
    check_reachable(server.uri, 60)  # a server that has never seen its database waits for it
    postgres.stop()
    try:
        with pytest.raises(Refusal) as refusal:  # though the server calls itself healthy
            run_training(settings)
        assert not Path(settings.run.root).exists()
        folder = run_training(tiny(server.uri, "tracking.offline=true")).folder
        with pytest.raises(Refusal, match="503"):
            sync(str(folder), server.uri)
    finally:
        postgres.start()
    message = str(refusal.value)
    assert len(message.splitlines()) == 1
    for words in (server.uri, "503", "tracking.offline=true"):
        assert words in message

    assert "uploaded to" in sync(str(folder), server.uri)
    _assert_mlflow_has_it_all(folder, server.uri)


# --- a database that answers too late -------------------------------------------------------


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("table", ["runs", "metrics"])
def test_what_a_database_did_after_nobody_waited_any_more_counts_once(
    table: str, run_folder: Callable[..., Path], server: Any, postgres: Any, wait_for: WaitFor
) -> None:
    import psycopg2

    metrics = [{"kind": "metrics", "step": n, "values": {"loss": n / 7}} for n in range(20)]
    folder = run_folder(*metrics, {"kind": "end", "status": "FINISHED"})
    with closing(psycopg2.connect(postgres.uri.replace("+psycopg2", ""))) as connection:
        cursor = connection.cursor()
        cursor.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")  # it can be read, as before

        def waiting() -> int:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
            return int(cursor.fetchone()[0])

        upload = BackgroundUpload(folder, Tracking(uri=server.uri, upload_every_seconds=0.05))
        wait_for(lambda: waiting() >= 3)  # three calls that the client has given up
    assert upload.close(60) is True, upload.error
    _assert_mlflow_has_it_all(folder, server.uri)
