"""A run's folder from somebody else, or after a crash: what sync sends, where to, what it says."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import DATA, MODEL, RECIPE, RUN

from mixerbench.config.compose import compose
from mixerbench.errors import Refusal
from mixerbench.tracking.journal import FILE_NAME, Journal, read
from mixerbench.tracking.store import check_reachable
from mixerbench.tracking.upload import CURSOR_FILE, RUN_FILE
from mixerbench.training.folder import find_folders
from mixerbench.training.run import run_training

pytestmark = pytest.mark.filterwarnings("ignore")  # mlflow warns about itself

SECRET = "hunter2"


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that nobody has uploaded; copy it."""
    root = tmp_path_factory.mktemp("offline")
    settings = [*DATA, *MODEL, *RECIPE, *RUN, f"run.root={root}", "run.measure=false"]
    return run_training(compose([*settings, "recipe.epochs=1", "tracking.offline=true"])).folder


@pytest.fixture
def theirs(offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy in a folder of its own, and this process in another one that has no store."""
    folder = tmp_path / "received" / "run"
    shutil.copytree(offline, folder)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def add(folder: Path, *records: dict[str, Any] | bytes) -> None:
    """Put records in front of the end of a journal."""
    path = folder / FILE_NAME
    *lines, end = path.read_bytes().splitlines(keepends=True)
    new = [
        one + b"\n" if isinstance(one, bytes) else json.dumps({"time": 1, **one}).encode() + b"\n"
        for one in records
    ]
    path.write_bytes(b"".join([*lines, *new, end]))


def stored(uri: str, uid: str) -> tuple[Any, set[str]]:
    """The run of that folder, and the contents of all files that its store has of it."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiments = [one.experiment_id for one in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"tags.`mixerbench.uid` = '{uid}'")
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    return run, {path.name for path in folder.rglob("*") if path.is_file()}


def uid_of(folder: Path) -> str:
    return str(json.loads((folder / RUN_FILE).read_text())["uid"])


def test_only_files_below_the_folder_are_sent_and_the_rest_is_named(
    theirs: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    secret = tmp_path / "received" / "secret_key"
    secret.write_text(SECRET)
    (theirs / "link").symlink_to(secret)
    (theirs / "folder").symlink_to(secret.parent)
    (theirs / "inside").symlink_to(theirs / "environment.txt")
    os.mkfifo(theirs / "pipe")
    refused = ["../secret_key", str(secret), "link", "folder/secret_key", "pipe", "a\0b"]
    add(theirs, *({"kind": "artifact", "path": one, "folder": ""} for one in refused))
    add(theirs, {"kind": "artifact", "path": "environment.txt", "folder": "../../elsewhere"})
    add(theirs, {"kind": "artifact", "path": "inside", "folder": ""})
    outcome = command("sync", str(theirs), "--uri", f"sqlite:///{tmp_path}/mine.db")
    assert outcome.code == 0
    lines = [line for line in outcome.err.splitlines() if "not uploaded" in line]
    assert len(lines) == len(refused) + 1
    for name in refused:
        assert any(repr(name) in line for line in lines), name
    run, names = stored(f"sqlite:///{tmp_path}/mine.db", uid_of(theirs))
    assert run.info.status == "FINISHED"
    assert {"predictions.parquet", "model.safetensors", "inside"} <= names
    assert not names & {"secret_key", "link", "pipe"}


def test_values_that_no_store_takes_are_named_and_the_rest_is_sent(
    theirs: Path, command: Callable[..., Any]
) -> None:
    bad = {
        "text": "1.0", "none": None, "true": True, "huge": 10**400,
        "list": [1], "../up": 1.0, "new\nline": 1.0, "k" * 300: 1.0, "": 1.0,
    }  # fmt: skip
    add(theirs, {"kind": "metrics", "step": 3, "values": {**bad, "fine": 2.5}})
    add(theirs, {"kind": "tags", "values": {"a": {"b": 1}, "fine": "yes"}})
    add(theirs, {"kind": "params", "values": {"p": [1], "fine": 1}})
    outcome = command("sync", str(theirs))
    assert outcome.code == 0
    assert len(outcome.err.splitlines()) == len(bad) + 2
    run, _ = stored("sqlite:///mlflow.db", uid_of(theirs))
    assert run.data.metrics["fine"] == 2.5
    assert run.data.tags["fine"] == "yes"
    assert run.data.params["fine"] == "1"
    assert "huge" not in run.data.metrics


def test_the_address_is_the_users(
    theirs: Path, command: Callable[..., Any], refused: Callable[..., str], tmp_path: Path
) -> None:
    config = theirs / "config.yaml"
    wanted = f"sqlite:///{tmp_path}/theirs.db"
    config.write_text(config.read_text().replace("  uri: null", f"  uri: {wanted}"))
    message = refused("sync", str(theirs))
    assert wanted in message and f"mixerbench sync {theirs} --uri {wanted}" in message
    mine = f"sqlite:///{tmp_path}/mine.db"
    assert f"uploaded to {mine}" in command("sync", str(theirs), "--uri", mine).out
    assert not (tmp_path / "theirs.db").exists()
    # What was uploaded elsewhere starts from the beginning.
    assert mine in refused("sync", str(theirs))
    assert "already" in command("sync", str(theirs), "--uri", mine).out
    assert f"uploaded to {wanted}" in command("sync", str(theirs), "--uri", wanted).out
    runs = [stored(uri, uid_of(theirs))[0] for uri in (mine, wanted)]
    assert runs[0].data.metrics.keys() == runs[1].data.metrics.keys()


def test_one_bad_folder_does_not_stop_the_others(
    theirs: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(theirs, broken)
    (broken / RUN_FILE).write_text("")
    for name in ("config.yaml", CURSOR_FILE):  # neither keeps the journal from the store
        (theirs / name).write_text("")
    outcome = command("sync", str(broken), str(tmp_path / "none"), str(theirs))
    assert outcome.code == 2
    assert str(theirs) in outcome.out and "uploaded to" in outcome.out
    assert str(broken / RUN_FILE) in outcome.err and str(tmp_path / "none") in outcome.err
    assert outcome.err.splitlines()[-1].startswith("mixerbench: 2 of 3 folders")
    assert str(theirs / "config.yaml") in outcome.err or str(theirs) in outcome.err


DAMAGE = [
    b"\0" * 4096,
    b'{"time": 1, "kind": "metr',
    b"[]",
    b'{"time": "now", "kind": "metrics", "step": 1, "values": {}}',
    b'{"time": 1, "kind": "metrics", "step": "one", "values": {}}',
    b'{"time": 1, "kind": "metrics", "step": 1}',
    b'{"time": 1, "kind": "end", "status": "EXPLODED"}',
    b"\xff\xfe",
    b"[" * 100_000,
]


def test_a_damaged_line_is_named_once_and_the_records_around_it_count(
    theirs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = theirs / FILE_NAME
    before = [record for record, _ in read(path)]
    add(theirs, *DAMAGE)
    capsys.readouterr()
    for _ in range(2):
        assert [record for record, _ in read(path)] == before
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(DAMAGE) and all(str(path) in line for line in said)
    journal = Journal(path)
    journal.metrics(10**6, {"later": 1.0})
    journal.close()
    assert [record for record, _ in read(path)][:-1] == before


def test_zeros_in_front_of_a_record_or_at_the_end_lose_nothing(theirs: Path) -> None:
    path = theirs / FILE_NAME
    before = [record for record, _ in read(path)]
    add(theirs, b"\0" * 100 + b'{"time": 1, "kind": "tags", "values": {"a": "b"}}')
    with open(path, "ab") as file:
        file.write(b"\0" * 512)
    assert [record for record, _ in read(path)][:-2] == before[:-1]
    journal = Journal(path)
    journal.tags({"c": "d"})
    journal.close()
    found = [record for record, _ in read(path)]
    assert found[-1]["values"] == {"c": "d"} and len(found) == len(before) + 2
    assert b"\0" * 512 not in path.read_bytes()


@pytest.mark.parametrize("content", ["", "\0\0\0", "[]", "{", "[" * 100_000])
def test_a_damaged_run_json_of_another_run_is_set_aside(
    content: str, offline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "p/good", tmp_path / "p/bad"
    for folder in (good, bad):
        shutil.copytree(offline, folder)
    identity = {"uid": uid_of(offline)}
    (bad / RUN_FILE).write_text(content)
    for _ in range(2):
        assert find_folders(str(tmp_path), [identity]) == [[good]]
    (line,) = capsys.readouterr().err.splitlines()
    assert str(bad / RUN_FILE) in line


def test_what_is_written_whole_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mixerbench.files import write_whole

    events: list[str] = []
    for name in ("fsync", "replace"):
        whole = getattr(os, name)

        def call(*arguments: Any, name: str = name, whole: Any = whole) -> None:
            events.append(name)
            whole(*arguments)

        monkeypatch.setattr(os, name, call)
    write_whole(tmp_path / "a", "text")
    assert events == ["fsync", "replace", "fsync"]
    write_whole(tmp_path / "b", "text", private=True)
    assert (tmp_path / "b").stat().st_mode & 0o077 == 0


PASSWORD = "correct-horse"


class _Healthy(BaseHTTPRequestHandler):
    """Answers like a server that wants a password."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 401)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_a_server_is_asked_for_its_health_whatever_user_stands_in_its_address() -> None:
    with HTTPServer(("127.0.0.1", 0), _Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        check_reachable(f"http://me:{PASSWORD}@127.0.0.1:{server.server_port}", 10)
        server.shutdown()
    for place in ("127.0.0.1:1", "127.0.0.1:port", "[::1"):
        with pytest.raises(Refusal) as error:
            check_reachable(f"http://me:{PASSWORD}@{place}", 1)
        assert PASSWORD not in str(error.value)


@pytest.mark.parametrize(
    "line",
    [
        "leaderboard --uri URI",
        "leaderboard serve --uri URI",
        "leaderboard publish --uri URI",
        "leaderboard export --uri URI --out exported",
        "leaderboard import nowhere --uri URI",
        "measure --uri URI",
    ],
)
@pytest.mark.parametrize("uri", ["http://me:PW@127.0.0.1:1", "ftp://me:PW@host/db?password=PW"])
def test_no_command_repeats_the_password_of_a_store(
    line: str, uri: str, command: Callable[..., Any], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    given = uri.replace("PW", PASSWORD)
    outcome = command(*(given if word == "URI" else word for word in line.split()))
    assert outcome.code in (1, 2)
    assert PASSWORD not in outcome.out + outcome.err
    assert "Traceback" not in outcome.err


def test_a_password_stands_in_nothing_that_a_run_leaves(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"http://me:{PASSWORD}@127.0.0.1:9/x?token={PASSWORD}"
    given = [*DATA, *MODEL, *RECIPE, *RUN, "run.measure=false", "recipe.epochs=1"]
    setting = f'tracking.uri="{uri}"'
    failed = command("train", *given, setting, "tracking.offline=false")
    assert failed.code == 2 and "***" in failed.err
    shown = command("train", "--cfg", *given, setting)
    done = command("train", *given, setting, f"run.root={tmp_path}/runs")
    assert done.code == 0
    (folder,) = [path.parent for path in tmp_path.rglob(RUN_FILE)]
    asked = command("sync", str(folder))
    gone = command("sync", str(folder), "--uri", uri)
    assert asked.code == gone.code == 2
    stored_here = command("sync", str(folder), "--uri", f"sqlite:///{tmp_path}/mlflow.db")
    assert stored_here.code == 0
    for outcome in (failed, shown, done, asked, gone, stored_here):
        assert PASSWORD not in outcome.out + outcome.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []
    assert "http://***@127.0.0.1:9/x?token=***" in (folder / "config.yaml").read_text()
