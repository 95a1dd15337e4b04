"""``mixerbench measure`` on a store that real runs of milliseconds have filled."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import DATA, MODEL

from leaderboard import boards, read_runs
from mixerbench.config.compose import compose
from mixerbench.measure.hardware import hardware_name
from mixerbench.tracking.keys import MEASUREMENT, SCHEMA_VERSION, Artifact, Metric, Tag
from mixerbench.tracking.measurements import EXPERIMENT
from mixerbench.training.run import run_training
from mixers.core.registry import MIXERS

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # mlflow warns about itself
    pytest.mark.xdist_group("measure"),  # one store, whatever the number of processes
]

MIXER_NAMES = ("none", "patch_ff", "doubling")
TRAIN = [
    *DATA, *MODEL, "recipe.epochs=1", "recipe.batch.size=16", "recipe.batch.micro_batch_size=8",
    "recipe.schedule.warmup_epochs=0", "run.measure_seconds=0.01", "run.measure_batch_size=2",
    "run.progress=false", "run.device=cpu", "tracking.upload_weights=false",
]  # fmt: skip
QUICK = (
    *("run.measure_seconds=0.05", "run.measure_batch_size=3", "run.device=cpu"),
    "plugins=[mine.py,others/mine.py]",
)
PLUGIN = """\
from mixers import TokenMixer, register_mixer

@register_mixer("doubling")
class Doubling(TokenMixer):
    any_grid = True
    mixes_prefix = True
    mixes_tokens = False
    paper = "ours"

    def forward(self, x, grid):
        return 2 * x
"""

Command = Callable[..., Any]
Refused = Callable[..., str]


@dataclass(frozen=True)
class Trained:
    """A store with three models of one protocol and one of another."""

    folder: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    @property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    def fingerprint(self, mixer: str) -> str:
        found = {run.mixer: run.protocol_fingerprint for run in read_runs(self.uri).runs}
        return found[mixer]

    def measurements(self) -> list[Any]:
        found = self.client.get_experiment_by_name(EXPERIMENT)
        return [] if found is None else list(self.client.search_runs([found.experiment_id]))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    trained = Trained(tmp_path_factory.mktemp("trained"))
    plugin, namesake = trained.folder / "mine.py", trained.folder / "others/mine.py"
    plugin.write_text(PLUGIN)
    namesake.parent.mkdir()
    namesake.write_text(PLUGIN.replace("doubling", "doubling_too"))
    known = set(MIXERS.names())
    common = [*TRAIN, f"tracking.uri={trained.uri}", f"run.root={trained.folder / 'runs'}"]
    for mixer in MIXER_NAMES:
        own = [f"plugins=[{namesake},{plugin}]"] if mixer == "doubling" else []
        run_training(compose([*common, f"mixer={mixer}", *own]))
    run_training(compose([*common, "mixer=identity", "recipe.epochs=2"]))
    MIXERS.forget(MIXERS.loaded() - known)  # what another process would not know
    return trained


@pytest.fixture
def trained(filled: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """The test's own copy of the store. Its artifacts are those of the first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    for name in ("mlflow.db", "mine.py", "others/mine.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(filled.folder / name, tmp_path / name)
    return Trained(tmp_path)


