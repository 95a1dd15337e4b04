"""Any mixer in any backbone behind any stem; every other combination is refused in one line."""

import copy
import re
from itertools import product

import pytest
import torch
from formulas import assert_same
from micro_backbones import (
    CLASSES,
    COMBINATIONS,
    NAMES,
    PLANS,
    SIZES,
    STAGED,
    TABLES,
    TURNED,
    assert_trains,
    blocks_of,
    build_micro,
    every_backbone,
    every_plan,
    every_stem,
    fits,
    is_staged,
    one_of_each,
    pool_option,
    pools_of,
    random_images,
    refusal_of,
    runs_on_any_grid,
    staged,
    takes_option,
    trained_once,
)
from torch import nn

from mixerbench.config.sizes import Size
from mixerbench.models import create_model
from mixerbench.models.part_kinds import BACKBONES, CHANNEL_MIXERS, MERGINGS
from mixers import MIXERS, TokenGrid
from mixers.core.plan import read_plan

# --- the matrix ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "backbone", "stem", "pool"), [c for c in COMBINATIONS if fits(c[0], c[1], c[3])]
)
def test_every_combination_that_fits_trains_on_a_non_square_image(plan, backbone, stem, pool):
    model = build_micro(plan, backbone, stem=stem, **pool_option(backbone, pool))
    assert_trains(model, random_images())


@pytest.mark.parametrize(
    ("plan", "backbone", "stem", "pool"), [c for c in COMBINATIONS if not fits(c[0], c[1], c[3])]
)
def test_every_other_combination_is_refused_in_one_line(plan, backbone, stem, pool):
    message = refusal_of(
        lambda: build_micro(plan, backbone, stem=stem, **pool_option(backbone, pool)),
        r"cannot take a class token.*pool='avg'",
    )
    assert any(repr(choice.name) in message for choice in read_plan(plan))


def test_some_combinations_fit_and_some_do_not():
    for backbone in NAMES:
        assert all(fits(plan, backbone, "avg") for plan in PLANS)
        if "token" in pools_of(backbone):
            assert 0 < sum(fits(plan, backbone, "token") for plan in PLANS) < len(PLANS)


def test_the_backbones_are_the_designs():
    assert {"vit", "pyramid", "resnet"} <= set(NAMES)
    assert {"pyramid", "resnet"} <= set(STAGED)
    assert set(SIZES) == set(NAMES)
    for backbone in NAMES:
        assert "arXiv:" in BACKBONES.get(backbone).paper
        assert BACKBONES.get(backbone).stem_divisor == (4 if is_staged(backbone) else 1)


@pytest.mark.parametrize("plan", ["attention", "lit", "convolution"])
@pytest.mark.parametrize("merging", MERGINGS.names())
def test_every_merging_trains_in_a_pyramid(merging, plan):
    model = build_micro(plan, "pyramid", merging=merging)
    kinds = {type(stage.merging) for stage in model.stages[1:]}
    assert kinds == {MERGINGS.get(merging)}
    assert model.stages[0].merging is None
    assert_trains(model, random_images())


@pytest.mark.parametrize(
    ("channel_mixer", "backbone", "pool"),
    [
        (channel_mixer, backbone, pool)
        for channel_mixer, backbone in product(CHANNEL_MIXERS.names(), NAMES)
        if takes_option(backbone, "channel_mixer")
        for pool in pools_of(backbone)
    ],
)
def test_every_channel_mixer_trains_where_there_is_one(channel_mixer, backbone, pool):
    model = build_micro("attention", backbone, channel_mixer=channel_mixer, pool=pool)
    cls = CHANNEL_MIXERS.get(channel_mixer)
    for block in blocks_of(model):
        assert type(block.channel_mixer) is (cls if cls.adds_sub_layer else type(None))
    assert_trains(model, random_images())


@pytest.mark.parametrize("mixer", ["none", "attention"])
def test_a_block_may_have_no_channel_mixer_and_even_no_mixer(mixer):
    assert_trains(build_micro(mixer, "vit", channel_mixer="none"), random_images())
    assert_trains(build_micro(mixer, "pyramid", channel_mixer="none"), random_images())


@every_backbone
@every_stem
def test_bfloat16_autocast_trains_and_stays_near_float32(backbone, stem, assert_close):
    model = build_micro("attention", backbone, stem=stem).eval()
    with torch.no_grad():
        expected = model(random_images())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_close(model(random_images()), expected, torch.bfloat16)
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(random_images())
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
    model = build_micro(FOUR, backbone)
    assert _mixers_by_stage(model) == [{CLASSES_OF[name]} for name in FOUR]
    assert_trains(model, random_images())


@staged
def test_two_choices_are_two_stages_each(backbone):
    model = build_micro(["convolution", {"name": "attention", "qkv_bias": False}], backbone)
    expected = ["convolution", "convolution", "attention", "attention"]
    assert _mixers_by_stage(model) == [{CLASSES_OF[name]} for name in expected]
    assert all(b.mixer.qkv.bias is None for b in list(blocks_of(model))[-1:])


@staged
def test_a_choice_is_for_all_blocks_of_its_stage_however_many(backbone):
    size = Size((8, 8, 8, 8), (1, 3, 1, 2), (2, 2, 2, 2))
    model = build_micro(FOUR, backbone, size=size)
    assert [len(getattr(stage, "blocks", stage)) for stage in model.stages] == [1, 3, 1, 2]
    assert _mixers_by_stage(model) == [{CLASSES_OF[name]} for name in FOUR]


@staged
def test_five_choices_are_refused(backbone):
    refusal_of(lambda: build_micro(["attention"] * 5, backbone), "5 choices does not fit 4 stages")


