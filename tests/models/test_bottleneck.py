"""ResNet's bottleneck, whose spatial convolution is a slot for any mixer."""

from itertools import product

import pytest
import torch
import torchvision.models.resnet as torchvision_resnet
from formulas import assert_same, randomized
from micro_backbones import CLASSES, assert_trains, blocks_of, build_micro, random_images
from torch import Tensor, nn

from mixerbench.config.sizes import Size
from mixerbench.models.names import RESNET, rename
from mixerbench.models.resnet import Bottleneck
from mixers import MIXERS, TokenGrid, TokenMixer, create_mixer, list_mixers
from mixers.core.plan import MixerChoice

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
    mixer = MIXERS.build(MixerChoice("convolution"), 4, tokens, stride=stride)
    ours = Bottleneck(6, mixer, stride, 0.0, None).double()
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
    ours = build_micro(
        "convolution",
        "resnet",
        size=Size((64, 128, 256, 512), (1, 2, 1, 1), (8, 8, 8, 8)),
        stem={"name": "conv", "kernel_size": 7, "max_pool": True, "project": False},
    ).double()
    state = theirs.state_dict()
    ours.load_state_dict({rename(key, RESNET): tensor for key, tensor in state.items()})
    images = random_images((36, 52), samples=3).double()
    actual, expected = ours.train(training)(images), theirs.train(training)(images)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


def test_only_a_mixer_that_strides_is_given_a_stride():
    for name in list_mixers():
        model = build_micro(name, "resnet")
        strides = [block.mixer.stride for block in blocks_of(model) if block.mixer is not None]
        if MIXERS.facts(name)["adds_sub_layer"]:
            assert strides == ([1, 2, 2, 2] if "stride" in MIXERS.spec(name).given else [1] * 4)
        assert [block.stride for block in blocks_of(model)] == [1, 2, 2, 2]
        assert {
            block.mixer.stride for block in blocks_of(build_micro(name, "vit")) if block.mixer
        } <= {1}


def test_without_mixer_a_bottleneck_has_neither_its_norm_nor_its_parameters():
    model = build_micro("none", "resnet")
    assert all(block.mixer is None for block in blocks_of(model))
    assert not [name for name in model.state_dict() if "bn2" in name or "mixer" in name]
    assert any("bn2" in name for name in build_micro("identity", "resnet").state_dict())


def test_none_in_some_groups_keeps_the_mixer_in_the_others():
    model = build_micro(["none", "convolution"], "resnet")
    assert [block.mixer is None for block in blocks_of(model)] == [True, True, False, False]
    assert_trains(model, random_images())
