"""From a journal to MLflow: everything, in order, with its own time, and nothing twice.

Each test runs against a SQLite store and against a real ``mlflow server``.
"""

import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mixerbench.config.schema import Tracking
from mixerbench.tracking import upload as upload_module
from mixerbench.tracking.journal import FILE_NAME, Journal
from mixerbench.tracking.upload import CURSOR_FILE, Upload

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # mlflow warns about itself
    pytest.mark.xdist_group("mlflow-server"),  # one server, whatever the number of processes
]
RunFolder = Callable[..., Path]
T0 = 1_700_000_000_000  # of the first record; the next are a second apart each


def _client(upload: Upload) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(upload.uri)


def _history(upload: Upload, key: str) -> list[tuple[int, int, float]]:
    """(time, step, value) in the order in which they were measured."""
    found = _client(upload).get_metric_history(upload.run_id, key)
    return sorted((metric.timestamp, metric.step, metric.value) for metric in found)


def _uploaded(folder: Path, tracking: Tracking) -> Upload:
    upload = Upload(folder, tracking)
    upload.advance()
    return upload


def _losses(count: int) -> list[dict[str, Any]]:
    return [{"kind": "metrics", "step": n, "values": {"loss": n / 7}} for n in range(count)]


def _expected(count: int) -> list[tuple[int, int, float]]:
    return [(T0 + 1000 * n, n, n / 7) for n in range(count)]


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_module, "_METRICS_PER_BATCH", 10)


def test_a_run_arrives_whole_with_its_times_and_names(
    run_folder: RunFolder, tracking: Tracking
) -> None:
    folder = run_folder(
        {"kind": "start", "label": "attention_micro", "total_steps": 2},
        {"kind": "tags", "values": {"mixerbench.mixer": "attention"}},
        {"kind": "params", "values": {"run.seed": 0, "model.mixer.name": "attention"}},
        {"kind": "metrics", "step": 1, "values": {"loss": 2.5, "val/top1": 10.0}},
        {"kind": "metrics", "step": 2, "values": {"loss": 1.25}},
        {"kind": "artifact", "path": "config.yaml", "folder": ""},
        {"kind": "artifact", "path": "plugins/mine.py", "folder": "plugins"},
        {"kind": "artifact", "path": "not/there.txt", "folder": ""},
        {"kind": "end", "status": "FINISHED"},
    )
    (folder / "config.yaml").write_text("label: attention_micro\n")
    (folder / "plugins").mkdir()
    (folder / "plugins" / "mine.py").write_text("x = 1\n")
    about = json.loads((folder / "run.json").read_text())

    upload = Upload(folder, tracking)
    assert not upload.is_complete()
    upload.advance()
    assert upload.is_complete()

    client = _client(upload)
    run = client.get_run(upload.run_id)
    assert run.info.run_name == about["name"]
    assert (run.info.status, run.info.start_time) == ("FINISHED", T0)
    assert run.info.end_time == T0 + 8000
    assert run.data.params == {"run.seed": "0", "model.mixer.name": "attention"}
    assert run.data.tags["mixerbench.mixer"] == "attention"
    assert _history(upload, "loss") == [(T0 + 3000, 1, 2.5), (T0 + 4000, 2, 1.25)]
    assert _history(upload, "val/top1") == [(T0 + 3000, 1, 10.0)]
    paths = {file.path for file in client.list_artifacts(upload.run_id)}
    assert paths == {"config.yaml", "plugins"}
    (inner,) = client.list_artifacts(upload.run_id, "plugins")
    assert (inner.path, inner.file_size) == ("plugins/mine.py", 6)

    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.name == about["experiment"]
    assert about["description"] in experiment.tags["mlflow.note.content"]


