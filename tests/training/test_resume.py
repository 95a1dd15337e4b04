"""Going on is as if the run had never stopped: bit by bit, and without a metric twice."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from processes import CLOCKS
from safetensors.torch import load_file

from mixerbench.config.schema import Settings
from mixerbench.errors import Refusal
from mixerbench.tracking.journal import FILE_NAME, is_finished, read
from mixerbench.training import checkpoint
from mixerbench.training.checkpoint import CHECKPOINTS
from mixerbench.training.run import run_training

ROOT = Path(__file__).parents[2]


def _assert_same_tensors(one: Path, other: Path) -> None:
    ours, theirs = load_file(one), load_file(other)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert different == []


def _assert_same_run(one: Path, other: Path) -> None:
    for name in ("model.safetensors", "ema.safetensors"):
        _assert_same_tensors(one / name, other / name)
    last = [checkpoint.newest(folder / CHECKPOINTS) for folder in (one, other)]
    assert last[0] is not None
    assert last[1] is not None
    assert last[0].name == last[1].name
    _assert_same_tensors(last[0], last[1])  # the optimizer's state is in it
    headers = [checkpoint.load(path)[1] for path in last]
    for header in headers:
        header["progress"].pop("training_seconds")
        header.pop("settings")  # run.resume, run.root
    assert headers[0] == headers[1]


def _metrics(folder: Path) -> dict[tuple[str, int], float]:
    found = [
        ((key, record["step"]), value)
        for record, _ in read(folder / FILE_NAME)
        if record["kind"] == "metrics"
        for key, value in record["values"].items()
        if not key.startswith(CLOCKS)
    ]
    twice = [key for key, count in Counter(key for key, _ in found).items() if count > 1]
    assert twice == []
    return dict(found)


# Four steps an epoch, three epochs, a checkpoint after each.
STOPS = {
    "before the first checkpoint": ("train/loss", 3),
    "in the second epoch": ("train/loss", 6),
    "between an epoch's last step and its checkpoint": ("train/loss", 8),
    "after the validation": ("val/top1", 8),
    "after the last checkpoint": ("val/top1", 12),
    "at the very end": ("final/top1", 12),
}


@pytest.mark.parametrize("place", STOPS)
def test_a_resumed_run_ends_bit_identical(
    place: str, plain: Any, trained: Callable[..., Any], stopped: Callable[..., Path]
) -> None:
    folder = stopped(*STOPS[place])
    assert not is_finished(folder / FILE_NAME)

    resumed = trained("run.resume=auto")
    assert resumed.folder == folder
    assert is_finished(folder / FILE_NAME)
    _assert_same_run(plain.folder, folder)
    assert _metrics(plain.folder) == _metrics(folder)


@pytest.mark.parametrize(
    "override", ["stem=conv", "run.precision=fp16", "recipe.optimizer.name=lamb",
                 "recipe.optimizer.name=sgd", "recipe.optimizer.clip_grad_norm=0.5"],
)  # fmt: skip
def test_every_kind_of_state_is_saved(
    override: str, trained: Callable[..., Any], stopped: Callable[..., Path]
) -> None:
    whole = trained(override)
    folder = stopped("train/loss", 10, override)
    trained(override, "run.resume=auto")
    _assert_same_run(whole.folder, folder)


def test_a_run_may_stop_twice(
    plain: Any, trained: Callable[..., Any], stopped: Callable[..., Path]
) -> None:
    folder = stopped("train/loss", 5)
    assert stopped("train/loss", 10, "run.resume=auto") == folder
    assert trained("run.resume=auto").folder == folder
    _assert_same_run(plain.folder, folder)
    assert _metrics(plain.folder) == _metrics(folder)
    starts = [r["kind"] for r, _ in read(folder / FILE_NAME) if r["kind"] in ("start", "end")]
    assert starts == ["start", "end"] * 3


def test_a_resumed_run_repeats_no_step_before_its_checkpoint(
    trained: Callable[..., Any],
    stopped: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopped("train/loss", 6)
    seeded = []
    from mixerbench.training import trainer

    original = trainer.seed_generators
    monkeypatch.setattr(
        trainer, "seed_generators", lambda *numbers: (seeded.append(numbers), original(*numbers))
    )
    trained("run.resume=auto")
    assert {numbers[2] for numbers in seeded if numbers[0] == "step"} == set(range(4, 12))


KILLED = """
import os, signal, sys, yaml
from pathlib import Path
from mixerbench.config.schema import Settings, build
from mixerbench.training.progress import ProgressView
from mixerbench.training.run import run_training

