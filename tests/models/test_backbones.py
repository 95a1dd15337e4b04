"""Any mixer in any backbone behind any stem: each combination trains or is refused in one line."""

import copy
import inspect
import io
import re
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import timm.optim
import torch
import torchvision.models.resnet as torchvision_resnet
from formulas import assert_same, randomized
from timm.layers import DropPath
from timm.models import group_parameters
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F

from mixerbench.config.sizes import SIZES, StagedSize, ViTSize
from mixerbench.models import create_model
from mixerbench.models.names import RESNET, rename
from mixerbench.models.registry import BACKBONES, CHANNEL_MIXERS, MERGINGS, STEMS
from mixerbench.models.resnet import Bottleneck
from mixers import MIXERS, TokenGrid, TokenMixer, create_mixer, list_mixers
from mixers.plan import SCHEDULES, read_plan, spread

IMAGE = (32, 64)  # pixels: 2 x 4 patches of 16, or 8 x 16 of 4, which halve three times
TURNED = (64, 32)
CLASSES = 7
PLANS = [*list_mixers(), *SCHEDULES]
NAMES = BACKBONES.names()

every_plan = pytest.mark.parametrize("plan", PLANS)
every_backbone = pytest.mark.parametrize("backbone", NAMES)
every_stem = pytest.mark.parametrize("stem", STEMS.names())


def _is_staged(backbone: str) -> bool:
    return isinstance(SIZES[backbone]["micro"], StagedSize)


def _takes(backbone: str, option: str) -> bool:
    parameter = inspect.signature(BACKBONES.get(backbone).__init__).parameters.get(option)
    return parameter is not None and parameter.kind is inspect.Parameter.KEYWORD_ONLY


STAGED = [backbone for backbone in NAMES if _is_staged(backbone)]
staged = pytest.mark.parametrize("backbone", STAGED)


def _pools(backbone: str) -> tuple[str, ...]:
    return ("avg", "token") if _takes(backbone, "pool") else ("avg",)


def _fits(plan: str, backbone: str, pool: str) -> bool:
    """By the facts that mixers declare: the class token needs a mixer that carries to it.

    It lies in every block of an isotropic backbone, in the last stage only of a staged one.
    """
    choices = read_plan(plan)
    if _is_staged(backbone):
        choices = spread(choices, 4, "stages")[-1:]
    facts = [MIXERS.facts(choice.name) for choice in choices]
    mixing = [fact["mixes_prefix"] for fact in facts if fact["adds_sub_layer"]]
    return pool == "avg" or (bool(mixing) and all(mixing))


def _runs_on_any_grid(plan: str) -> bool:
    return all(MIXERS.facts(choice.name)["any_grid"] for choice in read_plan(plan))


COMBINATIONS = [
    (plan, backbone, stem, pool)
    for plan, backbone, stem in product(PLANS, NAMES, STEMS.names())
    for pool in _pools(backbone)
]


def _build(mixer: Any = "attention", backbone: str = "vit", **options: Any) -> nn.Module:
    """The micro size on a small image that is not square."""
    defaults = {"size": "micro", "image_size": IMAGE, "num_classes": CLASSES}
    return create_model(mixer, backbone=backbone, **defaults | options)


