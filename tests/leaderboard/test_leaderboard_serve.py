"""MLflow with the pages beside it: real servers, on this machine's loopback only."""

import base64
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from browser import open_browser

import leaderboard
from mixerbench.commands.leaderboard import _serving as command
from mixerbench.commands.leaderboard._publishing import publish
from mixerbench.errors import Refusal
from mixerbench.tracking import views
from mixerbench.tracking.keys import Metric

pytestmark = pytest.mark.xdist_group("serve")  # one server, whatever the number of processes
slow = pytest.mark.slow
START_SECONDS = 180  # a server needs 12 s on two quiet cores

# As `mixerbench leaderboard serve`, but what would listen to others listens to this machine only.
SCRIPT = """
import os, sys
from mixerbench.commands.leaderboard._serving import serve
from mixerbench.errors import exit_code
real = os.execve
def execve(path, command, environment):
    real(path, [a if a != "0.0.0.0" else "127.0.0.1" for a in command], environment)
os.execve = execve
uri, host, port = sys.argv[1:]
sys.exit(exit_code(lambda: serve(uri, host, int(port), 0.5)))
"""


class Server:
    def __init__(self, uri: str, host: str, log: Path, **environment: str) -> None:
        self.port, self.log = _free_port(), log
        self.uri = f"http://127.0.0.1:{self.port}/"
        started = time.monotonic()
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SCRIPT, uri, host, str(self.port)],
                env={**os.environ, **environment},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        while self.process.poll() is None and time.monotonic() < started + START_SECONDS:
            try:
                if self.get("/health")[0] == 200:
                    self.seconds = time.monotonic() - started
                    return
            except OSError:
                time.sleep(0.1)
        self.stop()
        pytest.fail(log.read_text(errors="replace")[-2000:])

    def get(self, path: str, method: str = "GET", body: str = "", **headers: str) -> Any:
        """(status, headers, text); the path is sent as it is."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode(errors="replace")

    def status(self, **headers: str) -> dict[str, Any]:
        return dict(json.loads(self.get("/mixerbench/status", **headers)[2]))

    def wait(self, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        deadline = time.monotonic() + START_SECONDS
        while not condition(status := self.status()):
            assert time.monotonic() < deadline, status
            time.sleep(0.2)
        return status

    def processes(self) -> list[psutil.Process]:
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def own(store: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A store of this module's, with an experiment as training makes it, and its page."""
    from mixerbench.tracking.store import Store

    uri = f"sqlite:///{tmp_path_factory.mktemp('serve') / 'mlflow.db'}"
    identifier = Store(uri, 30).experiment("digits", "digits", "small images")
    own = type(store)(uri)
    own.experiments["digits"] = identifier
    for mixer, top1 in (("attention", 80.0), ("convolution", 70.0)):
        for seed in (0, 1):
            metrics = {Metric.FINAL_TOP1: top1 + seed, Metric.VAL_TOP1: top1 + seed}
            cost = {Metric.GMACS: top1 / 100, Metric.IMAGES_PER_SECOND: 10 * top1}
            own.log(mixer, seed=seed, metrics=metrics | cost | {Metric.TRAIN_LOSS: 1.0})
    publish(uri, [])
    return own