def test_every_model_of_the_board_is_measured_and_recorded(
    trained: Trained, command: Command
) -> None:
    board = trained.fingerprint("none")
    outcome = command("measure", f"protocol={board}", *QUICK, "--uri", trained.uri)
    assert (outcome.code, outcome.err) == (0, "")
    hardware = hardware_name("cpu", "fp32")
    for words in (board, *MIXER_NAMES, hardware, "batch 3", "images/s", "20 rounds", EXPERIMENT):
        assert words in outcome.out

    runs = trained.measurements()
    of_training = {run.mixer: run for run in read_runs(trained.uri).runs}
    assert sorted(run.data.tags[Tag.MIXER] for run in runs) == sorted(MIXER_NAMES)
    assert len({run.data.tags[Tag.SESSION] for run in runs}) == 1
    for run in runs:
        tags, metrics = run.data.tags, run.data.metrics
        then = of_training[tags[Tag.MIXER]]
        assert run.info.status == "FINISHED"
        assert (tags[Tag.SCHEMA], tags[Tag.KIND]) == (SCHEMA_VERSION, MEASUREMENT)
        assert tags[Tag.HARDWARE] == hardware
        assert tags[Tag.SESSION] in outcome.out
        assert tags[Tag.GIT_COMMIT]
        for tag, value in {
            Tag.PROTOCOL: then.protocol_name,
            Tag.PROTOCOL_FINGERPRINT: then.protocol_fingerprint,
            Tag.MODEL: then.model,
            Tag.MODEL_FINGERPRINT: then.model_fingerprint,
            Tag.SIZE: then.size,
            Tag.BACKBONE: then.backbone,
            Tag.STEM: then.stem,
        }.items():
            assert tags[tag] == value
        assert metrics[Metric.PARAMETERS] == then.metrics[Metric.PARAMETERS]
        assert metrics[Metric.GMACS] == then.metrics[Metric.GMACS]
        assert metrics[Metric.MEASURE_BATCH_SIZE] == 3
        assert metrics[Metric.UPLOADED_AT] > 1e9
        for key in (Metric.IMAGES_PER_SECOND, Metric.LATENCY_MS):
            low, high = metrics[key + Metric.LOWER_QUARTILE], metrics[key + Metric.UPPER_QUARTILE]
            assert 0 < low <= metrics[key] <= high
        assert metrics[Metric.MEMORY_MIB] > 0
        assert run.data.params["run.measure_seconds"] == "0.05"


def test_measurements_are_described_and_are_no_entries(trained: Trained, command: Command) -> None:
    before = boards(read_runs(trained.uri).runs)
    arguments = ("measure", f"protocol={trained.fingerprint('none')}", "mixer=none", *QUICK)
    sessions = set()
    for _ in range(2):
        assert command(*arguments, "--uri", trained.uri).code == 0
        experiment = trained.client.get_experiment_by_name(EXPERIMENT)
        assert Tag.SESSION in experiment.tags["mlflow.note.content"]
        assert not any(tag.startswith("mlflow.sharedViewState") for tag in experiment.tags)
        sessions |= {run.data.tags[Tag.SESSION] for run in trained.measurements()}
    assert len(sessions) == 2
    assert len(trained.measurements()) == 2  # of the one entry that the filter leaves
    after = boards(read_runs(trained.uri).runs)
    assert [(b.fingerprint, len(b.entries)) for b in after] == [
        (b.fingerprint, len(b.entries)) for b in before
    ]


def test_a_plugin_of_the_store_is_run_only_when_it_is_named_as_it_was(
    trained: Trained, command: Command, tmp_path: Path
) -> None:
    board = f"protocol={trained.fingerprint('none')}"
    named = [one for one in QUICK if one.startswith("plugins=")]
    quick = [one for one in QUICK if one not in named]
    (tmp_path / "others/mine.py").write_text("raise SystemExit('this was run')")
    for given in ([], ["plugins=[mine.py]"], named):
        outcome = command("measure", board, *quick, *given, "mixer=doubling", "--uri", trained.uri)
        assert outcome.code == 2
        first, _ = outcome.err.splitlines()
        assert "left out: it needs the plugin mine.py" in first
    assert trained.measurements() == []


@pytest.mark.parametrize("metric", [Metric.GMACS, Metric.PARAMETERS])
def test_a_model_that_the_code_builds_otherwise_now_is_left_out(
    metric: str, trained: Trained, command: Command
) -> None:
    (then,) = (run for run in read_runs(trained.uri).runs if run.mixer == "patch_ff")
    trained.client.log_metric(then.run_id, metric, 2 * then.metrics[metric], step=1)
    shutil.rmtree(trained.folder / "cache")  # of what was read before
    board = f"protocol={then.protocol_fingerprint}"
    outcome = command("measure", board, *QUICK, "--uri", trained.uri)
    assert outcome.code == 0
    (line,) = outcome.err.splitlines()
    for words in (then.model, "left out", "code has changed", metric):
        assert words in line
    assert {run.data.tags[Tag.MIXER] for run in trained.measurements()} == {"none", "doubling"}