def test_more_than_one_call_can_hold_arrives(run_folder: RunFolder, tracking: Tracking) -> None:
    wide = {"kind": "metrics", "step": 0, "values": {f"key/{n}": float(n) for n in range(300)}}
    resumes = [
        {"kind": "tags", "values": {f"tag.{n}": f"{time}" for n in range(15)}} for time in range(9)
    ]
    params = {"kind": "params", "values": {f"p.{n}": n for n in range(250)}}
    upload = _uploaded(run_folder(*_losses(2100), wide, params, *resumes), tracking)
    assert _history(upload, "loss") == _expected(2100)
    run = _client(upload).get_run(upload.run_id)
    assert len(run.data.metrics) == 301
    assert run.data.metrics["key/299"] == 299.0
    assert run.data.params == {f"p.{n}": str(n) for n in range(250)}
    assert {run.data.tags[f"tag.{n}"] for n in range(15)} == {"8"}  # the last word


@pytest.mark.parametrize("forgotten", ["offset", "cursor"])
def test_sending_it_all_again_stores_nothing_twice(
    forgotten: str, run_folder: RunFolder, tracking: Tracking
) -> None:
    odd = {"kind": "metrics", "step": 0, "values": {"nan": math.nan, "inf": math.inf}}
    params = {"kind": "params", "values": {"long": "x" * 7000}}
    end = {"kind": "end", "status": "FINISHED"}
    folder = run_folder(*_losses(20), odd, params, {"kind": "tags", "values": {"a": "b"}}, end)
    first = _uploaded(folder, tracking)

    cursor = folder / CURSOR_FILE
    if forgotten == "offset":
        cursor.write_text(json.dumps(json.loads(cursor.read_text()) | {"offset": 0}))
    else:  # the process died between making the run and writing that down
        cursor.unlink()
    again = Upload(folder, tracking)
    assert not again.is_complete()
    again.advance()

    assert again.run_id == first.run_id
    assert _history(again, "loss") == _expected(20)
    assert len(_history(again, "nan")) == len(_history(again, "inf")) == 1
    client = _client(again)
    run = client.get_run(again.run_id)
    assert (run.info.status, run.data.tags["a"]) == ("FINISHED", "b")
    assert len(client.search_runs([run.info.experiment_id])) == 1