def show(self, name, record):
    if record.get("step") == 6 and "train/loss" in record["values"]:
        os.kill(os.getpid(), signal.SIGKILL)

ProgressView.show = show
run_training(build(Settings, yaml.safe_load(Path(sys.argv[1]).read_text())))
"""


@pytest.mark.slow
def test_a_killed_process_leaves_a_run_that_goes_on(
    tmp_path: Path, plain: Any, tiny: Callable[..., Settings], trained: Callable[..., Any]
) -> None:
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(asdict(tiny())))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "settings.yaml")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    (folder,) = (path.parent for path in (tmp_path / "runs").rglob(FILE_NAME))
    with open(folder / FILE_NAME, "a") as journal:
        journal.write('{"time": 1763, "kind": "metr')  # a power cut in the middle of a line
    assert trained("run.resume=auto").folder == folder
    _assert_same_run(plain.folder, folder)
    assert _metrics(plain.folder) == _metrics(folder)


# --- which run --------------------------------------------------------------------------------


def test_auto_takes_the_newest_unfinished_run_of_the_same_settings(
    trained: Callable[..., Any], stopped: Callable[..., Path]
) -> None:
    older = stopped("train/loss", 6)
    newer = stopped("train/loss", 6)
    others = [
        stopped("train/loss", 6, override)
        for override in ("run.seed=1", "mixer=none", "recipe.epochs=2")
    ]
    os.utime(older / "run.json", (1, 1))
    assert len({older, newer, *others}) == 5
    assert trained("run.resume=auto").folder == newer
    assert trained("run.resume=auto").folder == older
    last = trained("run.resume=auto").folder  # none is left: a new one
    assert last not in {older, newer, *others}


def test_without_resume_it_is_always_a_new_run(
    trained: Callable[..., Any], stopped: Callable[..., Path]
) -> None:
    assert stopped("train/loss", 6) != trained().folder


def test_a_folder_can_be_named(trained: Callable[..., Any], stopped: Callable[..., Path]) -> None:
    older, newer = stopped("train/loss", 6), stopped("train/loss", 6)
    assert trained(f"run.resume='{older}'").folder == older
    assert not is_finished(newer / FILE_NAME)


def test_a_folder_can_be_named_as_it_is_printed(
    trained: Callable[..., Any], stopped: Callable[..., Path]
) -> None:
    folder = stopped("train/loss", 6)
    assert "depth1" in folder.name
    assert trained(f"run.resume={folder}").folder == folder


def test_run_settings_may_change_and_are_told(
    plain: Any, trained: Callable[..., Any], stopped: Callable[..., Path]
) -> None:
    folder = stopped("train/loss", 6)
    resumed = trained("run.resume=auto", "run.log_every_steps=2")
    assert resumed.folder == folder
    _assert_same_run(plain.folder, folder)
    tags = [record["values"] for record in resumed.records() if record["kind"] == "tags"]
    (drift,) = (json.loads(tag) for t in tags if (tag := t.get("mixerbench.config_drift")))
    assert drift == {"run.resume": "auto", "run.log_every_steps": "2"}
    assert "mixerbench.config_drift" not in tags[0]
    params = [record for record in resumed.records() if record["kind"] == "params"]
    assert len(params) == 1  # MLflow writes a parameter once


# --- what is refused --------------------------------------------------------------------------


def _refusal(settings: Settings) -> str:
    with pytest.raises(Refusal) as refusal:
        run_training(settings)
    message = str(refusal.value)
    assert len(message.splitlines()) <= 2
    return message


def test_a_folder_without_a_run_is_refused(tmp_path: Path, tiny: Callable[..., Settings]) -> None:
    message = _refusal(tiny(f"run.resume={tmp_path}"))
    assert str(tmp_path) in message
    assert "auto" in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("override", "differing"),
    [
        ("run.seed=1", "seed"),
        ("mixer=none", "model fingerprint"),
        ("recipe.epochs=4", "protocol fingerprint"),
    ],
)
def test_the_folder_of_another_run_is_refused(
    override: str, differing: str, tiny: Callable[..., Settings], stopped: Callable[..., Path]
) -> None:
    folder = stopped("train/loss", 6)
    before = (folder / FILE_NAME).read_bytes()
    message = _refusal(tiny(f"run.resume='{folder}'", override))
    assert differing in message
    assert str(folder) in message
    assert (folder / FILE_NAME).read_bytes() == before


def test_a_finished_run_is_refused(
    tiny: Callable[..., Settings], trained: Callable[..., Any]
) -> None:
    folder = trained().folder
    assert "finished" in _refusal(tiny(f"run.resume='{folder}'"))


def test_a_second_process_in_the_same_folder_is_refused(
    tiny: Callable[..., Settings], stopped: Callable[..., Path], trained: Callable[..., Any]
) -> None:
    folder = stopped("train/loss", 6)
    with FileLock(folder / ".lock"):
        message = _refusal(tiny(f"run.resume='{folder}'"))
        assert "another process" in message
        assert str(folder) in message
    assert trained(f"run.resume='{folder}'").folder == folder


def _flipped(content: bytes) -> bytes:
    place = len(content) - 100
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "garbage": lambda content: b"x" * 500,
    "empty": lambda content: b"",
    "one bit": _flipped,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_without_a_whole_checkpoint_a_run_is_refused_in_one_line(
    damage: str, tiny: Callable[..., Settings], stopped: Callable[..., Path]
) -> None:
    folder = stopped("train/loss", 6)
    saved = checkpoint.newest(folder / CHECKPOINTS)
    assert saved is not None
    saved.write_bytes(DAMAGES[damage](saved.read_bytes()))
    message = _refusal(tiny("run.resume=auto"))
    assert str(saved) in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    damage: str,
    plain: Any,
    trained: Callable[..., Any],
    stopped: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = stopped("train/loss", 10)
    newest, before = checkpoint.newest_first(folder / CHECKPOINTS)
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    trained("run.resume=auto")
    said = capsys.readouterr().err
    assert str(newest) in said
    assert f"Continuing from {before.name}" in said
    _assert_same_run(plain.folder, folder)
    assert _metrics(plain.folder) == _metrics(folder)


@pytest.mark.parametrize("part", ["model", "ema"])
def test_a_checkpoint_without_numbers_is_refused(
    part: str, tiny: Callable[..., Settings], stopped: Callable[..., Path]
) -> None:
    folder = stopped("train/loss", 6)
    path = checkpoint.newest(folder / CHECKPOINTS)
    assert path is not None
    tensors, header = checkpoint.load(path)
    tensors[f"{part}.head.bias"][1] = float("nan")
    checkpoint.save(path, tensors, header)  # its checksum is right
    message = _refusal(tiny(f"run.resume={folder}"))
    assert str(path) in message
    assert f"{part}: the entry head.bias holds 1 of 4 values that are infinite" in message


def test_the_checkpoint_of_another_run_is_refused(
    tiny: Callable[..., Settings], stopped: Callable[..., Path]
) -> None:
    folder, other = stopped("train/loss", 6), stopped("train/loss", 6, "run.seed=1")
    theirs = checkpoint.newest(other / CHECKPOINTS)
    assert theirs is not None
    os.replace(theirs, folder / CHECKPOINTS / theirs.name)
    message = _refusal(tiny(f"run.resume='{folder}'"))
    assert "another run" in message
    assert "seed" in message