def test_a_run_without_its_settings_is_left_out(trained: Trained, command: Command) -> None:
    (then,) = (run for run in read_runs(trained.uri).runs if run.mixer == "none")
    # A copy of the run without artifacts stands for one whose upload was cut off.
    of_store = trained.client.get_run(then.run_id)
    copy = trained.client.create_run(of_store.info.experiment_id)
    for key, value in of_store.data.tags.items():
        trained.client.set_tag(copy.info.run_id, key, value)
    for key, value in of_store.data.params.items():
        trained.client.log_param(copy.info.run_id, key, value)
    for key, metric in of_store.data.metrics.items():
        trained.client.log_metric(copy.info.run_id, key, metric)
    trained.client.set_terminated(copy.info.run_id)
    board = f"protocol={then.protocol_fingerprint}"
    outcome = command("measure", board, *QUICK, "--uri", trained.uri)
    assert outcome.code == 0
    (line,) = outcome.err.splitlines()
    assert Artifact.CONFIG in line
    assert len(trained.measurements()) == 2
    refused = command("measure", board, "mixer=none", *QUICK, "--uri", trained.uri)
    assert refused.code == 2
    assert "nothing is left to measure" in refused.err


def test_a_store_that_refuses_leaves_the_results_on_the_terminal(
    trained: Trained, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full\nand more of it")

    monkeypatch.setattr("mixerbench.commands._measuring.record", refuse)
    board = f"protocol={trained.fingerprint('none')}"
    outcome = command("measure", board, *QUICK, "--uri", trained.uri)
    assert outcome.code == 1
    for mixer in MIXER_NAMES:
        assert mixer in outcome.out
    assert len(outcome.err.splitlines()) == 1
    assert "the disk is full" in outcome.err
    assert trained.measurements() == []


def test_what_a_store_took_before_it_failed_stays_unfinished(
    trained: Trained, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    calls = []
    log_batch = MlflowClient.log_batch

    def fail_at_the_second(*arguments: Any, **options: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError("gone")
        log_batch(*arguments, **options)

    monkeypatch.setattr(MlflowClient, "log_batch", fail_at_the_second)
    board = f"protocol={trained.fingerprint('none')}"
    assert command("measure", board, *QUICK, "--uri", trained.uri).code == 1
    assert {run.info.status for run in trained.measurements()} == {"RUNNING"}


def test_no_room_on_the_device_names_the_model_and_what_to_change(
    trained: Trained, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(models: Any, *_: Any, progress: Any, **__: Any) -> None:
        progress(next(iter(models)), 0.0)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("mixerbench.commands._measuring.measure_interleaved", fail)
    board = f"protocol={trained.fingerprint('none')}"
    outcome = command("measure", board, "mixer=patch_ff", *QUICK, "--uri", trained.uri)
    assert outcome.code == 1
    assert "patch_ff" in outcome.err
    assert "run.measure_batch_size" in outcome.err


def test_two_boards_are_refused_with_their_names(trained: Trained, refused: Refused) -> None:
    message = refused("measure", *QUICK, "--uri", trained.uri)
    assert len(message.splitlines()) == 1
    for mixer in ("none", "identity"):
        assert f"protocol={trained.fingerprint(mixer)}" in message
    assert trained.measurements() == []


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("mixr=none", ("'mixr=none'", "mixer")),
        ("mixer=nnone", ("'mixer=nnone'", "none")),
        ("tracking.uri=x", ("tracking.uri",)),
        ("run.seed=3", ("run.seed=3", "run.measure_seconds")),
        ("run.precison=bf16", ("'precison'", "'precision'")),
        ("run.precision=fp8", ("run.precision=fp8", "bf16")),
    ],
)
def test_what_is_no_filter_and_no_setting_is_refused(
    setting: str, words: tuple[str, ...], trained: Trained, refused: Refused
) -> None:
    message = refused("measure", setting, "--uri", trained.uri)
    for word in words:
        assert word in message


def test_a_store_that_is_not_there_is_refused_and_not_made(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert "mlflow.db" in refused("measure")
    assert not os.path.exists("mlflow.db")
