"""A sweep of two real runs in an empty folder, and everything that can be asked of it then."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from mixerbench.config.schema import protocol_fingerprint
from mixerbench.tracking.journal import is_finished, read
from mixerbench.tracking.keys import Artifact, Metric, Tag
from mixerbench.training.folder import read_settings

ROOT = Path(__file__).parents[2]
MIXERS = ("patch_ff", "none")
VALIDATION_IMAGES = 539

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # mlflow warns about itself
    pytest.mark.xdist_group("end-to-end"),  # one sweep, whatever the number of processes
]


@dataclass(frozen=True)
class Swept:
    """What the sweep left."""

    place: Path
    said: subprocess.CompletedProcess[str]
    folders: dict[str, Path]  # by mixer
    client: Any
    runs: dict[str, Any]  # MLflow's, by mixer

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.place / 'mlflow.db'}"


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swept]:
    place = tmp_path_factory.mktemp("end-to-end")
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    said = subprocess.run(
        [sys.executable, "-m", "mixerbench.cli", "train", "-m", f"mixer={','.join(MIXERS)}",
         "size=micro", "recipe.epochs=1", "run.measure_seconds=0.1", "run.measure_batch_size=4",
         "launcher.jobs=2"],
        cwd=place,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    folders = {
        read_settings(path.parent).model["mixer"]["name"]: path.parent
        for path in (place / "runs").rglob("journal.jsonl")
    }
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = {run.data.tags[Tag.MIXER]: run for run in client.search_runs(experiments)}
    yield Swept(place, said, folders, client, runs)


def _final(swept: Swept, mixer: str, key: str = Metric.FINAL_TOP1) -> float:
    """As the journal has it."""
    (value,) = (
        record["values"][key]
        for record, _ in read(swept.folders[mixer] / "journal.jsonl")
        if record["kind"] == "metrics" and key in record["values"]
    )
    return float(value)


def test_both_runs_finish_and_say_so(swept: Swept) -> None:
    assert set(swept.folders) == set(swept.runs) == set(MIXERS)
    for mixer in MIXERS:
        assert is_finished(swept.folders[mixer] / "journal.jsonl")
        assert f"{mixer}_micro: step " in swept.said.stderr
    assert "Traceback" not in swept.said.stderr
    assert {path.name for path in swept.place.iterdir()} <= {
        "runs", "mlflow.db", "mlflow.db.lock", "mlartifacts",
    }  # fmt: skip


@pytest.mark.parametrize("mixer", MIXERS)
def test_mlflow_has_the_run_under_its_name_and_tags(mixer: str, swept: Swept) -> None:
    run, settings = swept.runs[mixer], read_settings(swept.folders[mixer])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == f"{mixer}_micro-seed0"
    tags = run.data.tags
    assert (tags[Tag.SIZE], tags[Tag.STEM], tags[Tag.PROTOCOL]) == ("micro", "patch", "digits")
    assert tags[Tag.PROTOCOL_FINGERPRINT] == protocol_fingerprint(settings.protocol)
    assert tags[Tag.SYNTHETIC] == "false"
    assert tags[Tag.RUN_DIR] == str(swept.folders[mixer])
    assert f"mixer={mixer}" in tags[Tag.COMMAND]
    assert "recipe.epochs=1" in tags[Tag.COMMAND]
    assert "," not in tags[Tag.COMMAND]  # of this run, not of the sweep
    assert tags[Tag.COMMAND] in tags["mlflow.note.content"]
    experiment = swept.client.get_experiment(run.info.experiment_id)
    assert experiment.name == "mixerbench-digits"
    assert settings.protocol.description in experiment.tags["mlflow.note.content"]


def test_one_protocol_is_one_fingerprint(swept: Swept) -> None:
    assert len({run.data.tags[Tag.PROTOCOL_FINGERPRINT] for run in swept.runs.values()}) == 1
    assert len({run.data.tags[Tag.MODEL_FINGERPRINT] for run in swept.runs.values()}) == 2


@pytest.mark.parametrize("mixer", MIXERS)
def test_mlflow_has_the_settings_and_the_curves(mixer: str, swept: Swept) -> None:
    run = swept.runs[mixer]
    params = run.data.params
    assert params["model.mixer.name"] == mixer
    assert params["protocol.recipe.epochs"] == "1"
    assert params["run.seed"] == "0"
    assert params["environment.torch"]
    metrics = run.data.metrics
    assert metrics[Metric.FINAL_TOP1] == _final(swept, mixer)
    for key in (Metric.PARAMETERS, Metric.GMACS, Metric.IMAGES_PER_SECOND, Metric.LATENCY_MS,
                Metric.MEMORY_MIB, Metric.TRAINING_SECONDS):  # fmt: skip
        assert metrics[key] > 0
    steps = 1258 // 64
    history = swept.client.get_metric_history(run.info.run_id, Metric.VAL_TOP1)
    assert [metric.step for metric in history] == [steps]
    losses = swept.client.get_metric_history(run.info.run_id, Metric.TRAIN_LOSS)
    logged = {metric.step for metric in losses}
    assert logged == {10, steps}
    assert len(losses) == len(logged)


@pytest.mark.parametrize("mixer", MIXERS)
def test_mlflow_has_the_files_and_the_predictions_give_the_accuracy(
    mixer: str, swept: Swept, tmp_path: Path
) -> None:
    run_id = swept.runs[mixer].info.run_id
    sizes = {file.path: file.file_size for file in swept.client.list_artifacts(run_id)}
    assert sizes.keys() == {
        Artifact.CONFIG, Artifact.ENVIRONMENT, Artifact.PREDICTIONS, Artifact.HARDEST,
        Artifact.MODEL, Artifact.EMA,
    }  # fmt: skip
    folder = swept.folders[mixer]
    assert sizes == {name: (folder / name).stat().st_size for name in sizes}
    stored = swept.client.download_artifacts(run_id, Artifact.PREDICTIONS, str(tmp_path))
    rows = pq.read_table(stored).to_pylist()
    assert len(rows) == VALIDATION_IMAGES
    assert len({row["image"] for row in rows}) == VALIDATION_IMAGES
    right = sum(row["target"] == row["top1"] for row in rows)
    assert 100 * right / len(rows) == pytest.approx(_final(swept, mixer), abs=1e-9)
    among_five = sum(row["in_top5"] for row in rows)
    expected = _final(swept, mixer, Metric.FINAL_TOP5)
    assert 100 * among_five / len(rows) == pytest.approx(expected, abs=1e-9)
    config = swept.client.download_artifacts(run_id, Artifact.CONFIG, str(tmp_path))
    assert yaml.safe_load(Path(config).read_text())["model"]["mixer"]["name"] == mixer


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("where", ["the folder", "the file in MLflow"])
def test_eval_gives_exactly_the_accuracy_that_was_logged(
    mixer: str, where: str, swept: Swept, tmp_path: Path, command: Callable[..., Any]
) -> None:
    place = str(swept.folders[mixer])
    if where == "the file in MLflow":
        run_id = swept.runs[mixer].info.run_id
        place = swept.client.download_artifacts(run_id, Artifact.MODEL, str(tmp_path))
    rows = tmp_path / "rows.parquet"
    outcome = command("eval", f"checkpoint={place}", "--predictions", str(rows))
    assert (outcome.code, outcome.err) == (0, "")
    assert f"top-1 {_final(swept, mixer):.2f} %" in outcome.out
    assert f"loss {_final(swept, mixer, Metric.FINAL_LOSS):.4f}" in outcome.out
    logged = pq.read_table(swept.folders[mixer] / Artifact.PREDICTIONS)
    assert pq.read_table(rows).equals(logged)  # every image, every probability


def test_eval_of_the_moving_average_is_that_of_the_run(
    swept: Swept, command: Callable[..., Any]
) -> None:
    outcome = command("eval", f"checkpoint={swept.folders['none']}", "--ema")
    assert f"top-1 {_final(swept, 'none', Metric.FINAL_EMA_TOP1):.2f} %" in outcome.out


def test_the_leaderboard_ranks_both(swept: Swept, command: Callable[..., Any]) -> None:
    outcome = command("leaderboard", "--uri", swept.uri, "--format", "json")
    assert (outcome.code, outcome.err) == (0, "")
    (board,) = json.loads(outcome.out)["boards"]
    entries = board["entries"]
    assert {entry["mixer"] for entry in entries} == set(MIXERS)
    finals = {mixer: _final(swept, mixer) for mixer in MIXERS}
    for entry in entries:
        assert entry["top1"]["mean"] == finals[entry["mixer"]]
        assert [run["run_id"] for run in entry["runs"]] == [swept.runs[entry["mixer"]].info.run_id]
    ranked = [finals[entry["mixer"]] for entry in entries]
    assert ranked == sorted(ranked, reverse=True)


def test_the_leaderboard_is_written_as_csv_too(swept: Swept, command: Callable[..., Any]) -> None:
    out = command("leaderboard", "mixer=none", "--uri", swept.uri, "--format", "csv").out
    (row,) = csv.DictReader(io.StringIO(out))
    assert row["mixer"] == "none"
    assert float(row["top-1 (%)"]) == pytest.approx(_final(swept, "none"), abs=0.01)


def test_there_is_nothing_left_to_sync(swept: Swept, command: Callable[..., Any]) -> None:
    outcome = command("sync", str(swept.folders["none"]), "--uri", swept.uri)
    assert (outcome.code, outcome.err) == (0, "")
    assert "already" in outcome.out