@staged
def test_a_stage_has_the_width_the_heads_and_the_grid_of_its_size(backbone):
    model = build_micro("patch_ff", backbone)
    micro = SIZES[backbone]["micro"]
    for i, stage in enumerate(model.stages):
        for block in getattr(stage, "blocks", stage):
            assert block.mixer.dim == micro.dims[i]
            assert block.mixer.num_heads == micro.num_heads[i]
    last = list(blocks_of(model))[-1].mixer.grid
    assert last in (TokenGrid(1, 2), TokenGrid(2, 4))  # before or after the halving in a block


# --- precision, layout, resolution --------------------------------------------------------------


@one_of_each
@pytest.mark.parametrize("plan", ["attention", "convolution"])
def test_half_and_double_precision_stay_near_single(plan, backbone, stem, assert_close):
    model = build_micro(plan, backbone, stem=stem).eval()
    with torch.no_grad():
        expected = model(random_images())
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            logits = copy.deepcopy(model).to(dtype)(random_images().to(dtype))
            assert logits.dtype == dtype
            assert_close(logits, expected, dtype)


@one_of_each
def test_the_memory_layout_does_not_matter(backbone, stem):
    model = build_micro(TABLES, backbone, stem=stem).double()
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)
    images = random_images().double()
    expected, actual = model(images), twin(images.to(memory_format=torch.channels_last))
    assert_same(actual, expected)
    expected.square().sum().backward()
    actual.square().sum().backward()
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-9, msg=name)


@every_backbone
@every_plan
def test_samples_do_not_see_each_other_in_evaluation(plan, backbone, assert_close):
    model = trained_once(build_micro(plan, backbone))
    images = random_images()
    other = torch.cat([images[:1], torch.randn_like(images[1:])])
    with torch.no_grad():
        assert_close(model(other)[:1], model(images)[:1])
        assert_close(model(images[:1]), model(images)[:1])


@one_of_each
def test_images_may_have_one_channel(backbone, stem):
    model = build_micro("attention", backbone, stem=stem, in_chans=1)
    assert model(random_images(channels=1)).shape == (2, CLASSES)


@every_backbone
@pytest.mark.parametrize("plan", [plan for plan in PLANS if runs_on_any_grid(plan)])
def test_a_mixer_for_any_grid_runs_at_another_resolution(plan, backbone):
    model = build_micro(plan, backbone).eval()
    assert model(random_images(TURNED)).shape == (2, CLASSES)
    assert model(random_images((64, 96))).shape == (2, CLASSES)


@every_backbone
@pytest.mark.parametrize("plan", [plan for plan in PLANS if not runs_on_any_grid(plan)])
def test_a_mixer_for_one_grid_refuses_another_resolution_and_names_both(plan, backbone):
    grids = r"8 x 16 .*16 x 8" if is_staged(backbone) else r"2 x 4 .*4 x 2"
    model = build_micro(plan, backbone)
    refusal_of(lambda: model(random_images(TURNED)), grids)


@staged
def test_patches_of_a_staged_backbone_are_four_times_smaller_than_a_vits(backbone):
    assert build_micro("none", backbone).patch_size == 4
    assert build_micro("none", backbone, patch_size=8).patch_size == 2
    assert build_micro("none", backbone, patch_size=1).patch_size == 1
    stem = {"name": "patch", "patch_size": 8}
    assert build_micro("none", backbone, stem=stem, image_size=(64, 128)).patch_size == 8
    assert build_micro("none", "vit").patch_size == 16


# --- sizes and refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "size"), [(backbone, size) for backbone in NAMES for size in SIZES[backbone]]
)
def test_a_size_is_widths_depths_and_heads(backbone, size):
    with torch.device("meta"):
        model = create_model("attention", size, backbone=backbone)
    numbers = SIZES[backbone][size]
    blocks = list(blocks_of(model))
    rows = zip(numbers.dims, numbers.depths, numbers.num_heads, strict=True)
    expected = [(dim, heads) for dim, depth, heads in rows for _ in range(depth)]
    assert [(block.mixer.dim, block.mixer.num_heads) for block in blocks] == expected


@staged
def test_a_size_may_be_given_as_numbers(backbone):
    numbers = {"dims": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "num_heads": [1, 2, 3, 4]}
    by_class = Size(*(tuple(value) for value in numbers.values()))
    shapes = [
        {
            name: tensor.shape
            for name, tensor in build_micro("attention", backbone, size=size).state_dict().items()
        }
        for size in (numbers, by_class, numbers | {"name": "mine"})
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    assert_trains(build_micro("attention", backbone, size=numbers), random_images())


def test_a_resnet_may_have_another_number_of_stages():
    size = Size((8, 16), (1, 2), (2, 2))
    model = build_micro(["convolution", "attention"], "resnet", size=size)
    assert model.forward_features(random_images()).shape == (2, 4 * 8, 64)


ISOTROPIC = {"dim": 8, "depth": 1, "num_heads": 1}
STAGES = {"dims": [8, 8], "depths": [1, 1], "num_heads": [1, 1]}


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        ("pyramid", {"size": "larg"}, "unknown size 'larg' of backbone pyramid. Known: base"),
        ("resnet", {"size": "r51"}, "unknown size 'r51' of backbone resnet. Did you mean 'r50'?"),
        ("resnet", {"size": "base"}, "unknown size 'base' of backbone resnet"),
        (
            "resnet",
            {"size": ISOTROPIC},
            "has dims, depths, num_heads, not dim, depth",
        ),
        ("vit", {"size": Size((8, 8), (1, 1), (1, 1))}, "has dim, depth, num_heads, not dims"),
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
    refusal_of(lambda: build_micro(mixer, backbone, **options), re.escape(message))
