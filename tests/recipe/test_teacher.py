"""The teacher of distillation: any timm model, from a file that cannot run anything."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from mixerbench.config.schema import Distillation, protocol_fingerprint
from mixerbench.data.source import open_images
from mixerbench.objectives.classification.teacher import create_teacher
from mixerbench.training.folder import complete

NAME, CLASSES = "test_resnet", 7


@pytest.fixture
def settings(protocol):
    def get(checkpoint: Path | None = None, **fields: object) -> Distillation:
        plain = protocol().recipe.distillation
        path = None if checkpoint is None else str(checkpoint)
        fields = {"kind": "hard", "teacher": NAME} | fields
        return replace(plain, teacher_checkpoint=path, **fields)

    return get


@pytest.fixture
def original() -> nn.Module:
    model = timm.create_model(NAME, num_classes=CLASSES)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor))
    return model.eval()


def write(path: Path, model: nn.Module, key: str | None = None) -> Path:
    weights = dict(model.state_dict())
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights if key is None else {key: weights}, path)
    return path


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("teacher.safetensors", None),
        ("teacher.pth", None),
        ("teacher.pth", "model"),  # as DeiT saves
        ("teacher.pth", "state_dict"),  # as timm saves
    ],
)
def test_checkpoint_of_a_timm_model_loads(file, key, original, settings, tmp_path):
    teacher = create_teacher(settings(write(tmp_path / file, original, key)), CLASSES)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(teacher(images), original(images))


def test_teacher_is_frozen_and_keeps_its_statistics(original, settings, tmp_path):
    teacher = create_teacher(settings(write(tmp_path / "teacher.pth", original)), CLASSES)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    teacher(torch.randn(4, 3, 64, 64))
    assert all(torch.equal(before[key], now) for key, now in teacher.state_dict().items())


def test_recipe_without_distillation_has_no_teacher(settings):
    assert create_teacher(settings(kind="none", teacher="nonsense"), CLASSES) is None


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_checkpoint_that_would_run_code_is_refused_and_runs_nothing(writer, settings, tmp_path):
    harm, path = tmp_path / "harm", tmp_path / "teacher.pth"
    if writer == "torch":
        torch.save({"model": Malicious(harm)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Malicious(harm)}, protocol=2))
    with pytest.raises(ValueError, match=r"cannot load .*teacher\.pth") as caught:
        create_teacher(settings(path), CLASSES)
    assert "\n" not in str(caught.value)
    assert not harm.exists()
    # The file is as bad as it says:
    if writer == "torch":
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert harm.exists()


def test_unknown_teacher_is_named(settings):
    with pytest.raises(ValueError, match=r"'regnety_16' .* timm\.list_models") as caught:
        create_teacher(settings(teacher="regnety_16"), CLASSES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["teacher.safetensors", "teacher.pth"])
def test_teacher_of_other_classes_is_refused(file, original, settings, tmp_path):
    path = write(tmp_path / file, original)
    with pytest.raises(ValueError, match=r"'test_resnet': cannot load .* for 5 classes") as caught:
        create_teacher(settings(path), 5)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("fc.bias"), "fc.bias"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "extra"),
        (lambda weights: weights["fc.bias"].fill_(float("nan")), "7 of 7 values"),
        (lambda weights: weights.update({"fc.bias": torch.ones(7, dtype=torch.int32)}), "int32"),
    ],
    ids=["missing", "unexpected", "no numbers", "integers"],
)
def test_weights_that_are_not_the_teachers_are_refused_with_what_is_wrong(
    change, message, original, settings, tmp_path
):
    weights = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    change(weights)
    save_file(weights, tmp_path / "teacher.safetensors")
    with pytest.raises(ValueError, match=message) as caught:
        create_teacher(settings(tmp_path / "teacher.safetensors"), CLASSES)
    assert "\n" not in str(caught.value)


# --- published weights ------------------------------------------------------------------------
# timm's own way to them, from a file instead of from the network.


@pytest.fixture
def published(original, tmp_path, monkeypatch):
    """A timm model with pretrained weights for 7 classes: its file."""
    from timm.models import _registry, build_model_with_cfg, generate_default_cfgs, register_model
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet

    path = write(tmp_path / "published.safetensors", original)
    monkeypatch.setattr(_registry, "_model_entrypoints", dict(_registry._model_entrypoints))
    cfg = {"file": str(path), "num_classes": CLASSES, "classifier": "fc", "first_conv": "conv1.0"}
    monkeypatch.setitem(
        globals(), "default_cfgs", generate_default_cfgs({"published_resnet.test": cfg})
    )

    @register_model
    def published_resnet(pretrained=False, **options):
        blocks = [BasicBlock, BasicBlock, Bottleneck, BasicBlock]
        shape = {"layers": (1, 1, 1, 1), "channels": (32, 48, 48, 96), "avg_down": True}
        stem = {"stem_width": 16, "stem_type": "deep"}
        return build_model_with_cfg(
            ResNet, "published_resnet", pretrained, block=blocks, **shape, **stem, **options
        )

    return path


def test_published_weights_are_part_of_the_protocol(published, original, settings, protocol):
    teacher = create_teacher(settings(teacher="published_resnet"), CLASSES)
    assert torch.equal(teacher.state_dict()["fc.weight"], original.state_dict()["fc.weight"])

    def completed():
        data = {"data__num_classes": CLASSES, "data__train_images": 8, "data__val_images": 8}
        given = protocol("synthetic", recipe__batch__size=8, **data)
        given.recipe.distillation = settings(teacher="published_resnet")
        complete(given, open_images(given))
        return given

    before = completed()
    assert len(before.recipe.distillation.teacher_digest) == 16
    assert protocol_fingerprint(completed()) == protocol_fingerprint(before)
    with torch.no_grad():
        original.fc.bias[3] += 1e-3  # the cache, or the hub, has another version
    write(published, original)
    assert protocol_fingerprint(completed()) != protocol_fingerprint(before)


@pytest.mark.parametrize("classes", [5, 1000])
def test_published_weights_of_other_classes_are_refused(classes, published, settings):
    """timm puts a random classifier on them and does not say so."""
    with pytest.raises(ValueError, match=f"tell 7 classes apart and the data has {classes}"):
        create_teacher(settings(teacher="published_resnet"), classes)


@pytest.mark.parametrize(
    ("file", "content"),
    [("missing.pth", None), ("empty.pth", b""), ("broken.safetensors", b"x" * 64)],
)
def test_file_without_weights_is_a_one_line_error(file, content, settings, tmp_path):
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"{NAME}.*{file}"):
        create_teacher(settings(tmp_path / file), CLASSES)


def test_checkpoint_of_a_deit_run_gives_its_weights_and_not_their_average(
    original, settings, tmp_path
):
    average = {key: torch.zeros_like(value) for key, value in original.state_dict().items()}
    path = tmp_path / "teacher.pth"
    torch.save({"model": original.state_dict(), "model_ema": average}, path)
    teacher = create_teacher(settings(path), CLASSES)
    assert torch.equal(teacher.state_dict()["fc.weight"], original.state_dict()["fc.weight"])
