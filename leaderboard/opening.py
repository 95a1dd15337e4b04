"""Open a source of results: an MLflow store or server, or a bundle."""

from pathlib import Path

from leaderboard.reading.results import Reading
from leaderboard.reading.source import Source


def open_source(place: str, *, refresh: bool = False) -> Source:
    """The store or server at an MLflow tracking URI, or the bundle in a folder.

    Args:
        place: an MLflow tracking URI, or a bundle's folder.
        refresh: forget what was read of a store before.

    Raises:
        Refusal: there is none, or it cannot be read.
    """
    from leaderboard.bundles.reader import Bundle, is_bundle
    from leaderboard.reading.mlflow_source import MlflowSource

    return Bundle(Path(place)) if is_bundle(Path(place)) else MlflowSource(place, refresh=refresh)


def read_runs(tracking_uri: str) -> Reading:
    """All finished mixerbench runs of a store, a server or a bundle. Never creates a store.

    Raises:
        Refusal: no store or server there, or MLflow refuses to read it.
    """
    return open_source(tracking_uri).read()
