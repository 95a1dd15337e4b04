"""Channel mixers against timm's MLP and against the formula of attention over features."""

import math
from itertools import product

import pytest
import torch
from formulas import assert_same, randomized
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from mixerbench.models import create_model
from mixerbench.models.part_kinds import CHANNEL_MIXERS
from mixerbench.models.parts import ChannelMixer
from mixers import TokenGrid

GRIDS = [TokenGrid(2, 3), TokenGrid(1, 5), TokenGrid(2, 2, prefix=1), TokenGrid(1, 3, prefix=2)]
GRID = TokenGrid(2, 3)

every_channel_mixer = pytest.mark.parametrize("name", CHANNEL_MIXERS.names())


def _build(
    name: str, dim: int = 6, grid: TokenGrid = GRID, mlp_ratio: float = 4.0, dropout: float = 0.0
) -> ChannelMixer:
    return CHANNEL_MIXERS.create(name, dim, grid, mlp_ratio, dropout).double()


def _tokens(grid: TokenGrid = GRID, dim: int = 6) -> Tensor:
    return torch.randn(2, grid.tokens, dim, dtype=torch.float64, requires_grad=True)


# --- mlp ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("ratio", [4.0, 0.5, 2.7])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_mlp_is_timms(dropout, ratio, training):
    ours = randomized(_build("mlp", mlp_ratio=ratio, dropout=dropout)).train(training)
    theirs = Mlp(6, int(6 * ratio), drop=dropout).double().train(training)
    theirs.load_state_dict(ours.state_dict())
    x = _tokens()
    torch.manual_seed(3)
    expected = theirs(x)
    torch.manual_seed(3)
    assert torch.equal(ours(x, GRID), expected)


def test_mlp_is_two_layers_with_exact_gelu_between():
    mlp, x = randomized(_build("mlp", mlp_ratio=1.5)), _tokens()
    y = mlp(x, GRID)
    for b, n in product(range(2), range(GRID.tokens)):
        hidden = mlp.fc1.weight @ x[b, n] + mlp.fc1.bias
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        assert_same(y[b, n], mlp.fc2.weight @ hidden + mlp.fc2.bias)


@pytest.mark.parametrize(("ratio", "hidden"), [(4.0, 256), (0.5, 32), (2.7, 172), (8.0, 512)])
def test_mlp_ratio_is_the_hidden_width(ratio, hidden, micro):
    assert {block.channel_mixer.fc1.out_features for block in micro(mlp_ratio=ratio).blocks} == {
        hidden
    }


# --- feature_attention --------------------------------------------------------------------------


def feature_attention(mixer: ChannelMixer, x: Tensor) -> Tensor:
    """One head over C features of N tokens each, one sample and one feature at a time."""
    samples, N, C = x.shape
    qkv, proj, norm = mixer.attention.qkv, mixer.attention.proj, mixer.norm
    result = []
    for b in range(samples):
        projected = []
        for c in range(C):
            feature = torch.stack([x[b, n, c] for n in range(N)])
            mean = sum(feature) / N
            var = sum((value - mean) ** 2 for value in feature) / N
            feature = (feature - mean) / torch.sqrt(var + 1e-6) * norm.weight + norm.bias
            projected.append((qkv.weight @ feature + qkv.bias).split(N))
        for c in range(C):
            weights = [
                torch.exp(projected[c][0] @ projected[o][1] / math.sqrt(N)) for o in range(C)
            ]
            mixed = sum(weights[o] * projected[o][2] for o in range(C)) / sum(weights)
            result.append(proj.weight @ mixed + proj.bias)
    return torch.stack(result).reshape(samples, C, N).transpose(1, 2)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_feature_attention_is_the_formula_and_so_are_its_gradients(grid):
    mixer, x = randomized(_build("feature_attention", grid=grid)), _tokens(grid)
    actual, expected = mixer(x, grid), feature_attention(mixer, x)
    assert_same(actual, expected)
    weights = torch.randn_like(expected)
    wanted = [x, *mixer.parameters()]
    ours = torch.autograd.grad((actual * weights).sum(), wanted)
    theirs = torch.autograd.grad((expected * weights).sum(), wanted)
    for one, other in zip(ours, theirs, strict=True):
        assert_same(one, other)


def test_feature_attention_treats_all_features_alike():
    mixer, x = randomized(_build("feature_attention")), _tokens()
    order = [3, 0, 5, 1, 2, 4]
    assert_same(mixer(x[..., order], GRID), mixer(x, GRID)[..., order])


def test_the_attention_only_model_has_the_reports_number_of_parameters():
    with torch.device("meta"):
        model = create_model(preset="attention_only_tiny")
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_039_360


def test_the_block_brings_no_norm_over_channels_to_feature_attention(micro):
    for block in micro(channel_mixer="feature_attention").blocks:
        assert isinstance(block.norm2, nn.Identity)
        assert block.channel_mixer.norm.normalized_shape == (6,)


@pytest.mark.parametrize("name", ["mlp", "feature_attention"])
def test_dropout_acts_in_training_only(name):
    mixer, plain = _build(name, dropout=0.5), _build(name)
    plain.load_state_dict(mixer.state_dict())
    x = _tokens()
    assert not torch.equal(mixer(x, GRID), mixer(x, GRID))
    assert torch.equal(mixer.eval()(x, GRID), plain.eval()(x, GRID))