def _images(height_width: tuple[int, int] = IMAGE, samples: int = 2, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(samples, channels, *height_width, generator=generator)


def _pool_option(backbone: str, pool: str) -> dict[str, str]:
    return {"pool": pool} if _takes(backbone, "pool") else {}


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The blocks of any backbone, in the order in which they run."""
    if hasattr(model, "blocks"):
        yield from model.blocks
        return
    for stage in model.stages:
        yield from getattr(stage, "blocks", stage)


def _assert_trains(model: nn.Module, images: Tensor) -> None:
    """Logits of the right shape, and a finite gradient for every parameter."""
    logits = model(images)
    assert logits.shape == (len(images), CLASSES)
    F.cross_entropy(logits.float(), torch.arange(len(images)) % CLASSES).backward()
    silent = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all()
    ]
    assert silent == []


def _refusal(build: Callable[[], Any], message: str) -> str:
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)
    return str(error.value)


# --- the matrix ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "backbone", "stem", "pool"), [c for c in COMBINATIONS if _fits(c[0], c[1], c[3])]
)
def test_every_combination_that_fits_trains_on_a_non_square_image(plan, backbone, stem, pool):
    model = _build(plan, backbone, stem=stem, **_pool_option(backbone, pool))
    _assert_trains(model, _images())


@pytest.mark.parametrize(
    ("plan", "backbone", "stem", "pool"), [c for c in COMBINATIONS if not _fits(c[0], c[1], c[3])]
)
def test_every_other_combination_is_refused_in_one_line(plan, backbone, stem, pool):
    message = _refusal(
        lambda: _build(plan, backbone, stem=stem, **_pool_option(backbone, pool)),
        r"cannot take a class token.*pool='avg'",
    )
    assert any(repr(choice.name) in message for choice in read_plan(plan))


def test_some_combinations_fit_and_some_do_not():
    for backbone in NAMES:
        assert all(_fits(plan, backbone, "avg") for plan in PLANS)
        if "token" in _pools(backbone):
            assert 0 < sum(_fits(plan, backbone, "token") for plan in PLANS) < len(PLANS)


def test_the_backbones_are_the_designs():
    assert {"vit", "pyramid", "resnet"} <= set(NAMES)
    assert {"pyramid", "resnet"} <= set(STAGED)
    assert set(SIZES) == set(NAMES)
    for backbone in NAMES:
        assert "arXiv:" in BACKBONES.get(backbone).paper
        assert BACKBONES.get(backbone).stem_divisor == (4 if _is_staged(backbone) else 1)


@pytest.mark.parametrize("plan", ["attention", "lit", "convolution"])
@pytest.mark.parametrize("merging", MERGINGS.names())
def test_every_merging_trains_in_a_pyramid(merging, plan):
    model = _build(plan, "pyramid", merging=merging)
    kinds = {type(stage.merging) for stage in model.stages[1:]}
    assert kinds == {MERGINGS.get(merging)}
    assert model.stages[0].merging is None
    _assert_trains(model, _images())


@pytest.mark.parametrize(
    ("channel_mixer", "backbone", "pool"),
    [
        (channel_mixer, backbone, pool)
        for channel_mixer, backbone in product(CHANNEL_MIXERS.names(), NAMES)
        if _takes(backbone, "channel_mixer")
        for pool in _pools(backbone)
    ],
)
def test_every_channel_mixer_trains_where_there_is_one(channel_mixer, backbone, pool):
    model = _build("attention", backbone, channel_mixer=channel_mixer, pool=pool)
    cls = CHANNEL_MIXERS.get(channel_mixer)
    for block in _blocks(model):
        assert type(block.channel_mixer) is (cls if cls.adds_sub_layer else type(None))
    _assert_trains(model, _images())


@pytest.mark.parametrize("mixer", ["none", "attention"])
def test_a_block_may_have_no_channel_mixer_and_even_no_mixer(mixer):
    _assert_trains(_build(mixer, "vit", channel_mixer="none"), _images())
    _assert_trains(_build(mixer, "pyramid", channel_mixer="none"), _images())


@every_backbone
@every_stem
def test_bfloat16_autocast_trains_and_stays_near_float32(backbone, stem, assert_close):
    model = _build("attention", backbone, stem=stem).eval()
    with torch.no_grad():
        expected = model(_images())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_close(model(_images()), expected, torch.bfloat16)
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(_images())
    logits.float().square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.dtype == torch.float32


# --- plans by stage -----------------------------------------------------------------------------

FOUR = ["convolution", "local_attention", "patch_ff", "attention"]
CLASSES_OF = {name: MIXERS.get(name) for name in FOUR}


def _mixers_by_stage(model: nn.Module) -> list[set[type]]:
    return [
        {type(block.mixer) for block in getattr(stage, "blocks", stage)} for stage in model.stages
    ]


@staged
def test_four_choices_are_one_for_each_stage(backbone):
    model = _build(FOUR, backbone)
    assert _mixers_by_stage(model) == [{CLASSES_OF[name]} for name in FOUR]
    _assert_trains(model, _images())


@staged
def test_two_choices_are_two_stages_each(backbone):
    model = _build(["convolution", {"name": "attention", "qkv_bias": False}], backbone)
    expected = ["convolution", "convolution", "attention", "attention"]
    assert _mixers_by_stage(model) == [{CLASSES_OF[name]} for name in expected]
    assert all(b.mixer.qkv.bias is None for b in list(_blocks(model))[-1:])


@staged
def test_a_choice_is_for_all_blocks_of_its_stage_however_many(backbone):
    size = StagedSize((8, 8, 8, 8), (1, 3, 1, 2), (2, 2, 2, 2))
    model = _build(FOUR, backbone, size=size)
    assert [len(getattr(stage, "blocks", stage)) for stage in model.stages] == [1, 3, 1, 2]
    assert _mixers_by_stage(model) == [{CLASSES_OF[name]} for name in FOUR]


@staged
def test_five_choices_are_refused(backbone):
    _refusal(lambda: _build(["attention"] * 5, backbone), "5 choices does not fit 4 stages")


@staged
def test_a_stage_has_the_width_the_heads_and_the_grid_of_its_size(backbone):
    model = _build("patch_ff", backbone)
    micro = SIZES[backbone]["micro"]
    for i, stage in enumerate(model.stages):
        for block in getattr(stage, "blocks", stage):
            assert block.mixer.dim == micro.dims[i]
            assert block.mixer.num_heads == micro.num_heads[i]
    last = list(_blocks(model))[-1].mixer.grid
    assert last in (TokenGrid(1, 2), TokenGrid(2, 4))  # before or after the halving in a block


# --- the class token of a pyramid ---------------------------------------------------------------


def _grids(model: nn.Module, images: Tensor) -> list[TokenGrid]:
    """The grid that each block is given in a forward pass."""
    seen: list[TokenGrid] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
        for block in _blocks(model)
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    return seen


def test_the_class_token_joins_a_pyramid_at_the_last_stage():
    model = _build("attention", "pyramid", pool="token")
    expected = [(8, 16, 0), (4, 8, 0), (2, 4, 0), (2, 4, 0), (1, 2, 1)]  # two blocks in stage 3
    assert _grids(model, _images()) == expected
    assert model.forward_features(_images()).shape == (2, 3, 128)
    assert _grids(_build("attention", "pyramid"), _images())[-1] == (1, 2, 0)


@pytest.mark.parametrize("early", [n for n in list_mixers() if not MIXERS.facts(n)["mixes_prefix"]])
def test_a_mixer_that_takes_no_class_token_may_come_before_it_joins(early):
    model = _build([early, early, early, "attention"], "pyramid", pool="token")
    _assert_trains(model, _images())
    assert model.cls_token.grad.abs().max() > 0
    _refusal(
        lambda: _build(["attention", "attention", "attention", early], "pyramid", pool="token"),
        f"mixer '{early}' cannot take a class token",
    )


def test_a_pyramids_class_token_reads_the_image():
    model = _build("lit", "pyramid", pool="token").eval()
    one, other = model(_images())
    assert not torch.allclose(one, other)


def test_positions_of_a_pyramid_are_by_stage_and_the_class_token_has_one():
    model = _build("attention", "pyramid", pool="token", pos_embed=True)
    tables = [stage.pos_embed.table.shape for stage in model.stages]
    assert tables == [(1, 128, 16), (1, 32, 32), (1, 8, 64), (1, 3, 128)]
    _assert_trains(model, _images())
    assert all(stage.pos_embed.table.grad.abs().max() > 0 for stage in model.stages)
    assert model(_images(TURNED)).shape == (2, CLASSES)  # resized


def test_a_pyramid_of_one_stage_is_a_vit_with_its_class_token():
    size = StagedSize((16,), (2,), (4,))
    model = _build("attention", "pyramid", size=size, pool="token", mlp_ratios=(2.0,))
    assert _grids(model, _images()) == [(8, 16, 1), (8, 16, 1)]


# --- odd grids ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height_width", "grid", "stage"),
    [
        ((36, 64), "9 x 16", 2),
        ((40, 64), "5 x 8", 3),
        ((32, 48), "2 x 3", 4),
        ((16, 64), "1 x 4", 4),
    ],
)
def test_a_pyramid_refuses_a_grid_that_it_cannot_halve(height_width, grid, stage):
    message = f"cannot halve {grid} tokens for stage {stage}"
    _refusal(lambda: _build("convolution", "pyramid", image_size=height_width), message)
    model = _build("convolution", "pyramid")
    _refusal(lambda: model(_images(height_width)), message)


@every_plan
def test_a_resnet_rounds_odd_grids_up_as_a_strided_convolution_does(plan):
    odd = (36, 52)  # 9 x 13, 5 x 7, 3 x 4, 2 x 2
    model = _build(plan, "resnet", image_size=odd)
    assert _grids(model, _images(odd)) == [(9, 13, 0), (9, 13, 0), (5, 7, 0), (3, 4, 0)]
    assert model.forward_features(_images(odd)).shape == (2, 4, 512)
    _assert_trains(model, _images(odd))


@every_backbone
def test_an_image_that_patches_do_not_tile_is_refused(backbone):
    side = 4 if _is_staged(backbone) else 16
    message = f"not divisible into patches of {side} x {side}"
    _refusal(lambda: _build("none", backbone, image_size=(33, 64)), message)
    model = _build("none", backbone)
    _refusal(lambda: model(_images((32, 66))), message)


# --- the bottleneck -----------------------------------------------------------------------------


class Numbered(TokenMixer):
    """Multiplies each token by its number in the sequence."""

    any_grid = True
    mixes_prefix = False
    paper = "of no paper"

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        assert x.shape[1] == grid.tokens
        return x * torch.arange(grid.tokens, dtype=x.dtype)[:, None]


def _normed(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """(..., C) in evaluation."""
    scale = norm.weight / torch.sqrt(norm.running_var + 1e-5)
    return (x - norm.running_mean) * scale + norm.bias


def _bottleneck(block: Bottleneck, x: Tensor, mixed: bool, stride: int) -> Tensor:
    """One position at a time, the mixer being ``Numbered`` or absent; x is (B, C, H, W)."""
    samples, _, height, width = x.shape
    inner = {}
    for b, i, j in product(range(samples), range(height), range(width)):
        token = _normed(block.conv1.weight[:, :, 0, 0] @ x[b, :, i, j], block.bn1).relu()
        inner[b, i, j] = token * (i * width + j) if mixed else token
    rows, columns = range(0, height, stride), range(0, width, stride)
    result = []
    for b, i, j in product(range(samples), rows, columns):
        inside = product(range(i, min(i + stride, height)), range(j, min(j + stride, width)))
        neighbours = [inner[b, y, z] for y, z in inside]
        token = sum(neighbours) / len(neighbours)
        if mixed:
            token = _normed(token, block.bn2).relu()
        token = _normed(block.conv3.weight[:, :, 0, 0] @ token, block.bn3)
        shortcut = x[b, :, i, j]
        if block.downsample is not None:
            convolution, norm = block.downsample
            shortcut = _normed(convolution.weight[:, :, 0, 0] @ shortcut, norm)
        result.append((shortcut + token).relu())
    return torch.stack(result).reshape(samples, len(rows), len(columns), -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("in_dim", [6, 12], ids=["wider", "as wide"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("mixer", [Numbered, None], ids=["mixer", "none"])
@pytest.mark.parametrize("grid", [(4, 6), (5, 3), (1, 2), (1, 1)], ids=str)
def test_average_pooling_follows_a_mixer_that_does_not_stride(grid, mixer, stride, in_dim):
    """At an odd border it averages what is there, and no zeros."""
    tokens = TokenGrid(*grid)
    inner = Numbered(3, tokens, 1) if mixer else create_mixer("none", 3, tokens)
    block = randomized(Bottleneck(in_dim, inner, stride, 0.0, None).double()).eval()
    assert (block.downsample is None) == (in_dim == 12 and stride == 1)
    assert hasattr(block, "bn2") == (mixer is not None)
    x = torch.randn(2, in_dim, *grid, dtype=torch.float64)
    assert_same(block(x, tokens), _bottleneck(block, x, mixer is not None, stride))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("grid", [(4, 6), (5, 3), (1, 1)], ids=str)
def test_with_convolution_a_bottleneck_is_torchvisions(grid, training, stride):
    tokens = TokenGrid(*grid)
    ours = Bottleneck(6, create_mixer("convolution", 4, tokens), stride, 0.0, None).double()
    downsample = nn.Sequential(nn.Conv2d(6, 16, 1, stride, bias=False), nn.BatchNorm2d(16))
    theirs = torchvision_resnet.Bottleneck(6, 4, stride, downsample).double()
    state = randomized(theirs).state_dict()
    ours.load_state_dict({rename(f"layer1.0.{k}", RESNET)[11:]: v for k, v in state.items()})
    x = torch.randn(3, 6, *grid, dtype=torch.float64)
    assert_same(ours.train(training)(x, tokens), theirs.train(training)(x))
    for one, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_with_convolution_and_its_stem_resnet_is_torchvisions_on_an_odd_image(training):
    theirs = randomized(
        torchvision_resnet.ResNet(torchvision_resnet.Bottleneck, [1, 2, 1, 1], CLASSES).double()
    )
    ours = _build(
        "convolution",
        "resnet",
        size=StagedSize((64, 128, 256, 512), (1, 2, 1, 1), (8, 8, 8, 8)),
        stem={"name": "conv", "kernel_size": 7, "max_pool": True, "project": False},
    ).double()
    state = theirs.state_dict()
    ours.load_state_dict({rename(key, RESNET): tensor for key, tensor in state.items()})
    images = _images((36, 52), samples=3).double()
    actual, expected = ours.train(training)(images), theirs.train(training)(images)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


def test_only_a_mixer_that_strides_is_given_a_stride():
    for name in list_mixers():
        model = _build(name, "resnet")
        strides = [block.mixer.stride for block in _blocks(model) if block.mixer is not None]
        if MIXERS.facts(name)["adds_sub_layer"]:
            assert strides == ([1, 2, 2, 2] if MIXERS.facts(name)["strides"] else [1] * 4)
        assert [block.stride for block in _blocks(model)] == [1, 2, 2, 2]
        assert {block.mixer.stride for block in _blocks(_build(name, "vit")) if block.mixer} <= {1}


def test_without_mixer_a_bottleneck_has_neither_its_norm_nor_its_parameters():
    model = _build("none", "resnet")
    assert all(block.mixer is None for block in _blocks(model))
    assert not [name for name in model.state_dict() if "bn2" in name or "mixer" in name]
    assert any("bn2" in name for name in _build("identity", "resnet").state_dict())


def test_none_in_some_groups_keeps_the_mixer_in_the_others():
    model = _build(["none", "convolution"], "resnet")
    assert [block.mixer is None for block in _blocks(model)] == [True, True, False, False]
    _assert_trains(model, _images())


# --- regularisation -----------------------------------------------------------------------------


def _drop_paths(model: nn.Module) -> list[list[float]]:
    """The rates in each block; [] where nothing is dropped."""
    return [
        [module.drop_prob for module in block.modules() if isinstance(module, DropPath)]
        for block in _blocks(model)
    ]


@every_backbone
def test_drop_path_grows_linearly_over_all_blocks(backbone):
    model = _build("attention", backbone, drop_path=0.3)
    branches = 1 if backbone == "resnet" else 2
    rates, depth = _drop_paths(model), len(list(_blocks(model)))
    assert rates[0] == []
    for i, found in enumerate(rates[1:], start=1):
        assert found == pytest.approx([0.3 * i / (depth - 1)] * branches)
    constant = _build("attention", backbone, drop_path=0.3, drop_path_schedule="constant")
    assert _drop_paths(constant) == [[0.3] * branches] * depth
    assert _drop_paths(_build("attention", backbone)) == [[]] * depth


@every_backbone
def test_a_block_whose_branches_are_dropped_is_its_shortcut(backbone):
    model = _build("attention", backbone, drop_path=1.0, drop_path_schedule="constant")
    inputs: list[tuple[Tensor, Tensor, nn.Module]] = []
    for block in _blocks(model):
        block.register_forward_hook(lambda m, given, out: inputs.append((given[0], out, m)))
    model(_images())
    for x, out, block in inputs:
        shortcut = getattr(block, "downsample", None)
        expected = x if shortcut is None else shortcut(x)
        torch.testing.assert_close(out, F.relu(expected) if backbone == "resnet" else expected)


DROPOUTS = {
    "vit": {"pos_drop"} | {f"blocks.{i}.channel_mixer.drop{k}" for i in range(4) for k in (1, 2)},
    "pyramid": {"stages.0.drop"}
    | {
        f"stages.{i}.blocks.{j}.channel_mixer.drop{k}"
        for i, blocks in enumerate((1, 1, 2, 1))
        for j in range(blocks)
        for k in (1, 2)
    },
    "resnet": {"drop"},
}


def _dropouts(model: nn.Module, rate: float) -> set[str]:
    return {n for n, m in model.named_modules() if isinstance(m, nn.Dropout) and m.p == rate}


@every_backbone
def test_dropout_reaches_every_backbone(backbone):
    model = _build("attention", backbone, dropout=0.25)
    assert _dropouts(model, 0.25) == DROPOUTS[backbone]
    assert _dropouts(_build("attention", backbone), 0.25) == set()


@every_backbone
def test_every_dropout_is_run_once(backbone):
    model = _build("attention", backbone, dropout=0.25)
    passes: list[str] = []
    for name in DROPOUTS[backbone]:
        module = model.get_submodule(name)
        module.register_forward_hook(lambda *_, name=name: passes.append(name))
    model(_images())
    assert sorted(passes) == sorted(DROPOUTS[backbone])


def test_a_pyramid_drops_out_where_positions_are_added():
    model = _build("attention", "pyramid", dropout=0.25, pos_embed=True)
    drops = {f"stages.{i}.drop" for i in range(4)}
    assert _dropouts(model, 0.25) == DROPOUTS["pyramid"] | drops
    added: list[bool] = []
    for stage in model.stages:
        stage.drop.register_forward_hook(
            lambda _, given, out: added.append(not torch.equal(given[0], out))
        )
    model(_images())
    assert added == [True] * 4


@every_backbone
@pytest.mark.parametrize("option", ["drop_path", "dropout"])
def test_regularisation_acts_in_training_only(option, backbone):
    model, plain = _build("attention", backbone, **{option: 0.5}), _build("attention", backbone)
    plain.load_state_dict(model.state_dict())
    images = _images(samples=8)
    assert torch.equal(plain(images), plain(images))
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(images), plain.eval()(images))
    assert not torch.equal(model.train()(images), model(images))


@every_backbone
def test_layer_scale_reaches_every_branch_and_no_weight_decay_reaches_it(backbone):
    model = _build("attention", backbone, layer_scale=1e-3)
    scales = {name: p for name, p in model.named_parameters() if name.endswith("gamma")}
    branches = 1 if backbone == "resnet" else 2
    assert len(scales) == branches * len(list(_blocks(model)))
    for scale in scales.values():
        assert torch.equal(scale, torch.full_like(scale, 1e-3))
        assert scale.ndim == 1
    assert not [n for n in _build("attention", backbone).state_dict() if n.endswith("gamma")]
    _assert_trains(model, _images())
    assert all(scale.grad.abs().max() > 0 for scale in scales.values())


@every_backbone
def test_a_layer_scale_of_one_changes_nothing_and_of_zero_leaves_the_shortcut(backbone):
    plain = _build("attention", backbone).eval()
    one = _build("attention", backbone, layer_scale=1.0).eval()
    one.load_state_dict(
        plain.state_dict() | {k: v for k, v in one.state_dict().items() if "gamma" in k}
    )
    assert torch.equal(one(_images()), plain(_images()))
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            if name.endswith("gamma"):
                parameter.zero_()
    ends = []
    for block in _blocks(one):
        block.register_forward_hook(lambda m, given, out: ends.append((m, given[0], out)))
    one(_images())
    for block, x, out in ends:
        shortcut = getattr(block, "downsample", None)
        expected = x if shortcut is None else shortcut(x)
        torch.testing.assert_close(out, F.relu(expected) if backbone == "resnet" else expected)


# --- gradient checkpointing ---------------------------------------------------------------------

CHECKPOINTED = ["attention", "lit", "convolution", ["local_attention", "patch_ff"]]


def _step(model: nn.Module, checkpointing: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
    model.set_grad_checkpointing(checkpointing)
    torch.manual_seed(5)
    model(_images(samples=4)).square().sum().backward()
    return [parameter.grad for parameter in model.parameters()], dict(model.named_buffers())


@every_backbone
@pytest.mark.parametrize("plan", CHECKPOINTED, ids=str)
def test_grad_checkpointing_changes_no_gradient_and_runs_blocks_twice(plan, backbone):
    model = _build(plan, backbone, dropout=0.1, drop_path=0.3, layer_scale=0.5)
    twin = copy.deepcopy(model)
    passes: list[int] = []
    list(_blocks(model))[-1].register_forward_pre_hook(lambda *_: passes.append(1))
    gradients, _ = _step(model, checkpointing=True)
    assert len(passes) == 2
    expected, _ = _step(twin, checkpointing=False)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("backbone", NAMES)
def test_grad_checkpointing_changes_no_statistics_of_batches(backbone):
    """``run.grad_checkpointing`` is a run setting: the evaluated model must not depend on it."""
    model = _build("convolution", backbone, stem="conv")
    twin = copy.deepcopy(model)
    _, checkpointed = _step(model, checkpointing=True)
    _, plain = _step(twin, checkpointing=False)
    assert plain, "the case has BatchNorms"
    different = [
        name for name, buffer in plain.items() if not torch.equal(buffer, checkpointed[name])
    ]
    assert different == []


@every_backbone
def test_grad_checkpointing_does_nothing_in_evaluation(backbone):
    model = _build("attention", backbone).eval()
    expected = model(_images())
    model.set_grad_checkpointing()
    passes: list[int] = []
    next(_blocks(model)).register_forward_pre_hook(lambda *_: passes.append(1))
    logits = model(_images())
    logits.sum().backward()
    assert len(passes) == 1
    assert torch.equal(logits, expected)


# --- saving, copying, averaging -----------------------------------------------------------------

ONE_OF_EACH = list(product(NAMES, STEMS.names()))
one_of_each = pytest.mark.parametrize(("backbone", "stem"), ONE_OF_EACH)
TABLES = [{"name": "attention", "rel_pos_bias": True}, "local_attention"]


def _trained(model: nn.Module) -> nn.Module:
    """After a step of training: no weight and no statistic is where it started."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model(_images(samples=4)).square().sum().backward()
    optimizer.step()
    return model.eval()


@one_of_each
def test_a_saved_model_gives_the_same_logits_when_loaded(backbone, stem):
    model, other = (_build(TABLES, backbone, stem=stem) for _ in range(2))
    file = io.BytesIO()
    torch.save(_trained(model).state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        assert torch.equal(other.eval()(_images()), model(_images()))


@one_of_each
def test_a_deep_copy_is_equal_and_independent(backbone, stem):
    model = _trained(_build(TABLES, backbone, stem=stem))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = model(_images())
        assert torch.equal(twin(_images()), before)
        for tensor in [*twin.parameters(), *twin.buffers()]:
            tensor.zero_()
        assert torch.equal(model(_images()), before)


@one_of_each
def test_a_model_can_be_built_without_memory_on_the_meta_device(backbone, stem):
    with torch.device("meta"):
        model = _build(TABLES, backbone, stem=stem, drop_path=0.1, layer_scale=0.1)
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    real = _build(TABLES, backbone, stem=stem, drop_path=0.1, layer_scale=0.1)
    shapes = {name: tensor.shape for name, tensor in real.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes


@every_backbone
def test_timms_moving_average_follows_the_model(backbone):
    model = _build("attention", backbone, stem="conv")
    average = ModelEmaV3(model, decay=0.75)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    _trained(model)
    average.update(model)
    for name, parameter in average.module.named_parameters():
        expected = 0.75 * start[name] + 0.25 * dict(model.named_parameters())[name]
        torch.testing.assert_close(parameter, expected, msg=name)
    assert average.module(_images()).isfinite().all()


@one_of_each
def test_the_seed_decides_the_initial_weights(backbone, stem):
    torch.manual_seed(3)
    one = _build(TABLES, backbone, stem=stem).state_dict()
    torch.manual_seed(3)
    other = _build(TABLES, backbone, stem=stem).state_dict()
    torch.manual_seed(4)
    third = _build(TABLES, backbone, stem=stem).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert any(not torch.equal(one[key], third[key]) for key in one)


@every_backbone
def test_linear_layers_start_as_deits_and_resnets_convolutions_as_hes(backbone):
    model = _build("attention", backbone, size="tiny" if backbone != "resnet" else "r26")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.weight.numel() > 5000:
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert not module.bias.any(), name
        if isinstance(module, nn.Conv2d) and backbone == "resnet" and module.weight.numel() > 5000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name
        if name.endswith("merging.offset"):
            assert not module.weight.any() and not module.bias.any()


# --- the interface that timm and the recipe use -------------------------------------------------


@every_backbone
@pytest.mark.parametrize("num_classes", [3, 0])
def test_reset_classifier_replaces_the_classifier(backbone, num_classes):
    model = _build("attention", backbone).double()
    features = model.forward_head(model.forward_features(_images().double()), pre_logits=True)
    assert features.shape == (2, model.num_features)
    model.reset_classifier(num_classes)
    assert model.num_classes == num_classes
    assert isinstance(model.get_classifier(), nn.Linear if num_classes else nn.Identity)
    logits = model(_images().double())
    assert logits.shape == (2, num_classes or model.num_features)
    assert logits.dtype == torch.float64
    _refusal(lambda: model.reset_classifier(3, global_pool="token"), "pools by 'avg'")


@every_backbone
def test_the_logits_are_the_classifier_on_the_mean_of_the_tokens(backbone):
    model = _build("attention", backbone).eval()
    tokens = model.forward_features(_images())
    assert tokens.shape[2] == model.num_features == model.embed_dim == model.head_hidden_size
    expected = F.linear(tokens.mean(dim=1), model.head.weight, model.head.bias)
    torch.testing.assert_close(model(_images()), expected)


def test_the_logits_of_a_pyramid_may_be_the_classifier_on_the_class_token():
    model = _build("attention", "pyramid", pool="token").eval()
    tokens = model.forward_features(_images())
    expected = F.linear(tokens[:, 0], model.head.weight, model.head.bias)
    torch.testing.assert_close(model(_images()), expected)


NOT_DECAYED = {
    "vit": ({"pool": "avg"}, {"pos_embed.table", "mixer.rel"}),
    "pyramid": ({"pos_embed": True}, {"pos_embed.table", "mixer.rel"}),
    "resnet": ({}, {"mixer.rel"}),
}


@every_backbone
def test_tables_and_tokens_take_no_weight_decay(backbone):
    options, kinds = NOT_DECAYED[backbone]
    model = _build(TABLES, backbone, stem="attention", **options)
    names = dict(model.named_parameters()).keys()
    expected = {name for name in names if any(kind in name for kind in kinds)}
    expected |= {"stem.row", "stem.column", "stem.mixture"}
    assert len(expected) > 8
    assert model.no_weight_decay() & names == expected
    assert model.no_weight_decay() - names <= {"cls_token", "dist_token"} | {
        name for name in model.no_weight_decay() if "rel_pos_table" in name
    }
    groups = timm.optim.param_groups_weight_decay(
        model, 0.05, no_weight_decay_list=model.no_weight_decay()
    )
    without = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    found = {name for name, p in model.named_parameters() if id(p) in without}
    assert found == expected | {n for n, p in model.named_parameters() if p.ndim == 1}


def test_the_class_token_of_a_pyramid_takes_no_weight_decay():
    model = _build("attention", "pyramid", pool="token")
    assert "cls_token" in model.no_weight_decay() & dict(model.named_parameters()).keys()


@pytest.mark.parametrize("backbone", NAMES)
def test_layer_wise_learning_rates_grow_from_the_stem_to_the_head(backbone):
    model = _build("attention", backbone, **_pool_option(backbone, "token"))
    groups = timm.optim.param_groups_layer_decay(
        model, 0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5
    )
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    found = {name: scales[id(p)] for name, p in model.named_parameters()}  # all of them
    in_order = [s for n, s in found.items() if not n.startswith(("cls_token", "pos_embed"))]
    assert in_order == sorted(in_order)
    first = {name.partition(".")[0] for name, s in found.items() if s == min(found.values())}
    assert "stem" in first <= {"stem", "pos_embed", "cls_token"}
    assert {name for name, s in found.items() if s == 1.0} == {"head.weight", "head.bias"}
    assert len(set(found.values())) >= 6  # stem, four stages or blocks, head


@every_backbone
def test_coarse_groups_of_parameters_are_stages_or_blocks(backbone):
    model = _build("attention", backbone)
    groups = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert groups.keys() == dict(model.named_parameters()).keys()
    assert {name for name in groups if groups[name] == max(groups.values())} == {
        "head.weight",
        "head.bias",
    }


# --- precision, layout, resolution --------------------------------------------------------------


@one_of_each
@pytest.mark.parametrize("plan", ["attention", "convolution"])
def test_half_and_double_precision_stay_near_single(plan, backbone, stem, assert_close):
    model = _build(plan, backbone, stem=stem).eval()
    with torch.no_grad():
        expected = model(_images())
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            logits = copy.deepcopy(model).to(dtype)(_images().to(dtype))
            assert logits.dtype == dtype
            assert_close(logits, expected, dtype)


@one_of_each
def test_the_memory_layout_does_not_matter(backbone, stem):
    model = _build(TABLES, backbone, stem=stem).double()
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)
    images = _images().double()
    expected, actual = model(images), twin(images.to(memory_format=torch.channels_last))
    assert_same(actual, expected)
    expected.square().sum().backward()
    actual.square().sum().backward()
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-9, msg=name)


@every_backbone
@every_plan
def test_samples_do_not_see_each_other_in_evaluation(plan, backbone, assert_close):
    model = _trained(_build(plan, backbone))
    images = _images()
    other = torch.cat([images[:1], torch.randn_like(images[1:])])
    with torch.no_grad():
        assert_close(model(other)[:1], model(images)[:1])
        assert_close(model(images[:1]), model(images)[:1])


@one_of_each
def test_images_may_have_one_channel(backbone, stem):
    model = _build("attention", backbone, stem=stem, in_chans=1)
    assert model(_images(channels=1)).shape == (2, CLASSES)


@every_backbone
@pytest.mark.parametrize("plan", [plan for plan in PLANS if _runs_on_any_grid(plan)])
def test_a_mixer_for_any_grid_runs_at_another_resolution(plan, backbone):
    model = _build(plan, backbone).eval()
    assert model(_images(TURNED)).shape == (2, CLASSES)
    assert model(_images((64, 96))).shape == (2, CLASSES)


@every_backbone
@pytest.mark.parametrize("plan", [plan for plan in PLANS if not _runs_on_any_grid(plan)])
def test_a_mixer_for_one_grid_refuses_another_resolution_and_names_both(plan, backbone):
    grids = r"8 x 16 .*16 x 8" if _is_staged(backbone) else r"2 x 4 .*4 x 2"
    model = _build(plan, backbone)
    _refusal(lambda: model(_images(TURNED)), grids)


@staged
def test_patches_of_a_staged_backbone_are_four_times_smaller_than_a_vits(backbone):
    assert _build("none", backbone).patch_size == 4
    assert _build("none", backbone, patch_size=8).patch_size == 2
    assert _build("none", backbone, patch_size=1).patch_size == 1
    stem = {"name": "patch", "patch_size": 8}
    assert _build("none", backbone, stem=stem, image_size=(64, 128)).patch_size == 8
    assert _build("none", "vit").patch_size == 16


# --- sizes and refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "size"), [(backbone, size) for backbone in NAMES for size in SIZES[backbone]]
)
def test_a_size_is_widths_depths_and_heads(backbone, size):
    with torch.device("meta"):
        model = create_model("attention", size, backbone=backbone)
    numbers = SIZES[backbone][size]
    blocks = list(_blocks(model))
    if not _is_staged(backbone):
        expected = [(numbers.dim, numbers.num_heads)] * numbers.depth
    else:
        rows = zip(numbers.dims, numbers.depths, numbers.num_heads, strict=True)
        expected = [(dim, heads) for dim, depth, heads in rows for _ in range(depth)]
    assert [(block.mixer.dim, block.mixer.num_heads) for block in blocks] == expected


