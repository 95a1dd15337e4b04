import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_runs import recorded

from leaderboard.opening import open_source, read_runs
from leaderboard.reading.results import Reading, skipped_line
from mixerbench.tracking.keys import Metric


def test_importing_the_package_loads_nothing_heavy():
    check = "import leaderboard, sys; sys.exit(bool({'mlflow', 'rich', 'torch'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_a_run_is_read_as_logged(reading: Reading):
    run = next(run for run in reading.runs if run.name == "longer")
    assert run.experiment == "digits"
    assert (run.mixer, run.size, run.stem, run.seed) == ("attention", "micro", "patch", "0")
    params = recorded(epochs=40).params
    for group in ("protocol", "model", "run"):
        own = {key: value for key, value in params.items() if key.startswith(f"{group}.")}
        assert run.params[group] == own
    assert run.protocol == run.params["protocol"]
    assert run.metrics == {"final/top1": 90.0, "measure/parameters": 1000.0}
    assert not run.synthetic


def test_runs_of_all_experiments_and_pages_are_read(
    store, reading: Reading, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("leaderboard.reading.mlflow_pages.PAGE", 2)
    assert {run.experiment for run in reading.runs} == {"digits", "second"}
    assert {run.run_id for run in read_runs(store.uri).runs} == {r.run_id for r in reading.runs}
    assert len(reading.runs) == 11


def test_runs_left_out_are_counted_with_the_reason(reading: Reading):
    assert reading.skipped == {
        "failed": 1,
        "not finished": 1,
        "of schema 0 (this is 1)": 1,
        "without tag mixerbench.hardware": 1,
        "without final/top1": 2,
        "of other programs": 1,
    }
    assert "2 without final/top1" in skipped_line(reading.skipped)
    assert skipped_line({}) == ""


def test_a_missing_store_is_one_line_and_is_not_created(tmp_path: Path):
    with pytest.raises(ValueError, match="no such file") as error:
        read_runs(f"sqlite:///{tmp_path / 'none.db'}")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_store_is_left_as_it_is(tmp_path: Path):
    text, database = tmp_path / "text.db", tmp_path / "other.db"
    text.write_text("these bytes are no database, and long enough to be looked at" * 20)
    with sqlite3.connect(database) as other:
        other.execute("CREATE TABLE mine (x)")
    other.close()
    for path in (text, database):
        before = path.read_bytes()
        with pytest.raises(ValueError, match="no MLflow store"):
            read_runs(f"sqlite:///{path}")
        assert path.read_bytes() == before


@pytest.mark.parametrize("uri", ["mlflow.db", "./mlruns", "htp://localhost"])
def test_an_address_that_cannot_be_meant_names_the_expected_ones(uri: str):
    with pytest.raises(ValueError, match="expected sqlite:///PATH, http://HOST:PORT"):
        read_runs(uri)


def test_a_dead_server_is_one_line_within_seconds_and_shows_no_password(
    monkeypatch: pytest.MonkeyPatch,
):
    for limit in ("TIMEOUT", "MAX_RETRIES"):
        monkeypatch.delenv(f"MLFLOW_HTTP_REQUEST_{limit}", raising=False)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment, start = dict(os.environ), time.monotonic()
    with pytest.raises(ValueError, match=f"cannot read MLflow at .*:{port}") as error:
        read_runs(f"http://me:secret@127.0.0.1:{port}")
    assert time.monotonic() - start < 10
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)
    assert dict(os.environ) == environment


def test_a_silent_server_is_left_after_the_time_that_the_user_allows(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        start = time.monotonic()
        with pytest.raises(ValueError, match="cannot read MLflow"):
            read_runs(f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert time.monotonic() - start < 5
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "1"


@pytest.mark.parametrize("with_trash", [True, False])
def test_an_old_store_of_files_is_read_and_not_changed(
    with_trash: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store_at
):
    root = tmp_path / "my old runs" / "mlruns"
    with monkeypatch.context() as patches:
        patches.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        store = store_at(root.as_uri())
        run_id = store.log("attention", status=None)
        (tmp_path / "config.yaml").write_text("a: 1")
        store.client.log_artifact(run_id, str(tmp_path / "config.yaml"))
        for step in range(3):
            store.client.log_metric(run_id, Metric.TRAIN_LOSS, 3.0 - step, step=step)
        store.client.set_terminated(run_id, end_time=store.clock)
        store.log("attention", seed=1, status="FAILED")
        store.client.delete_run(store.log("attention", seed=2))
    if not with_trash:  # git keeps no empty folders, and archives may be read-only
        (root / ".trash").rmdir()

    def everything() -> dict[str, tuple[int, bytes]]:
        return {
            str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
            for path in [root, *root.rglob("*")]
        }

    before, environment = everything(), dict(os.environ)
    source = open_source(root.as_uri())
    reading = source.read()
    assert [run.name for run in reading.runs] == ["attention-0"]
    assert reading.skipped == {"failed": 1, "deleted": 1}
    (run,) = reading.runs
    path = source.artifact(run, "config.yaml")
    assert path is not None
    assert path.read_text() == "a: 1"
    assert source.curves(run) == {Metric.TRAIN_LOSS: [(0, 3.0), (1, 2.0), (2, 1.0)]}
    assert source.read() == reading
    assert everything() == before
    assert dict(os.environ) == environment


def test_a_folder_that_is_no_old_store_is_one_line(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no folder of experiments with a meta\.yaml"):
        read_runs(tmp_path.as_uri())
    assert list(tmp_path.iterdir()) == []


def test_the_order_of_runs_does_not_depend_on_the_store(reading: Reading):
    assert list(reading.runs) == sorted(reading.runs, key=lambda run: (run.finished, run.run_id))
