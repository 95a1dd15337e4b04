"""The work of ``mixerbench leaderboard serve``: MLflow on a store, with the pages beside it."""

import importlib.util
import ipaddress
import os
import socket
import sys
from pathlib import Path
from typing import Final

from leaderboard.server import (
    AUTHENTICATION,
    PREFIX,
    REFRESH_SECONDS,
    STORE,
    make_administrator,
)
from mixerbench.errors import Refusal, first_line
from mixerbench.tracking.passwords import without_password
from mixerbench.tracking.store import ARTIFACTS, check_reachable, resolve_uri, store_folder

KEY: Final = "MLFLOW_FLASK_SERVER_SECRET_KEY"
PASSWORD: Final = "MLFLOW_AUTH_ADMIN_PASSWORD"
ALLOWED_HOSTS: Final = "MLFLOW_SERVER_ALLOWED_HOSTS"
_ANY: Final = ("0.0.0.0", "::")  # every address that this machine has
_LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")


def serve(uri: str | None, host: str, port: int, refresh_seconds: float) -> None:
    """Become ``mlflow server``; returns only by an exception.

    This process is replaced, so that whoever stops it stops the server, and no third process
    stands between them.

    Raises:
        Refusal: no store, no free port, or others could come in without a password.
    """
    uri = resolve_uri(uri)
    _check_store(uri)
    _check_port(host, port)
    if refresh_seconds <= 0:
        raise Refusal(f"--refresh-seconds {refresh_seconds:g}: give a number above zero.")
    environment = {
        STORE: uri,
        REFRESH_SECONDS: str(refresh_seconds),
        "MLFLOW_BACKEND_STORE_URI": uri,  # not an argument, which others see and which may hold
        # a password
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # ten processes, for what nobody uses here
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    names = host_names(host)
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "mixerbench"]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    command += ["--allowed-hosts", ",".join(allowed_hosts(names or [host], port))]
    if names:
        command += ["--cors-allowed-origins", ",".join(allowed_origins(names, port))]
    folder = _folder(uri)
    if folder is not None:  # where training on this store puts artifacts too
        command += ["--artifacts-destination", str(folder / ARTIFACTS)]
    if not is_loopback(host):
        _use_folder(folder)
        _check_authentication()
        environment[AUTHENTICATION] = "true"
    else:
        environment[AUTHENTICATION] = "false"
    shown = names[0] if names else "127.0.0.1" if host == "localhost" else host
    shown = f"[{shown}]" if ":" in shown else shown
    print(f"MLflow: http://{shown}:{port}/ · leaderboard: http://{shown}:{port}{PREFIX}/")
    print("It is up in some seconds; Ctrl-C stops it.", flush=True)
    os.execve(sys.executable, command, {**os.environ, **environment})


def is_loopback(host: str) -> bool:
    """Can only this machine reach it?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name


def host_names(host: str) -> list[str]:
    """Names and addresses by which others call this machine; none if it listens to itself only."""
    if is_loopback(host):
        return []
    if host not in _ANY:
        return [host]
    import psutil

    names = [socket.gethostname(), socket.getfqdn()]
    for addresses in psutil.net_if_addrs().values():
        for one in addresses:
            if one.family in (socket.AF_INET, socket.AF_INET6):
                names.append(one.address.partition("%")[0])
    return [name for name in dict.fromkeys(names) if name and not is_loopback(name)]


def allowed_hosts(names: list[str], port: int) -> list[str]:
    """What a request may call this server: MLflow compares the whole Host header.

    A page elsewhere whose name is made to lead here (DNS rebinding) calls it otherwise. Any port
    is right for this machine's own names, so that ssh may forward another one.
    """
    found = []
    for name in [*map(_in_address, names), *_also()]:
        found += [name] if "*" in name else [name, f"{name}:{port}"]
    for name in _LOOPBACK:
        pattern = name.replace("[", "[[]")  # an asterisk makes it a pattern, where [ is special
        found += [name, f"{pattern}:*"]
    return list(dict.fromkeys(found))


def allowed_origins(names: list[str], port: int) -> list[str]:
    """MLflow's own pages, as a browser names them when they send something."""
    found = []
    for name in [*map(_in_address, names), *_also()]:
        found += [f"http://{name}:{port}", f"http://{name}", f"https://{name}"]
    return list(dict.fromkeys(found))


def _also() -> list[str]:
    """Names that only the user knows, such as a proxy's."""
    given = os.environ.get(ALLOWED_HOSTS, "").split(",")
    return [name.strip() for name in given if name.strip()]


def _in_address(name: str) -> str:
    return f"[{name}]" if ":" in name else name


def _check_store(uri: str) -> None:
    if uri.startswith(("http://", "https://")):
        raise Refusal(
            f"{without_password(uri)} is a server already: serve starts one on a store. "
            "'mixerbench leaderboard publish' puts the pages into it."
        )
    check_reachable(uri, 10)
    if not uri.startswith("sqlite"):
        _check_driver(uri)


def _check_driver(uri: str) -> None:
    """Refusal: a database that this Python has no driver for, which MLflow tells in 46 lines."""
    from sqlalchemy import create_engine

    try:
        create_engine(uri)  # connects nowhere yet
    except Exception as error:  # ImportError, or of its grammar
        reason = without_password(first_line(error))
        raise Refusal(
            f"cannot open the store {without_password(uri)} ({reason}): install the driver of "
            "this database, or correct the address."
        ) from None


def _check_port(host: str, port: int) -> None:
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        raise Refusal(
            f"cannot listen on {host}, port {port} ({error}): give a free --port, and as --host "
            "this machine's name or address, or 0.0.0.0 for all of them."
        ) from None


def _folder(uri: str) -> Path | None:
    return store_folder(uri) if uri.startswith("sqlite:///") else None


def _use_folder(folder: Path | None) -> None:
    """MLflow keeps its users in ./basic_auth.db: beside the store, not wherever one stands."""
    config = "MLFLOW_AUTH_CONFIG_PATH"
    if config in os.environ:
        os.environ[config] = os.path.abspath(os.environ[config])
    elif folder is not None:
        users = folder / "basic_auth.db"
        users.touch(mode=0o600)
        os.chdir(folder)


def _check_authentication() -> None:
    """Refusal: MLflow could not ask others for a password."""
    others = "to let others in, MLflow asks them for a password, and"
    if importlib.util.find_spec("flask_wtf") is None:
        raise Refusal(f"{others} needs a package for it: pip install 'mlflow[auth]'.")
    if not os.environ.get(KEY):
        raise Refusal(f"{others} needs a secret of its own: export {KEY}=$(openssl rand -hex 32)")
    try:
        make_administrator()
    except ValueError as error:
        raise Refusal(
            f"{others} needs an administrator: export {PASSWORD}=... of 12 characters or more, "
            f"for the first start. MLflow says: {error}"
        ) from None
