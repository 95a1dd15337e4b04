"""A cache of what was read of a source, so that reading it again is quick.

One folder per source below ``$XDG_CACHE_HOME/mixerbench`` (else ``~/.cache/mixerbench``). Deleting
it loses nothing but time.
"""

import hashlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

FORMAT = "3"
"""Raised when the format changes; a cache of another format is emptied."""
_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS runs (run_id TEXT PRIMARY KEY, state TEXT);
CREATE TABLE IF NOT EXISTS parts (digest TEXT PRIMARY KEY, content TEXT);
"""
_FILE = "runs.db"
_WAIT_SECONDS = 30  # for another process that writes


class Cache:
    """The cache of one source; several processes may use it at once.

    Where no file can be written it lives as long as this object.
    """

    def __init__(self, name: str) -> None:
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        try:
            self.folder = _home() / hashlib.sha256(name.encode()).hexdigest()[:16]
            self._prepare()
        except (OSError, sqlite3.Error, RuntimeError) as error:  # the last: there is no home
            self.replace(error)

    def replace(self, error: Exception) -> None:
        """Start an empty cache after this error: a new file, else a temporary folder."""
        damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(
            error,
            sqlite3.OperationalError,  # locked, no room, not writable
        )
        if damaged:
            with suppress(OSError, sqlite3.Error):
                for file in self.folder.glob(f"{_FILE}*"):
                    file.unlink()
                self._prepare()
                return
        self._temporary = tempfile.TemporaryDirectory(prefix="mixerbench-")
        self.folder = Path(self._temporary.name)
        self._prepare()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A lock between processes; it is released when its holder ends, however that happens."""
        with FileLock(self.folder / "lock"):
            yield

    def facts(self) -> dict[str, str]:
        with self._open() as db:
            return dict(db.execute("SELECT name, value FROM facts"))

    def runs(self) -> dict[str, dict[str, Any]]:
        """The states of all runs that were read, by run id, as given to `update`."""
        with self._open() as db:
            rows = db.execute("SELECT run_id, state FROM runs")
            return {run_id: json.loads(state) for run_id, state in rows}

    def parts(self) -> dict[str, dict[str, str]]:
        """Groups of parameters by digest: most runs share most of them."""
        with self._open() as db:
            rows = db.execute("SELECT digest, content FROM parts")
            return {digest: json.loads(content) for digest, content in rows}

    def update(
        self,
        states: Mapping[str, Mapping[str, Any]] = {},
        parts: Mapping[str, Mapping[str, str]] = {},
        gone: Iterable[str] = (),
        facts: Mapping[str, str] = {},
    ) -> None:
        """Store these, and remove the runs that are gone, in one transaction."""
        with self._open() as db:
            contents = ((digest, json.dumps(content)) for digest, content in parts.items())
            db.executemany("INSERT OR IGNORE INTO parts VALUES (?, ?)", contents)
            rows = ((run_id, json.dumps(state)) for run_id, state in states.items())
            db.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?)", rows)
            db.executemany("DELETE FROM runs WHERE run_id = ?", ((run_id,) for run_id in gone))
            db.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", facts.items())

    def clear(self) -> None:
        """Remove the runs. Files stay: their names tell the run and version that they belong to."""
        with self._open() as db:
            _begin(db)

    def forget(self, pattern: str) -> None:
        """Remove the files that fit this pattern."""
        for path in self.folder.glob(pattern):
            path.unlink(missing_ok=True)

    def file(self, *names: str, make: Callable[[Path], None], again: bool = False) -> Path:
        """The file of these names; ``make`` writes it where it is missing, whole or not at all.

        ``again``: make it anew.
        """
        path = self.folder.joinpath(*names)
        if again or not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as folder:
                new = Path(folder) / path.name
                make(new)
                os.replace(new, path)
        return path

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._open() as db:
            db.executescript(_TABLES)
            found = db.execute("SELECT value FROM facts WHERE name = 'format'").fetchone()
            if found != (FORMAT,):
                _begin(db)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        path = self.folder / _FILE
        with closing(sqlite3.connect(path, timeout=_WAIT_SECONDS)) as db, db:
            yield db


def _begin(db: sqlite3.Connection) -> None:
    for table in ("facts", "runs", "parts"):
        db.execute(f"DELETE FROM {table}")
    db.execute("INSERT INTO facts VALUES ('format', ?)", (FORMAT,))


def _home() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "mixerbench"
