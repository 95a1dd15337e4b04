"""The tags that dress the MLflow experiment page. That MLflow draws them was seen in a browser."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mixerbench.tracking import views
from mixerbench.tracking.keys import Metric, Tag
from mixerbench.tracking.views import ACCURACY_GMACS, LEADERBOARD, VIEW_TAG, experiment_tags

TAGS = experiment_tags("digits", "8 x 8 digits, 20 epochs.", "7")
VIEWS = (LEADERBOARD, ACCURACY_GMACS)


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
def test_a_view_shows_all_finished_runs_by_final_top1(view: str) -> None:
    state = _state(view)
    assert state["searchFilter"] == "attributes.status = 'FINISHED'"
    assert state["orderByKey"] == f"metrics.`{Metric.FINAL_TOP1}`"
    assert state["orderByAsc"] is False
    assert state["runsHiddenMode"] == "SHOW_ALL"


@pytest.mark.parametrize("view", VIEWS)
def test_columns_are_logged_keys(view: str) -> None:
    state = _state(view)
    known = {"metrics": _keys(Metric), "tags": _keys(Tag), "attributes": {"Run Name"}}
    columns = state["selectedColumns"]
    for column in columns:
        kind, _, name = column.partition(".")
        assert name.strip("`") in known[kind]
    assert f"tags.`{Tag.PROTOCOL_FINGERPRINT}`" in columns
    assert columns == state["columnOrder"] == list(state["columnWidths"])


def test_charts_are_of_logged_keys_and_have_a_section() -> None:
    state = _state(ACCURACY_GMACS)
    scatter, *lines = state["compareRunCharts"]
    sections = [section["uuid"] for section in state["compareRunSections"] if section["display"]]
    assert {chart["metricSectionId"] for chart in (scatter, *lines)} == set(sections)

    assert scatter["type"] == "SCATTER"
    assert (scatter["xaxis"]["key"], scatter["yaxis"]["key"]) == (Metric.GMACS, Metric.FINAL_TOP1)
    assert [line["metricKey"] for line in lines] == [Metric.VAL_TOP1, Metric.TRAIN_LOSS]
    assert {line["type"] for line in lines} == {"LINE"}


def test_other_metrics_are_folded_away() -> None:
    sections = _state(ACCURACY_GMACS)["compareRunSections"]
    shown = {section["name"]: section["display"] for section in sections}
    for key in _keys(Metric) - {Metric.SYSTEM}:
        assert shown[key.rpartition("/")[0]] is False, f"MLflow would unfold a chart of {key}"


def test_description_starts_with_a_link_to_each_view() -> None:
    note = TAGS["mlflow.note.content"]
    first_line = note.splitlines()[0]  # the only one that MLflow shows folded
    assert [f"]({views.view_link('7', view)})" in first_line for view in VIEWS] == [True, True]
    targets = re.findall(r"viewStateShareKey=([\w-]+)", note)
    assert {VIEW_TAG + target for target in targets} == {k for k in TAGS if k.startswith(VIEW_TAG)}


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
