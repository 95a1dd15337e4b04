"""Plans whose mixers take turns: Swin's pairs, local and global in turn, three as in MaxViT."""

from collections.abc import Iterator
from typing import Any

import pytest
from micro_backbones import assert_trains, blocks_of, build_micro, random_images
from torch import nn

from mixerbench.config.compose import compose
from mixerbench.models.build import build_model
from mixerbench.models.part_kinds import BACKBONES
from mixers.core.plan import Cycle, MixerChoice, assign, plan_name, read_plan

PAIR = [{"name": "local_attention", "window": 3}, {"name": "local_attention", "window": 4}]
LOCAL_GLOBAL = ["local_attention", "attention"]
MAX_VIT = ["convolution", "local_attention", "attention"]
STAGES = {"dims": [8] * 4, "depths": [2, 2, 4, 2], "num_heads": [2] * 4}
SIZES: dict[str, Any] = {"vit": "micro", "pyramid": STAGES, "resnet": STAGES}


def _names(model: nn.Module) -> list[str]:
    return [
        block.mixer.built_as.name + str(block.mixer.built_as.options.get("window", ""))
        for block in blocks_of(model)
    ]


@pytest.mark.parametrize("backbone", SIZES)
@pytest.mark.parametrize(
    ("cycle", "names"),
    [
        (PAIR, ["local_attention3", "local_attention4"]),
        (LOCAL_GLOBAL, LOCAL_GLOBAL),
        (MAX_VIT, MAX_VIT),
    ],
    ids=["swin", "local and global", "maxvit"],
)
def test_a_cycle_is_over_all_blocks(cycle: list[Any], names: list[str], backbone: str) -> None:
    model = build_micro({"cycle": cycle}, backbone, size=SIZES[backbone])
    found = _names(model)
    assert found == [names[i % len(names)] for i in range(len(found))]
    assert_trains(model, random_images())


@pytest.mark.parametrize("backbone", ["pyramid", "resnet"])
def test_a_stage_may_hold_a_cycle(backbone: str) -> None:
    plan = ["none", "identity", {"cycle": LOCAL_GLOBAL}, "attention"]
    model = build_micro(plan, backbone, size=STAGES)
    built = [block.mixer and block.mixer.built_as.name for block in blocks_of(model)]
    assert built == [None] * 2 + ["identity"] * 2 + LOCAL_GLOBAL * 2 + ["attention"] * 2


def test_a_cycle_begins_anew_in_its_share_of_an_isotropic_model() -> None:
    plan = read_plan(["a", {"cycle": ["b", "c"]}])
    names = [choice.name for choice in assign(plan, [10])[0]]
    assert names == ["a"] * 5 + ["b", "c", "b", "c", "b"]


def test_a_plan_that_is_one_cycle_goes_on_from_stage_to_stage() -> None:
    plan = read_plan({"cycle": ["a", "b"]})
    names = [[choice.name for choice in stage] for stage in assign(plan, [3, 2, 1])]
    assert names == [["a", "b", "a"], ["b", "a"], ["b"]]


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ({"cycle": ["a", "b"]}, "a+b"),
        (["none", {"cycle": ["a", "b"]}, {"cycle": ["a", "b"]}, "b"], "none-a+b-b"),
        ({"name": "plan", "plan": [{"cycle": ["a", {"name": "a", "shift": True}]}]}, "a+a"),
    ],
    ids=str,
)
def test_a_cycle_has_a_short_name(spec: Any, name: str) -> None:
    assert plan_name(spec) == name


def test_a_cycle_is_read_with_its_options() -> None:
    (cycle,) = read_plan({"cycle": ["a", {"name": "a", "shift": True}]})
    assert cycle == Cycle((MixerChoice("a"), MixerChoice("a", {"shift": True})))


LINES = {
    "mixer={cycle:[local_attention,{name:local_attention,window:3}]}": "local_attention"
    "+local_attention",
    "mixer=plan mixer.plan=[{cycle:[convolution,attention]}]": "convolution+attention",
    "mixer=[identity,{cycle:[convolution,attention]}]": "identity-convolution+attention",
}


