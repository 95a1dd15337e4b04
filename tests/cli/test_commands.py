"""Commands in this process: what they print, and what they refuse after loading torch."""

import dataclasses
import json
import pickle
import socket
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mixerbench.config.compose import compose
from mixerbench.config.schema import Settings, build
from mixerbench.models import create_model
from mixerbench.models.build import build_model
from mixerbench.training import checkpoint

Command = Callable[..., Any]
Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "mixer=patch_ff size=base protocol=imagenet_deit data.root=/data/imagenet run.device=cpu",
        "mixer=lit mixer.plan=[{name:local_attention,window:3},none] run.seed=3 tracking.uri=http://a",
    ],
)
def test_printed_settings_are_the_settings(line: str, command: Command) -> None:
    outcome = command("train", "--cfg", *line.split())
    assert (outcome.code, outcome.err) == (0, "")
    assert build(Settings, yaml.safe_load(outcome.out)) == compose(line.split())


def test_options_may_stand_anywhere(command: Command) -> None:
    outputs = {
        command("train", *arguments).out
        for arguments in (["--cfg", "run.seed=1"], ["run.seed=1", "--cfg"])
    }
    assert len(outputs) == 1


# --- a server that is not there ---------------------------------------------------------------


def _closed_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("how", ["setting", "environment"])
def test_training_does_not_start_without_its_server(
    how: str, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"http://127.0.0.1:{_closed_port()}"
    arguments = ["train", "run.progress=false", "run.measure=false"]
    if how == "setting":
        arguments.append(f"tracking.uri={uri}")
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    begin = time.monotonic()
    message = refused(*arguments)
    assert time.monotonic() - begin < 10
    for words in (uri, "does not answer", "tracking.offline=true"):
        assert words in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["train", "train -m mixer=attention,patch_ff"])
def test_the_server_is_asked_before_anything_heavy_is_begun(
    line: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*_: Any, **__: Any) -> None:
        pytest.fail("begun without its server")

    monkeypatch.setattr("mixerbench.training.run.run_training", begin)
    monkeypatch.setattr("mixerbench.launching.local.run_sweep", begin)
    uri = f"http://127.0.0.1:{_closed_port()}"
    assert uri in refused(*line.split(), f"tracking.uri={uri}")


# --- eval -------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file that training could have written: attention, one block, digits."""
    settings = compose(["size.depth=1"])
    path = tmp_path / "weights.safetensors"
    tensors = build_model(settings, 10).state_dict()
    checkpoint.save(path, tensors, {"settings": dataclasses.asdict(settings)})
    return path


def test_eval_says_what_it_found_under_which_settings(weights: Path, command: Command) -> None:
    outcome = command("eval", f"checkpoint={weights}", "--predictions", "rows.parquet")
    assert (outcome.code, outcome.err) == (0, "")
    for words in ("attention_micro", "digits", "top-1", "top-5", "539 images"):
        assert words in outcome.out
    assert Path("rows.parquet").is_file()


def test_eval_refuses_what_is_not_there(refused: Refused) -> None:
    assert "/nowhere/model.safetensors" in refused("eval", "checkpoint=/nowhere/model.safetensors")
    assert "checkpoint=" in refused("eval", "run.device=cpu")


class _Bomb:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("trace").absolute(),)


def test_eval_refuses_a_pickle_and_does_not_run_it(tmp_path: Path, refused: Refused) -> None:
    Path("model.pth").write_bytes(pickle.dumps(_Bomb()))
    torch.save({"model": _Bomb()}, "model.pt")
    for name in ("model.pth", "model.pt"):
        message = refused("eval", f"checkpoint={name}")
        assert name in message
        assert ".safetensors" in message
    assert not (tmp_path / "trace").exists()
    with open("model.pth", "rb") as file:
        pickle.load(file)
    assert (tmp_path / "trace").exists()  # it was a live one


def test_eval_refuses_the_weights_of_another_model(weights: Path, refused: Refused) -> None:
    for setting in ("mixer=patch_ff", "size=tiny", "size.depth=2"):
        message = refused("eval", f"checkpoint={weights}", setting)
        assert "another model" in message
        assert "missing" in message


def test_eval_refuses_a_setting_that_is_not_there(weights: Path, refused: Refused) -> None:
    begin = time.monotonic()
    message = refused("eval", f"checkpoint={weights}", "evaluation.crop_ration=1")
    assert "'crop_ratio'" in message
    assert time.monotonic() - begin < 3


# --- profile ----------------------------------------------------------------------------------


def test_profile_prints_one_json_object(command: Command) -> None:
    line = "profile mixer=none stem=conv run.measure_seconds=0.05 run.measure_batch_size=2 --json"
    outcome = command(*line.split())
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    model = create_model("none", "micro", image_size=24, num_classes=10, stem="conv", patch_size=4)
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert (found["model"], found["image_size"]) == ("none_micro_conv", 24)
    assert found["batch_size"] == 2
    for figure in (found["gmacs"], found["memory_mib"], found["images_per_second"]["median"],
                   found["latency_ms"]["median"]):  # fmt: skip
        assert figure > 0
    assert "multiply-adds" in found["gmacs_convention"]


def test_profile_refuses_a_combination_that_does_not_fit(refused: Refused) -> None:
    assert "65" in refused("profile", "size.dim=65")


# --- train ------------------------------------------------------------------------------------


def test_train_says_the_result_and_where_it_is(tmp_path: Path, command: Command) -> None:
    line = ("train mixer=none size.depth=1 size.dim=8 recipe.epochs=1 data=synthetic "
            "data.train_images=64 data.val_images=8 data.num_classes=2 tracking.offline=true "
            "run.measure=false run.progress=false")  # fmt: skip
    outcome = command(*line.split())
    assert (outcome.code, outcome.err) == (0, "")
    (folder,) = (path.parent for path in tmp_path.rglob("journal.jsonl"))
    assert str(folder) in outcome.out
    assert "top-1" in outcome.out
    assert "8 images" in outcome.out


def test_a_run_that_stops_has_exit_code_1(command: Command) -> None:
    line = ("train mixer=none size.depth=1 size.dim=8 recipe.epochs=3 data=synthetic "
            "data.train_images=64 data.val_images=8 data.num_classes=2 tracking.offline=true "
            "run.measure=false run.progress=false recipe.optimizer.lr=1e30 "
            "recipe.schedule.warmup_lr=1e30")  # fmt: skip
    outcome = command(*line.split())
    assert outcome.code == 1
    assert len(outcome.err.splitlines()) <= 2
    assert "Last good checkpoint" in outcome.err


# --- sync -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # mlflow warns about itself
def test_sync_uploads_what_an_offline_run_has_written(tmp_path: Path, command: Command) -> None:
    line = ("train mixer=none size.depth=1 size.dim=8 recipe.epochs=1 data=synthetic "
            "data.train_images=64 data.val_images=8 data.num_classes=2 tracking.offline=true "
            "run.measure=false run.progress=false")  # fmt: skip
    assert command(*line.split()).code == 0
    (folder,) = (path.parent for path in tmp_path.rglob("journal.jsonl"))
    assert not (tmp_path / "mlflow.db").exists()

    first = command("sync", str(folder))
    assert (first.code, first.err) == (0, "")
    assert "uploaded to" in first.out
    assert "already" in command("sync", str(folder)).out

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "mixerbench-digits"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["mixerbench.mixer"] == "none"
    assert "final/top1" in run.data.metrics
