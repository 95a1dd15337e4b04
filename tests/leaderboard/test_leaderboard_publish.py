"""The pages as artifacts of an MLflow run. That MLflow shows them: test_leaderboard_serve."""

import time
from pathlib import Path
from typing import Any

import pytest
from made_runs import LONGER

from leaderboard.opening import read_runs
from mixerbench.commands.leaderboard._publishing import publish
from mixerbench.errors import Refusal
from mixerbench.tracking.keys import LEADERBOARD, Artifact, Metric, Tag
from mixerbench.tracking.store import Store

pytestmark = pytest.mark.slow  # what a page says of mixers is measured


@pytest.fixture(scope="module")
def published(store: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """A store with two boards in two experiments, the second one made by hand; and what is said."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('publish') / 'mlflow.db'}"
    identifier = Store(uri, 30).experiment("digits", "digits", "small images")
    own = type(store)(uri)
    own.experiments["digits"] = identifier
    own.log("attention")
    own.log("pooling", epochs=40)
    folder = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts"
    other = own.client.create_experiment("other", artifact_location=folder.as_uri())
    own.client.set_experiment_tag(other, "mlflow.note.content", "Mine.")
    own.experiments["other"] = other
    own.log("fourier", experiment="other")
    return own, publish(uri, [])


def _run(own: Any, experiment: str) -> Any:
    identifier = own.experiments[experiment]
    (run,) = own.client.search_runs([identifier], f"tags.`{Tag.KIND}` = '{LEADERBOARD}'")
    return run


def _page(own: Any, run: Any, name: str = Artifact.PAGE) -> str:
    return Path(own.client.download_artifacts(run.info.run_id, name)).read_text()


def test_every_experiment_has_a_run_with_its_pages(published: tuple[Any, str]) -> None:
    own, said = published
    for experiment in ("digits", "other"):
        run = _run(own, experiment)
        assert (run.info.run_name, run.info.status) == ("leaderboard", "FINISHED")
        assert run.info.run_id in said
        names = {one.path for one in own.client.list_artifacts(run.info.run_id)}
        assert {Artifact.PAGE, Artifact.SITE} <= names
        site = {one.path for one in own.client.list_artifacts(run.info.run_id, Artifact.SITE)}
        assert {"site/index.html", "site/site.js"} <= site
    assert "fourier" in _page(own, _run(own, "other"))
    assert "pooling" in _page(own, _run(own, "digits"), f"leaderboard-{LONGER}.html")


def test_the_page_is_one_file(published: tuple[Any, str]) -> None:
    own, _ = published
    page = _page(own, _run(own, "digits"))
    assert "<script src=" not in page
    assert "<link " not in page
    assert "Plotly" in page
    assert ".html" not in page.partition("<main")[2].partition("<script")[0]  # nothing to go to


def test_the_description_links_the_page(published: tuple[Any, str]) -> None:
    own, _ = published
    for experiment in ("digits", "other"):
        note = own.client.get_experiment(own.experiments[experiment]).tags["mlflow.note.content"]
        run_id = _run(own, experiment).info.run_id
        assert f"/runs/{run_id}/artifacts/{Artifact.PAGE}" in note
        assert "(mixerbench/)" in note
    assert note.startswith("Mine.")


def test_publishing_is_no_run_of_the_board(published: tuple[Any, str]) -> None:
    own, _ = published
    reading = read_runs(own.uri)
    assert len(reading.runs) == 3
    assert reading.skipped == {}


def test_publishing_again_replaces(published: tuple[Any, str]) -> None:
    own, _ = published
    before = _run(own, "digits").info.run_id
    own.log("attention", seed=1, metrics={Metric.UPLOADED_AT: time.time()})
    publish(own.uri, ["mixer=attention"])
    assert _run(own, "digits").info.run_id == before
    page = _page(own, _run(own, "digits"))
    assert "2 runs" in page
    note = own.client.get_experiment(own.experiments["digits"]).tags["mlflow.note.content"]
    assert note.count("The page: ") == 1
    assert note.count("[served]") == 1


def test_nothing_to_publish_is_refused(tmp_path: Path, published: tuple[Any, str]) -> None:
    own, _ = published
    with pytest.raises(Refusal, match="no such file"):
        publish(f"sqlite:///{tmp_path}/none.db", [])
    with pytest.raises(Refusal, match="mixer"):
        publish(own.uri, ["mixer=nothing"])
