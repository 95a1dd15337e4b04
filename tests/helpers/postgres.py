"""A real PostgreSQL of its own, which can be stopped and started again."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


class Postgres:
    """A new, empty database on a port of this machine; Debian's package ``postgresql``."""

    def __init__(self, port: int) -> None:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not programs:
            missing = "PostgreSQL is missing: apt-get install postgresql"
            if os.environ.get("CI") == "true":
                pytest.fail(missing)
            pytest.skip(missing)
        self._programs = programs[-1].parent
        # PostgreSQL refuses root, and its own user may not enter pytest's folders.
        self._user = "postgres" if os.geteuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="mixerbench-postgres-"))
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        self._port = port
        self.uri = f"postgresql+psycopg2://postgres@127.0.0.1:{port}/postgres"
        self._call("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8",
                   "--locale=C", "--no-sync")  # fmt: skip

    def start(self) -> None:
        """Returns when it answers."""
        settings = {
            "port": self._port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self._folder,
            "fsync": "off",
        }
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        self._call("pg_ctl", "start", "--wait", "-o", options)

    def stop(self) -> None:
        """Ends every connection, whatever it is in the middle of."""
        self._call("pg_ctl", "stop", "--wait", "--mode=fast")

    def remove(self) -> None:
        if (self._folder / "data" / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self._folder)

    def _call(self, program: str, *arguments: str) -> None:
        with open(self._folder / "log", "ab") as log:  # the server inherits it from pg_ctl
            done = subprocess.run(
                [str(self._programs / program), f"--pgdata={self._folder / 'data'}", *arguments],
                user=self._user,
                group=self._user,
                extra_groups=None if self._user is None else [],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if done.returncode != 0:
            said = (self._folder / "log").read_text(errors="replace")
            pytest.fail(f"{program} failed with {done.returncode}: {said[-2000:]}")
