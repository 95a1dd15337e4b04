"""A server that imports torch once, and forks a process for each run that needs it.

Importing torch, timm and MLflow takes seconds of CPU; forking a process that has done so takes
milliseconds. A forked process has its own streams, environment, working folder and default signal
handling, as one from ``subprocess`` has. Linux only: only there is the end of a parent told, and
elsewhere systems' libraries do not bear a fork.

The server must have started no thread and must never touch a GPU: neither survives a fork.

Messages are JSON, one per packet of a Unix socket. To the server: ``start`` (with the three
streams) and ``signal``. From it: ``ready``, and for each child ``pid`` and later ``code``.
"""

import atexit
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from select import select
from typing import IO, Any

import psutil

from mixerbench.errors import TrainingStopped
from mixerbench.launching.job import PARENT
from mixerbench.stopping import SIGNALS

_PACKET_BYTES = 1 << 20
_POLL_SECONDS = 0.02


class ForkServer:
    """A context with a server in it; leaving it ends the server, and tells its children to stop.

    Args:
        preload: modules that the server imports.
        environment: of the server. What libraries read when they are imported, such as
            OMP_NUM_THREADS, is the same for all its children.
    """

    def __init__(self, preload: Sequence[str], environment: Mapping[str, str]) -> None:
        self._errors = tempfile.TemporaryFile()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), *preload],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env=dict(environment),
                pass_fds=[theirs.fileno()],
            )
        self._children: list[ForkedProcess] = []
        self._is_ready = self._is_told = False

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, *error: object) -> None:
        self._control.close()  # which it takes for the end
        self._server.wait()
        self._errors.close()

    def start(
        self,
        entry: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        streams: Sequence[IO[Any]],
        folder: str | None = None,
    ) -> "ForkedProcess":
        """Call a function in a new process, as a console script would.

        Args:
            entry: MODULE:FUNCTION.
            arguments: its ``sys.argv[1:]``.
            streams: its standard input, output and error.
            folder: where it works; None: here.
        """
        child = ForkedProcess(self, len(self._children))
        self._children.append(child)
        request = {
            "start": child.number,
            "entry": entry,
            "arguments": list(arguments),
            "environment": dict(environment),
            "folder": folder or os.getcwd(),
        }
        with suppress(BrokenPipeError, ConnectionResetError):  # seen again in receive()
            packet = json.dumps(request).encode()
            socket.send_fds(self._control, [packet], [stream.fileno() for stream in streams])
        return child

    def signal(self, child: int, number: int) -> None:
        """Send a signal to a child, unless it has ended."""
        if not self._is_ready:
            self.receive()
        if not self._is_ready:  # nothing has begun, and nobody waits for the imports
            self._is_told = True
            self._server.kill()
            return
        with suppress(BrokenPipeError, ConnectionResetError):
            self._control.send(json.dumps({"signal": number, "child": child}).encode())

    def receive(self, seconds: float = 0.0) -> None:
        """Take what the server has sent, waiting so long for the first of it.

        Raises:
            TrainingStopped: the server has ended while it imported its modules.
        """
        first = seconds
        while select([self._control], [], [], first)[0]:
            first = 0.0
            try:
                packet = self._control.recv(_PACKET_BYTES)
            except ConnectionResetError:
                packet = b""
            if not packet:
                code = self._server.wait()
                for child in self._children:
                    child.lose_server(code)
                if not self._is_ready and not self._is_told:
                    self._is_told = True  # said once
                    self._errors.seek(0)
                    text = self._errors.read().decode(errors="replace").strip()
                    raise TrainingStopped(
                        f"the process that imports torch for all runs ended with exit code {code}: "
                        f"{text.splitlines()[-1] if text else 'it said nothing'}"
                    )
                time.sleep(seconds)
                return
            message = json.loads(packet)
            if "ready" in message:
                self._is_ready = True
            elif "pid" in message:
                self._children[message["child"]].started = message["pid"]
            else:
                self._children[message["child"]].returncode = message["code"]


class ForkedProcess:
    """A child of the server, with the methods of ``subprocess.Popen`` that sweeps need."""

    def __init__(self, server: ForkServer, number: int) -> None:
        self.number = number
        self.started: int | None = None
        self.returncode: int | None = None
        self._server = server

    @property
    def pid(self) -> int:
        """Waits until there is a process.

        Raises:
            ChildProcessError: the server ended before.
        """
        while self.started is None:
            if self.returncode is not None:
                raise ChildProcessError("it was never started")
            self._server.receive(_POLL_SECONDS)
        return self.started

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            self._server.receive()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once there is one.

        Raises:
            subprocess.TimeoutExpired: not within ``timeout`` seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.started), timeout or 0.0)
            self._server.receive(_POLL_SECONDS)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            self._server.signal(self.number, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def lose_server(self, code: int) -> None:
        """The server ended with ``code``; a child saves its state first, and its own is unknown."""
        if self.returncode is None and (self.started is None or not _is_running(self.started)):
            self.returncode = code or 1


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --- the server's side ------------------------------------------------------------------------


def main() -> None:
    """Serve; in each child, call what was asked for."""
    control = socket.socket(fileno=int(sys.argv[1]))
    # Blocked, not ignored: what is sent to the terminal's processes ends no server, whose children
    # save their state meanwhile; and what is sent to a child before it has handlers reaches it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    gc.disable()
    for module in sys.argv[2:]:
        importlib.import_module(module)
    gc.freeze()  # what is never looked at is never copied
    gc.enable()
    request = _serve(control)
    if request is None:
        os._exit(0)  # its children, if there are any, are told by the system
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # as in a process of its own; torch's is a constant
    sys.argv[1:] = request["arguments"]
    module, _, function = request["entry"].partition(":")
    atexit.register(gc.unfreeze)  # else libraries take what is frozen for a leak
    work = getattr(importlib.import_module(module), function)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    work()


def _serve(control: socket.socket) -> dict[str, Any] | None:
    """Returns in each child, with its request; in the server None, when nobody asks any more."""
    wake, woken = socket.socketpair()
    woken.setblocking(False)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}  # process number by child number
    control.send(json.dumps({"ready": True}).encode())
    while True:
        readable, _, _ = select([control, wake], [], [])
        if wake in readable:
            wake.recv(_PACKET_BYTES)
            _tell_ended(control, running)
        if control not in readable:
            continue
        packet, streams, _, _ = socket.recv_fds(control, _PACKET_BYTES, 3)
        if not packet:
            return None
        request = json.loads(packet)
        if "signal" in request:
            if request["child"] in running:
                os.kill(running[request["child"]], request["signal"])
            continue
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            os.write(streams[2], f"mixerbench: no process can be started ({error}).\n".encode())
            _tell(control, child=request["start"], code=1)
            pid = -1
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for held in (control, wake, woken):
                held.close()
            _become(request, streams, parent)
            return request
        for stream in streams:
            os.close(stream)
        if pid > 0:
            running[request["start"]] = pid
            _tell(control, child=request["start"], pid=pid)


def _become(request: Mapping[str, Any], streams: Sequence[int], parent: int) -> None:
    """Give this process what ``subprocess`` would have given it."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.environ[PARENT] = str(parent)
    os.chdir(request["folder"])


def _tell_ended(control: socket.socket, running: dict[int, int]) -> None:
    for child, pid in list(running.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            del running[child]
            _tell(control, child=child, code=os.waitstatus_to_exitcode(status))


def _tell(control: socket.socket, **message: int) -> None:
    with suppress(BrokenPipeError):  # seen as the end of its messages
        control.send(json.dumps(message).encode())


if __name__ == "__main__":
    main()
