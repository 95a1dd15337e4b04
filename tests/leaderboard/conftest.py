"""A real MLflow store, filled once: creating one takes seconds."""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from empty_stores import prepare
from made_runs import recorded

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read when mlflow is imported

from leaderboard.opening import read_runs
from leaderboard.reading.results import Reading
from mixerbench.tracking.keys import Metric, Tag

CPU = "2 x CPU"
GPU = "1 x GPU"

# Nothing here may act: not in a spreadsheet, in Markdown, in rich, in a terminal.
HOSTILE = "=cmd|' /C calc'!A0`[bold]\n\x1b[31m__x__<img>"


class Store:
    """Writes runs through MLflow's client; each run ends a second after the one before."""

    def __init__(self, uri: str):
        from mlflow import MlflowClient

        self.uri = uri
        prepare(uri)
        with warnings.catch_warnings():  # MLflow 3.17 uses what SQLAlchemy 2.1 will remove
            warnings.simplefilter("ignore", DeprecationWarning)
            self.client = MlflowClient(tracking_uri=uri)
        self.experiments: dict[str, str] = {}
        sqlite = uri.startswith("sqlite:///")  # which would put artifacts below this process
        path = Path(uri.removeprefix("sqlite:///"))
        self.artifacts = path.with_name("artifacts").as_uri() if sqlite else None
        self.clock = 1_700_000_000_000

    def log(
        self,
        mixer: str,
        *,
        name: str = "",
        experiment: str = "digits",
        seed: int = 0,
        epochs: int = 30,
        status: str | None = "FINISHED",
        tags: Mapping[str, str | None] = {},
        metrics: Mapping[str, float | None] = {},
    ) -> str:
        """Tags and metrics of a finished run, changed by the arguments; None leaves one out.

        Its recorded settings say what the tags say.
        """
        from mlflow.entities import Metric as MlflowMetric
        from mlflow.entities import Param, RunTag

        if experiment not in self.experiments:
            self.experiments[experiment] = self.client.create_experiment(
                experiment, artifact_location=self.artifacts
            )
        made = recorded(
            mixer,
            size=tags.get(Tag.SIZE) or "micro",
            stem=tags.get(Tag.STEM) or "patch",
            seed=seed,
            protocol=tags.get(Tag.PROTOCOL) or "digits",
            epochs=epochs,
            synthetic=tags.get(Tag.SYNTHETIC) == "true",
        )
        all_tags = made.tags | {Tag.MODEL: f"{mixer}_micro_patch"} | dict(tags)
        all_metrics = {Metric.FINAL_TOP1: 50.0, Metric.PARAMETERS: 1000.0} | dict(metrics)
        run = self.client.create_run(
            self.experiments[experiment], start_time=self.clock, run_name=name or f"{mixer}-{seed}"
        )
        self.clock += 1000
        self.client.log_batch(
            run.info.run_id,
            metrics=[
                MlflowMetric(key, value, self.clock, 0)
                for key, value in all_metrics.items()
                if value is not None
            ],
            params=[Param(key, value) for key, value in made.params.items()],
            tags=[RunTag(key, value) for key, value in all_tags.items() if value is not None],
        )
        if status:
            self.client.set_terminated(run.info.run_id, status=status, end_time=self.clock)
        return str(run.info.run_id)


@pytest.fixture(scope="session")
def store_at() -> Callable[[str], Store]:
    """Opens the store at a URI for writing; MLflow makes it where there is none."""
    return Store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder: Path = tmp_path_factory.mktemp("leaderboard")
    store = Store(f"sqlite:///{folder / 'mlflow.db'}")
    for seed, top1 in enumerate((80.1, 81.7, 79.4)):
        store.log("attention", seed=seed, metrics={Metric.FINAL_TOP1: top1})
    store.log("pooling", name="old", metrics={Metric.FINAL_TOP1: 99.0})
    store.log("pooling", name="new", experiment="second", metrics={Metric.FINAL_TOP1: 70.5})
    speed = {Metric.IMAGES_PER_SECOND: 1000.0, Metric.LATENCY_MS: 2.5}
    for seed in (0, 1):
        store.log("fourier", seed=seed, metrics=speed | {Metric.FINAL_TOP1: 60.0})
    gpu = {Tag.HARDWARE: GPU}
    fast = {Metric.IMAGES_PER_SECOND: 9000.0, Metric.FINAL_TOP1: 61.0}
    store.log("fourier", seed=2, tags=gpu, metrics=fast)
    large = {Tag.SIZE: "large", Tag.STEM: "conv"}
    store.log("shift", tags=large, metrics={Metric.FINAL_TOP1: 65.0, Metric.PARAMETERS: 10.0})

    store.log("attention", name="longer", epochs=40, metrics={Metric.FINAL_TOP1: 90.0})

    fake = {Tag.PROTOCOL: "random", Tag.SYNTHETIC: "true"}
    store.log(HOSTILE, name=HOSTILE, tags=fake)

    store.log("attention", seed=7, status="FAILED")
    store.log("attention", seed=7, status=None)
    store.log("attention", seed=7, tags={Tag.SCHEMA: "0"})
    store.log("attention", seed=7, tags={Tag.HARDWARE: None})
    store.log("attention", seed=7, metrics={Metric.FINAL_TOP1: None})
    store.log("attention", seed=8, metrics={Metric.FINAL_TOP1: float("nan")})
    foreign = store.client.create_run(store.experiments["digits"], run_name="not ours")
    store.client.set_terminated(foreign.info.run_id)
    return store


@pytest.fixture(scope="session")
def reading(store: Store) -> Reading:
    return read_runs(store.uri)
