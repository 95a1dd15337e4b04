"""Make the MLflow experiment page open readable: its description, its kind and saved views.

Pure data, so that nobody waits for mlflow's import; the tracker sets the tags.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from mixerbench.tracking.figures import FIGURES, HEADLINE
from mixerbench.tracking.keys import LEADERBOARD as RUN
from mixerbench.tracking.keys import Artifact, Metric, Tag

# The format of saved views is not documented by MLflow. Read from the JavaScript of mlflow 3.17.2
# and seen in headless Chromium: filter, sort, columns with order and width, scatter, line charts,
# folded sections, groups of runs, the links of the description. What its page does not do, whatever
# the tag says:
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
ACCURACY_SPEED: Final = "mixerbench-accuracy-speed"
CURVES: Final = "mixerbench-curves"  # also a section of the chart views

_NAMES: Final = {
    LEADERBOARD: "Leaderboard",
    ACCURACY_GMACS: "Accuracy against GMACs",
    ACCURACY_SPEED: "Accuracy against throughput",
    CURVES: "Curves by mixer",
}

# All in the one line that MLflow shows of a folded description, beside its assistant.
_LINKS: Final = {
    LEADERBOARD: "Leaderboard",
    ACCURACY_GMACS: "Accuracy/GMACs",
    ACCURACY_SPEED: "Accuracy/throughput",
    CURVES: "Curves",
}

# Fixed, so that setting the tags again changes nothing. The menu lists the newest view first.
_CREATED_MS: Final = {
    LEADERBOARD: 1_795_219_201_000,
    ACCURACY_GMACS: 1_795_219_200_000,
    ACCURACY_SPEED: 1_795_219_199_000,
    CURVES: 1_795_219_198_000,
}

# Of what is written on an experiment; raised when it changes, so that older ones get it too.
VERSION: Final = "3"
VERSION_TAG: Final = "mixerbench.views"
NOTE_TAG: Final = "mixerbench.note"  # digest of the description: another one was written by hand
NOTE: Final = "mlflow.note.content"
_VERSION_1: Final = "**[Leaderboard](#/experiments/"  # how its descriptions begin; it had no digest
_PAGE: Final = re.compile(r"The page: .*$", re.MULTILINE)

_SERVED: Final = "[served](mixerbench/)"  # leads to nothing where MLflow was started otherwise
_WORKFLOW: Final = "workflowType=machine_learning"  # else GenAI's side bar

# The run that holds the published page is a run of the experiment too, but has no mixer.
_TRAINED: Final = f"attributes.status = 'FINISHED' AND tags.`{Tag.MIXER}` LIKE '%'"

# MLflow's kind and name of each column of the table.
_COLUMNS: Final = (
    ("attributes", "Run Name"),
    ("metrics", HEADLINE.key),
    *(("tags", tag) for tag in (Tag.MIXER, Tag.SIZE, Tag.STEM, Tag.SEED, Tag.PROTOCOL_FINGERPRINT)),
    *(("metrics", figure.key) for figure in FIGURES if figure is not HEADLINE),
)


def experiment_tags(protocol_name: str, description: str, experiment_id: str) -> dict[str, str]:
    """Tags for ``MlflowClient.set_experiment_tag``: setting them again changes nothing."""
    note = _note(protocol_name, description, experiment_id)
    return {
        NOTE: note,
        NOTE_TAG: _digest(note),
        # Ignored by the pages of 3.17.2, which ask the browser instead: see view_link.
        "mlflow.experimentKind": "custom_model_development",
        **{VIEW_TAG + key: _saved_view(key, state) for key, state in _states().items()},
        VERSION_TAG: VERSION,  # the last: what a kill leaves half written is written again
    }


def missing_tags(
    tags: Mapping[str, str], protocol_name: str, description: str, experiment_id: str
) -> dict[str, str]:
    """Those of `experiment_tags` that an experiment with these tags lacks.

    A description that somebody wrote by hand is kept, and so is the line that links the page.
    """
    if tags.get(VERSION_TAG) == VERSION:
        return {}
    new, note = experiment_tags(protocol_name, description, experiment_id), tags.get(NOTE, "")
    digest = tags.get(NOTE_TAG)
    is_ours = note.startswith(_VERSION_1) if digest is None else _digest(note) == digest
    if note and not is_ours:
        if VIEW_TAG + LEADERBOARD not in tags:
            return {}  # it is something else, such as the measurements
        return {key: value for key, value in new.items() if key not in (NOTE, NOTE_TAG)}
    if page := _PAGE.search(note):
        new |= _with_page_line(new, page[0])
    return new


def page_tags(tags: Mapping[str, str], experiment_id: str, run_id: str) -> dict[str, str]:
    """The description of an experiment with these tags, with a link to the page in that run."""
    link = f"#/experiments/{experiment_id}/runs/{run_id}/artifacts/{Artifact.PAGE}"
    return _with_page_line(tags, f"The page: [published]({link}?{_WORKFLOW}), {_SERVED}")


def _with_page_line(tags: Mapping[str, str], line: str) -> dict[str, str]:
    note = tags.get(NOTE, "")
    changed = (
        _PAGE.sub(lambda _: line, note, count=1)
        if _PAGE.search(note)
        else f"{note.rstrip()}\n\n{line}\n".lstrip()
    )
    is_ours = tags.get(NOTE_TAG) == _digest(note)
    return {NOTE: changed} | ({NOTE_TAG: _digest(changed)} if is_ours else {})


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def view_link(experiment_id: str, key: str) -> str:
    """Where a saved view opens, relative to the address of any page of the same MLflow server."""
    mode = "TABLE" if key == LEADERBOARD else "CHART"
    runs = f"#/experiments/{experiment_id}/runs"
    return f"{runs}?viewStateShareKey={key}&compareRunsMode={mode}&{_WORKFLOW}"


def _note(protocol_name: str, description: str, experiment_id: str) -> str:
    links = " · ".join(f"[{text}]({view_link(experiment_id, k)})" for k, text in _LINKS.items())
    figures = "\n".join(f"- `{f.key}`: {f.title}, {f.meaning}" for f in FIGURES)
    return f"""\