@staged
def test_a_size_may_be_given_as_numbers(backbone):
    numbers = {"dims": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "num_heads": [1, 2, 3, 4]}
    by_class = StagedSize(*(tuple(value) for value in numbers.values()))
    shapes = [
        {
            name: tensor.shape
            for name, tensor in _build("attention", backbone, size=size).state_dict().items()
        }
        for size in (numbers, by_class, numbers | {"name": "mine"})
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    _assert_trains(_build("attention", backbone, size=numbers), _images())


def test_a_resnet_may_have_another_number_of_stages():
    size = StagedSize((8, 16), (1, 2), (2, 2))
    model = _build(["convolution", "attention"], "resnet", size=size)
    assert model.forward_features(_images()).shape == (2, 4 * 8, 64)


STAGES = {"dims": [8, 8], "depths": [1, 1], "num_heads": [1, 1]}


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        ("pyramid", {"size": "larg"}, "unknown size 'larg' of backbone pyramid. Known: base"),
        ("resnet", {"size": "r51"}, "unknown size 'r51' of backbone resnet. Did you mean 'r50'?"),
        ("resnet", {"size": "base"}, "unknown size 'base' of backbone resnet"),
        ("resnet", {"size": ViTSize(8, 1, 1)}, "has dims, depths, num_heads, not dim, depth"),
        ("vit", {"size": StagedSize((8,), (1,), (1,))}, "has dim, depth, num_heads, not dims"),
        ("pyramid", {"size": STAGES | {"depths": [1]}}, "as many dims as depths and num_heads"),
        ("pyramid", {"size": {"dims": [8]}}, "has dims, depths, num_heads, not dims"),
        ("resnet", {"size": {k: [] for k in STAGES}}, "as many dims as depths and num_heads"),
        ("pyramid", {"size": STAGES}, "2 stages need as many mlp_ratios, not 4"),
        ("pyramid", {"mlp_ratios": (4.0,)}, "4 stages need as many mlp_ratios, not 1"),
        ("pyramid", {"mlp_ratio": 4.0}, "no option 'mlp_ratio'. Did you mean 'mlp_ratios'?"),
        ("pyramid", {"merging": "averag"}, "unknown merging 'averag'. Did you mean 'average'?"),
        ("pyramid", {"channel_mixer": "mpl"}, "unknown channel_mixer 'mpl'. Did you mean 'mlp'?"),
        ("pyramid", {"distillation_token": True}, "no option 'distillation_token'"),
        ("pyramid", {"pool": "max"}, "pool is 'avg' or 'token', not 'max'"),
        ("pyramid", {"channels_first": True}, "no option 'channels_first'"),
        ("vit", {"merging": "patch"}, "'vit' has no option 'merging'"),
        ("resnet", {"pool": "token"}, "'resnet' has no option 'pool'. It has none."),
        ("resnet", {"channel_mixer": "mlp"}, "'resnet' has no option 'channel_mixer'"),
        ("resnet", {"mixer": {"name": "convolution", "kernel_size": 2}}, "kernel_size is odd"),
        ("resnet", {"mixer": {"name": "convolution", "stride": 2}}, "has no option 'stride'"),
        ("resnet", {"stem": "con"}, "unknown stem 'con'. Did you mean 'conv'?"),
        ("resnet", {"stem": {"name": "attention", "num_heads": 3}}, "16 channels among 3 heads"),
        ("resne", {}, "unknown backbone 'resne'. Did you mean 'resnet'?"),
        ("resnet", {"drop_path_schedule": "cosine"}, "'linear' or 'constant', not 'cosine'"),
        ("pyramid", {"drop_path_schedule": "cosine"}, "'linear' or 'constant', not 'cosine'"),
        pytest.param(
            "resnet",
            {"size": {"dims": 8, "depths": 1, "num_heads": 1}},
            "size",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_in_one_line(backbone, options, message):
    options = dict(options)
    mixer = options.pop("mixer", "attention")
    _refusal(lambda: _build(mixer, backbone, **options), re.escape(message))
