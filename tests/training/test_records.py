"""What a run writes down: enough to repeat it, and to rebuild every table."""

import dataclasses
import json
import subprocess
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from mixerbench.config.compose import compose
from mixerbench.config.schema import (
    Settings,
    build,
    fingerprint,
    flatten,
    protocol_fingerprint,
)
from mixerbench.errors import Refusal, TrainingStopped
from mixerbench.measure.peak import peak_flops
from mixerbench.objectives.classification.accuracy import HARDEST_IMAGES, THUMBNAIL_PIXELS
from mixerbench.tracking.journal import FILE_NAME, is_finished, read
from mixerbench.tracking.keys import SCHEMA_VERSION, Artifact, Hardest, Metric, Prediction, Tag
from mixerbench.training import provenance
from mixerbench.training.folder import RUN_FILE, open_folder, read_settings
from mixerbench.training.progress import ProgressView
from mixerbench.training.run import run_training

ROOT = Path(__file__).parents[2]


def _values(run: Any, kind: str) -> dict[str, Any]:
    found = [record["values"] for record in run.records() if record["kind"] == kind]
    return {key: value for values in found for key, value in values.items()}


def test_the_folder_holds_what_a_run_is_made_of(plain: Any) -> None:
    assert {path.name for path in plain.folder.iterdir()} >= {
        RUN_FILE, FILE_NAME, "checkpoints", Artifact.CONFIG, Artifact.ENVIRONMENT,
        Artifact.PREDICTIONS, Artifact.HARDEST, Artifact.MODEL, Artifact.EMA,
    }  # fmt: skip
    assert is_finished(plain.folder / FILE_NAME)
    artifacts = [r["path"] for r in plain.records() if r["kind"] == "artifact"]
    assert sorted(artifacts) == sorted(
        [
            *(Artifact.CONFIG, Artifact.ENVIRONMENT, Artifact.PREDICTIONS, Artifact.HARDEST),
            *(Artifact.MODEL, Artifact.EMA),
        ]
    )


def test_the_hardest_images_are_those_least_believed_to_be_right(plain: Any) -> None:
    predictions = pq.read_table(plain.folder / Artifact.PREDICTIONS).to_pandas()
    hardest = pq.read_table(plain.folder / Artifact.HARDEST).to_pandas()
    lowest = predictions[Prediction.TARGET_PROBABILITY].nsmallest(HARDEST_IMAGES)
    assert hardest[Hardest.TARGET_PROBABILITY].tolist() == pytest.approx(lowest.tolist())
    merged = hardest.merge(predictions, on=Hardest.IMAGE, suffixes=("", "_predicted"))
    assert len(merged) == HARDEST_IMAGES
    assert (merged[Hardest.TOP1] == merged[f"{Hardest.TOP1}_predicted"]).all()
    for content in hardest[Hardest.THUMBNAIL]:
        with Image.open(BytesIO(content)) as thumbnail:
            assert thumbnail.format == "PNG"
            assert max(thumbnail.size) <= THUMBNAIL_PIXELS


def test_the_seconds_of_training_grow_with_the_steps_up_to_their_sum(plain: Any) -> None:
    curve = [
        record["values"][Metric.TRAIN_SECONDS]
        for record in plain.records()
        if Metric.TRAIN_SECONDS in record.get("values", {})
    ]
    assert len(curve) > 1
    assert curve == sorted(curve)
    final = _values(plain, "metrics")
    assert 0 < curve[-1] <= final[Metric.TRAINING_SECONDS]
    assert final[Metric.VAL_IMAGES] == len(
        pq.read_table(plain.folder / Artifact.PREDICTIONS, columns=[])
    )


def test_the_journal_begins_with_what_the_run_is_and_ends_with_its_end(plain: Any) -> None:
    kinds = [record["kind"] for record in plain.records()]
    assert kinds[0] == "tags"
    assert "metrics" not in kinds[: kinds.index("params")]
    assert kinds.index("start") < kinds.index("metrics")
    assert (kinds[-1], plain.records()[-1]["status"]) == ("end", "FINISHED")
    assert kinds.count("start") == kinds.count("end") == kinds.count("params") == 1


def test_config_yaml_is_the_run_again(plain: Any) -> None:
    settings = read_settings(plain.folder)
    assert settings == plain.settings
    assert compose(settings.overrides).model == settings.model
    assert settings.protocol.data.digest is not None  # what only the data could tell
    content = yaml.safe_load((plain.folder / Artifact.CONFIG).read_text())
    assert build(Settings, content) == plain.settings


