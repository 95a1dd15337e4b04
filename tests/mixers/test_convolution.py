"""convolution against a sum over the neighbours, and against torch's own layer."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixers import MIXERS, TokenGrid, TokenMixer, create_mixer
from mixers.core.plan import MixerChoice

GRIDS = [TokenGrid(3, 4), TokenGrid(4, 2), TokenGrid(1, 3), TokenGrid(5, 1), TokenGrid(1, 1)]
OPTIONS = [
    {"kernel_size": 1},
    {"kernel_size": 3},
    {"kernel_size": 5},
    {"kernel_size": 3, "bias": True},
    {"kernel_size": 3, "depthwise": True},
    {"kernel_size": 5, "depthwise": True, "bias": True},
]


def strided(grid: TokenGrid, stride: int) -> TokenGrid:
    """Every ``stride``-th row and column, the first included."""
    return TokenGrid(len(range(0, grid.height, stride)), len(range(0, grid.width, stride)))


def build(grid: TokenGrid, dim: int, stride: int, options: dict) -> TokenMixer:
    return MIXERS.build(MixerChoice("convolution", options), dim, grid, stride=stride)


def oracle(mixer: TokenMixer, x: Tensor, grid: TokenGrid) -> Tensor:
    """One output token at a time: the sum over the kernel's places that lie on the grid."""
    weight, bias = mixer.conv.weight, mixer.conv.bias
    side = weight.shape[-1]
    depthwise = weight.shape[1] < mixer.dim
    rows, columns = range(0, grid.height, mixer.stride), range(0, grid.width, mixer.stride)
    result = []
    for b, i, j in product(range(len(x)), rows, columns):
        token = torch.zeros(mixer.dim, dtype=x.dtype) if bias is None else bias
        for a, c in product(range(side), repeat=2):
            y, z = i + a - side // 2, j + c - side // 2
            if 0 <= y < grid.height and 0 <= z < grid.width:
                neighbour = x[b, y * grid.width + z]
                part = weight[:, :, a, c]
                token = token + (part[:, 0] * neighbour if depthwise else part @ neighbour)
        result.append(token)
    return torch.stack(result).reshape(len(x), -1, mixer.dim)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_is_a_sum_over_the_neighbours(options, grid, assert_matches_oracle):
    assert_matches_oracle(create_mixer("convolution", 4, grid, **options), oracle, grid)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_with_stride_2_it_keeps_every_second_token(options, grid, randomize, assert_close):
    mixer = randomize(create_mixer("convolution", 4, grid, **options).double())
    x = torch.randn(2, grid.tokens, 4, dtype=torch.float64, requires_grad=True)
    everywhere = mixer(x, grid).unflatten(1, grid[:2])
    state, mixer = mixer.state_dict(), build(grid, 4, 2, options).double()
    mixer.load_state_dict(state)
    y = mixer(x, grid)
    assert y.shape == (2, strided(grid, 2).tokens, 4)
    assert_close(y, oracle(mixer, x, grid))
    assert_close(y, everywhere[:, ::2, ::2].flatten(1, 2))
    wanted = [x, *mixer.parameters()]
    ours = torch.autograd.grad(y.square().sum(), wanted)
    theirs = torch.autograd.grad(oracle(mixer, x, grid).square().sum(), wanted)
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_is_torchs_layer_on_the_image(options, stride, randomize):
    grid, dim = TokenGrid(7, 6), 8
    mixer = randomize(build(grid, dim, stride, options))
    side = options["kernel_size"]
    layer = nn.Conv2d(
        dim,
        dim,
        side,
        stride=stride,
        padding=side // 2,
        groups=dim if options.get("depthwise") else 1,
        bias=options.get("bias", False),
    )
    layer.load_state_dict(mixer.conv.state_dict())
    image = torch.randn(2, dim, 7, 6)
    expected = layer(image)
    actual = mixer(image.flatten(2).transpose(1, 2), grid)
    torch.testing.assert_close(actual.transpose(1, 2).unflatten(2, expected.shape[2:]), expected)


def test_a_depthwise_convolution_mixes_no_channels(randomize):
    grid = TokenGrid(3, 4)
    mixer = randomize(create_mixer("convolution", 4, grid, depthwise=True))
    x = torch.randn(1, grid.tokens, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(mixer(x, grid)[..., 1].sum(), x)
    assert gradient[..., 1].any()
    assert not gradient[..., [0, 2, 3]].any()
    assert mixer.conv.weight.shape == (4, 1, 3, 3)


def test_its_default_is_resnets_convolution():
    mixer = create_mixer("convolution", 4, TokenGrid(3, 4))
    assert mixer.conv.weight.shape == (4, 4, 3, 3)
    assert mixer.conv.bias is None
    assert mixer.stride == 1
    assert "stride" in MIXERS.spec("convolution").given


def test_heads_have_no_meaning_for_it():
    one = create_mixer("convolution", 6, TokenGrid(3, 4), 1)
    four = create_mixer("convolution", 6, TokenGrid(3, 4), 4)
    four.load_state_dict(one.state_dict())
    x = torch.randn(1, 12, 6)
    assert torch.equal(one(x, TokenGrid(3, 4)), four(x, TokenGrid(3, 4)))


def test_another_grid_of_as_many_tokens_has_other_neighbours(randomize):
    mixer = randomize(create_mixer("convolution", 4, TokenGrid(3, 4)))
    x = torch.randn(1, 12, 4)
    weight = mixer.conv.weight
    for grid in (TokenGrid(4, 3), TokenGrid(2, 6), TokenGrid(12, 1)):
        image = x.transpose(1, 2).unflatten(2, grid[:2])
        expected = F.conv2d(image, weight, padding=1).flatten(2).transpose(1, 2)
        torch.testing.assert_close(mixer(x, grid), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 2}, "kernel_size is odd, 1 or more, not 2"),
        ({"kernel_size": 0}, "kernel_size is odd, 1 or more, not 0"),
        ({"kernel_size": -1}, "kernel_size is odd, 1 or more, not -1"),
        ({"kernel": 3}, "'convolution' has no option 'kernel'. Did you mean 'kernel_size'"),
        ({"stride": 2}, "'convolution' has no option 'stride'"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        create_mixer("convolution", 4, TokenGrid(2, 3), **options)
    assert "\n" not in str(error.value)
