"""Presets, official checkpoints and the table of published figures, on the command line."""

import argparse
import json
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixerbench.commands._papers import Row, agrees, markdown, row
from mixerbench.config.compose import compose
from mixerbench.config.presets import PRESETS
from mixerbench.errors import Refusal
from mixerbench.models import create_model
from mixerbench.training import checkpoint

Command = Callable[..., Any]

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "state_dicts"


pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("papers")]


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    """The entries of linear_tiny under the names of its authors."""
    reference = json.loads((GOLDEN / "linear_tiny.json").read_text())
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * 0.05
        for name, shape in reference["state_dict"].items()
    }


class _Config(dict[str, Any]):
    """A mapping of a library that may be gone when the file is read, as LIT's files hold one."""


_Config.__module__, _Config.__qualname__ = "yacs_of_long_ago", "CfgNode"


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What training scripts put beside the weights."""
    module = types.ModuleType(_Config.__module__)
    module.CfgNode = _Config  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    config = _Config(lr=0.1)
    config.frozen = True  # type: ignore[attr-defined]
    return {
        "config": config,
        "args": argparse.Namespace(lr=0.1, drop=[0.1]),
        "epoch": 299,
        "max_accuracy": np.float64(74.9),
        "history": np.arange(3.0),
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]},
    }


def _import(command: Callable[..., Any], file: Path, *more: str) -> Path:
    out = file.with_suffix(".safetensors")
    command("import", "preset=ff_tiny", f"checkpoint={file}", f"out={out}", *more)
    return out


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_an_official_file_is_imported_with_all_that_lies_beside_the_weights(
    zipped: bool,
    official: dict[str, torch.Tensor],
    foreign: dict[str, Any],
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "linear-tiny-checkpoint.pth"
    wrapped = {f"module.{name}": tensor for name, tensor in official.items()}
    torch.save({"model": wrapped, **foreign}, file, _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, _Config.__module__)
    tensors, about = checkpoint.load(_import(command, file))
    model = create_model(preset="ff_tiny")
    model.load_state_dict(tensors)
    mlp = model.blocks[3].channel_mixer.fc1  # type: ignore[union-attr, index]
    assert torch.equal(mlp.weight, official["blocks.3.mlp1.fc1.weight"])
    assert torch.equal(model.cls_token, official["cls_token"])  # type: ignore[arg-type]
    settings = about["settings"]
    assert settings["label"] == "ff_tiny"
    assert settings["protocol"]["name"] == "imagenet_deit"


def test_a_safetensors_file_and_parameters_are_imported_too(
    official: dict[str, torch.Tensor], command: Command, tmp_path: Path
) -> None:
    plain = tmp_path / "plain.safetensors"
    checkpoint.save(plain, official, {})
    out = tmp_path / "out.safetensors"
    command("import", "preset=ff_tiny", f"checkpoint={plain}", f"out={out}")
    pickled = tmp_path / "parameters.pth"
    torch.save({name: torch.nn.Parameter(one) for name, one in official.items()}, pickled)
    again = _import(command, pickled)
    one, other = checkpoint.load(out)[0], checkpoint.load(again)[0]
    assert all(torch.equal(one[name], other[name]) for name in one | other)


def test_the_moving_average_is_imported_when_asked_for(
    official: dict[str, torch.Tensor], command: Command, tmp_path: Path
) -> None:
    file = tmp_path / "both.pth"
    average = {name: tensor + 1 for name, tensor in official.items()}
    torch.save({"model": official, "model_ema": average}, file)
    tensors, _ = checkpoint.load(_import(command, file, "--ema"))
    assert torch.equal(tensors["cls_token"], official["cls_token"] + 1)


class _Executes:
    """A pickle of this runs a function of ours when an ordinary reader loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_run(
    official: dict[str, torch.Tensor], command: Command, tmp_path: Path
) -> None:
    trap = tmp_path / "it ran"
    file = tmp_path / "trap.pth"
    torch.save({"model": official, "extra": _Executes(trap)}, file)
    torch.load(file, weights_only=False)
    assert trap.exists(), "the trap does not work"
    trap.unlink()
    _import(command, file)
    assert not trap.exists()