def test_parameters_are_the_resolved_settings(plain: Any) -> None:
    params = _values(plain, "params")
    settings = plain.settings
    for group, content in (
        ("model.", settings.model),
        ("protocol.", dataclasses.asdict(settings.protocol)),
        ("run.", dataclasses.asdict(settings.run)),
    ):
        expected = {group + key: str(value) for key, value in flatten(content)}
        assert {key: value for key, value in params.items() if key.startswith(group)} == expected
    assert params["environment.torch"]
    # A table groups runs by fingerprint: it must follow from what is logged.
    assert (
        protocol_fingerprint(settings.protocol) == _values(plain, "tags")[Tag.PROTOCOL_FINGERPRINT]
    )


def test_tags_say_what_the_run_is(plain: Any) -> None:
    tags = _values(plain, "tags")
    assert tags[Tag.SCHEMA] == SCHEMA_VERSION
    assert (tags[Tag.MIXER], tags[Tag.SIZE], tags[Tag.STEM]) == ("attention", "micro", "patch")
    assert tags[Tag.MODEL] == plain.settings.label
    assert tags[Tag.MODEL_FINGERPRINT] == fingerprint(plain.settings.model)
    assert (tags[Tag.SEED], tags[Tag.SYNTHETIC]) == ("0", "true")
    assert tags[Tag.RUN_DIR] == str(plain.folder)
    assert "fp32" in tags[Tag.HARDWARE]
    assert tags[Tag.COMMAND] in tags["mlflow.note.content"]


def test_the_folder_is_named_after_protocol_and_model(plain: Any) -> None:
    tags = _values(plain, "tags")
    assert plain.folder.parent.name == f"digits-{tags[Tag.PROTOCOL_FINGERPRINT][:8]}"
    label = plain.settings.label.replace("=", "")  # so that run.resume= takes it unquoted
    assert plain.folder.name.startswith(f"{label}-seed0-")


