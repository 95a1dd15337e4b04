"""Where results come from: an MLflow store or server, or a bundle."""

from pathlib import Path
from typing import Protocol

from leaderboard.cache import Cache
from leaderboard.runs import Curves, Reading, Run


class Source(Protocol):
    """Where results come from: an MLflow store, or a bundle that somebody exported."""

    @property
    def name(self) -> str:
        """What to call it, without passwords."""
        ...

    @property
    def cache(self) -> Cache: ...

    def read(self) -> Reading: ...

    def artifact(self, run: Run, name: str) -> Path | None:
        """A file that the run logged; None if it logged none of this name."""
        ...

    def curves(self, run: Run) -> Curves: ...


def open_source(place: str, *, refresh: bool = False) -> Source:
    """The store or server at an MLflow tracking URI, or the bundle in a folder.

    ``refresh``: forget what was read of a store before.
    ValueError: there is none, or it cannot be read.
    """
    from leaderboard.bundle import Bundle, is_bundle
    from leaderboard.store import Store

    return Bundle(Path(place)) if is_bundle(Path(place)) else Store(place, refresh=refresh)


def read_runs(tracking_uri: str) -> Reading:
    """All finished mixerbench runs of a store, a server or a bundle. Never creates a store.

    ValueError: no store or server there, or MLflow refuses to read it.
    """
    return open_source(tracking_uri).read()
