"""The tags that dress the MLflow experiment page. That MLflow draws them was seen in a browser."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mixerbench.tracking import views
from mixerbench.tracking.figures import FIGURES
from mixerbench.tracking.keys import Metric, Tag
from mixerbench.tracking.store import Store
from mixerbench.tracking.views import (
    ACCURACY_GMACS,
    ACCURACY_SPEED,
    CURVES,
    LEADERBOARD,
    NOTE_TAG,
    VERSION_TAG,
    VIEW_TAG,
    experiment_tags,
    missing_tags,
    page_tags,
)

TAGS = experiment_tags("digits", "8 x 8 digits, 20 epochs.", "7")
VIEWS = (LEADERBOARD, ACCURACY_GMACS, ACCURACY_SPEED, CURVES)
NOTE = "mlflow.note.content"
PAGE = "/runs/abc/artifacts/leaderboard.html"


def _keys(group: type) -> set[str]:
    return {value for name, value in vars(group).items() if not name.startswith("_")}


def _state(view: str) -> dict[str, Any]:
    envelope = json.loads(TAGS[VIEW_TAG + view])
    # What MLflow's reader demands; else it drops the view without a word.
    assert isinstance(envelope["name"], str)
    assert isinstance(envelope["createdAt"], int)
    assert isinstance(envelope["state"], str)
    state = json.loads(envelope["state"])
    assert isinstance(state, dict)
    return state


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_shows_all_trained_models_by_final_top1(view: str) -> None:
    state = _state(view)
    # The run that holds the published page has no mixer.
    trained = f"attributes.status = 'FINISHED' AND tags.`{Tag.MIXER}` LIKE '%'"
    assert state["searchFilter"] == trained
    assert state["orderByKey"] == f"metrics.`{Metric.FINAL_TOP1}`"
    assert state["orderByAsc"] is False
    assert state["runsHiddenMode"] == "SHOW_ALL"


@pytest.mark.parametrize("view", VIEWS)
def test_columns_are_logged_keys(view: str) -> None:
    state = _state(view)
    metrics = _keys(Metric) | {figure.key for figure in FIGURES}
    known = {"metrics": metrics, "tags": _keys(Tag), "attributes": {"Run Name"}}
    columns = state["selectedColumns"]
    for column in columns:
        kind, _, name = column.partition(".")
        assert name.strip("`") in known[kind]
    assert f"tags.`{Tag.PROTOCOL_FINGERPRINT}`" in columns
    assert columns == state["columnOrder"] == list(state["columnWidths"])


@pytest.mark.parametrize(
    "view, cost, curves",
    (
        (ACCURACY_GMACS, Metric.GMACS, [Metric.VAL_TOP1, Metric.TRAIN_LOSS]),
        (ACCURACY_SPEED, Metric.IMAGES_PER_SECOND, []),
        (CURVES, None, [Metric.VAL_TOP1, Metric.TRAIN_LOSS]),
    ),
)
def test_charts_are_of_logged_keys_and_have_a_section(
    view: str, cost: str | None, curves: list[str]
) -> None:
    state = _state(view)
    charts = state["compareRunCharts"]
    sections = [section["uuid"] for section in state["compareRunSections"] if section["display"]]
    assert [*dict.fromkeys(chart["metricSectionId"] for chart in charts)] == sections

    scatters = [chart for chart in charts if chart["type"] == "SCATTER"]
    axes = [(chart["xaxis"]["key"], chart["yaxis"]["key"]) for chart in scatters]
    assert axes == ([(cost, Metric.FINAL_TOP1)] if cost else [])
    assert [chart["metricKey"] for chart in charts if chart["type"] == "LINE"] == curves
    assert len(charts) == len(scatters) + len(curves)


def test_only_curves_are_grouped() -> None:
    grouped = {view: _state(view).get("groupBy") for view in VIEWS}
    assert grouped.pop(CURVES)["groupByKeys"] == [{"mode": "tag", "groupByData": Tag.MIXER}]
    assert set(grouped.values()) == {None}


@pytest.mark.parametrize("view", VIEWS[1:])
def test_other_metrics_are_folded_away(view: str) -> None:
    sections = _state(view)["compareRunSections"]
    shown = {section["name"]: section["display"] for section in sections}
    endings = {Metric.SYSTEM, Metric.LOWER_QUARTILE, Metric.UPPER_QUARTILE}
    for key in _keys(Metric) - endings:
        assert shown[key.rpartition("/")[0]] is False, f"MLflow would unfold a chart of {key}"


def test_description_starts_with_a_link_to_each_view() -> None:
    note = TAGS["mlflow.note.content"]
    first_line = note.splitlines()[0]  # the only one that MLflow shows folded
    assert [f"]({views.view_link('7', view)})" in first_line for view in VIEWS] == [True] * 4
    targets = re.findall(r"viewStateShareKey=([\w-]+)", note)
    assert {VIEW_TAG + target for target in targets} == {k for k in TAGS if k.startswith(VIEW_TAG)}
    assert "The page: [served](mixerbench/)" in first_line


def test_description_explains_every_metric_of_the_table() -> None:
    note = TAGS["mlflow.note.content"]
    for column in _state(LEADERBOARD)["selectedColumns"]:
        if column.startswith("metrics."):
            assert f"`{column.split('`')[1]}`" in note
    for text in ("digits", "8 x 8 digits, 20 epochs.", Tag.PROTOCOL_FINGERPRINT):
        assert text in note
    assert "`mixerbench leaderboard`" in note


def test_setting_the_tags_again_changes_nothing() -> None:
    assert experiment_tags("digits", "8 x 8 digits, 20 epochs.", "7") == TAGS


def _renewed(tags: dict[str, str]) -> dict[str, str]:
    return tags | missing_tags(tags, "digits", "8 x 8 digits, 20 epochs.", "7")


def test_what_is_up_to_date_is_left_alone() -> None:
    assert missing_tags(TAGS, "other", "changed", "7") == {}


def test_an_older_experiment_gets_what_is_new_and_keeps_its_page() -> None:
    published = TAGS | page_tags(TAGS, "7", "abc")
    older = published | {VERSION_TAG: "1", VIEW_TAG + LEADERBOARD: "{}"}
    assert PAGE in older[NOTE]
    assert _renewed(older) == published
    assert _renewed({}) == TAGS
    assert missing_tags(_renewed(older), "digits", "", "7") == {}


def test_an_experiment_of_the_first_version_is_described_anew() -> None:
    first = {NOTE: "**[Leaderboard](#/experiments/7/runs) ...", VIEW_TAG + LEADERBOARD: "{}"}
    assert _renewed(first) == TAGS


def test_what_somebody_wrote_stays() -> None:
    edited = TAGS | {NOTE: TAGS[NOTE] + "And mine.", VERSION_TAG: "1"}
    assert _renewed(edited) == TAGS | {NOTE: edited[NOTE]}
    measurements = {NOTE: "What trained models cost."}  # no leaderboard at all
    assert _renewed(measurements) == measurements


def test_the_page_is_linked_once_whatever_the_description_says() -> None:
    for note in (TAGS[NOTE], "Mine.", ""):
        tags = TAGS | {NOTE: note}
        for run_id in ("first", "abc"):
            tags |= page_tags(tags, "7", run_id)
        assert tags[NOTE].count("The page: ") == 1
        assert PAGE in tags[NOTE] and "first" not in tags[NOTE].partition("The page")[2][:80]
        assert tags[NOTE].startswith(note[:20])
        # What was written by hand is not taken for ours.
        assert (tags[NOTE_TAG] != TAGS[NOTE_TAG]) == (note == TAGS[NOTE])


def test_importing_views_does_not_import_mlflow() -> None:
    code = "import sys, mixerbench.tracking.views; sys.exit('mlflow' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


@pytest.mark.filterwarnings("ignore")  # mlflow 3.17.2 warns about itself with a new sqlalchemy
def test_mlflow_stores_the_tags_untruncated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient
    from mlflow.utils.validation import MAX_EXPERIMENT_TAG_VAL_LENGTH

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.create_experiment("digits", artifact_location=str(tmp_path))
    for key, value in TAGS.items():
        assert len(value) < MAX_EXPERIMENT_TAG_VAL_LENGTH / 2  # room for a long description
        client.set_experiment_tag(experiment, key, value)
    stored = client.get_experiment(experiment).tags
    assert {key: stored[key] for key in TAGS} == TAGS


@pytest.mark.filterwarnings("ignore")
def test_the_next_upload_renews_an_older_experiment(sqlite_uri: str) -> None:
    store = Store(sqlite_uri, 30)
    identifier = store.experiment("older", "digits", "small images")
    for key in (VIEW_TAG + CURVES, VERSION_TAG):
        store.client.set_experiment_tag(identifier, key, "1")
    assert store.experiment("older", "digits", "small images") == identifier
    tags = store.client.get_experiment(identifier).tags
    assert tags == experiment_tags("digits", "small images", identifier)