def test_two_runs_of_one_second_have_two_folders(
    tiny: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.strftime", lambda *_: "20261121-101500")
    folders = [open_folder(tiny())[0] for _ in range(3)]
    assert len(set(folders)) == 3
    uids = {json.loads((folder / RUN_FILE).read_text())["uid"] for folder in folders}
    assert len(uids) == 3


def test_what_a_model_costs_is_measured_after_training(trained: Callable[..., Any]) -> None:
    run = trained("run.measure=true", "run.measure_seconds=0.01", "run.measure_batch_size=4",
                  "recipe.epochs=1")  # fmt: skip
    values = _values(run, "metrics")
    for key in (Metric.PARAMETERS, Metric.GMACS, Metric.IMAGES_PER_SECOND, Metric.LATENCY_MS,
                Metric.MEMORY_MIB):  # fmt: skip
        assert values[key] > 0
    for key in (Metric.IMAGES_PER_SECOND, Metric.LATENCY_MS):
        low, high = values[key + Metric.LOWER_QUARTILE], values[key + Metric.UPPER_QUARTILE]
        assert low <= values[key] <= high
    assert values[Metric.MEASURE_BATCH_SIZE] == 4
    speed, mfu = values[Metric.TRAIN_IMAGES_PER_SECOND], values[Metric.MFU]
    flops = 6e9 * values[Metric.GMACS] * speed  # forward and backward, each second
    assert 100 * flops / mfu == pytest.approx(peak_flops("cpu", "fp32"))
    assert 0 < mfu < 100
    weights = sum(tensor.numel() for tensor in run.weights.values())
    assert values[Metric.PARAMETERS] == weights


def test_weights_stay_here_where_the_setting_says_so(trained: Callable[..., Any]) -> None:
    run = trained("tracking.upload_weights=false", "recipe.epochs=1")
    artifacts = [r["path"] for r in run.records() if r["kind"] == "artifact"]
    assert Artifact.MODEL not in artifacts
    assert (run.folder / Artifact.MODEL).is_file()


PLUGIN = '''
from torch import Tensor, fft
from mixers import TokenMixer, register_mixer

@register_mixer("{name}")
class Mine(TokenMixer):
    """Each token is multiplied by a number."""
    any_grid = True
    mixes_prefix = mixes_tokens = False
    paper = "none"

    def __init__(self, dim, grid, num_heads, *, factor: float = 0.5):
        super().__init__(dim, grid, num_heads)
        self.factor = factor

    def forward(self, x, grid):
        return {result}
'''


def test_a_plugin_is_kept_with_the_run(tmp_path: Path, trained: Callable[..., Any]) -> None:
    plugin = tmp_path / "my_mixer.py"
    plugin.write_text(PLUGIN.format(name="of_records", result="x * self.factor"))
    run = trained(f"plugins=[{plugin}]", "mixer=of_records", "mixer.factor=0.25", "recipe.epochs=1")
    assert (run.folder / "plugins" / "my_mixer.py").read_text() == plugin.read_text()
    assert {"path": "plugins/my_mixer.py", "folder": "plugins"}.items() <= next(
        r for r in run.records() if r["kind"] == "artifact" and "plugins" in r["path"]
    ).items()
    assert run.finished.result.model.blocks[0].mixer.factor == 0.25


def test_a_mixer_that_cannot_be_counted_is_refused_before_training(
    tmp_path: Path, tiny: Callable[..., Settings]
) -> None:
    plugin = tmp_path / "uncounted.py"
    plugin.write_text(PLUGIN.format(name="uncounted", result="fft.fft(x, dim=1).real"))
    settings = tiny(f"plugins=[{plugin}]", "mixer=uncounted", "run.measure=true")
    with pytest.raises(Refusal, match="fft") as refusal:
        run_training(settings)
    assert len(str(refusal.value).splitlines()) <= 2
    assert not (tmp_path / "runs").exists()


def _status(settings: Settings, error: type[BaseException]) -> tuple[str, str, Path]:
    folders: list[Path] = []
    with pytest.raises(error) as stop:
        run_training(settings, on_folder=folders.append)
    last = [record for record, _ in read(folders[0] / FILE_NAME)][-1]
    return last["status"], str(stop.value), folders[0]


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Let the next run end with this after its sixth step."""

    def arm(error: BaseException) -> None:
        def show(self: ProgressView, name: str, record: dict[str, Any]) -> None:
            if record.get("step") == 6:
                raise error

        monkeypatch.setattr(ProgressView, "show", show)

    return arm


def test_an_interrupted_run_is_killed_and_says_how_to_go_on(
    tiny: Callable[..., Settings], raising: Callable[[BaseException], None]
) -> None:
    raising(KeyboardInterrupt())
    status, message, folder = _status(tiny(), TrainingStopped)
    assert status == "KILLED"
    assert f"run.resume={folder}" in message.replace("'", "").replace('"', "")


def test_a_run_with_an_error_has_failed(
    tiny: Callable[..., Settings], raising: Callable[[BaseException], None]
) -> None:
    raising(RuntimeError("CUDA out of memory"))
    status, message, _ = _status(tiny(), RuntimeError)
    assert (status, message) == ("FAILED", "CUDA out of memory")


UNFIT = [
    ("data.num_classes=4 size.dim=15", "15 channels"),
    ("recipe.batch.size=128", "128"),
    ("run.device=gpu", "run.device=gpu"),
    ("run.device=cuda:99", "cuda:99"),
    ("run.device=meta", "meta"),
    ("backbone.pool=max", "'max'"),
    ("mixer=local_attention mixer.border=soft", "'soft'"),
    ("tracking.offline=false tracking.uri=mlruns", "mlruns"),
    ("tracking.offline=false tracking.uri=http://127.0.0.1:9", "127.0.0.1:9"),
    ("recipe.distillation.kind=hard recipe.distillation.teacher=resnet_fifty", "'resnet_fifty'"),
    ("recipe.distillation.kind=soft recipe.distillation.teacher_checkpoint=/nowhere", "/nowhere"),
]


@pytest.mark.parametrize(("line", "expected"), UNFIT)
def test_what_cannot_be_trained_is_refused_before_there_is_a_folder(
    line: str, expected: str, tmp_path: Path, tiny: Callable[..., Settings]
) -> None:
    with pytest.raises(Refusal) as refusal:
        run_training(tiny(*line.split()))
    message = str(refusal.value)
    assert expected in message
    assert len(message.splitlines()) <= 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("recipe.optimizer.name=adamx", "adamx"),
        ("recipe.augmentation.auto_augment=foo", "foo"),
        ("recipe.augmentation.interpolation=foo", "foo"),
        ("evaluation.interpolation=foo", "foo"),
        ("recipe.augmentation.random_erasing_mode=foo", "foo"),
    ],
)
def test_a_value_that_only_timm_or_torch_knows_is_refused_too(
    line: str, expected: str, tmp_path: Path, tiny: Callable[..., Settings]
) -> None:
    with pytest.raises(Refusal, match=expected):
        run_training(tiny(*line.split()))
    assert not (tmp_path / "runs").exists()


# --- where a result comes from ----------------------------------------------------------------


def test_the_command_of_a_run_gives_the_same_run(tiny: Callable[..., Settings]) -> None:
    import shlex

    plan = "mixer.plan=[{name:local_attention,window:3},none]"
    settings = tiny("mixer=lit", plan, "size.depth=2", "data.root='/a b'")
    program, command, *arguments = shlex.split(provenance.command(settings))
    assert (program, command) == ("mixerbench", "train")
    assert compose(arguments) == settings


def test_versions_of_what_matters_are_recorded() -> None:
    import timm

    found = provenance.environment()
    assert found["timm"] == timm.__version__
    assert {"python", "platform", "mixerbench", "mlflow", "hydra-core", "numpy"} <= found.keys()
    packages = provenance.installed_packages()
    assert f"\ntimm=={timm.__version__}\n" in packages
    assert packages.splitlines() == sorted(set(packages.splitlines()), key=str.lower)


Git = Callable[..., str]


@pytest.fixture
def git(tmp_path: Path) -> Git:
    """git with these arguments in a folder of the test's own; returns what it says."""

    def run(*arguments: str, folder: Path = tmp_path) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        done = subprocess.run(
            ["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    return run


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Let mixerbench lie in this folder; returns its package."""

    def make(folder: Path) -> Path:
        package = folder / "mixerbench"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        monkeypatch.setattr("mixerbench.__file__", str(package / "__init__.py"))
        return package

    return make


def test_the_commit_is_recorded_with_whether_it_is_all(
    tmp_path: Path, git: Git, install: Callable[[Path], Path]
) -> None:
    package = install(tmp_path)
    assert provenance.git_state() is None  # installed, not a checkout
    git("init")
    assert provenance.git_state() is None
    git("add", ".")
    git("commit", "-m", "first")
    assert provenance.git_state() == (git("rev-parse", "HEAD"), False)
    (package / "__init__.py").write_text("x = 1")
    assert provenance.git_state() == (git("rev-parse", "HEAD"), True)
    assert provenance.git_tags()[Tag.GIT_DIRTY] == "true"


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("mixers/new.py", True),
        ("mixerbench/models/new.py", True),
        ("configs/recipe/new.yaml", True),
        ("runs/digits/plugins/mine.py", False),
        ("notes.txt", False),
        ("mixers/__pycache__/attention.cpython-311.pyc", False),
    ],
)
def test_code_that_is_in_no_commit_counts(
    file: str, counts: bool, ignored: bool, tmp_path: Path, git: Git,
    install: Callable[[Path], Path],
) -> None:  # fmt: skip
    install(tmp_path)
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("")
    if ignored:
        (tmp_path / ".git/info/exclude").write_text(f"/{file}\n")
    assert provenance.git_state() == (git("rev-parse", "HEAD"), counts)


@pytest.mark.parametrize("tracked", [False, True], ids=["in a venv", "copied into it"])
def test_the_commit_of_a_repository_around_the_installation_is_not_ours(
    tracked: bool, tmp_path: Path, git: Git, install: Callable[[Path], Path]
) -> None:
    install(tmp_path / ".venv/lib/python3.12/site-packages")
    (tmp_path / "theirs.py").write_text("")
    git("init")
    git("add", *(["-f", "."] if tracked else ["theirs.py"]))
    git("commit", "-m", "theirs")
    assert provenance.git_state() is None
    assert provenance.git_tags() == {}


def test_a_repository_that_the_environment_names_is_not_ours(
    tmp_path: Path, git: Git, install: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a hook of git, which starts a training."""
    install(tmp_path / "ours")
    for folder in (tmp_path / "ours", tmp_path / "theirs"):
        folder.mkdir(exist_ok=True)
        (folder / "file").write_text(folder.name)
        git("init", folder=folder)
        git("add", ".", folder=folder)
        git("commit", "-m", "first", folder=folder)
    ours = git("rev-parse", "HEAD", folder=tmp_path / "ours")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "theirs/.git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "theirs"))
    assert provenance.git_state() == (ours, False)
