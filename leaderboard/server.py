"""The leaderboard's pages beside MLflow's, in MLflow's own server: `mlflow server` with this app.

`mixerbench leaderboard serve` starts it, and says by environment what is served. The pages are
written by another process, so that this one stays small, and anew when the results have changed
and somebody looks. MLflow checks hosts, and where it asks for a password it asks for it here too.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from leaderboard.opening import open_source
from mixerbench.tracking.passwords import without_password
from mixers.core.errors import Refusal

if TYPE_CHECKING:
    from flask import Flask, Response


STORE: Final = "MIXERBENCH_STORE"  # the tracking URI whose results are shown
REFRESH_SECONDS: Final = "MIXERBENCH_REFRESH_SECONDS"
AUTHENTICATION: Final = "MIXERBENCH_AUTHENTICATION"  # "true": MLflow's
PREFIX: Final = "/mixerbench"
_BEING_WRITTEN: Final = """\
<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="2">
<title>mixerbench</title><p>The pages are being written.</p><p>{error}</p></html>
"""


class Refresher:
    """Keeps a site up to date in a thread of its own, so that no request waits for it."""

    def __init__(self, uri: str, every_seconds: float, home: Path) -> None:
        self.uri, self.every_seconds, self.home = uri, every_seconds, home
        self.folder: Path | None = None  # of the newest site; None: none was written yet
        self.written = ""  # when, ISO 8601
        self.error = ""  # why the newest results are not shown; empty: they are
        self.refreshing = False
        self._child: subprocess.Popen[str] | None = None
        self._asked = threading.Event()
        self._closing = threading.Event()
        self._lock = threading.Lock()  # of starting a child, and of closing
        self._thread = threading.Thread(target=self._work, name="mixerbench-site", daemon=True)

    def start(self) -> None:
        self.ask()  # so that the pages are there when the first reader comes
        self._thread.start()

    def ask(self) -> None:
        """Have the thread look for new results; it does so at most every few seconds."""
        self._asked.set()

    def close(self) -> None:
        self._closing.set()
        self._asked.set()
        with self._lock:
            if self._child is not None:
                self._child.terminate()
        self._thread.join(10)

    def status(self) -> dict[str, Any]:
        return {
            "version": self.folder.name if self.folder else "",
            "written": self.written,
            "refreshing": self.refreshing,
            "error": self.error,
        }

    def _work(self) -> None:
        while True:
            self._asked.wait()
            self._asked.clear()
            if self._closing.is_set():
                return
            self.refreshing = True
            try:
                self._refresh()
                self.error = ""
            except Exception as error:  # whatever it was, the pages that are there stay
                reason = str(error).strip() or type(error).__name__
                self.error = without_password(reason.splitlines()[-1])
            self.refreshing = False
            self._closing.wait(self.every_seconds)

    def _refresh(self) -> None:
        reading = open_source(self.uri).read()
        # Of a run that is not finished only the number is shown: while it trains, nothing is new.
        results = [(run.run_id, run.finished) for run in reading.runs]
        results += [
            (measurement.run_id, measurement.finished) for measurement in reading.measurements
        ]
        content = repr((sorted(results), sorted(reading.skipped.items())))
        version = hashlib.sha256(content.encode()).hexdigest()[:16]
        before = self.folder
        if before is None or version != before.name:
            self._write(self.home / version)
            self.folder = self.home / version
            self.written = datetime.now(UTC).isoformat(timespec="seconds")
            if before is not None:
                shutil.rmtree(before)

    def _write(self, out: Path) -> None:
        # What the pages say of the mixers is measured with torch, which this process never loads.
        command = [sys.executable, "-m", "mixerbench", "leaderboard", "site"]
        with self._lock:
            if self._closing.is_set():
                raise RuntimeError("the server is stopping")
            self._child = subprocess.Popen(
                [*command, "--out", str(out), "--mlflow-url", ".."],  # whatever name one came by
                env={**os.environ, "MLFLOW_TRACKING_URI": self.uri, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        _, errors = self._child.communicate()
        if self._child.returncode:
            raise RuntimeError(errors or f"exit code {self._child.returncode}")


def create_app() -> Any:
    """The entry point ``mixerbench`` of the group ``mlflow.app``: MLflow's app, and our pages."""
    from mlflow.server import app as flask_app

    home = tempfile.TemporaryDirectory(prefix="mixerbench-site-")
    refresher = Refresher(
        os.environ[STORE], float(os.environ.get(REFRESH_SECONDS, "30")), Path(home.name)
    )
    _add_routes(flask_app, refresher)
    if os.environ.get(AUTHENTICATION) == "true":
        # It puts itself before every route of the Flask app, ours included.
        from mlflow.server.auth import create_app as with_authentication

        app = with_authentication(flask_app)
        _let_every_user_in()
    else:
        from mlflow.server.fastapi_app import create_fastapi_app

        app = create_fastapi_app(flask_app)
    mlflows = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        with home:
            async with mlflows(app):
                refresher.start()
                try:
                    yield
                finally:
                    refresher.close()

    app.router.lifespan_context = lifespan
    return app


def make_administrator() -> None:
    """MLflow's first user, as ``mlflow server --app-name basic-auth`` makes it before it starts.

    Raises:
        Refusal: there is none yet, and MLflow has no good password for it.
    """
    from mlflow import MlflowException
    from mlflow.server import auth

    try:
        auth.bootstrap_admin_user()
    except MlflowException as error:
        raise Refusal(" ".join(str(error).split())[:300]) from None


def _add_routes(app: "Flask", refresher: Refresher) -> None:
    from flask import Response, abort, jsonify, redirect, send_from_directory

    def index() -> "Response":
        return page("index.html")

    def status() -> "Response":
        refresher.ask()
        response: Response = jsonify(refresher.status())
        response.headers["Cache-Control"] = "no-store"
        return response

    def page(name: str) -> "Response":
        refresher.ask()
        if not re.fullmatch(r"\w[\w.-]*", name):
            abort(404)
        if refresher.folder is None:
            from markupsafe import escape

            text = _BEING_WRITTEN.format(error=escape(refresher.error))
            return Response(text, 503, {"Retry-After": "2", "Cache-Control": "no-store"})
        # With an ETag and no-cache: asked for each time, sent when it has changed.
        return send_from_directory(refresher.folder, name)

    def without_slash() -> Any:
        return redirect(f"{PREFIX.rpartition('/')[2]}/")

    app.add_url_rule(PREFIX, "mixerbench", without_slash)
    app.add_url_rule(f"{PREFIX}/", "mixerbench_index", index)
    app.add_url_rule(f"{PREFIX}/status", "mixerbench_status", status)
    app.add_url_rule(f"{PREFIX}/<name>", "mixerbench_page", page)


def _let_every_user_in() -> None:
    """Let every user who has logged in read the pages: without a rule, MLflow refuses them.

    An administrator may read everything; of others a rule is looked for by (path, method).
    """
    from mlflow.server import auth as mlflows

    auth: Any = mlflows
    find = auth._find_validator

    def find_ours(request: Any) -> Any:
        if re.fullmatch(rf"{PREFIX}(/[^/]*)?", request.path) and request.method in ("GET", "HEAD"):
            return lambda: True
        return find(request)

    auth._find_validator = find_ours
