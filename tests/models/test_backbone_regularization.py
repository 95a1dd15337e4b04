"""Drop path, dropout and layer scale reach every backbone."""

import pytest
import torch
from micro_backbones import assert_trains, blocks_of, build_micro, every_backbone, random_images
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

# --- regularisation -----------------------------------------------------------------------------


def _drop_paths(model: nn.Module) -> list[list[float]]:
    """The rates in each block; [] where nothing is dropped."""
    return [
        [module.drop_prob for module in block.modules() if isinstance(module, DropPath)]
        for block in blocks_of(model)
    ]


@every_backbone
def test_drop_path_grows_linearly_over_all_blocks(backbone):
    model = build_micro("attention", backbone, drop_path=0.3)
    branches = 1 if backbone == "resnet" else 2
    rates, depth = _drop_paths(model), len(list(blocks_of(model)))
    assert rates[0] == []
    for i, found in enumerate(rates[1:], start=1):
        assert found == pytest.approx([0.3 * i / (depth - 1)] * branches)
    constant = build_micro("attention", backbone, drop_path=0.3, drop_path_schedule="constant")
    assert _drop_paths(constant) == [[0.3] * branches] * depth
    assert _drop_paths(build_micro("attention", backbone)) == [[]] * depth


@every_backbone
def test_a_block_whose_branches_are_dropped_is_its_shortcut(backbone):
    model = build_micro("attention", backbone, drop_path=1.0, drop_path_schedule="constant")
    inputs: list[tuple[Tensor, Tensor, nn.Module]] = []
    for block in blocks_of(model):
        block.register_forward_hook(lambda m, given, out: inputs.append((given[0], out, m)))
    model(random_images())
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
    model = build_micro("attention", backbone, dropout=0.25)
    assert _dropouts(model, 0.25) == DROPOUTS[backbone]
    assert _dropouts(build_micro("attention", backbone), 0.25) == set()


@every_backbone
def test_every_dropout_is_run_once(backbone):
    model = build_micro("attention", backbone, dropout=0.25)
    passes: list[str] = []
    for name in DROPOUTS[backbone]:
        module = model.get_submodule(name)
        module.register_forward_hook(lambda *_, name=name: passes.append(name))
    model(random_images())
    assert sorted(passes) == sorted(DROPOUTS[backbone])


def test_a_pyramid_drops_out_where_positions_are_added():
    model = build_micro("attention", "pyramid", dropout=0.25, pos_embed=True)
    drops = {f"stages.{i}.drop" for i in range(4)}
    assert _dropouts(model, 0.25) == DROPOUTS["pyramid"] | drops
    added: list[bool] = []
    for stage in model.stages:
        stage.drop.register_forward_hook(
            lambda _, given, out: added.append(not torch.equal(given[0], out))
        )
    model(random_images())
    assert added == [True] * 4


@every_backbone
@pytest.mark.parametrize("option", ["drop_path", "dropout"])
def test_regularisation_acts_in_training_only(option, backbone):
    model, plain = (
        build_micro("attention", backbone, **{option: 0.5}),
        build_micro("attention", backbone),
    )
    plain.load_state_dict(model.state_dict())
    images = random_images(samples=8)
    assert torch.equal(plain(images), plain(images))
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(images), plain.eval()(images))
    assert not torch.equal(model.train()(images), model(images))


@every_backbone
def test_layer_scale_reaches_every_branch_and_no_weight_decay_reaches_it(backbone):
    model = build_micro("attention", backbone, layer_scale=1e-3)
    scales = {name: p for name, p in model.named_parameters() if name.endswith("gamma")}
    branches = 1 if backbone == "resnet" else 2
    assert len(scales) == branches * len(list(blocks_of(model)))
    for scale in scales.values():
        assert torch.equal(scale, torch.full_like(scale, 1e-3))
        assert scale.ndim == 1
    assert not [n for n in build_micro("attention", backbone).state_dict() if n.endswith("gamma")]
    assert_trains(model, random_images())
    assert all(scale.grad.abs().max() > 0 for scale in scales.values())


@every_backbone
def test_a_layer_scale_of_one_changes_nothing_and_of_zero_leaves_the_shortcut(backbone):
    plain = build_micro("attention", backbone).eval()
    one = build_micro("attention", backbone, layer_scale=1.0).eval()
    one.load_state_dict(
        plain.state_dict() | {k: v for k, v in one.state_dict().items() if "gamma" in k}
    )
    assert torch.equal(one(random_images()), plain(random_images()))
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            if name.endswith("gamma"):
                parameter.zero_()
    ends = []
    for block in blocks_of(one):
        block.register_forward_hook(lambda m, given, out: ends.append((m, given[0], out)))
    one(random_images())
    for block, x, out in ends:
        shortcut = getattr(block, "downsample", None)
        expected = x if shortcut is None else shortcut(x)
        torch.testing.assert_close(out, F.relu(expected) if backbone == "resnet" else expected)
