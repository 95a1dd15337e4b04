"""Presets: the papers' models, their numbers of parameters, and what may be changed."""

import copy
import functools
import math

import pytest
import timm
import torch
from micro_backbones import SIZES
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from mixerbench.config.presets import PARTS, PRESETS, find_preset, with_changes
from mixerbench.models import create_model

pytestmark = pytest.mark.slow  # models of the papers' size

# Counted in the authors' own code (tests/golden/state_dicts), or in this project's first
# build of the models that no code was published for.
PARAMETERS = {
    "ff_tiny": 7_676_332,
    "ff_base": 61_943_020,
    "ff_large": 206_363_576,
    "attention_only_tiny": 4_039_360,
    "lit_ti": 19_886_272,
    "lit_s": 27_973_720,
    "lit_m": 49_372_264,
    "lit_b": 87_292_384,
    "sasa_r38": 14_190_632,
    "sasa_r50_conv34": 25_095_016,
}
DEIT = {
    "deit_tiny": "deit_tiny_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "deit_base": "deit_base_patch16_224",
    "deit_tiny_distilled": "deit_tiny_distilled_patch16_224",
    "deit_small_distilled": "deit_small_distilled_patch16_224",
    "deit_base_distilled": "deit_base_distilled_patch16_224",
}
RESNET = {"resnet26": (1, 2, 4, 1), "resnet38": (2, 3, 5, 2), "resnet50": (3, 4, 6, 3)}
# The table of SASA says a tenth of a million less; its ResNet-26 and ResNet-50 agree.
NOT_AS_PUBLISHED = {"sasa_r38": "14.2", "sasa_r38_full": "14.2", "sasa_r50_conv34": "25.1"}

every_preset = pytest.mark.parametrize("name", PRESETS)


@functools.cache
def _full_size(name: str) -> nn.Module:
    """The model of the paper, without memory."""
    with torch.device("meta"):
        return create_model(preset=name)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _micro(name: str, **parts) -> nn.Module:
    """A preset small enough to run: 64 pixels, or 2 x 2 patches of 32."""
    return create_model(
        preset=name, **{"size": "micro", "image_size": 64, "num_classes": 7} | parts
    )


