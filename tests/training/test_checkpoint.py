"""Checkpoints: whole or not there, and without a line of code in them."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from mixerbench.config.schema import Run
from mixerbench.devices import grad_scaler
from mixerbench.errors import Refusal
from mixerbench.recipe.optimization import create_ema
from mixerbench.training import checkpoint
from mixerbench.training.state import Progress, TrainingState

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([True, False])}


def test_tensors_and_header_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "step-000000001.safetensors"
    header = {"identity": {"seed": 3}, "text": "ü \"'\n", "none": None, "list": [1, 2.5]}
    checkpoint.save(path, TENSORS, header)
    tensors, found = checkpoint.load(path)
    assert found == header
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]


@given(data=st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_flipped_bit_stays_unseen(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {str(dtype): torch.ones(3, 2).to(dtype) for dtype in DTYPES}
    checkpoint.save(path, {**tensors, "number": torch.tensor(2.5)}, {"text": "about"})
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    try:
        found, about = checkpoint.load(path)
    except checkpoint.DamagedError as error:
        assert str(path) in str(error)
        return
    # What neither changes a tensor nor the header: the checksum's own name, blanks, padding.
    assert about in ({"text": "about"}, {})
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)


def test_views_of_one_storage_are_saved_each(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    views = {"rows": whole[1:], "turned": whole.T, "whole": whole}
    checkpoint.save(tmp_path / "a.safetensors", views, {})
    tensors, _ = checkpoint.load(tmp_path / "a.safetensors")
    for name, tensor in views.items():
        assert torch.equal(tensors[name], tensor)


def test_a_model_with_shared_weights_is_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    checkpoint.save(tmp_path / "a.safetensors", model.state_dict(), {})
    model.load_state_dict(checkpoint.load(tmp_path / "a.safetensors")[0])


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_save_that_fails_leaves_the_old_file(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint.path_of(tmp_path, 5)
    checkpoint.save(path, TENSORS, {"version": 1})

    def fail(*_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="disk is full"):
        checkpoint.save(path, {"a": torch.zeros(1)}, {"version": 2})
    with pytest.raises(OSError, match="disk is full"):
        checkpoint.save(checkpoint.path_of(tmp_path, 6), TENSORS, {})
    monkeypatch.undo()
    assert checkpoint.newest(tmp_path) == path
    tensors, header = checkpoint.load(path)
    assert header == {"version": 1}
    assert torch.equal(tensors["a"], TENSORS["a"])


def test_a_file_reaches_the_disk_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, name=name, call=original: (events.append(name), call(*a))[1]
        )
    checkpoint.save(tmp_path / "a.safetensors", TENSORS, {})
    assert events == ["fsync", "replace", "fsync"]  # the file, its name, the folder


class _Bomb:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_is_refused_and_not_run(how: str, tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "model.safetensors"
    if how == "pickle":
        path.write_bytes(pickle.dumps(_Bomb(trace)))
    else:
        torch.save({"model": _Bomb(trace)}, path)
    with pytest.raises(ValueError, match=r"\.safetensors") as refusal:
        checkpoint.load(path)
    assert not trace.exists()
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "folder", "missing"])
def test_what_is_no_safetensors_file_is_refused_in_one_line(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        checkpoint.save(path, TENSORS, {})
        whole = path.read_bytes()
        path.write_bytes({"cut": whole[:-4], "empty": b"", "garbage": b"\xff" * 64}[damage])
    with pytest.raises(ValueError, match="cannot read the checkpoint") as refusal:
        checkpoint.load(path)
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


def test_a_file_of_another_program_has_no_header(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors", metadata={"format": "pt"})
    tensors, header = checkpoint.load(tmp_path / "a.safetensors")
    assert header == {}
    assert tensors.keys() == TENSORS.keys()


def test_the_newest_is_that_of_the_latest_step_and_parts_do_not_count(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    for step in (9, 100, 20):
        checkpoint.save(checkpoint.path_of(tmp_path, step), TENSORS, {})
    (tmp_path / "step-000000200.part").write_bytes(b"half")
    assert checkpoint.newest(tmp_path) == checkpoint.path_of(tmp_path, 100)
    checkpoint.prune(tmp_path, keep=2)
    left = sorted(path.stem for path in tmp_path.glob("*.safetensors"))
    assert left == ["step-000000020", "step-000000100"]


def test_prefixes_are_taken_off_again() -> None:
    both = checkpoint.with_prefix("model", TENSORS) | checkpoint.with_prefix("ema", TENSORS)
    assert sorted(both) == ["ema.a", "ema.b", "model.a", "model.b"]
    assert checkpoint.under_prefix("ema", both) == TENSORS
    assert checkpoint.under_prefix("mod", both) == {}


# --- the whole state --------------------------------------------------------------------------

IDENTITY = {"protocol_fingerprint": "p", "model_fingerprint": "m", "seed": 0}


def _state(plain: Any, optimizer: str) -> TrainingState:
    recipe = plain.settings.protocol.recipe
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    made = {
        "adamw": lambda: torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.5, 0.75)),
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    }[optimizer]()
    scaler = grad_scaler(torch.device("cpu"), Run(precision="fp16"))
    return TrainingState(model, create_ema(recipe, model), made, scaler)


def _step(state: TrainingState, seed: int) -> None:
    images = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
    state.optimizer.zero_grad()
    state.scaler.scale(state.model(images).square().mean()).backward()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.ema.update(state.model)
    state.progress.step += 1


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_loaded_state_goes_on_like_the_saved_one(
    optimizer: str, plain: Any, tmp_path: Path
) -> None:
    saved, loaded = _state(plain, optimizer), _state(plain, optimizer)
    for seed in range(3):
        _step(saved, seed)
    saved.progress.best, saved.progress.training_seconds = 61.5, 12.25
    path = saved.save(tmp_path, {"identity": IDENTITY}, keep=2)
    assert path == checkpoint.path_of(tmp_path, 3)

    loaded.load(path, IDENTITY)
    assert loaded.progress == saved.progress == Progress(3, 12.25, 61.5)
    assert loaded.scaler.state_dict() == saved.scaler.state_dict()
    for state in (saved, loaded):
        for seed in range(3, 6):
            _step(state, seed)
    ours, theirs = (_everything(state) for state in (saved, loaded))
    assert ours == theirs


def _everything(state: TrainingState) -> Any:
    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.tolist()
        if isinstance(value, dict):
            return {str(key): plain(inner) for key, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value

    return plain(
        [state.model.state_dict(), state.ema.module.state_dict(), state.optimizer.state_dict()]
    )


@pytest.mark.parametrize("key", IDENTITY)
def test_the_state_of_another_run_is_refused(key: str, plain: Any, tmp_path: Path) -> None:
    state = _state(plain, "adamw")
    path = state.save(tmp_path, {"identity": IDENTITY}, keep=2)
    before = _everything(state)
    with pytest.raises(Refusal, match="another run") as refusal:
        state.load(path, IDENTITY | {key: "other"})
    assert key in str(refusal.value)
    assert "'other'" in str(refusal.value)
    assert _everything(state) == before


def test_a_file_without_a_header_is_no_state(plain: Any, tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors")
    with pytest.raises(Refusal, match="another run"):
        _state(plain, "adamw").load(tmp_path / "a.safetensors", IDENTITY)
