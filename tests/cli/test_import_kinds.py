"""What a file holds decides whether it is imported, before torch sees it; programs never run."""

import gzip
import io
import os
import pickle
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mixerbench.commands._foreign import read_checkpoint
from mixerbench.config.schema import Distillation
from mixerbench.objectives.classification.teacher import create_teacher


class Planted:
    """A pickle that touches a file where its reader runs it."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mknod, (str(self.place),)


class Program(nn.Module):
    """A TorchScript module that says so when it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self):  # type: ignore[no-untyped-def]
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        print("the program ran")
        self.weight = state[0]
        self.training = state[1]


def _zip(path: Path, names: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in names.items():
            archive.writestr(name, content)


def _weights() -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(1000)}, file)
    return file.getvalue()


def _repacked(path: Path, more: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(io.BytesIO(_weights())) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(content)).partition("/")[0]
    _zip(path, content | {f"{root}/{name}": one for name, one in more.items()}, method)


def _tar(path: Path) -> None:
    inner = path.with_name("inner")
    inner.write_bytes(_weights())
    with tarfile.open(path, "w") as archive:
        archive.add(inner)


OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "code": (lambda p: _repacked(p, {"code/x.py": b""}), "TorchScript archive"),
    "constants": (lambda p: _repacked(p, {"constants.pkl": b""}), "TorchScript archive"),
    "compressed": (lambda p: _repacked(p, {}, zipfile.ZIP_DEFLATED), "compressed"),
    "zip": (lambda p: _zip(p, {"a/model.onnx": b"x"}), "none that torch.save wrote"),
    "damaged": (lambda p: p.write_bytes(_weights()[:-100]), "no zip archive of weights"),
    "tar": (_tar, "tar archive"),
    "gzip": (lambda p: p.write_bytes(gzip.compress(_weights())), "gzip"),
    "lfs": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "html": (lambda p: p.write_text("\n <!doctype html><title>404</title>"), "web page"),
    "onnx": (lambda p: p.write_bytes(b"\x08\x07\x12\x07pytorch"), "ONNX"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "pickle that torch.save did not"),
    "empty": (lambda p: p.touch(), "is empty"),
    "module": (lambda p: torch.save(nn.Linear(2, 2), p), "whole pickled object"),
    "header": (lambda p: p.write_bytes((10**9).to_bytes(8, "little") + b"{}"), "no known kind"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(("write", "what"), OTHERS.values(), ids=OTHERS)
def test_other_kinds_are_refused_by_their_name(
    write: Callable[[Path], object],
    what: str,
    suffix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def runs_programs(*_: object, **__: object) -> None:
        raise AssertionError("the file was given to the loader that runs programs")

    monkeypatch.setattr(torch.jit, "load", runs_programs)
    path = tmp_path / f"theirs{suffix}"
    write(path)
    with pytest.raises(ValueError, match=what) as error:
        read_checkpoint(path)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_program_is_not_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "program.pt"
    torch.jit.save(torch.jit.script(Program()), path)
    torch.jit.load(path)
    assert "the program ran" in capfd.readouterr().out  # the canary sings
    with pytest.raises(ValueError, match="TorchScript"):
        read_checkpoint(path)
    assert "the program ran" not in capfd.readouterr().out


@pytest.mark.parametrize("zipped", [True, False])
def test_what_a_pickle_asks_for_is_not_done(zipped: bool, tmp_path: Path) -> None:
    canary, path = tmp_path / "was_run", tmp_path / "theirs.pth"
    content = {"weight": torch.ones(2), "args": Planted(canary)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_checkpoint(path)["weight"], torch.ones(2))
    assert not canary.exists()


def test_a_name_does_not_decide(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    saved = tmp_path / "weights.safetensors"
    save_file({"weight": torch.ones(2)}, saved)
    shutil.move(saved, tmp_path / "weights.pth")
    torch.save({"weight": torch.ones(3)}, saved)
    assert read_checkpoint(tmp_path / "weights.pth")["weight"].shape == (2,)
    assert read_checkpoint(saved)["weight"].shape == (3,)


def test_a_mapping_that_holds_itself_ends(refused: Callable[..., str], tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "round.pth")
    said = refused("import", "preset=ff_tiny", f"checkpoint={tmp_path / 'round.pth'}")
    assert "holds no weights" in said


def test_a_folder_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "is a folder" in refused("import", "preset=ff_tiny", f"checkpoint={tmp_path}")


def test_one_number_does_not_stand_for_many(refused: Callable[..., str], tmp_path: Path) -> None:
    import json

    golden = Path(__file__).parents[1] / "golden" / "state_dicts" / "linear_tiny.json"
    shapes = json.loads(golden.read_text())["state_dict"]
    torch.save({n: torch.zeros(()).expand(s) for n, s in shapes.items()}, tmp_path / "thin.pth")
    said = refused("import", "preset=ff_tiny", f"checkpoint={tmp_path / 'thin.pth'}")
    assert "declares more numbers than the file holds" in said


def test_a_teachers_file_is_no_program_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, canary = tmp_path / "teacher.pth", tmp_path / "was_run"
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: canary.touch())
    for write in (
        lambda: _repacked(path, {"constants.pkl": b"", "code/x.py": b""}),
        lambda: torch.save({"weight": torch.zeros(1), "args": Planted(canary)}, path),
    ):
        write()
        teacher = Distillation("soft", "resnet18", str(path), alpha=0.5, tau=1.0)
        with warnings.catch_warnings(), pytest.raises(ValueError, match="cannot load") as error:
            warnings.simplefilter("ignore")
            create_teacher(teacher, 2)
        assert len(str(error.value).splitlines()) == 1
    assert not canary.exists()
