"""Make the MLflow experiment page open readable: its description, its kind and two saved views.

Pure data, so that nobody waits for mlflow's import; the tracker sets the tags.
"""

import json
from typing import Any, Final

from mixerbench.tracking.keys import Metric, Tag

# The format of saved views is not documented by MLflow. Read from the JavaScript of mlflow 3.17.2
# and seen in headless Chromium: filter, sort, columns with order and width, scatter, line charts,
# folded sections, the links of the description. What its page does not do, whatever the tag says:
# - A plain open applies what this browser showed last, else MLflow's defaults, never a saved view,
#   and in a new browser the GenAI pages, whatever the experiment's kind. Hence the links in the
#   description: its first line is on all these pages, the rest is folded.
# - Table or chart is in the link only. From the "Views" menu the chart view opens as a table.
# - Reloading an opened view keeps filter and sort only: its address then names them, and that
#   stops the state from being read. "Override saved view" stores it in the browser.
# - Visibility of single runs, pins and auto-refresh are dropped from a state.
# A state that MLflow cannot read opens the plain page, without a word.

VIEW_TAG: Final = "mlflow.sharedViewState."
LEADERBOARD: Final = "mixerbench-leaderboard"
ACCURACY_GMACS: Final = "mixerbench-accuracy-gmacs"
_CURVES: Final = "mixerbench-curves"  # a section of the chart view

_NAMES: Final = {LEADERBOARD: "Leaderboard", ACCURACY_GMACS: "Accuracy against GMACs"}

# Fixed, so that setting the tags again changes nothing. The menu lists the newest view first.
_CREATED_MS: Final = {LEADERBOARD: 1_795_219_201_000, ACCURACY_GMACS: 1_795_219_200_000}

# Pixels that show the whole name in the head of the column.
_COLUMNS: Final = (
    ("attributes", "Run Name", 210),
    ("metrics", Metric.FINAL_TOP1, 95),
    ("tags", Tag.MIXER, 130),
    ("tags", Tag.SIZE, 120),
    ("tags", Tag.STEM, 125),
    ("tags", Tag.SEED, 125),
    ("tags", Tag.PROTOCOL_FINGERPRINT, 225),
    ("metrics", Metric.FINAL_TOP5, 95),
    ("metrics", Metric.FINAL_EMA_TOP1, 120),
    ("metrics", Metric.PARAMETERS, 150),
    ("metrics", Metric.GMACS, 125),
    ("metrics", Metric.IMAGES_PER_SECOND, 195),
    ("metrics", Metric.MEMORY_MIB, 155),
    ("metrics", Metric.TRAINING_SECONDS, 170),
)


def experiment_tags(protocol_name: str, description: str, experiment_id: str) -> dict[str, str]:
    """Tags for ``MlflowClient.set_experiment_tag``: setting them again changes nothing."""
    return {
        "mlflow.note.content": _note(protocol_name, description, experiment_id),
        # Ignored by the pages of 3.17.2, which ask the browser instead: see view_link.
        "mlflow.experimentKind": "custom_model_development",
        **{VIEW_TAG + key: _saved_view(key, state) for key, state in _states().items()},
    }


def view_link(experiment_id: str, key: str) -> str:
    """Where a saved view opens, relative to the address of any page of the same MLflow server."""
    mode = "CHART" if key == ACCURACY_GMACS else "TABLE"
    options = f"compareRunsMode={mode}&workflowType=machine_learning"  # else GenAI's side bar
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={key}&{options}"


