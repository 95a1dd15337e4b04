"""The work of ``mixerbench leaderboard publish``: the pages as artifacts in MLflow."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from leaderboard.bundles.reader import is_bundle
from leaderboard.opening import open_source
from leaderboard.ranking.board import Board
from leaderboard.ranking.boards import boards
from leaderboard.site import board_page, single_page, write_site
from mixerbench.errors import Refusal, TrainingStopped, first_line
from mixerbench.tracking.keys import LEADERBOARD, SCHEMA_VERSION, Artifact, Tag
from mixerbench.tracking.passwords import without_password
from mixerbench.tracking.store import Store, resolve_uri
from mixerbench.tracking.views import page_tags

_TIMEOUT_SECONDS: Final = 60.0


def publish(uri: str | None, filters: Sequence[str], plugins: Sequence[str] = ()) -> str:
    """Store the pages of the boards that match ``filters``, each board in its experiment.

    A run called "leaderboard" holds them; publishing again overwrites its files. ``plugins``
    are Python files whose mixers' pages are whole; they are run.

    Raises:
        Refusal: nothing matches, or there is no store.
        TrainingStopped: the store failed in between; doing it again does the rest.
    """
    uri = resolve_uri(uri)
    if is_bundle(Path(uri)):
        raise Refusal(f"{uri} is a bundle: give --uri of an MLflow store or server.")
    source = open_source(uri)
    reading = source.read()
    found = boards(reading.runs, reading.measurements, filters=filters, source=source)
    by_experiment: dict[str, list[Board]] = {}
    for board in found:
        for experiment in {run.experiment_id for one in board.entries for run in one.runs}:
            by_experiment.setdefault(experiment, []).append(board)
    if not by_experiment:
        raise Refusal("there is no finished run to publish.")

    from mixerbench.commands.leaderboard._mixer_pages import families_of

    about = families_of(found, plugins)
    url = source.name if uri.startswith(("http://", "https://")) else ""
    lines = []
    try:
        store = Store(uri, _TIMEOUT_SECONDS)
        for experiment, shown in by_experiment.items():
            with tempfile.TemporaryDirectory(prefix="mixerbench-") as place:
                site = write_site(
                    *(source, shown, Path(place) / Artifact.SITE),
                    skipped=reading.skipped,
                    families=about,
                    mlflow_url=url,
                )
                _write_single_pages(site.folder, shown, Path(place))
                lines.append(_store(store, experiment, Path(place)))
    except Refusal:
        raise
    except Exception as error:  # whatever MLflow raises
        raise TrainingStopped(
            f"cannot publish at {source.name} ({without_password(first_line(error))})."
        ) from None
    return "\n".join(lines)


def _write_single_pages(site: Path, shown: Sequence[Board], folder: Path) -> None:
    """The first board's page under the name that the description links to; others beside it."""
    for number, board in enumerate(shown):
        name = Path(Artifact.PAGE)
        if number:
            name = name.with_stem(f"{name.stem}-{board.fingerprint}")
        (folder / name).write_text(single_page(site / board_page(board)), encoding="utf-8")


def _store(store: Store, experiment: str, folder: Path) -> str:
    """Copy a folder into the run of this experiment, and link it; returns what to print."""
    client = store.client
    found = client.search_runs([experiment], f"tags.`{Tag.KIND}` = '{LEADERBOARD}'", max_results=1)
    if found:
        run_id = found[0].info.run_id
    else:
        tags = {Tag.KIND: LEADERBOARD, Tag.SCHEMA: SCHEMA_VERSION}
        run_id = client.create_run(experiment, tags=tags, run_name=LEADERBOARD).info.run_id
    client.log_artifacts(run_id, str(folder))
    client.set_terminated(run_id)
    about = client.get_experiment(experiment)
    for key, value in page_tags(about.tags, experiment, run_id).items():
        client.set_experiment_tag(experiment, key, value)
    return f"{about.name}: run {run_id}, {Artifact.PAGE} and {Artifact.SITE}/"