# --- parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_preset_has_exactly_as_many_parameters_as_the_original(name):
    assert _count(_full_size(name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", DEIT)
def test_deit_has_as_many_parameters_as_timms(name):
    with torch.device("meta"):
        theirs = timm.create_model(DEIT[name])
    assert _count(_full_size(name)) == _count(theirs)


@pytest.mark.parametrize("name", RESNET)
def test_resnet_has_the_parameters_of_torchvisions(name):
    with torch.device("meta"):
        theirs = ResNet(Bottleneck, list(RESNET[name]))
    ours = _full_size(name)
    assert sorted(p.shape for p in ours.parameters()) == sorted(
        p.shape for p in theirs.parameters()
    )
    assert sorted(b.shape for b in ours.buffers()) == sorted(b.shape for b in theirs.buffers())


@every_preset
def test_a_preset_has_the_published_millions_of_parameters(name):
    preset, model = PRESETS[name], _full_size(name)
    millions = _count(model) / 1e6
    digits = len(preset.parameters.partition(".")[2])
    if not preset.with_classifier:  # LIT, rounded down
        millions = (_count(model) - _count(model.head)) / 1e6
        assert str(math.floor(millions)) == preset.parameters
        return
    rounded = f"{millions:.{digits}f}"
    assert rounded == NOT_AS_PUBLISHED.get(name, preset.parameters)
    assert (rounded == preset.parameters) == (name not in NOT_AS_PUBLISHED)


def test_only_lits_parameters_are_published_without_the_classifier():
    without = {name for name, preset in PRESETS.items() if not preset.with_classifier}
    assert without == {"lit_ti", "lit_s", "lit_m", "lit_b"}


@every_preset
def test_a_presets_weights_can_tell_its_norms_tokens_and_tables_from_the_rest(name):
    model = _full_size(name)
    named = dict(model.named_parameters())
    undecayed = model.no_weight_decay() & named.keys()
    stem = {"stem.row", "stem.column", "stem.mixture"}
    for parameter in undecayed:
        kind = parameter.rpartition(".")[2]
        assert parameter in stem or kind in {
            "cls_token",
            "dist_token",
            "table",
            "rel_pos_table",
            "rel_row",
            "rel_column",
        }
    tables = {n for n in named if n.endswith(("table", "_token", "rel_row", "rel_column"))}
    assert undecayed == tables | (stem & named.keys())


# --- what is in a preset ------------------------------------------------------------------------


@every_preset
def test_a_preset_says_all_parts_its_paper_and_what_was_published(name):
    preset = find_preset(name)
    assert preset is PRESETS[name]
    assert set(preset.model) == set(PARTS)
    assert "arXiv:" in preset.paper
    assert float(preset.parameters) > 0
    assert preset.flops == "" or float(preset.flops) > 0
    assert preset.top1 == "" or 50 < float(preset.top1.split()[0]) < 90
    assert preset.code in ("", "deit", "feed_forward", "lit_ti", "lit", "resnet")
    assert preset.model["size"] in SIZES[preset.model["backbone"]["name"]]
    assert preset.model["stem"].get("patch_size", 16) in (4, 16, 32)


def test_lits_epsilons_are_those_of_its_two_codes():
    def epsilons(name: str) -> dict[str, float]:
        norms = _full_size(name).named_modules()
        return {n: m.eps for n, m in norms if isinstance(m, nn.LayerNorm | nn.BatchNorm2d)}

    for name, eps in (("lit_ti", 1e-6), ("lit_s", 1e-5), ("lit_m", 1e-5), ("lit_b", 1e-5)):
        for norm, value in epsilons(name).items():
            assert value == (1e-5 if norm == "stem.norm" or "merging" in norm else eps), norm


@pytest.mark.parametrize("name", ["sasa_r50", "sasa_r50_conv12", "sasa_r50_conv34", "resnet50"])
def test_sasas_plans_are_by_group(name):
    groups = name.partition("conv")[2] if name.startswith("sasa") else "1234"
    for number, blocks in enumerate(_full_size(name).stages, start=1):
        expected = "Convolution" if str(number) in groups else "LocalAttention"
        assert {type(block.mixer).__name__ for block in blocks} == {expected}


@pytest.mark.parametrize("name", ["lit_ti", "lit_s"])
def test_lit_attends_in_its_last_two_stages_only(name):
    for number, stage in enumerate(_full_size(name).stages, start=1):
        kinds = {type(block.mixer).__name__ for block in stage.blocks}
        assert kinds == {"NoneType" if number < 3 else "Attention"}
        tables = [n for n, _ in stage.named_parameters() if "rel_pos_table" in n]
        assert bool(tables) == (number >= 3 and name != "lit_ti")
        assert (stage.pos_embed is not None) == (name == "lit_ti")


def test_the_class_token_of_lit_ti_has_a_position_in_the_last_stage_only():
    stages = _full_size("lit_ti").stages
    assert [stage.pos_embed.table.shape[1] for stage in stages] == [3136, 784, 196, 50]


# --- with_changes -------------------------------------------------------------------------------


@every_preset
def test_none_changes_nothing(name):
    assert with_changes(name, {}) == PRESETS[name].model
    assert with_changes(name, dict.fromkeys(PARTS)) == PRESETS[name].model


def test_a_part_of_the_same_name_keeps_the_presets_options():
    stem = {"name": "conv", "patch_size": 4, "kernel_size": 7, "max_pool": True, "project": False}
    assert PRESETS["sasa_r50"].model["stem"] == stem
    assert with_changes("sasa_r50", {"stem": "conv"})["stem"] == stem
    changed = with_changes("sasa_r50", {"stem": {"name": "conv", "kernel_size": 3}})["stem"]
    assert changed == stem | {"kernel_size": 3}
    mixer = with_changes("ff_tiny", {"mixer": {"name": "patch_ff", "hidden_dim": 9}})["mixer"]
    assert mixer == {"name": "patch_ff", "norm": "tokens", "hidden_dim": 9}
    assert with_changes("lit_ti", {"backbone": "pyramid"})["backbone"]["pos_embed"] is True


def test_a_part_of_another_name_brings_its_own_options():
    assert with_changes("ff_tiny", {"mixer": "attention"})["mixer"] == "attention"
    mixer = {"name": "attention", "qkv_bias": False}
    assert with_changes("ff_tiny", {"mixer": mixer})["mixer"] == mixer
    assert with_changes("ff_tiny", {"mixer": ["attention", "none"]})["mixer"] == [
        "attention",
        "none",
    ]
    assert with_changes("ff_tiny", {"size": "micro"})["size"] == "micro"


@pytest.mark.parametrize("stem", ["patch", {"name": "patch"}, {"name": "patch", "norm": True}])
def test_another_stem_keeps_the_size_of_the_patches(stem):
    changed = with_changes("sasa_r50", {"stem": stem})["stem"]
    assert changed["patch_size"] == 4
    assert "kernel_size" not in changed
    assert changed["name"] == "patch"
    assert changed.get("norm", False) is (isinstance(stem, dict) and "norm" in stem)


def test_another_stem_may_say_the_size_of_its_patches_itself():
    stem = {"name": "patch", "patch_size": 8}
    assert with_changes("sasa_r50", {"stem": stem})["stem"] == stem
    assert with_changes("deit_tiny", {"stem": stem})["stem"]["patch_size"] == 8


def test_what_the_caller_gave_stays_as_it_was():
    given = {"stem": {"name": "conv"}, "mixer": {"name": "local_attention", "window": 3}}
    before = copy.deepcopy(given)
    with_changes("sasa_r50", given)
    assert given == before


@pytest.mark.parametrize(
    ("name", "nearest"), [("deit_tin", "deit_tiny"), ("sasa_r51", "sasa_r50"), ("lits", "lit_s")]
)
def test_an_unknown_preset_is_refused_in_one_line_with_the_nearest(name, nearest):
    for use in (find_preset, lambda unknown: create_model(preset=unknown)):
        with pytest.raises(ValueError, match=f"unknown preset '{name}'.*'{nearest}'") as error:
            use(name)
        assert "\n" not in str(error.value)


# --- building -----------------------------------------------------------------------------------


@every_preset
def test_building_twice_gives_the_same_and_leaves_the_preset_as_it_was(name):
    before = copy.deepcopy(PRESETS[name])
    torch.manual_seed(4)
    one = _micro(name)
    torch.manual_seed(4)
    other = _micro(name)
    assert PRESETS[name] == before
    state = other.state_dict()
    assert one.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in one.state_dict().items())


def test_a_changed_result_changes_no_preset():
    before = copy.deepcopy(PRESETS["lit_ti"].model)
    parts = with_changes("lit_ti", {})
    try:
        parts["stem"]["patch_size"] = 8
        parts["backbone"]["mlp_ratios"].append(1.0)
        assert PRESETS["lit_ti"].model == before
    finally:
        PRESETS["lit_ti"].model["stem"]["patch_size"] = 4
        PRESETS["lit_ti"].model["backbone"]["mlp_ratios"][:] = before["backbone"]["mlp_ratios"]


@every_preset
def test_a_preset_trains_a_step_in_the_micro_size(name):
    model = _micro(name)
    model.set_distilled_training("distilled" in name)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    logits = model(torch.randn(4, 3, 64, 64))
    for one in logits if isinstance(logits, tuple) else (logits,):
        assert one.shape == (4, 7)
    total = sum(logits) if isinstance(logits, tuple) else logits
    loss = nn.functional.cross_entropy(total, torch.tensor([0, 2, 4, 6]))
    loss.backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), path
    optimizer.step()
    same = [key for key, p in model.named_parameters() if torch.equal(p, before[key])]
    biases = {key for key in same if key.endswith("bias")}  # those before a norm move nothing
    assert set(same) == biases
    model.eval()
    assert model(torch.randn(1, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize(
    "name", ["ff_tiny", "deit_tiny", "lit_s", "resnet26", "sasa_r26", "sasa_r26_full"]
)
def test_images_whose_channels_lie_side_by_side_give_the_same(name):
    """As they come beside a GPU: the layout runs on into the model, and alters no number."""
    model = create_model(preset=name, size="micro", image_size=64, num_classes=3).double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        one = copy.deepcopy(model)
        logits = one(images.contiguous(memory_format=layout))
        logits.square().sum().backward()
        found.append([logits, *(p.grad for p in one.parameters() if p.grad is not None)])
    for planes, side_by_side in zip(*found, strict=True):
        torch.testing.assert_close(side_by_side, planes, rtol=1e-8, atol=1e-10)


REPLACED = [
    ("deit_tiny", {"mixer": "patch_ff"}, "blocks.0.mixer.fc1.weight"),
    ("ff_tiny", {"mixer": "attention"}, "blocks.0.mixer.qkv.weight"),
    ("ff_tiny", {"stem": "conv"}, "stem.layers.0.weight"),
    ("lit_s", {"mixer": "patch_ff"}, "stages.0.blocks.0.mixer.fc1.weight"),
    ("lit_s", {"stem": "attention"}, "stem.mixture"),
    ("lit_s", {"merging": "patch"}, "stages.1.merging.reduction.weight"),
    ("sasa_r26", {"mixer": "convolution"}, "stages.0.0.mixer.conv.weight"),
    ("sasa_r26", {"stem": "attention"}, "stem.mixture"),
    ("resnet26", {"mixer": ["convolution", "attention"]}, "stages.3.0.mixer.qkv.weight"),
    ("resnet26", {"backbone": "pyramid"}, "stages.1.merging.offset.weight"),
    ("deit_tiny", {"backbone": "resnet"}, "stages.0.0.mixer.qkv.weight"),
    ("lit_s", {"backbone": "vit"}, "pos_embed.table"),
    ("deit_tiny", {"pool": "avg", "channel_mixer": "none"}, None),
]


@pytest.mark.parametrize(("name", "parts", "entry"), REPLACED, ids=str)
def test_what_is_given_beside_a_preset_replaces_its_part(name, parts, entry):
    model, untouched = _micro(name, **parts), _micro(name)
    if entry is None:
        assert model.state_dict().keys() < untouched.state_dict().keys()
    else:
        assert entry in model.state_dict()
        assert entry not in untouched.state_dict()
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)


def test_a_presets_options_reach_the_parts():
    model = _full_size("ff_large")
    assert model.pos_embed.table.shape == (1, 1 + 196, 1024)
    assert model.pos_embed.resize == "bilinear"
    assert model.grid == (7, 7, 1)
    assert all(block.channels_first for block in model.blocks)
    assert all(block.mixer.norm.normalized_shape == (50,) for block in model.blocks)
    attention = _full_size("sasa_r50").stages[0][0].mixer
    assert (attention.window, attention.border) == (7, "zero")
    assert isinstance(attention.proj, nn.Identity)
    assert attention.qkv.bias is None
    assert _full_size("sasa_r50_full").stem.num_heads == 4
    assert _full_size("sasa_r50_full").stem.mixtures == 4


@pytest.mark.parametrize("size", ["micro", "r38"])
def test_the_size_of_a_preset_may_be_another_of_the_same_backbone(size):
    with torch.device("meta"):
        model = create_model(preset="sasa_r50", size=size)
    assert tuple(len(blocks) for blocks in model.stages) == SIZES["resnet"][size].depths


def test_the_size_of_a_preset_does_not_fit_another_backbone():
    with pytest.raises(ValueError, match="unknown size 'r50' of backbone vit") as error:
        create_model(preset="sasa_r50", backbone="vit")
    assert "\n" not in str(error.value)


def test_a_preset_is_built_for_its_papers_resolution_unless_told_otherwise():
    assert _full_size("deit_tiny").grid == (14, 14, 1)
    with torch.device("meta"):
        model = create_model(preset="deit_tiny", image_size=(224, 320), num_classes=10, in_chans=1)
    assert model.grid == (14, 20, 1)
    assert model.head.out_features == 10
    assert model.stem.proj.in_channels == 1


def test_shapes_do_not_depend_on_the_order_of_building():
    first = _shapes(_micro("lit_ti"))
    for name in ("ff_tiny", "sasa_r50_full", "lit_b"):
        _micro(name)
    assert _shapes(_micro("lit_ti")) == first


def test_the_size_of_patches_is_the_presets_own_or_the_given_one():
    def patches(name: str, **options) -> int:
        with torch.device("meta"):
            return create_model(preset=name, size="micro", **options).patch_size

    assert patches("deit_tiny") == 16
    assert patches("deit_tiny", patch_size=32) == 32
    assert patches("deit_tiny", backbone="pyramid") == 4
    assert patches("ff_large", stem="conv") == patches("ff_large") == 32
    assert patches("lit_s", stem="conv") == patches("lit_s") == 4
