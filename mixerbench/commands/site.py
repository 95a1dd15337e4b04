"""``mixerbench leaderboard site``: the boards as pages, with what is known here of their mixers."""

from collections.abc import Sequence
from pathlib import Path

from leaderboard import boards, open_source
from leaderboard.site import write_site
from mixerbench.commands.families import families_of


def site(
    place: str,
    out: Path,
    *,
    filters: Sequence[str] = (),
    hardware: str = "",
    mlflow_url: str = "",
    plugins: Sequence[str] = (),
) -> str:
    """What to print of the site that was written to ``out``.

    Args:
        place: an MLflow tracking URI, or a bundle's folder.
        mlflow_url: as in `write_site`; of a server its own address, unless told otherwise.
        plugins: Python files whose mixers' pages are whole; they are run.

    Raises:
        ValueError: nothing to read there, an unknown filter, or ``out`` holds something else.
    """
    source = open_source(place)
    reading = source.read()
    shown = boards(
        *(reading.runs, reading.measurements), filters=filters, hardware=hardware, source=source
    )
    if not mlflow_url and place.startswith(("http://", "https://")):
        mlflow_url = source.name
    written = write_site(
        source,
        shown,
        out,
        skipped=reading.skipped,
        families=families_of(shown, plugins),
        mlflow_url=mlflow_url,
    )
    return (
        f"{written.index}: {written.boards} board{'s' if written.boards != 1 else ''}, "
        f"{written.entries} entries, {written.bytes / 1e6:.1f} MB. It opens from the disk."
    )
