"""Where the store is, and whether it answers: told before anything is trained."""

import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mixerbench.errors import Refusal
from mixerbench.tracking.store import check_reachable, resolve_uri

Answering = Callable[[bytes | None], tuple[str, list[socket.socket]]]
ROOT = Path(__file__).parents[2]
HTTP = b"HTTP/1.1 %s\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK"


# --- where ----------------------------------------------------------------------------------


def test_the_setting_wins_then_the_environment_then_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(None) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert resolve_uri(None) == "http://127.0.0.1:5000"
    assert resolve_uri("sqlite:////tmp/mine.db") == "sqlite:////tmp/mine.db"


def test_a_relative_file_stays_where_it_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///runs/a.db") == f"sqlite:///{tmp_path}/runs/a.db"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_uri("sqlite:///~/a.db") == f"sqlite:///{tmp_path}/a.db"


# --- whether --------------------------------------------------------------------------------


def _refusal(uri: str, timeout_seconds: float = 5) -> str:
    with pytest.raises(Refusal) as refusal:
        check_reachable(uri, timeout_seconds)
    message = str(refusal.value)
    assert len(message.splitlines()) == 1
    return message


def test_a_server_that_is_not_there_is_refused_at_once(closed_port: int) -> None:
    begin = time.monotonic()
    message = _refusal(f"http://127.0.0.1:{closed_port}")
    assert time.monotonic() - begin < 4
    for words in (f"127.0.0.1:{closed_port}", "does not answer", "tracking.uri", "offline=true"):
        assert words in message


def test_a_server_that_never_answers_is_refused_in_time(answering: Answering) -> None:
    uri, connections = answering(None)
    begin = time.monotonic()
    assert "does not answer" in _refusal(uri, timeout_seconds=0.5)
    assert 0.4 < time.monotonic() - begin < 5
    assert connections


def test_another_web_server_is_refused(answering: Answering) -> None:
    uri, _ = answering(HTTP % b"404 Not Found")
    assert "Not Found" in _refusal(uri)


def test_a_healthy_server_is_accepted(answering: Answering) -> None:
    uri, connections = answering(HTTP % b"200 OK")
    check_reachable(uri, 5)
    check_reachable(f"{uri}/", 5)
    assert len(connections) == 4  # each time its health, and what only a database knows


def test_a_new_file_and_a_sqlite_file_are_accepted(tmp_path: Path) -> None:
    check_reachable(f"sqlite:///{tmp_path}/new.db", 1)
    (tmp_path / "empty.db").touch()
    check_reachable(f"sqlite:///{tmp_path}/empty.db", 1)
    database = sqlite3.connect(tmp_path / "old.db")
    database.execute("create table t (x)")
    database.close()
    check_reachable(f"sqlite:///{tmp_path}/old.db", 1)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert str(tmp_path / "none" / "a.db") in _refusal(f"sqlite:///{tmp_path}/none/a.db")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "not writable" in _refusal(f"sqlite:///{tmp_path}/a.db")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("these are words")
    assert "no SQLite database" in _refusal(f"sqlite:///{tmp_path}/a.db")
    assert (tmp_path / "a.db").read_text() == "these are words"


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "file:mlruns", "file:///tmp/mlruns"])
def test_plain_folders_are_refused(uri: str) -> None:
    message = _refusal(uri)
    assert uri in message
    assert "sqlite:///" in message


@pytest.mark.parametrize("uri", ["htp://127.0.0.1:5000", "sqlite://a.db", "sqlite:////tmp"])
def test_an_address_that_no_store_can_have_is_refused(uri: str) -> None:
    _refusal(uri)


def test_a_port_that_is_no_number_is_refused() -> None:
    assert "abc" in _refusal("http://127.0.0.1:abc")


def test_a_server_that_speaks_no_http_is_refused(answering: Answering) -> None:
    uri, _ = answering(b"SSH-2.0-OpenSSH_9.6\r\n")
    assert "does not answer" in _refusal(uri)


def test_checking_does_not_import_mlflow(tmp_path: Path) -> None:
    code = (
        "import sys; from mixerbench.tracking.store import check_reachable;"
        f"check_reachable('sqlite:///{tmp_path}/a.db', 1); sys.exit('mlflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# --- a new store ----------------------------------------------------------------------------

# argv: the store, then run folders. Prints the experiment that each process found.
CHILDREN = """
import os, signal, sys, traceback
from pathlib import Path
import mlflow, mlflow.store.tracking.sqlalchemy_store  # once, before the children
from sqlalchemy import event
from sqlalchemy.engine import Engine
from mixerbench.config.schema import Tracking
from mixerbench.tracking.store import Store
from mixerbench.tracking.upload import BackgroundUpload

uri, folders = sys.argv[1], sys.argv[2:]

def child(work):
    process = os.fork()
    if process == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return process

def die_half_way():
    tables = []
    @event.listens_for(Engine, "after_cursor_execute")
    def count(connection, cursor, statement, *_):
        tables.extend(["one"] * ("CREATE TABLE" in statement))
        if len(tables) == 20:
            os.kill(os.getpid(), signal.SIGKILL)
    Store(uri, 10)

def open_store():
    os.read(ready, 1)
    print(Store(uri, 10).experiment("mixerbench-race", "digits", "what it is"), flush=True)

def upload(folder):
    os.read(ready, 1)
    upload = BackgroundUpload(Path(folder), Tracking(uri=uri, upload_every_seconds=0.01))
    if not upload.close(60):
        raise upload.error

assert os.waitstatus_to_exitcode(os.waitpid(child(die_half_way), 0)[1]) == -signal.SIGKILL
assert Path(uri.removeprefix("sqlite:///") + ".lock").exists()
ready, go = os.pipe()  # nothing can be read from it until nobody can write: all begin at once
children = []
for work in [open_store] * 3 + [lambda folder=folder: upload(folder) for folder in folders]:
    children.append(child(lambda: (os.close(go), work())))
os.close(go)
sys.exit(sum(os.waitpid(process, 0)[1] != 0 for process in children))
"""


@pytest.mark.everything  # processes that are killed
@pytest.mark.filterwarnings("ignore")  # mlflow warns about itself
def test_processes_make_one_new_store_at_once_after_one_was_killed_making_it(
    tmp_path: Path, run_folder: Callable[..., Path]
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'new.db'}"
    folders = [run_folder({"kind": "metrics", "step": n, "values": {"n": n}}) for n in range(3)]
    done = subprocess.run(
        [sys.executable, "-c", CHILDREN, uri, *map(str, folders)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    race = MlflowClient(uri).get_experiment_by_name("mixerbench-race")
    assert race is not None
    assert done.stdout.split() == [race.experiment_id] * 3
    names = [f"mixerbench-{folder.name}" for folder in folders]
    experiments = [MlflowClient(uri).get_experiment_by_name(name).experiment_id for name in names]
    runs = MlflowClient(uri).search_runs(experiments)
    assert sorted(run.data.metrics["n"] for run in runs) == [0, 1, 2]
