"""The thread that feeds MLflow: training never waits for it, and nothing is given up."""

import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mixerbench.config.schema import Tracking
from mixerbench.tracking import upload as upload_module
from mixerbench.tracking.journal import FILE_NAME, Journal
from mixerbench.tracking.upload import BackgroundUpload, Upload

pytestmark = [
    pytest.mark.slow,  # waits for servers
    pytest.mark.filterwarnings("ignore"),  # mlflow warns about itself
]
RunFolder = Callable[..., Path]
WaitFor = Callable[..., None]
Answering = Callable[[bytes | None], tuple[str, list[socket.socket]]]

START = {"kind": "start", "label": "attention_micro", "total_steps": 1}


@pytest.fixture
def in_background(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., BackgroundUpload]]:
    """Starts uploads; afterwards lets those end that would try for ever.

    Asks for ``monkeypatch`` only to be torn down before it.
    """
    started: dict[Path, BackgroundUpload] = {}

    def start(folder: Path, **tracking: Any) -> BackgroundUpload:
        options = {"upload_every_seconds": 0.05} | tracking
        started[folder] = BackgroundUpload(folder, Tracking(**options))
        return started[folder]

    yield start
    for folder, upload in started.items():
        (folder / FILE_NAME).unlink(missing_ok=True)  # nothing is left to send
        upload.close(30)
    assert not _uploading()


def _uploading() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mixerbench-upload"]


@pytest.fixture(scope="module", autouse=True)
def _mlflow_is_imported() -> None:
    import mlflow.store.tracking.rest_store  # noqa: F401  seconds, in which nothing is uploaded


@pytest.mark.usefixtures("impatient")
def test_training_does_not_wait_for_a_server_that_hangs(
    run_folder: RunFolder,
    in_background: Callable[..., BackgroundUpload],
    answering: Answering,
    wait_for: WaitFor,
) -> None:
    uri, connections = answering(None)
    folder = run_folder(START)
    journal = Journal(folder / FILE_NAME)
    upload = in_background(folder, uri=uri)
    wait_for(lambda: connections)  # it hangs from here on
    seconds = []
    for step in range(200):
        begin = time.perf_counter()
        journal.metrics(step, {"loss": 1.0, "lr": 0.1})
        seconds.append(time.perf_counter() - begin)
        time.sleep(0.002)
    assert statistics.median(seconds) < 0.05
    assert max(seconds) < 1

    begin = time.perf_counter()
    assert upload.close(0.5) is False
    assert time.perf_counter() - begin < 2


@pytest.mark.usefixtures("impatient")
def test_closing_with_a_dead_server_keeps_its_time_and_says_why(
    run_folder: RunFolder,
    in_background: Callable[..., BackgroundUpload],
    closed_port: int,
    wait_for: WaitFor,
) -> None:
    folder = run_folder(START)
    upload = in_background(folder, uri=f"http://127.0.0.1:{closed_port}")
    begin = time.perf_counter()
    assert upload.close(2.0) is False
    assert 1.5 < time.perf_counter() - begin < 4
    assert upload.error is not None
    assert str(closed_port) in str(upload.error)
    assert not Upload(folder, Tracking()).is_complete()  # for 'mixerbench sync'
    wait_for(lambda: not _uploading())  # and leaves it to that


def test_closing_sends_the_rest(
    run_folder: RunFolder, in_background: Callable[..., BackgroundUpload], sqlite_uri: str
) -> None:
    from mlflow import MlflowClient

    folder = run_folder(START)
    upload = in_background(folder, uri=sqlite_uri, upload_every_seconds=3600.0)
    journal = Journal(folder / FILE_NAME)
    journal.metrics(1, {"loss": 1.5})
    journal.end("FINISHED")
    begin = time.perf_counter()
    assert upload.close(60.0) is True
    assert time.perf_counter() - begin < 60
    sent = Upload(folder, Tracking(uri=sqlite_uri))
    assert sent.is_complete()
    run = MlflowClient(sqlite_uri).get_run(sent.run_id)
    assert (run.info.status, run.data.metrics["loss"]) == ("FINISHED", 1.5)


class _Flaky(Upload):
    """Fails as often as ``failures`` says, then takes everything."""

    failures = 0
    calls: list[float]

    def advance(self) -> None:
        type(self).calls.append(time.monotonic())
        if len(type(self).calls) <= type(self).failures:
            raise ConnectionError(f"failure {len(type(self).calls)}")


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> type[_Flaky]:
    monkeypatch.setattr(_Flaky, "calls", [], raising=False)
    monkeypatch.setattr(upload_module, "Upload", _Flaky)
    return _Flaky


def test_a_server_that_comes_back_is_used_again(
    run_folder: RunFolder,
    in_background: Callable[..., BackgroundUpload],
    flaky: type[_Flaky],
    monkeypatch: pytest.MonkeyPatch,
    wait_for: WaitFor,
) -> None:
    monkeypatch.setattr(flaky, "failures", 3)
    upload = in_background(run_folder(START))
    wait_for(lambda: upload.error is not None)
    wait_for(lambda: upload.error is None)
    assert len(flaky.calls) == 4
    assert upload.close(10) is True


def test_it_asks_a_failing_server_ever_more_rarely(
    run_folder: RunFolder,
    in_background: Callable[..., BackgroundUpload],
    flaky: type[_Flaky],
    monkeypatch: pytest.MonkeyPatch,
    wait_for: WaitFor,
) -> None:
    monkeypatch.setattr(flaky, "failures", 4)
    in_background(run_folder(START), upload_every_seconds=0.1)
    wait_for(lambda: len(flaky.calls) >= 5)
    pauses = [later - earlier for earlier, later in zip(flaky.calls, flaky.calls[1:], strict=False)]
    assert pauses[0] > 0.15
    assert pauses[2] > 0.6  # 0.1, doubled at each failure: 0.2, 0.4, 0.8
    assert pauses[2] > pauses[0]


def test_a_failure_while_closing_is_tried_again_until_time_is_up(
    run_folder: RunFolder,
    in_background: Callable[..., BackgroundUpload],
    flaky: type[_Flaky],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flaky, "failures", 3)
    upload = in_background(run_folder(START), upload_every_seconds=3600.0)
    begin = time.monotonic()
    assert upload.close(20) is True
    assert len(flaky.calls) == 4
    assert time.monotonic() - begin < 15