@pytest.mark.parametrize("backbone", ["vit", "pyramid", "resnet"])
@pytest.mark.parametrize("line", LINES)
def test_a_command_line_says_it(line: str, backbone: str) -> None:
    numbers = "depth=4" if backbone == "vit" else "depths=[2,2,2,2]"
    arguments = [*line.split(), f"backbone={backbone}", "size=micro", f"size.{numbers}"]
    settings = compose(arguments)
    assert settings.label.startswith(f"{LINES[line]}_micro")
    assert settings.model["mixer"]["name"] == "plan"
    assert compose(settings.overrides).model == settings.model
    model = build_model(settings, 10)
    choices = assign(read_plan(settings.model["mixer"]), [len(list(blocks_of(model)))])
    assert choices


def test_a_cycle_changes_the_model_and_a_preset_takes_one() -> None:
    plain, turned = (
        compose(["mixer=plan", f"mixer.plan=[{{cycle:[{names}]}}]"]).model["mixer"]
        for names in ("attention,identity", "identity,attention")
    )
    assert plain != turned
    size = "protocol.image_size=32"  # which the preset's pyramid can halve
    settings = compose(["preset=lit_s", size, "mixer={cycle:[convolution,attention]}"])
    assert settings.model["mixer"]["plan"] == [{"cycle": ["convolution", "attention"]}]


WRONG: list[tuple[Any, str]] = [
    ({"cycle": ["attention"]}, "a cycle is a list of two mixers or more"),
    ({"cycle": "attention"}, "a cycle is a list of two mixers or more, not 'attention'"),
    ({"cycle": [{"cycle": ["none", "identity"]}, "none"]}, "a cycle holds single mixers"),
    ({"cycle": ["lit", "none"]}, "a cycle holds single mixers, no plan, schedule or cycle: 'lit'"),
    ({"cycle": ["none", "identity"], "shift": 1}, "a cycle has no option 'shift'"),
    ({"cycle": ["none", "identty"]}, "unknown mixer 'identty'. Did you mean 'identity'"),
    ({"cycle": ["none"] * 5}, "a cycle of 5 mixers does not fit 4 blocks"),
    (["none", {"cycle": ["none", "identity", "attention"]}], "of 3 mixers does not fit 2 blocks"),
]


@pytest.mark.parametrize(("plan", "message"), WRONG, ids=str)
def test_what_is_no_cycle_is_refused_in_one_line(plan: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build_micro(plan)
    assert "\n" not in str(error.value)


BACKBONE = '''
from typing import ClassVar
from mixerbench.models.part_kinds import register_backbone
from mixerbench.models.resnet import ResNet

@register_backbone("throw_away")
class ThrowAway(ResNet):
    """A residual network of two groups."""

    sizes: ClassVar = {"two": ((8, 16), (1, 2), (2, 2))}
'''


@pytest.fixture
def clean_parts() -> Iterator[None]:
    known = BACKBONES.loaded()
    yield
    BACKBONES.forget(BACKBONES.loaded() - known)


def test_a_backbone_is_one_file(tmp_path: Any, clean_parts: None) -> None:
    path = tmp_path / "throw_away.py"
    path.write_text(BACKBONE)
    arguments = [f"plugins=[{path}]", "backbone=throw_away", "size=two", "mixer=identity"]
    settings = compose(arguments)
    assert settings.label == "identity_two_throw_away"
    assert settings.model["size"] == {
        "name": "two", "dims": [8, 16], "depths": [1, 2], "num_heads": [2, 2],
    }  # fmt: skip
    model = build_model(settings, 7)
    assert [block.mixer.dim for block in blocks_of(model)] == [8, 16, 16]
    with pytest.raises(ValueError, match="unknown size 'micro' of backbone throw_away"):
        compose([*arguments, "size=micro"])