def _note(protocol_name: str, description: str, experiment_id: str) -> str:
    links = " · ".join(f"[{_NAMES[k]}]({view_link(experiment_id, k)})" for k in _NAMES)
    return f"""\
**{links}** · compare only runs with the same `{Tag.PROTOCOL_FINGERPRINT}`

**{protocol_name}**: {description.strip()}

One MLflow run is one training run of one model. `{Tag.PROTOCOL_FINGERPRINT}` stands for all \
that must be identical: data, resolution, recipe, epochs, evaluation. Two fingerprints are two \
leaderboards, also when the protocol has the same name.

- `{Metric.FINAL_TOP1}`, `{Metric.FINAL_TOP5}`: accuracy in % of the validation images, weights of \
the last epoch; the board ranks by `{Metric.FINAL_TOP1}`
- `{Metric.FINAL_EMA_TOP1}`: the same for the exponential moving average of the weights, in %
- `{Metric.PARAMETERS}`: number of weights
- `{Metric.GMACS}`: 10⁹ multiply-adds of one image's forward pass
- `{Metric.IMAGES_PER_SECOND}`: images per second, forward pass, evaluation mode
- `{Metric.MEMORY_MIB}`: MiB at the peak of one training step, weights included
- `{Metric.TRAINING_SECONDS}`: seconds of training, validation and measuring not included
- `{Tag.HARDWARE}`: the machine; speed, memory and time compare on the same one only
- `{Tag.SYNTHETIC}` = `true`: random images, the accuracy means nothing

Printed, with the spread over seeds: `mixerbench leaderboard`

The two links above stand under "Views" too; there the chart view opens as a table first. \
Reloading loses the columns and charts of a view: open its link again, or press "Override saved \
view" once, and your browser opens it by itself.
"""


def _saved_view(key: str, state: dict[str, Any]) -> str:
    created_ms = _CREATED_MS[key]
    envelope = {"name": _NAMES[key], "createdAt": created_ms, "updatedAt": created_ms}
    # MLflow's own button may compress the state; its reader takes plain JSON as well.
    return json.dumps({**envelope, "state": json.dumps(state, separators=(",", ":"))})


def _states() -> dict[str, dict[str, Any]]:
    columns = [_column(kind, name) for kind, name, _ in _COLUMNS]
    widths = {_column(kind, name): width for kind, name, width in _COLUMNS}
    board = {
        "searchFilter": "attributes.status = 'FINISHED'",
        "orderByKey": _column("metrics", Metric.FINAL_TOP1),
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": widths,
        "runsHiddenMode": "SHOW_ALL",  # default: charts draw the first 10 rows only
    }
    scatter = {
        **_card("SCATTER", ACCURACY_GMACS, Metric.FINAL_TOP1),
        "xaxis": {"key": Metric.GMACS, "type": "METRIC"},
        "yaxis": {"key": Metric.FINAL_TOP1, "type": "METRIC"},
    }
    charts = {
        "compareRunCharts": [scatter, _line(Metric.VAL_TOP1), _line(Metric.TRAIN_LOSS)],
        "compareRunSections": _sections(),
        "isAccordionReordered": True,  # else the sections are sorted by name
    }
    return {LEADERBOARD: board, ACCURACY_GMACS: {**board, **charts}}


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


def _card(kind: str, section: str, metric: str) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": f"{section}-{metric}",
        "metricSectionId": section,
        "deleted": False,
        "isGenerated": False,
    }


def _line(metric: str) -> dict[str, Any]:
    return {
        **_card("LINE", _CURVES, metric),
        "displayName": metric,
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "xAxisKey": "step",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "lineSmoothness": 0,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def _sections() -> list[dict[str, Any]]:
    """Our charts, then, folded, one section for each group of metrics.

    MLflow adds a chart for every metric that has none, to the section named like its prefix.
    """
    keys = [key for name, key in vars(Metric).items() if not name.startswith("_")]
    prefixes = sorted({key.split("/")[0] for key in keys if key != Metric.SYSTEM})
    folded = [*prefixes, "System metrics"]  # MLflow's name for system/
    sections = [
        {"uuid": ACCURACY_GMACS, "name": _NAMES[ACCURACY_GMACS], "display": True, "columns": 1},
        {"uuid": _CURVES, "name": "Curves over optimizer steps", "display": True, "columns": 2},
        *({"uuid": f"mixerbench-{name}", "name": name, "display": False} for name in folded),
    ]
    common = {"isReordered": False, "deleted": False, "isGenerated": False}
    return [{**section, **common} for section in sections]
