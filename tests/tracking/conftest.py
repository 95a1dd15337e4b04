"""Run folders, MLflow stores of both kinds, and servers that misbehave on purpose."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mixerbench.config.schema import Tracking
from mixerbench.tracking.journal import FILE_NAME

START_SECONDS = 180  # a server needs 10 s on two quiet cores
T0 = 1_700_000_000_000  # milliseconds; long ago, so that a time of today is noticed


@pytest.fixture(scope="session", autouse=True)
def _patient_client() -> None:
    # Store() sets this only where nobody has: busy test machines want more than its default.
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "30"


@pytest.fixture
def tracking(store_uri: str) -> Tracking:
    return Tracking(uri=store_uri)


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., Path]:
    """A run's folder with the journal of the given records, one second apart."""

    def make(*records: dict[str, Any]) -> Path:
        folder = tmp_path / f"run-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        about = {
            "uid": uuid.uuid4().hex,
            "name": "attention_micro-seed0",
            "experiment": f"mixerbench-{folder.name}",
            "protocol": "digits",
            "description": "what the protocol is",
        }
        (folder / "run.json").write_text(json.dumps(about))
        lines = [
            json.dumps({"time": T0 + 1000 * number, **record}) + "\n"
            for number, record in enumerate(records)
        ]
        (folder / FILE_NAME).write_text("".join(lines))
        return folder

    return make


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def closed_port() -> int:
    """A port of this machine where nobody listens."""
    return _free_port()


class Server:
    """``mlflow server`` with one worker, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = _free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = f"sqlite:///{self._folder / 'server.db'}"
        place = ["--backend-store-uri", store, "--artifacts-destination", str(self._folder / "a")]
        address = ["--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *place, *address],
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,  # a group of its own, so that its worker ends with it
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.2)
        pytest.fail((self._folder / "log").read_text(errors="replace")[-2000:])

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def sqlite_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for all tests: a new one takes seconds. Each run has an experiment of its own."""
    return f"sqlite:///{tmp_path_factory.mktemp('sqlite') / 'mlflow.db'}"


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.slow)])
def store_uri(request: pytest.FixtureRequest) -> str:
    if request.param == "server":
        server: Server = request.getfixturevalue("server")
        return server.uri
    uri: str = request.getfixturevalue("sqlite_uri")
    return uri


class Proxy:
    """Stands before a server and loses answers: the server has done what the client never hears."""

    def __init__(self, uri: str) -> None:
        self._target = int(uri.rpartition(":")[2])
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.lose: list[str] = []
        """Requests whose answer is lost, with its connection: each entry is part of one's path."""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            upstream = socket.create_connection(("127.0.0.1", self._target))
            asked: list[str] = []
            for source, sink in ((client, upstream), (upstream, client)):
                threading.Thread(
                    target=self._pump, args=(source, sink, asked, sink is client), daemon=True
                ).start()

    def _pump(
        self, source: socket.socket, sink: socket.socket, asked: list[str], answering: bool
    ) -> None:
        try:
            while data := source.recv(65536):
                if not answering and data.startswith((b"GET ", b"POST ", b"PATCH ", b"PUT ")):
                    asked.append(data.split(b" ", 2)[1].decode())
                if answering and data.startswith(b"HTTP/1.1"):
                    found = next((part for part in self.lose if part in asked[-1]), None)
                    if found is not None:
                        self.lose.remove(found)
                        break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    proxy = Proxy(server.uri)
    yield proxy
    proxy.close()


@pytest.fixture
def answering() -> Iterator[Callable[[bytes | None], tuple[str, list[socket.socket]]]]:
    """A TCP server that says ``answer`` to whoever connects, or, if None, nothing, for ever.

    Returns its http:// address and the list of connections that it has accepted.
    """
    listening: list[socket.socket] = []
    connections: list[socket.socket] = []

    def start(answer: bytes | None) -> tuple[str, list[socket.socket]]:
        listener = socket.create_server(("127.0.0.1", 0))
        listening.append(listener)

        def work() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connections.append(connection)
                if answer is not None:
                    connection.recv(65536)
                    connection.sendall(answer)
                    connection.close()

        threading.Thread(target=work, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}", connections

    yield start
    for one in (*listening, *connections):
        one.close()
