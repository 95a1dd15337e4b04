"""Grids of staged backbones: where a class token joins a pyramid, and odd sides."""

import pytest
import torch
from micro_backbones import (
    CLASSES,
    TURNED,
    assert_trains,
    blocks_of,
    build_micro,
    every_backbone,
    every_plan,
    is_staged,
    random_images,
    refusal_of,
)
from torch import Tensor, nn

from mixerbench.config.sizes import Size
from mixers import MIXERS, TokenGrid, list_mixers

# --- the class token of a pyramid ---------------------------------------------------------------


def _grids(model: nn.Module, images: Tensor) -> list[TokenGrid]:
    """The grid that each block is given in a forward pass."""
    seen: list[TokenGrid] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
        for block in blocks_of(model)
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    return seen


def test_the_class_token_joins_a_pyramid_at_the_last_stage():
    model = build_micro("attention", "pyramid", pool="token")
    expected = [(8, 16, 0), (4, 8, 0), (2, 4, 0), (2, 4, 0), (1, 2, 1)]  # two blocks in stage 3
    assert _grids(model, random_images()) == expected
    assert model.forward_features(random_images()).shape == (2, 3, 128)
    assert _grids(build_micro("attention", "pyramid"), random_images())[-1] == (1, 2, 0)


@pytest.mark.parametrize("early", [n for n in list_mixers() if not MIXERS.facts(n)["mixes_prefix"]])
def test_a_mixer_that_takes_no_class_token_may_come_before_it_joins(early):
    model = build_micro([early, early, early, "attention"], "pyramid", pool="token")
    assert_trains(model, random_images())
    assert model.cls_token.grad.abs().max() > 0
    refusal_of(
        lambda: build_micro(
            ["attention", "attention", "attention", early], "pyramid", pool="token"
        ),
        f"mixer '{early}' cannot take a class token",
    )


def test_a_pyramids_class_token_reads_the_image():
    model = build_micro("lit", "pyramid", pool="token").eval()
    one, other = model(random_images())
    assert not torch.allclose(one, other)


def test_positions_of_a_pyramid_are_by_stage_and_the_class_token_has_one():
    model = build_micro("attention", "pyramid", pool="token", pos_embed=True)
    tables = [stage.pos_embed.table.shape for stage in model.stages]
    assert tables == [(1, 128, 16), (1, 32, 32), (1, 8, 64), (1, 3, 128)]
    assert_trains(model, random_images())
    assert all(stage.pos_embed.table.grad.abs().max() > 0 for stage in model.stages)
    assert model(random_images(TURNED)).shape == (2, CLASSES)  # resized


def test_a_pyramid_of_one_stage_is_a_vit_with_its_class_token():
    size = Size((16,), (2,), (4,))
    model = build_micro("attention", "pyramid", size=size, pool="token", mlp_ratios=(2.0,))
    assert _grids(model, random_images()) == [(8, 16, 1), (8, 16, 1)]


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
    refusal_of(lambda: build_micro("convolution", "pyramid", image_size=height_width), message)
    model = build_micro("convolution", "pyramid")
    refusal_of(lambda: model(random_images(height_width)), message)


@every_plan
def test_a_resnet_rounds_odd_grids_up_as_a_strided_convolution_does(plan):
    odd = (36, 52)  # 9 x 13, 5 x 7, 3 x 4, 2 x 2
    model = build_micro(plan, "resnet", image_size=odd)
    assert _grids(model, random_images(odd)) == [(9, 13, 0), (9, 13, 0), (5, 7, 0), (3, 4, 0)]
    assert model.forward_features(random_images(odd)).shape == (2, 4, 512)
    assert_trains(model, random_images(odd))


@every_backbone
def test_an_image_that_patches_do_not_tile_is_refused(backbone):
    side = 4 if is_staged(backbone) else 16
    message = f"not divisible into patches of {side} x {side}"
    refusal_of(lambda: build_micro("none", backbone, image_size=(33, 64)), message)
    model = build_micro("none", backbone)
    refusal_of(lambda: model(random_images((32, 66))), message)