def test_a_new_process_goes_on_where_the_last_one_stopped(
    run_folder: RunFolder, tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_folder(*_losses(10))
    _uploaded(folder, tracking)
    journal = Journal(folder / FILE_NAME)
    journal.metrics(10, {"loss": 10.0})

    sent = []
    send = Upload._send
    monkeypatch.setattr(Upload, "_send", lambda self, new: (sent.extend(new), send(self, new)))
    upload = _uploaded(folder, tracking)
    assert [record["step"] for record in sent] == [10]
    assert [step for _, step, _ in _history(upload, "loss")] == list(range(11))


def test_half_a_line_waits_for_its_end(run_folder: RunFolder, tracking: Tracking) -> None:
    folder = run_folder(*_losses(3))
    whole = (folder / FILE_NAME).read_text()
    (folder / FILE_NAME).write_text(whole[:-5])
    upload = _uploaded(folder, tracking)
    assert _history(upload, "loss") == _expected(2)
    (folder / FILE_NAME).write_text(whole)
    assert not upload.is_complete()
    upload.advance()
    assert _history(upload, "loss") == _expected(3)


def test_nan_and_infinity_survive(run_folder: RunFolder, tracking: Tracking) -> None:
    values = {"nan": math.nan, "inf": math.inf, "minus": -math.inf, "loss": 1.0}
    upload = _uploaded(run_folder({"kind": "metrics", "step": 1, "values": values}), tracking)
    ((_, _, nan),), ((_, _, inf),), ((_, _, minus),) = (
        _history(upload, key) for key in ("nan", "inf", "minus")
    )
    assert math.isnan(nan)
    assert inf > 1e308  # MLflow's largest number stands for infinity
    assert minus < -1e308
    assert _history(upload, "loss") == [(T0, 1, 1.0)]


def test_what_is_too_long_for_mlflow_is_cut(run_folder: RunFolder, tracking: Tracking) -> None:
    upload = _uploaded(
        run_folder(
            {"kind": "params", "values": {"long": "p" * 9000, "short": "s"}},
            {"kind": "tags", "values": {"long": "t" * 9000}},
        ),
        tracking,
    )
    data = _client(upload).get_run(upload.run_id).data
    assert data.params == {"long": "p" * 6000, "short": "s"}
    assert data.tags["long"] == "t" * 8000


def test_a_resumed_run_is_running_again(run_folder: RunFolder, tracking: Tracking) -> None:
    start = {"kind": "start", "label": "attention_micro", "total_steps": 2}
    folder = run_folder(start, {"kind": "end", "status": "FAILED"})
    upload = _uploaded(folder, tracking)
    client = _client(upload)
    assert client.get_run(upload.run_id).info.status == "FAILED"

    journal = Journal(folder / FILE_NAME)
    journal.start("attention_micro", 2)
    upload.advance()
    assert client.get_run(upload.run_id).info.status == "RUNNING"
    journal.end("FINISHED")
    upload.advance()
    assert client.get_run(upload.run_id).info.status == "FINISHED"


def test_two_runs_of_one_experiment_share_it(run_folder: RunFolder, tracking: Tracking) -> None:
    uploads = []
    for _ in range(2):
        folder = run_folder(*_losses(1))
        about = json.loads((folder / "run.json").read_text())
        about["experiment"] = f"shared-{folder.parent.name}"
        (folder / "run.json").write_text(json.dumps(about))
        uploads.append(_uploaded(folder, tracking))
    one, other = (_client(u).get_run(u.run_id).info for u in uploads)
    assert one.experiment_id == other.experiment_id
    assert one.run_id != other.run_id


def test_the_store_is_the_one_that_is_asked_for_and_not_that_of_the_first_upload(
    run_folder: RunFolder, sqlite_uri: str
) -> None:
    folder = run_folder(*_losses(1))
    assert _uploaded(folder, Tracking(uri=sqlite_uri)).is_complete()
    other = Upload(folder, Tracking(uri="http://127.0.0.1:1"))
    assert other.uri == "http://127.0.0.1:1"
    assert not other.is_complete()  # there it begins from the beginning


def test_a_cursor_that_names_another_run_is_not_followed(
    run_folder: RunFolder, tracking: Tracking
) -> None:
    mine = _uploaded(run_folder(*_losses(1)), tracking)
    theirs = run_folder(*_losses(5))
    cursor = {"uri": tracking.uri, "run_id": mine.run_id, "offset": 0}
    (theirs / CURSOR_FILE).write_text(json.dumps(cursor))
    assert _uploaded(theirs, tracking).run_id != mine.run_id
    assert _history(mine, "loss") == _expected(1)


# --- full disks and damaged files -----------------------------------------------------------


def test_a_full_disk_loses_nothing_and_doubles_nothing(
    run_folder: RunFolder, small_disk: Any, sqlite_uri: str, small_batches: None
) -> None:
    records = [*_losses(50), {"kind": "end", "status": "FINISHED"}]
    folder = run_folder(*records, below=small_disk.root)
    small_disk.fill()
    assert _uploaded(folder, Tracking(uri=sqlite_uri)).is_complete()

    small_disk.make_room()
    assert not Upload(
        folder, Tracking(uri=sqlite_uri)
    ).is_complete()  # nowhere is written that it was sent
    again = _uploaded(folder, Tracking(uri=sqlite_uri))
    assert Upload(folder, Tracking(uri=sqlite_uri)).is_complete()
    assert _history(again, "loss") == _expected(50)
    run = _client(again).get_run(again.run_id)
    assert run.info.status == "FINISHED"
    assert len(_client(again).search_runs([run.info.experiment_id])) == 1


def test_what_is_known_of_an_upload_may_be_lost_in_a_crash(
    run_folder: RunFolder, sqlite_uri: str
) -> None:
    folder = run_folder(*_losses(3))
    first = _uploaded(folder, Tracking(uri=sqlite_uri))
    (folder / CURSOR_FILE).write_text("")
    again = _uploaded(folder, Tracking(uri=sqlite_uri))
    assert again.run_id == first.run_id
    assert _history(again, "loss") == _expected(3)


# --- two at once ----------------------------------------------------------------------------


def test_many_uploads_of_one_folder_make_one_run(
    run_folder: RunFolder, tracking: Tracking, small_batches: None
) -> None:
    folder = run_folder(*_losses(60))
    uploads = [Upload(folder, tracking) for _ in range(4)]  # of a run, and 'mixerbench sync'
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(upload.advance) for upload in uploads]:
            done.result()
    assert len({upload.run_id for upload in uploads}) == 1
    client = _client(uploads[0])
    run = client.get_run(uploads[0].run_id)
    assert len(client.search_runs([run.info.experiment_id])) == 1
    assert _history(uploads[0], "loss") == _expected(60)


