"""MLflow stores of any size, filled through the client's API with runs as training logs them."""

import copy
import hashlib
import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from empty_stores import prepare

from mixerbench.config.compose import compose
from mixerbench.config.parts import part_catalog
from mixerbench.config.presets import PARTS
from mixerbench.config.schema import fingerprint, flatten, protocol_fingerprint
from mixerbench.tracking.keys import SCHEMA_VERSION, Artifact, Metric, Param, Prediction, Tag
from mixers.core.plan import SCHEDULES

START_MS = 1_790_000_000_000


class MadeStore:
    """Writes finished runs; each ends a second after the one before.

    Args:
        classes: of the protocol's images.
        whole: runs log their settings as a file too, as a bundle wants; it takes some time.
    """

    def __init__(self, folder: Path, *, classes: int = 10, whole: bool = False) -> None:
        from mlflow import MlflowClient

        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        prepare(self.uri)
        with warnings.catch_warnings():  # MLflow 3.17 uses what SQLAlchemy 2.1 will remove
            warnings.simplefilter("ignore", DeprecationWarning)
            self.client = MlflowClient(self.uri)
            self.experiment = self.client.create_experiment(
                "mixerbench-digits", artifact_location=(folder / "artifacts").as_uri()
            )
        self._clock, self._classes, self._whole = START_MS, classes, whole
        self.settings = compose(["mixer=attention", "size=micro", "protocol=digits"])

    def _plain(self) -> dict[str, Any]:
        from dataclasses import asdict

        return asdict(self.settings)

    def log(
        self,
        label: str,
        *,
        mixer: str = "attention",
        seed: int = 0,
        top1: float = 90.0,
        predictions: "Mapping[str, Sequence[Any]] | None" = None,
        tags: Mapping[str, str] = {},
        params: Mapping[str, str] = {},
        metrics: Mapping[str, float] = {},
        curve: Sequence[float] = (),
    ) -> str:
        """The id of a finished run of the model that is called ``label``.

        Its fingerprints are those of its settings, which say what ``tags`` and ``params`` do.
        """
        from mlflow.entities import Metric as MlflowMetric
        from mlflow.entities import Param as MlflowParam
        from mlflow.entities import RunTag

        named = {"size": "micro", "backbone": "vit", "stem": "patch", "protocol": "digits"}
        named |= {part: tags[tag] for part, tag in _NAMES.items() if tag in tags}
        digest = int(hashlib.sha256(label.encode()).hexdigest()[:6], 16)
        # What makes it a model of its own. Settings only: nobody builds it.
        size = {"size.dim": 4 + 4 * (digest % 16_000), "size.depth": 1 + digest // 16_000}
        model = _changed(_model(tags.get(Tag.MIXER, mixer)), size)
        model = _changed(model, {f"{part}.name": named[part] for part in PARTS if part in named})
        model = _changed(model, _below(Param.MODEL, params))
        own = {"name": named["protocol"], "data.num_classes": self._classes}
        protocol = _changed(self._plain()["protocol"], own)
        protocol = _changed(protocol, _below(Param.PROTOCOL, params))
        all_tags = {
            Tag.SCHEMA: SCHEMA_VERSION,
            Tag.PROTOCOL: "digits",
            Tag.PROTOCOL_FINGERPRINT: protocol_fingerprint(protocol),
            Tag.MODEL: label,
            Tag.MODEL_FINGERPRINT: fingerprint(model),
            Tag.MIXER: mixer,
            Tag.SIZE: "micro",
            Tag.BACKBONE: "vit",
            Tag.STEM: "patch",
            Tag.SEED: str(seed),
            Tag.SYNTHETIC: "false",
            Tag.HARDWARE: "2 x CPU · 1 thread · torch 2.15.0 · fp32",
            Tag.COMMAND: f"mixerbench train mixer={mixer} run.seed={seed}",
            Tag.GIT_COMMIT: "0" * 40,
        } | dict(tags)
        all_params = {
            prefix + key: str(value)
            for prefix, group in (
                (Param.PROTOCOL, protocol),
                (Param.MODEL, model),
                (Param.RUN, {**self._plain()["run"], "seed": seed}),
            )
            for key, value in flatten(group)
        } | dict(params)
        all_metrics = {
            Metric.FINAL_TOP1: top1,
            Metric.FINAL_TOP5: max(99.0, top1),
            Metric.FINAL_EMA_TOP1: top1,
            Metric.PARAMETERS: 100_000.0 + digest % 100_000,
            Metric.GMACS: 0.01 + digest % 1000 / 1e5,
            Metric.IMAGES_PER_SECOND: 1000.0 + digest % 997,
            Metric.LATENCY_MS: 1 + digest % 7 / 7,
            Metric.MEMORY_MIB: 30.0 + digest % 11,
            Metric.TRAINING_SECONDS: 100.0 + seed,
            Metric.IMAGES_SEEN: 37440.0,
            Metric.VAL_IMAGES: 539.0,
            **_shown(predictions),
            Metric.MEASURE_BATCH_SIZE: 32.0,
            Metric.UPLOADED_AT: (self._clock + 1000) / 1000,
        } | dict(metrics)
        run = self.client.create_run(
            self.experiment, start_time=self._clock, run_name=f"{label}-seed{seed}"
        )
        run_id = str(run.info.run_id)
        self._clock += 1000
        logged = [MlflowMetric(k, v, self._clock, 0) for k, v in all_metrics.items()]
        for step, value in enumerate(curve, start=1):
            epoch = {Metric.VAL_TOP1: value, Metric.EPOCH: float(step)}
            logged += [MlflowMetric(k, v, self._clock, 10 * step) for k, v in epoch.items()]
        pairs = [MlflowParam(key, value) for key, value in all_params.items()]
        for start in range(0, len(pairs), 100):  # as many as one call may hold
            self.client.log_batch(run_id, params=pairs[start : start + 100])
        self.client.log_batch(
            run_id, metrics=logged, tags=[RunTag(key, value) for key, value in all_tags.items()]
        )
        if predictions is not None:
            with tempfile.TemporaryDirectory() as place:
                path = Path(place) / Artifact.PREDICTIONS
                pq.write_table(pa.table(dict(predictions)), path)
                self.client.log_artifact(run_id, str(path))
        if self._whole:
            run_settings = {**self._plain()["run"], "seed": seed}
            settings = {"label": label, "model": model, "protocol": protocol, "run": run_settings}
            text = yaml.safe_dump(json.loads(json.dumps(self._plain() | settings)))
            self.client.log_text(run_id, text, Artifact.CONFIG)
        self.client.set_terminated(run_id, end_time=self._clock)
        return run_id


_NAMES = {
    **{"size": Tag.SIZE, "backbone": Tag.BACKBONE, "stem": Tag.STEM},
    **{"protocol": Tag.PROTOCOL},
}


@cache
def _model(mixer: str) -> dict[str, Any]:
    """The settings of a small model; a mixer that nobody has registered has no options."""
    known = mixer in {*part_catalog("mixer"), *SCHEDULES}
    model = compose([f"mixer={mixer if known else 'none'}", "size=micro", "protocol=digits"]).model
    return model if known else model | {"mixer": {"name": mixer}}


def _changed(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with other values at dotted places."""
    new = copy.deepcopy(dict(settings))
    for place, value in changes.items():
        *groups, field = place.split(".")
        group = new
        for name in groups:
            group = group[name]
        group[field] = value
    return new


def _below(prefix: str, params: Mapping[str, str]) -> dict[str, str]:
    return {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}


def _shown(predictions: "Mapping[str, Sequence[Any]] | None") -> dict[str, float]:
    """What predictions show of a run."""
    if predictions is None or Prediction.IN_TOP5 not in predictions:
        return {}
    in_top5 = np.asarray(predictions[Prediction.IN_TOP5])
    return {Metric.VAL_IMAGES: len(in_top5), Metric.FINAL_TOP5: 100 * float(in_top5.mean())}


def made_predictions(
    accuracy: float, *, images: int = 539, classes: int = 10, seed: int = 0, common: int = 0
) -> tuple[dict[str, Any], float]:
    """Predictions of about this accuracy, and their exact top-1 in percent.

    Args:
        seed: of what is right; ``common``: of how hard each image is, for all models.
    """
    target = np.arange(images) % classes
    difficulty = np.random.default_rng(common).normal(0, 1, images)
    random = np.random.default_rng(seed)
    noise = difficulty + random.normal(0, 0.7, images)
    correct = noise.argsort().argsort() < round(accuracy * images)
    top1 = np.where(correct, target, (target + 1 + random.integers(0, classes - 1)) % classes)
    top1 = np.where(correct, target, np.where(top1 == target, (top1 + 1) % classes, top1))
    confidence = np.clip(1 / (1 + np.exp(noise - 1)), 1 / classes, 1)
    return {
        Prediction.IMAGE: [str(i) for i in range(images)],
        Prediction.TARGET: target,
        Prediction.TOP1: top1,
        Prediction.CONFIDENCE: confidence,
        Prediction.TARGET_PROBABILITY: np.where(correct, confidence, (1 - confidence) / classes),
        Prediction.IN_TOP5: np.ones(images, bool),
    }, 100 * float(correct.mean())


def fill(store: MadeStore, entries: int, seeds: int = 3, **options: Any) -> None:
    """``entries`` models of a few mixers, each with several seeds, predictions and curves."""
    mixers = ("attention", "patch_ff", "local_attention", "convolution", "lit")
    for place in range(entries):
        for seed in range(seeds):
            accuracy = 0.6 + 0.38 * (place + 1) / (entries + 1)
            predictions, top1 = made_predictions(accuracy, seed=1000 * place + seed, **options)
            store.log(
                f"{mixers[place % len(mixers)]}_micro_{place}",
                mixer=mixers[place % len(mixers)],
                seed=seed,
                top1=top1,
                predictions=predictions,
                curve=[top1 * step / 15 for step in range(1, 16)],
            )