**{links}** · The page: {_SERVED}

**{protocol_name}**: {description.strip()}

One MLflow run is one training run of one model. `{Tag.PROTOCOL_FINGERPRINT}` stands for all \
that must be identical: data, resolution, recipe, epochs, evaluation. Two fingerprints are two \
leaderboards, also when the protocol has the same name: compare only runs with the same one.

Of the views linked above, the first is the table, best accuracy first; the next two set accuracy \
against cost, a point for each run; the last has the learning curves, averaged over the runs of \
each mixer. The page is the leaderboard itself: ranks as ranges, which models differ beyond \
chance, fronts of accuracy and cost. It is served where `mixerbench leaderboard serve` started \
MLflow, and published by `mixerbench leaderboard publish` in the run "{RUN}" of this experiment.

{figures}
- `{Tag.HARDWARE}`: the machine; speed, memory and time compare on the same one only
- `{Tag.SYNTHETIC}` = `true`: random images, the accuracy means nothing

Printed, with the spread over seeds: `mixerbench leaderboard`

The views stand under "Views" too; there the charts open as a table first. Reloading \
loses the columns and charts of a view: open its link again, or press "Override saved view" \
once, and your browser opens it by itself.
"""


def _saved_view(key: str, state: dict[str, Any]) -> str:
    created_ms = _CREATED_MS[key]
    envelope = {"name": _NAMES[key], "createdAt": created_ms, "updatedAt": created_ms}
    # MLflow's own button may compress the state; its reader takes plain JSON as well.
    return json.dumps({**envelope, "state": json.dumps(state, separators=(",", ":"))})


def _states() -> dict[str, dict[str, Any]]:
    columns = [_column(kind, name) for kind, name in _COLUMNS]
    widths = {_column(kind, name): _width(name) for kind, name in _COLUMNS}
    board = {
        "searchFilter": _TRAINED,
        "orderByKey": _column("metrics", HEADLINE.key),
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": widths,
        "runsHiddenMode": "SHOW_ALL",  # default: charts draw the first 10 rows only
    }
    lines = [_line(Metric.VAL_TOP1), _line(Metric.TRAIN_LOSS)]
    by_mixer = {
        "aggregateFunction": "average",
        "groupByKeys": [{"mode": "tag", "groupByData": Tag.MIXER}],
    }
    return {
        LEADERBOARD: board,
        ACCURACY_GMACS: board | _charts(ACCURACY_GMACS, [_scatter(Metric.GMACS), *lines]),
        ACCURACY_SPEED: board | _charts(ACCURACY_SPEED, [_scatter(Metric.IMAGES_PER_SECOND)]),
        CURVES: board | _charts(CURVES, lines) | {"groupBy": by_mixer},
    }


def _charts(view: str, charts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "compareRunCharts": charts,
        "compareRunSections": _sections(view, charts),
        "isAccordionReordered": True,  # else the sections are sorted by name
    }


def _width(name: str) -> int:
    """Pixels that show the whole name in the head of a column."""
    return max(95, 45 + round(6.2 * len(name)))


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


def _scatter(cost: str) -> dict[str, Any]:
    section = {Metric.GMACS: ACCURACY_GMACS, Metric.IMAGES_PER_SECOND: ACCURACY_SPEED}[cost]
    return {
        **_card("SCATTER", section, HEADLINE.key),
        "xaxis": {"key": cost, "type": "METRIC"},
        "yaxis": {"key": HEADLINE.key, "type": "METRIC"},
    }


def _line(metric: str) -> dict[str, Any]:
    return {
        **_card("LINE", CURVES, metric),
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


def _sections(view: str, charts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A section of our charts, then a folded section for each group of metrics.

    MLflow adds a chart for every metric that has none, to the section named like its prefix.
    """
    keys = [key for name, key in vars(Metric).items() if not name.startswith("_")]
    prefixes = sorted({key.split("/")[0] for key in keys if "/" in key and key != Metric.SYSTEM})
    folded = [*prefixes, "System metrics"]  # MLflow's name for system/
    sections: list[dict[str, Any]] = []
    if view != CURVES:
        sections.append({"uuid": view, "name": _NAMES[view], "display": True, "columns": 1})
    if any(chart["metricSectionId"] == CURVES for chart in charts):
        name = "Curves over optimizer steps"
        sections.append({"uuid": CURVES, "name": name, "display": True, "columns": 2})
    sections += ({"uuid": f"mixerbench-{n}", "name": n, "display": False} for n in folded)
    common = {"isReordered": False, "deleted": False, "isGenerated": False}
    return [{**section, **common} for section in sections]
