"""Where results come from: an MLflow store or server, or a bundle."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from leaderboard.cache import Cache
from leaderboard.runs import Curves, Reading, Run
from mixers.core.errors import Refusal

T = TypeVar("T")


class Source(Protocol):
    """Where results come from: an MLflow store, or a bundle that somebody exported."""

    @property
    def name(self) -> str:
        """What to call it, without passwords."""
        ...

    @property
    def cache(self) -> Cache: ...

    def read(self) -> Reading: ...

    def artifact(self, run: Run, name: str, *, again: bool = False) -> Path | None:
        """A file that the run logged; None if it logged none of this name.

        ``again``: not the copy that was kept, which is damaged.
        """
        ...

    def curves(self, run: Run) -> Curves: ...


class UnreadableError(Refusal):
    """An artifact is not what it should be."""


def read_artifact(source: Source, run: Run, name: str, read: Callable[[Path], T]) -> T | None:
    """What ``read`` makes of a run's artifact; None if it logged none of this name.

    A kept copy that cannot be read is fetched once more: what was mended in a store is seen.

    UnreadableError: nor can that one; another ValueError: it cannot be fetched.
    """
    for again in (False, True):
        path = source.artifact(run, name, again=again)
        if path is None:
            return None
        try:
            return read(path)
        except Exception as error:  # a damaged file can make Arrow raise anything
            cause = error.__context__ or error
            reason = str(cause)[:100] if type(cause) is ValueError else "truncated or damaged"
    raise UnreadableError(reason)


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
