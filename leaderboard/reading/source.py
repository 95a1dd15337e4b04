"""What a source of results can do, and how its files are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from leaderboard.reading.cache import Cache
from leaderboard.reading.curves import Curves
from leaderboard.reading.results import Reading, TrainedRun
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

    def artifact(self, run: TrainedRun, name: str, *, again: bool = False) -> Path | None:
        """A file that the run logged; None if it logged none of this name.

        ``again``: not the copy that was kept, which is damaged.
        """
        ...

    def curves(self, run: TrainedRun) -> Curves: ...


class UnreadableError(Refusal):
    """An artifact is not what it should be."""


def read_artifact(
    source: Source, run: TrainedRun, name: str, read: Callable[[Path], T]
) -> T | None:
    """What ``read`` makes of a run's artifact; None if it logged none of this name.

    A kept copy that cannot be read is fetched once more: what was mended in a store is seen.

    Raises:
        UnreadableError: the second copy cannot be read either.
        Refusal: it cannot be fetched.
    """
    for again in (False, True):
        path = source.artifact(run, name, again=again)
        if path is None:
            return None
        try:
            return read(path)
        except Exception as error:  # a damaged file can make Arrow raise anything
            cause = error.__context__ or error
            reason = str(cause)[:100] if type(cause) is Refusal else "truncated or damaged"
    raise UnreadableError(reason)