@pytest.fixture(scope="module")
def server(own: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(own.uri, "127.0.0.1", tmp_path_factory.mktemp("log") / "log")
    try:
        server.wait(lambda status: status["version"])
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def browser(server: Server) -> Iterator[Any]:
    with open_browser() as browser:
        yield browser


@slow
def test_the_pages_stand_beside_mlflow(server: Server) -> None:
    assert server.get("/")[0] == server.get("/mixerbench/")[0] == 200
    status, headers, text = server.get("/mixerbench/index.html")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert headers["Cache-Control"] == "no-cache"
    assert headers["X-Content-Type-Options"] == "nosniff"
    (page,) = set(re.findall(r"board-\w+\.html", text))
    assert "convolution" in server.get(f"/mixerbench/{page}")[2]
    etag = headers["ETag"]
    assert server.get("/mixerbench/index.html", **{"If-None-Match": etag})[0] == 304
    kinds = {"site.js": "text/javascript", "site.css": "text/css", "leaderboard.json": "json"}
    for name, kind in kinds.items():
        assert kind in server.get(f"/mixerbench/{name}")[1]["Content-Type"]
    assert server.get("/mixerbench")[1]["Location"].endswith("mixerbench/")


@slow
def test_a_board_read_from_the_server_is_that_of_its_store(server: Server, own: Any) -> None:
    (ours,), (servers,) = (leaderboard.read_boards(uri) for uri in (own.uri, server.uri[:-1]))
    shown = [leaderboard.render.json([board]) for board in (ours, servers)]
    assert shown[0] == shown[1]


@slow
@pytest.mark.parametrize(
    "path",
    (
        "../mlflow.db",
        "..%2f..%2fmlflow.db",
        "%2e%2e/%2e%2e/etc/passwd",
        "..%5cmlflow.db",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        ".mixerbench-site",
        "..",
        "site.js%00",
        "vendor/plotly.js",
    ),
)
def test_only_files_of_the_site_are_served(server: Server, path: str) -> None:
    assert server.get(f"/mixerbench/{path}")[0] == 404


@slow
def test_a_name_that_is_not_this_machines_is_refused(server: Server) -> None:
    for path in ("/mixerbench/", "/api/2.0/mlflow/experiments/search?max_results=1"):
        for host in ("evil.example", f"evil.example:{server.port}", "10.evil.example"):
            assert server.get(path, Host=host)[0] == 403
        for host in ("localhost:8080", f"127.0.0.1:{server.port}"):  # ssh forwards another port
            assert server.get(path, Host=host)[0] == 200


@slow
def test_it_is_small(server: Server) -> None:
    server.wait(lambda status: not status["refreshing"])
    processes = server.processes()
    rss = sum(one.memory_info().rss for one in processes) / 2**20
    print(f"{len(processes)} processes, {rss:.0f} MiB, up in {server.seconds:.0f} s")
    assert len(processes) == 2
    assert rss < 900


@slow
def test_pages_link_the_runs_and_mlflow_links_the_pages(
    server: Server, own: Any, browser: Any
) -> None:
    page = browser.open(f"{server.uri}mixerbench/")
    page.locator("h2 a").first.click()
    page.get_by_role("link", name="attention_micro_patch").first.click()
    with page.expect_navigation():
        page.get_by_role("link", name="in MLflow").first.click()
    identifier = own.experiments["digits"]
    assert page.url.startswith(f"{server.uri}#/experiments/{identifier}/runs/")
    page.goto("about:blank")

    page.goto(server.uri + views.view_link(identifier, views.LEADERBOARD))
    link = page.get_by_role("link", name="served", exact=True).first
    link.wait_for()
    assert link.evaluate("link => link.href") == f"{server.uri}mixerbench/"
    page.close()
    assert browser.blocked == []


@slow
@pytest.mark.parametrize("view", (views.ACCURACY_GMACS, views.ACCURACY_SPEED, views.CURVES))
def test_mlflow_draws_the_views(server: Server, own: Any, browser: Any, view: str) -> None:
    page = browser.open(server.uri + views.view_link(own.experiments["digits"], view))
    # Of values at one step, MLflow draws bars.
    page.locator(".js-plotly-plot .trace").first.wait_for(timeout=60_000)
    assert page.get_by_text("Group by: mixerbench.mixer").count() == (view == views.CURVES)
    assert page.get_by_text("4 matching runs").count() == 1  # and not the one with the page
    page.close()


@slow
def test_mlflow_shows_the_published_page(server: Server, own: Any, browser: Any) -> None:
    note = own.client.get_experiment(own.experiments["digits"]).tags["mlflow.note.content"]
    link = re.search(r"\[published\]\(([^)]*)\)", note)
    assert link is not None
    browser.errors.clear()
    page = browser.open(server.uri + link[1])
    shown = page.frame_locator("iframe")
    shown.locator("#board tbody tr").nth(1).wait_for(timeout=60_000)
    shown.locator("#pareto-plot .scatterlayer .trace").first.wait_for()
    assert shown.locator("#board tbody tr").count() == 2
    shown.locator("#baseline").select_option(index=1)  # the address cannot be changed in there
    shown.locator("#theme").click()
    shown.locator("#pareto-x").select_option("images_per_second")
    assert [text for text in browser.errors if "404" not in text and "Observer" not in text] == []
    page.close()


@slow
def test_an_open_page_follows_the_results_and_keeps_its_view(
    server: Server, own: Any, browser: Any
) -> None:
    before = server.wait(lambda status: not status["refreshing"])["version"]
    page = browser.open(f"{server.uri}mixerbench/")
    page.locator("h2 a").first.click()
    page.locator("#pareto-x").select_option("images_per_second")
    assert "pareto-x=images_per_second" in page.url
    own.log("fourier", metrics={Metric.FINAL_TOP1: 60.0, Metric.UPLOADED_AT: time.time()})
    page.evaluate("Date.now = () => 0")  # its reader touches it all the time
    page.locator("#newer").wait_for(timeout=120_000)
    page.evaluate("Date.now = () => 1e15")  # and left it long ago
    page.get_by_role("link", name="fourier_micro_patch").first.wait_for()
    page.locator("#pareto-plot .scatterlayer").wait_for()
    assert "pareto-x=images_per_second" in page.url
    assert page.locator("#pareto-x").input_value() == "images_per_second"
    page.close()
    assert server.status()["version"] != before


@slow
def test_what_fails_leaves_the_pages_and_says_why(server: Server, own: Any, tmp_path: Path) -> None:
    version = server.wait(lambda status: not status["refreshing"])["version"]
    path = Path(own.uri.removeprefix("sqlite:///"))
    path.rename(tmp_path / "elsewhere.db")
    try:
        status = server.wait(lambda status: status["error"])
        assert status["version"] == version
        assert "mlflow.db" in status["error"]
        assert server.get("/mixerbench/")[0] == 200
    finally:
        (tmp_path / "elsewhere.db").rename(path)
    server.wait(lambda status: not status["error"])


PASSWORD = "correct horse battery"


@slow
@pytest.mark.filterwarnings("ignore")
def test_others_need_a_password_and_ctrl_c_stops_everything(own: Any, tmp_path: Path) -> None:
    pytest.importorskip("flask_wtf")
    secrets = {command.KEY: "0123456789abcdef", command.PASSWORD: PASSWORD}
    server = Server(own.uri, "0.0.0.0", tmp_path / "log", **secrets)
    api = "/api/2.0/mlflow/experiments/search?max_results=1"
    pages = ("/mixerbench", "/mixerbench/", "/mixerbench/status", "/mixerbench/site.js")
    try:
        for path in (api, *pages, "/"):
            assert server.get(path)[0] == 401, path
            assert server.get(path, Authorization=_basic("admin", "password1234"))[0] == 401
        admin = _basic("admin", PASSWORD)
        user = {"username": "reader", "password": "another long one"}
        made = server.get(
            *("/api/2.0/mlflow/users/create", "POST", json.dumps(user)),
            **{"Authorization": admin, "Content-Type": "application/json"},
        )
        assert made[0] == 200, made
        for login in (admin, _basic(*user.values())):
            assert server.get(api, Authorization=login)[0] == 200
            assert server.get("/mixerbench/status", Authorization=login)[0] == 200
            assert server.get("/mixerbench/", Authorization=login)[0] in (200, 503)  # or not yet
        here = f"{socket.gethostname()}:{server.port}"
        assert server.get(api, Authorization=admin, Host=here)[0] == 200
        assert server.get(api, Authorization=admin, Host="evil.example")[0] == 403
        users = Path(own.uri.removeprefix("sqlite:///")).with_name("basic_auth.db")
        assert users.stat().st_mode & 0o077 == 0

        processes = server.processes()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(30)
        _, alive = psutil.wait_procs(processes, timeout=30)
        assert alive == []
    finally:
        server.stop()


def _basic(name: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"


# --- what is refused, without a server ----------------------------------------------------------


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `serve` would become."""
    executed: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *arguments: executed.append(arguments))
    for name in (command.KEY, command.PASSWORD, command.ALLOWED_HOSTS):
        monkeypatch.delenv(name, raising=False)
    return executed


def test_a_password_of_the_store_is_not_on_the_command_line(
    executed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    command.serve("postgresql+psycopg2://me:secret@db/mlflow", "127.0.0.1", _free_port(), 30)
    ((_, arguments, environment),) = executed
    assert "secret" not in " ".join(arguments)
    assert "secret" in environment["MLFLOW_BACKEND_STORE_URI"]
    assert environment[command.AUTHENTICATION] == "false"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert arguments[arguments.index("--workers") + 1] == "1"


@pytest.mark.parametrize("host", ("0.0.0.0", "::"))
def test_others_are_not_let_in_without_a_secret(
    tmp_path: Path, executed: list[Any], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("flask_wtf")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal, match=f"export {command.KEY}="):
        command.serve(f"sqlite:///{tmp_path}/mlflow.db", host, _free_port(), 30)
    assert executed == []


def test_others_are_not_let_in_without_the_package(
    tmp_path: Path, executed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Refusal, match=r"mlflow\[auth\]"):
        command.serve(f"sqlite:///{tmp_path}/mlflow.db", "0.0.0.0", _free_port(), 30)
    assert executed == []


def test_what_cannot_be_served_is_refused(tmp_path: Path, executed: list[Any]) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Refusal, match=f"port {port}"):
            command.serve(uri, "127.0.0.1", port, 30)
    with pytest.raises(Refusal, match="no-such-host"):
        command.serve(uri, "no-such-host.invalid", _free_port(), 30)
    with pytest.raises(Refusal, match="is a server already"):
        command.serve("http://127.0.0.1:5000", "127.0.0.1", _free_port(), 30)
    with pytest.raises(Refusal, match="refresh-seconds"):
        command.serve(uri, "127.0.0.1", _free_port(), 0)
    assert executed == []


def test_loopback_is_told_from_the_rest() -> None:
    for host in ("localhost", "127.0.0.1", "127.0.0.2", "::1"):
        assert command.is_loopback(host)
        assert command.host_names(host) == []
    for host in ("0.0.0.0", "::", "192.168.1.5", "trainnode01", "127.evil.example"):
        assert not command.is_loopback(host)
    assert command.host_names("trainnode01") == ["trainnode01"]
    assert socket.gethostname() in command.host_names("0.0.0.0")


def test_mlflow_takes_the_names_that_are_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.server.security_utils import is_allowed_host_header

    monkeypatch.setenv(command.ALLOWED_HOSTS, "board.example.org")
    hosts = command.allowed_hosts(["trainnode01", "fe80::1"], 5000)
    right = ["trainnode01", "trainnode01:5000", "localhost:8080", "127.0.0.1:5000", "[::1]:5000"]
    right += ["[fe80::1]:5000", "board.example.org"]
    wrong = ["trainnode01:5001", "localhost.evil.example", "10.evil.example", "192.168.0.7", ""]
    assert [is_allowed_host_header(hosts, host) for host in right] == [True] * len(right)
    assert [is_allowed_host_header(hosts, host) for host in wrong] == [False] * len(wrong)
    origins = command.allowed_origins(["trainnode01"], 5000)
    assert {"http://trainnode01:5000", "https://board.example.org"} <= set(origins)


def test_importing_the_command_is_quick() -> None:
    code = (
        "import sys, mixerbench.commands.leaderboard._serving, leaderboard.server;"
        "sys.exit(bool({'mlflow', 'torch', 'pandas'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_a_database_without_its_driver_is_one_line_without_its_password() -> None:
    with pytest.raises(
        Refusal, match=r"mssql\+pyodbc://\*\*\*@host/db.*install the driver"
    ) as error:
        command.serve("mssql+pyodbc://me:geheim@host/db", "127.0.0.1", 5999, 30.0)
    assert "geheim" not in str(error.value)