def _changed(official: dict[str, torch.Tensor], change: str) -> dict[str, torch.Tensor]:
    state = dict(official)
    if change == "missing":
        del state["head.bias"]
    elif change == "unexpected":
        state["blocks.12.mlp1.fc1.bias"] = torch.zeros(3)
    elif change == "misshapen":
        state["blocks.2.mlp2.fc2.bias"] = torch.zeros(196)
    elif change == "no numbers":
        state["head.bias"] = torch.full_like(state["head.bias"], torch.nan)
    else:
        state["head.bias"] = torch.ones_like(state["head.bias"], dtype=torch.int64)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "1 missing: head.bias."),
        ("unexpected", "1 unexpected: blocks.12.mlp1.fc1.bias."),
        ("misshapen", "1 of another shape: blocks.2.mlp2.fc2.bias (196,) for (197,)."),
        ("no numbers", "the entry head.bias holds 1,000 of 1,000 values that are infinite or no"),
        ("integers", "the entry head.bias holds int64 and the model has float32 there"),
    ],
)
def test_an_entry_that_has_no_place_is_named_and_nothing_is_written(
    change: str,
    message: str,
    official: dict[str, torch.Tensor],
    refused: Callable[..., str],
    tmp_path: Path,
) -> None:
    file, out = tmp_path / "official.pth", tmp_path / "out.safetensors"
    torch.save(_changed(official, change), file)
    text = refused("import", "preset=ff_tiny", f"checkpoint={file}", f"out={out}")
    assert message in text
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["preset=ff_tini", "checkpoint={file}"], "Did you mean 'ff_tiny'?"),
        (["preset=ff_tiny", "checkpoint=nowhere.pth"], "there is no checkpoint nowhere.pth"),
        (["preset=ff_tiny"], "import needs checkpoint="),
        (["checkpoint={file}"], "import needs preset="),
        (["preset=ff_tiny", "checkpoint={file}", "out=x.pth"], ".safetensors"),
        (["preset=ff_tiny", "checkpoint={file}", "out={file}.safetensors"], "exists already"),
        (["preset=ff_tiny", "checkpoint={file}", "run.seed=1"], "not 'run.seed=1'"),
        (["preset=ff_tiny", "checkpoint={file}"], "cannot be read as a checkpoint"),
        (["preset=sasa_r50", "checkpoint={file}"], "no published code"),
    ],
)
def test_import_refuses_in_one_line(
    arguments: list[str], message: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    file = tmp_path / "garbage.pth"
    file.write_text("no checkpoint")
    Path(f"{file}.safetensors").touch()
    assert message in refused("import", *(one.format(file=file) for one in arguments))


def test_a_file_without_weights_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "list.pth"
    torch.save([1, 2], file)
    assert "holds a list" in refused("import", "preset=ff_tiny", f"checkpoint={file}")
    torch.save({"epoch": 1}, file)
    assert "holds no weights" in refused("import", "preset=ff_tiny", f"checkpoint={file}")


# --- presets among the settings -------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_composes_to_the_model_that_python_builds(name: str) -> None:
    settings = compose([f"preset={name}", "protocol=imagenet_deit"])
    assert settings.label == name
    parts = settings.model
    with torch.device("meta"):
        ours = create_model(
            parts["mixer"], parts["size"], stem=parts["stem"], backbone=parts["backbone"]
        )
        theirs = create_model(preset=name)
    shapes = [{n: t.shape for n, t in m.state_dict().items()} for m in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert str(ours) == str(theirs)  # also what has no weights: strides, eps, order


CHANGES = [
    ("preset=lit_s mixer=patch_ff protocol.image_size=32", "lit_s_patch_ff"),
    ("preset=lit_s size=micro mixer=local_attention mixer.window=5 protocol.image_size=32",
     "lit_s_micro_local_attention_window=5"),
    ("preset=sasa_r50 stem=attention", "sasa_r50_attention"),
    ("preset=ff_tiny backbone.pool=avg", "ff_tiny_pool=avg"),
    ("preset=lit_ti mixer=plan mixer.plan=[none,{name:attention,qkv_bias:false}] "
     "protocol.image_size=32",
     "lit_ti_plan_plan=none-name-attention-qkv_bias-false"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "label"), CHANGES)
def test_what_stands_beside_a_preset_replaces_its_part(line: str, label: str) -> None:
    settings = compose(line.split())
    assert settings.label == label
    assert settings.overrides == line.split()


def test_a_stem_of_the_same_name_keeps_the_presets_options() -> None:
    stem = compose(["preset=sasa_r50", "stem=conv"]).model["stem"]
    assert stem == compose(["preset=sasa_r50"]).model["stem"]
    attention = compose(["preset=sasa_r50", "stem=attention", "protocol=imagenet_deit"])
    assert attention.model["stem"]["patch_size"] == 4
    full = compose(["preset=sasa_r50_full", "protocol=imagenet_deit"])
    assert attention.model == full.model


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("preset=lit_x", "unknown preset 'lit_x'. Did you mean 'lit_"),
        ("preset=lit_s size=huge", "unknown size 'huge' of backbone pyramid"),
        ("backbone=resnet size=tiny", "unknown size 'tiny' of backbone resnet"),
        ("backbone=pyramid backbone.merging=deform", "Did you mean 'deformable'?"),
        ("backbone.channel_mixer=mpl", "unknown channel_mixer 'mpl'. Did you mean 'mlp'?"),
        ("backbone=resnet backbone.channel_mixer=mlp", "no setting 'channel_mixer'"),
        ("backbone=pyramid mixer=plan mixer.plan=[none,none,none,none,none]", "4 stages"),
        ("backbone=pyramid backbone.pool=token mixer=local_attention", "cannot take a class token"),
        ("backbone.channel_mixer=feature_attention evaluation.image_size=48", "runs only on"),
        ("mixer.rel_pos_bias=true evaluation.image_size=16", "'attention' runs only on the 6 x 6"),
        (
            "preset=lit_s protocol.image_size=32 evaluation.image_size=64",
            "'attention' runs only on the 8 x 8",
        ),
        ("backbone=pyramid evaluation.image_size=12", "cannot halve 3 x 3 tokens for stage 4"),
        ("backbone=pyramid size.dims=[16,0,64,128]", "size.dims=[16, 0, 64, 128]"),
        ("mixer=plan", "at least one mixer"),
    ],
)
def test_wrong_models_are_refused_before_torch(line: str, message: str) -> None:
    with pytest.raises(Refusal, match=re.escape(message)) as error:
        compose(line.split())
    assert "\n" not in str(error.value)


