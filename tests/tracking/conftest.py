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
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Literal

import pytest
from postgres import Postgres
from small_disks import Disk, mounted

from mixerbench.config.schema import Tracking
from mixerbench.tracking.journal import FILE_NAME

START_SECONDS = 180  # a server needs 10 s on two quiet cores
T0 = 1_700_000_000_000  # milliseconds; long ago, so that a time of today is noticed


@pytest.fixture(scope="session", autouse=True)
def _patient_client() -> None:
    # Store() sets this only where nobody has: busy test machines want more than its default.
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "30"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., None]:
    """Wait until a condition holds; fail if it does not come true in time."""

    def wait(condition: Callable[[], Any], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "nothing happened"
            time.sleep(0.01)

    return wait


@pytest.fixture
def tracking(store_uri: str) -> Tracking:
    return Tracking(uri=store_uri)


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., Path]:
    """A run's folder with the journal of the given records, one second apart."""

    def make(*records: dict[str, Any], below: Path = tmp_path) -> Path:
        folder = below / f"run-{uuid.uuid4().hex[:8]}"
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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk", "64k") as disk:
        yield disk


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

    def __init__(self, folder: Path, store_uri: str) -> None:
        self._folder = folder
        self._store_uri = store_uri
        self._port = _free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        artifacts = str(self._folder / "artifacts")
        place = ["--backend-store-uri", self._store_uri, "--artifacts-destination", artifacts]
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
            with suppress(ProcessLookupError):  # it may have ended by itself
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The database of ``server``."""
    postgres = Postgres(_free_port())
    try:
        postgres.start()
        yield postgres
    finally:
        postgres.remove()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), postgres.uri)
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


def _stop_listening(listener: socket.socket, thread: threading.Thread) -> None:
    # Closed under a thread that waits in accept(), its number goes to the next socket, from
    # which that thread would then take connections.
    listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    listener.close()


class Proxy:
    """Stands before a server and does to its answers what networks and tired servers do."""

    def __init__(self, uri: str) -> None:
        self._target = int(uri.rpartition(":")[2])
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.lose: list[str] = []
        """Requests whose answer is lost, with its connection: each entry is part of one's path."""
        self.fault: int | Literal["slow", "truncated", "silent"] | None = None
        """Of all requests: a status that is answered instead of the server, an answer that is
        late, of which the second half is missing, or that never comes."""
        self.slow_seconds = 0.5
        self.asked: list[str] = []
        """The path of every request."""
        self.answered: list[int] = []
        """The status of every answer that the server gave and the client got."""
        self.refused = 0
        """Connections that the server did not take."""
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        _stop_listening(self._socket, self._thread)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            try:
                upstream = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                self.refused += 1
                client.close()
                continue
            asked: list[str] = []
            for pump, source, sink in (
                (self._pass_requests, client, upstream),
                (self._pass_answers, upstream, client),
            ):
                threading.Thread(
                    target=self._pump, args=(pump, source, sink, asked), daemon=True
                ).start()

    def _pump(
        self,
        pump: Callable[[socket.socket, socket.socket, list[str]], None],
        source: socket.socket,
        sink: socket.socket,
        asked: list[str],
    ) -> None:
        with suppress(OSError):
            pump(source, sink, asked)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _pass_requests(
        self, client: socket.socket, upstream: socket.socket, asked: list[str]
    ) -> None:
        fault = self.fault
        while data := client.recv(65536):
            if data.startswith((b"GET ", b"POST ", b"PATCH ", b"PUT ")):
                asked.append(data.split(b" ", 2)[1].decode())
                self.asked.append(asked[-1])
                fault = self.fault
                if isinstance(fault, int):
                    client.sendall(
                        f"HTTP/1.1 {fault} No\r\nRetry-After: 60\r\nContent-Length: 2\r\n"
                        "Connection: close\r\n\r\n{}".encode()
                    )
            if not isinstance(fault, int) and fault != "silent":
                upstream.sendall(data)

    def _pass_answers(
        self, upstream: socket.socket, client: socket.socket, asked: list[str]
    ) -> None:
        while data := upstream.recv(65536):
            if data.startswith(b"HTTP/1.1"):
                found = next((part for part in self.lose if part in asked[-1]), None)
                if found is not None:
                    self.lose.remove(found)
                    return
                if self.fault == "slow":
                    time.sleep(self.slow_seconds)
                if self.fault == "truncated":
                    head, _, body = data.partition(b"\r\n\r\n")
                    client.sendall(head + b"\r\n\r\n" + body[: len(body) // 2])
                    return
                self.answered.append(int(data.split(b" ", 2)[1]))
            client.sendall(data)


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
    listening: list[tuple[socket.socket, threading.Thread]] = []
    connections: list[socket.socket] = []

    def start(answer: bytes | None) -> tuple[str, list[socket.socket]]:
        listener = socket.create_server(("127.0.0.1", 0))

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

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        listening.append((listener, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}", connections

    yield start
    for listener, thread in listening:
        _stop_listening(listener, thread)
    for connection in connections:
        connection.close()