# --- servers that fail ----------------------------------------------------------------------


def _upload_through(proxy: Any, folder: Path) -> int:
    """Upload until everything is there; how often that failed on the way."""
    for failures in range(20):
        try:
            _uploaded(folder, Tracking(uri=proxy.uri))
        except Exception as error:  # whatever MLflow raises
            print(error)
        else:
            assert proxy.lose == [], "these answers were never asked for"
            return failures
    pytest.fail("20 attempts were not enough")


@pytest.mark.slow
@pytest.mark.usefixtures("small_batches")
def test_answers_that_are_lost_cost_nothing_and_double_nothing(
    run_folder: RunFolder, server: Any, proxy: Any
) -> None:
    artifact = {"kind": "artifact", "path": "run.json", "folder": ""}
    folder = run_folder(*_losses(60), artifact, {"kind": "end", "status": "FINISHED"})
    # One is lost and the client's own retry gets through; three in a row, and it gives up.
    proxy.lose = ["runs/log-batch"] * 6 + ["runs/search", "runs/update", "run.json"]
    assert _upload_through(proxy, folder) > 0
    upload = Upload(folder, Tracking(uri=proxy.uri))
    upload.uri = server.uri
    assert _history(upload, "loss") == _expected(60)
    client = _client(upload)
    run = client.get_run(upload.run_id)
    assert run.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(upload.run_id)] == ["run.json"]
    assert len(client.search_runs([run.info.experiment_id])) == 1


@pytest.mark.slow
def test_a_run_is_made_once_also_when_the_answer_is_lost(
    run_folder: RunFolder, server: Any, proxy: Any
) -> None:
    folder = run_folder(*_losses(3))
    proxy.lose = ["runs/create"]
    _upload_through(proxy, folder)
    upload = Upload(folder, Tracking(uri=proxy.uri))
    upload.uri = server.uri
    assert _history(upload, "loss") == _expected(3)
    client = _client(upload)
    experiment = client.get_run(upload.run_id).info.experiment_id
    assert len(client.search_runs([experiment])) == 1


@pytest.mark.slow
def test_an_experiment_is_described_also_when_the_answer_is_lost(
    run_folder: RunFolder, server: Any, proxy: Any
) -> None:
    folder = run_folder(*_losses(3))
    proxy.lose = ["experiments/create"]
    _upload_through(proxy, folder)
    upload = Upload(folder, Tracking(uri=proxy.uri))
    upload.uri = server.uri
    client = _client(upload)
    experiment = client.get_experiment(client.get_run(upload.run_id).info.experiment_id)
    assert "mlflow.note.content" in experiment.tags


@pytest.mark.slow
@pytest.mark.usefixtures("small_batches")
def test_a_server_killed_in_the_middle_and_started_again_has_it_all(
    run_folder: RunFolder, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_folder(*_losses(100))
    tracking = Tracking(uri=server.uri)
    upload = Upload(folder, tracking)
    send, calls = upload._send, []

    def kill_before_the_fourth(records: list[dict[str, Any]]) -> None:
        calls.append(len(records))
        if len(calls) == 4:
            server.kill()
        send(records)

    monkeypatch.setattr(upload, "_send", kill_before_the_fourth)
    try:
        with pytest.raises(Exception, match=r"(?i)connection|retries"):
            upload.advance()
    finally:
        server.start()
    assert calls == [10, 10, 10, 10]
    assert json.loads((folder / CURSOR_FILE).read_text())["run_id"] == upload.run_id
    assert not upload.is_complete()
    sent = len(_history(upload, "loss"))
    assert sent == 30

    upload = _uploaded(folder, tracking)  # what a new process or 'mixerbench sync' does
    assert _history(upload, "loss") == _expected(100)