# --- none ---------------------------------------------------------------------------------------


def test_without_channel_mixer_a_block_is_its_token_mixer_alone(micro):
    model = micro(channel_mixer="none", layer_scale=0.1, drop_path=0.2).double().eval()
    x = torch.randn(2, 6, 64, dtype=torch.float64)
    for block in model.blocks:
        assert block.channel_mixer is None
        assert not any(hasattr(block, name) for name in ("norm2", "ls2", "drop_path2"))
        assert torch.equal(
            block(x, model.grid), x + block.ls1(block.mixer(block.norm1(x), model.grid))
        )
    assert not [name for name in model.state_dict() if "norm2" in name or "channel_mixer" in name]


def test_the_channel_mixer_none_adds_zero_and_has_no_parameters():
    mixer = _build("none")
    assert not mixer(_tokens(), GRID).any()
    assert not list(mixer.parameters())


# --- every channel mixer ------------------------------------------------------------------------


@every_channel_mixer
def test_a_channel_mixer_keeps_the_shape_and_declares_its_facts(name):
    cls = CHANNEL_MIXERS.get(name)
    assert issubclass(cls, ChannelMixer)
    assert cls.paper and cls.__doc__
    for fact in ("any_grid", "adds_sub_layer", "pre_norm"):
        assert isinstance(getattr(cls, fact), bool), fact
    for grid in GRIDS:
        assert _build(name, grid=grid)(_tokens(grid), grid).shape == (2, grid.tokens, 6)


@every_channel_mixer
def test_every_parameter_of_a_channel_mixer_gets_a_gradient(name):
    mixer = randomized(_build(name))
    y = mixer(_tokens(), GRID)
    if not mixer.adds_sub_layer:
        assert not list(mixer.parameters())
        return
    (y * torch.randn_like(y)).sum().backward()
    for path, parameter in mixer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, path


@every_channel_mixer
def test_samples_do_not_see_each_other(name):
    mixer, x = randomized(_build(name)).eval(), _tokens()
    other = torch.cat([x[:1], torch.randn_like(x[1:])])
    assert_same(mixer(x, GRID)[0], mixer(other, GRID)[0])


@every_channel_mixer
def test_only_a_channel_mixer_for_any_grid_takes_another(name):
    mixer, other = _build(name), TokenGrid(4, 1)
    if CHANNEL_MIXERS.facts(name)["any_grid"]:
        assert mixer(_tokens(other), other).shape == (2, 4, 6)
        return
    for grid in (other, TokenGrid(3, 2), TokenGrid(2, 3, prefix=1)):
        with pytest.raises(ValueError, match=rf"{name} .*2 x 3 .*{grid.height} x") as error:
            mixer(_tokens(grid), grid)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("backbone", ["vit", "pyramid"])
@every_channel_mixer
def test_a_model_takes_another_resolution_if_its_channel_mixer_does(name, backbone, micro):
    model = micro(backbone=backbone, channel_mixer=name, image_size=(32, 64))
    images = torch.randn(2, 3, 64, 32)
    if CHANNEL_MIXERS.facts(name)["any_grid"]:
        assert model(images).shape == (2, 7)
        return
    with pytest.raises(ValueError, match="was built for") as error:
        model(images)
    assert "\n" not in str(error.value)


# --- the order of the two sub-layers ------------------------------------------------------------


def _gelu_mlp(block: nn.Module, x: Tensor) -> Tensor:
    mlp = block.channel_mixer
    return F.linear(F.gelu(F.linear(x, mlp.fc1.weight, mlp.fc1.bias)), mlp.fc2.weight, mlp.fc2.bias)


@pytest.mark.parametrize("channels_first", [False, True])
def test_channels_come_first_if_asked_for(channels_first, micro):
    model = randomized(micro("attention", channels_first=channels_first, layer_scale=1.0).double())
    grid, x = model.grid, torch.randn(2, 6, 64, dtype=torch.float64)
    for block in model.blocks:
        norm1, norm2, ls1, ls2 = block.norm1, block.norm2, block.ls1.gamma, block.ls2.gamma

        def tokens(x: Tensor, block: nn.Module = block, norm: nn.Module = norm1) -> Tensor:
            return block.mixer(F.layer_norm(x, (64,), norm.weight, norm.bias, 1e-6), grid)

        def channels(x: Tensor, block: nn.Module = block, norm: nn.Module = norm2) -> Tensor:
            return _gelu_mlp(block, F.layer_norm(x, (64,), norm.weight, norm.bias, 1e-6))

        if channels_first:
            y = x + ls2 * channels(x)
            y = y + ls1 * tokens(y)
        else:
            y = x + ls1 * tokens(x)
            y = y + ls2 * channels(y)
        assert_same(block(x, grid), y)


def test_the_order_changes_the_result_and_not_the_weights(micro, images):
    one, other = micro(channels_first=False).eval(), micro(channels_first=True).eval()
    other.load_state_dict(one.state_dict())
    assert not torch.allclose(one(images()), other(images()), atol=1e-6)