def test_a_class_token_of_a_pyramid_needs_only_the_last_stages_mixer() -> None:
    plan = "mixer.plan=[local_attention,none,convolution,attention]"
    compose(["backbone=pyramid", "backbone.pool=token", "mixer=plan", plan])


# --- the table ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "published", "down", "expected"),
    [
        (7.676, "7.7", False, True),
        (27.97, "27", True, True),
        (27.97, "27", False, False),
        (14.19, "14.1", False, False),
        (14.19, "14.1", True, True),
        (5.95, "6.0", False, True),
        (18.04, "18.0", False, True),
    ],
)
def test_agreement_is_to_the_published_digit(
    value: float, published: str, down: bool, expected: bool
) -> None:
    assert agrees(value, published, down=down) == expected


CHEAP = ("lit_ti", "deit_tiny", "sasa_r26", "sasa_r26_full", "resnet26")


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    return {name: row(name, PRESETS[name]) for name in CHEAP}


def test_multiply_adds_are_exactly_those_of_the_authors_code(
    rows: dict[str, Row],
) -> None:
    deformable = 89_915_392  # which torch's counter, on their code, did not see
    assert round(rows["lit_ti"].gmacs * 1e9) == 3_523_827_712 + deformable


@pytest.mark.parametrize(
    ("preset", "tolerance"),
    [("lit_ti", 0.01), ("sasa_r26", 0.03), ("sasa_r26_full", 0.03), ("resnet26", 0.03)],
)
def test_flops_are_the_published_ones_in_the_papers_convention(
    preset: str, tolerance: float, rows: dict[str, Row]
) -> None:
    assert abs(rows[preset].gflops_difference) < tolerance


def test_sasas_flops_with_position_logits_in_the_stem_are_the_published_ones(
    rows: dict[str, Row],
) -> None:
    assert rows["sasa_r26"].gflops == pytest.approx(4.48, abs=0.005)
    position_logits = 2 * 224 * 224 * 16 * 64 / 1e9  # 2 x pixels x places x width
    assert f"{rows['sasa_r26_full'].gflops + position_logits:.2f}" == "4.70"


def test_the_readme_carries_the_table(rows: dict[str, Row]) -> None:
    text = (ROOT / "docs/papers.md").read_text()
    for line in markdown(list(rows.values())).splitlines()[: 2 + len(CHEAP)]:
        assert line in text
    for preset in PRESETS:
        assert f"\n| {preset} | " in text


def test_the_terminal_shows_every_column(command: Command) -> None:
    out = command("reproduce", "deit_tiny").out
    for words in ("5,717,416", "5.717 =", "1.254", "-3.6% =", "multiply-adds", "72.2"):
        assert words in out


def test_reproduce_refuses_what_it_does_not_know(refused: Callable[..., str]) -> None:
    assert "Did you mean 'lit_s'?" in refused("reproduce", "lit_z")
    assert "--format" in refused("reproduce", "--format", "yaml")


def test_reproduce_prints_json(command: Command) -> None:
    (only,) = json.loads(command("reproduce", "resnet26", "--format", "json").out)
    assert (only["preset"], only["parameters"]) == ("resnet26", 13_696_552)
