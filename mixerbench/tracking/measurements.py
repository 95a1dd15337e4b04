"""Measurements of models that were trained before: MLflow runs of their own."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mixerbench.config.rules import MEASURED_WITH, marked
from mixerbench.config.schema import Run
from mixerbench.tracking.figures import FIGURES, MEASURED_BY_ITSELF
from mixerbench.tracking.keys import MEASUREMENT, SCHEMA_VERSION, Artifact, Metric, Tag
from mixerbench.tracking.store import Store

if TYPE_CHECKING:
    from mixerbench.measure.model_costs import Measures

EXPERIMENT: Final = "mixerbench-measurements"
DESCRIPTION: Final = f"""\
What trained models cost, measured side by side by `mixerbench measure`: one MLflow run is one \
model, and runs with the same `{Tag.SESSION}` were measured in turn, slice by slice, on one \
machine. Compare speed, memory and energy within one session only. `mixerbench leaderboard` puts \
them beside the accuracies of the runs that were trained.
"""

SETTINGS: Final = tuple(marked(Run, MEASURED_WITH))
"""Run settings that a measurement depends on, logged with it."""

_SAME = (
    *(Tag.PROTOCOL, Tag.PROTOCOL_FINGERPRINT, Tag.MODEL, Tag.MODEL_FINGERPRINT),
    *(Tag.MIXER, Tag.SIZE, Tag.BACKBONE, Tag.STEM),
)
"""Tags that a measurement copies from the training run of its model."""


def measured(measures: "Measures") -> dict[str, float]:
    """The metrics of a measurement: every figure whose key begins with ``measure/``."""
    metrics = {Metric.MEASURE_BATCH_SIZE: float(measures.batch_size)}
    for figure in FIGURES:
        if not figure.key.startswith(MEASURED_BY_ITSELF):
            continue
        value = getattr(measures, figure.name)
        if value is None:  # no hardware here counts it
            continue
        if isinstance(value, int | float):
            metrics[figure.key] = float(value)
        else:
            metrics[figure.key] = value.median
            metrics[figure.key + Metric.LOWER_QUARTILE] = value.lower_quartile
            metrics[figure.key + Metric.UPPER_QUARTILE] = value.upper_quartile
    return metrics


def fetch_settings(store: Store, run_id: str, folder: Path) -> None:
    """Download what a model is built from again: ``config.yaml`` and ``plugins/``.

    Raises:
        Exception: whatever MLflow raises.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    store.client.download_artifacts(run_id, Artifact.CONFIG, str(folder))
    if store.client.list_artifacts(run_id, Artifact.PLUGINS):
        store.client.download_artifacts(run_id, Artifact.PLUGINS, str(folder))


def record(
    store: Store,
    measures: Mapping[str, "Measures"],
    *,
    session: str,
    tags: Mapping[str, str],
    params: Mapping[str, str],
) -> None:
    """Write one MLflow run for each model of an interleaved run, finished together at the end.

    If the store fails meanwhile, the runs written so far stay unfinished and on no leaderboard.

    Args:
        measures: by the id of a run that trained the model.
        tags: further tags, the same for all.

    Raises:
        Exception: whatever MLflow raises.
    """
    from mlflow.entities import Metric as MlflowMetric
    from mlflow.entities import Param, RunTag

    client = store.client
    experiment = store.plain_experiment(EXPERIMENT, DESCRIPTION)
    written = []
    for run_id, one in measures.items():
        trained = client.get_run(run_id).data.tags
        own = {
            Tag.SCHEMA: SCHEMA_VERSION,
            Tag.KIND: MEASUREMENT,
            Tag.SESSION: session,
            Tag.HARDWARE: one.hardware,
            **{tag: trained[tag] for tag in _SAME},
            **tags,
        }
        name = f"{trained[Tag.MODEL]}-measured"
        written.append(client.create_run(experiment, run_name=name).info.run_id)
        now = time.time()
        metrics = measured(one) | {Metric.UPLOADED_AT: now}
        time_ms = int(now * 1000)
        client.log_batch(
            written[-1],
            metrics=[MlflowMetric(key, value, time_ms, 0) for key, value in metrics.items()],
            params=[Param(key, value) for key, value in params.items()],
            tags=[RunTag(key, value) for key, value in own.items()],
        )
    for run_id in written:
        client.set_terminated(run_id, "FINISHED")
