"""Mergings against their formulas, one output position at a time."""

import copy
import math
from itertools import product

import pytest
import torch
from formulas import assert_same, randomized
from torch import Tensor, nn
from torch.nn import functional as F

from mixerbench.models.part_kinds import MERGINGS

HALF = {torch.float16: 1e-2, torch.bfloat16: 5e-2}  # of the largest float32 value
KERNEL = list(enumerate(product(range(2), repeat=2)))  # (number, (row, column)), row by row


def _deformable(in_dim: int = 3, out_dim: int = 4, offsets: float = 1.0) -> nn.Module:
    merging = randomized(MERGINGS.create("deformable", in_dim, out_dim).double())
    with torch.no_grad():
        merging.offset.weight *= offsets
        merging.offset.bias *= offsets
    return merging


def bilinear(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """(C,): the four pixels around (y, x), by their nearness; pixels outside are zero."""
    total = torch.zeros(len(image), dtype=image.dtype)
    top, left = math.floor(y.detach()), math.floor(x.detach())
    for row, column in product((top, top + 1), (left, left + 1)):
        if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
            total = total + (1 - abs(y - row)) * (1 - abs(x - column)) * image[:, row, column]
    return total


def sampling_points(merging: nn.Module, image: Tensor, i: int, j: int) -> list[tuple]:
    """The (y, x) that each kernel position of output (i, j) reads, row by row."""
    window = image[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
    offsets = [(merging.offset.weight[o] * window).sum() + merging.offset.bias[o] for o in range(8)]
    return [(2 * i + a + offsets[2 * k], 2 * j + c + offsets[2 * k + 1]) for k, (a, c) in KERNEL]


def convolved(merging: nn.Module, images: Tensor) -> Tensor:
    """(B * H * W, C): the deformable convolution alone."""
    positions = product(range(len(images)), *(range(side // 2) for side in images.shape[2:]))
    merged = []
    for b, i, j in positions:
        points = sampling_points(merging, images[b], i, j)
        total = merging.conv.bias
        for k, (a, c) in KERNEL:
            total = total + merging.conv.weight[:, :, a, c] @ bilinear(images[b], *points[k])
        merged.append(total)
    return torch.stack(merged)


def oracle(merging: nn.Module, images: Tensor) -> Tensor:
    """Deformable convolution, BatchNorm, exact GELU, as sums."""
    x = convolved(merging, images)
    norm = merging.norm
    mean, var = norm.running_mean, norm.running_var
    if merging.training:
        mean = x.mean(dim=0)
        var = (x - mean).square().mean(dim=0)
    x = (x - mean) / torch.sqrt(var + 1e-5) * norm.weight + norm.bias
    x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    height, width = (side // 2 for side in images.shape[2:])
    return x.reshape(len(images), height, width, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("height_width", [(4, 6), (8, 2), (5, 7)], ids=str)
def test_deformable_merging_is_the_formula_and_so_are_its_gradients(training, height_width):
    merging = _deformable().train(training)
    images = torch.randn(2, 3, *height_width, dtype=torch.float64, requires_grad=True)
    expected = oracle(merging, images)
    actual = merging(images)
    assert_same(actual, expected)
    weights = torch.randn_like(expected)
    wanted = [images, *merging.parameters()]
    ours = torch.autograd.grad((actual * weights).sum(), wanted)
    theirs = torch.autograd.grad((expected * weights).sum(), wanted)
    for one, other in zip(ours, theirs, strict=True):
        assert_same(one, other)


def test_the_cases_above_read_inside_on_the_edge_and_outside_of_the_image():
    merging = _deformable()
    images = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    seen = {"inside": 0, "fading": 0, "outside": 0}
    for b, i, j in product(range(2), range(2), range(3)):
        for y, x in sampling_points(merging, images[b], i, j):
            beyond = max(-y, y - 3, -x, x - 5)
            place = "inside" if beyond <= 0 else "fading" if beyond < 1 else "outside"
            seen[place] += 1
    assert min(seen.values()) > 2, seen


def test_deformable_merging_keeps_the_statistics_of_its_batches():
    merging = _deformable().train()
    mean, var = merging.norm.running_mean.clone(), merging.norm.running_var.clone()
    images = torch.randn(3, 3, 4, 6, dtype=torch.float64)
    merging(images)
    x = convolved(merging, images)
    assert_same(merging.norm.running_mean, 0.9 * mean + 0.1 * x.mean(dim=0))
    assert_same(merging.norm.running_var, 0.9 * var + 0.1 * x.var(dim=0))


def test_autograd_agrees_with_finite_differences_away_from_the_kinks():
    """Bilinear sampling has a kink at every whole pixel: all points keep away from them."""
    merging = _deformable(2, 2, offsets=0.02).eval()
    with torch.no_grad():
        merging.offset.bias.copy_(torch.tensor([0.4, -0.3, 1.5, 0.6, -1.4, 0.35, -0.5, 2.4]))
    images = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    for i, j in product(range(2), repeat=2):
        for point in sampling_points(merging, images[0], i, j):
            assert all(0.1 < value.detach() % 1 < 0.9 for value in point)
    names = list(dict(merging.named_parameters()))

    def merge(image: Tensor, *parameters: Tensor) -> Tensor:
        weights = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(merging, weights, (image,))

    assert torch.autograd.gradcheck(merge, (images, *merging.parameters()), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("shift", [(0, 1), (1, 0), (-1, 2), (-3, 0)], ids=str)
def test_offsets_are_rows_then_columns_in_pixels_of_the_input(shift):
    """The same whole offset everywhere is a plain convolution of the moved image."""
    down, right = shift
    merging = _deformable(offsets=0.0).eval()
    with torch.no_grad():
        merging.offset.bias.copy_(torch.tensor([down, right], dtype=torch.float64).repeat(4))
    images = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    around = F.pad(images, (3, 3, 3, 3))
    moved = around[:, :, 3 + down : 9 + down, 3 + right : 11 + right]
    assert_same(merging(images), F.gelu(merging.norm(merging.conv(moved))))


@pytest.mark.parametrize("position", range(4))
def test_each_kernel_position_has_its_own_offset(position):
    merging = _deformable(offsets=0.0).eval()
    with torch.no_grad():
        merging.offset.bias[2 * position : 2 * position + 2] = 1e6  # so far out that it reads zero
    images = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    weight = merging.conv.weight.detach().clone()
    weight[:, :, position // 2, position % 2] = 0
    expected = F.conv2d(images, weight, merging.conv.bias, stride=2)
    assert_same(merging(images), F.gelu(merging.norm(expected)))


def test_deformable_merging_starts_as_a_plain_convolution():
    merging = MERGINGS.create("deformable", 3, 4).double()
    assert not merging.offset.weight.any()
    assert not merging.offset.bias.any()
    images = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    expected = F.conv2d(images, merging.conv.weight, merging.conv.bias, stride=2)
    mean, var = expected.mean(dim=(0, 2, 3)), expected.var(dim=(0, 2, 3), unbiased=False)
    expected = (expected - mean[:, None, None]) / torch.sqrt(var + 1e-5)[:, None, None]
    assert_same(merging(images), F.gelu(expected))


def test_offsets_learn_from_the_first_step():
    merging = MERGINGS.create("deformable", 3, 4)
    merging(torch.randn(2, 3, 4, 6)).square().sum().backward()
    assert merging.offset.weight.grad.abs().max() > 0
    assert merging.offset.bias.grad.abs().max() > 0


def test_inside_the_border_a_moved_image_gives_moved_tokens():
    merging = _deformable(offsets=0.2).eval()
    image = torch.randn(1, 3, 12, 12, dtype=torch.float64)
    moved = torch.roll(image, (2, 4), dims=(2, 3))
    here, there = merging(image), merging(moved)
    assert_same(there[:, :, 3:5, 4:5], here[:, :, 2:4, 2:3])


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", MERGINGS.names())
def test_half_precision_stays_near_single(name, dtype):
    merging = randomized(MERGINGS.create(name, 8, 16), 0.2).eval()
    images = torch.randn(2, 8, 8, 12)
    with torch.no_grad():
        expected = merging(images)
        actual = copy.deepcopy(merging).to(dtype)(images.to(dtype))
    assert actual.dtype == dtype
    assert (actual.float() - expected).abs().max() <= HALF[dtype] * expected.abs().max()


@pytest.mark.parametrize("name", MERGINGS.names())
def test_half_precision_trains(name):
    merging = randomized(MERGINGS.create(name, 8, 16), 0.2).bfloat16()
    merging(torch.randn(2, 8, 8, 12, dtype=torch.bfloat16)).float().square().sum().backward()
    for path, parameter in merging.named_parameters():
        assert parameter.grad.isfinite().all(), path


@pytest.mark.parametrize("name", MERGINGS.names())
def test_bfloat16_autocast_stays_near_float32(name):
    merging = randomized(MERGINGS.create(name, 8, 16), 0.2).eval()
    images = torch.randn(2, 8, 8, 12)
    with torch.no_grad():
        expected = merging(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = merging(images)
    assert (actual.float() - expected).abs().max() <= 5e-2 * expected.abs().max()


def test_patch_merging_is_norm_and_projection_of_four_tokens():
    merging = randomized(MERGINGS.create("patch", 3, 5).double())
    images = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    actual = merging(images)
    for b, i, j in product(range(2), range(2), range(3)):
        four = [images[b, :, 2 * i + a, 2 * j + c] for c, a in product(range(2), repeat=2)]
        values = torch.cat(four)  # each pixel's channels, column by column
        mean = values.sum() / 12
        var = (values - mean).square().sum() / 12
        normed = (values - mean) / torch.sqrt(var + 1e-5) * merging.norm.weight + merging.norm.bias
        assert_same(actual[b, :, i, j], merging.reduction.weight @ normed)
    assert merging.reduction.bias is None


def test_average_merging_is_the_projection_of_the_mean_of_four_tokens():
    merging = randomized(MERGINGS.create("average", 3, 5).double())
    images = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    actual = merging(images)
    for b, i, j in product(range(2), range(2), range(3)):
        mean = sum(images[b, :, 2 * i + a, 2 * j + c] for _, (a, c) in KERNEL) / 4
        assert_same(actual[b, :, i, j], merging.proj.weight[:, :, 0, 0] @ mean + merging.proj.bias)


@pytest.mark.parametrize("name", MERGINGS.names())
def test_every_merging_halves_the_map_and_changes_its_width(name):
    merging = MERGINGS.create(name, 6, 10)
    tokens = torch.randn(2, 4 * 8, 6)
    images = tokens.transpose(1, 2).unflatten(2, (4, 8))  # a view, as in the pyramid
    assert merging(images).shape == (2, 10, 2, 4)
    assert "arXiv:" in MERGINGS.get(name).paper or "ablation" in MERGINGS.get(name).paper


@pytest.mark.parametrize("name", MERGINGS.names())
def test_every_parameter_of_a_merging_gets_a_gradient(name):
    merging = MERGINGS.create(name, 6, 10)
    y = merging(torch.randn(2, 6, 4, 8))
    (y * torch.randn_like(y)).sum().backward()
    for path, parameter in merging.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, path


@pytest.mark.parametrize("name", MERGINGS.names())
def test_a_token_is_merged_from_its_own_four_while_no_offset_is_learned(name):
    merging = MERGINGS.create(name, 3, 4).double().eval()
    images = torch.randn(1, 3, 6, 8, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(merging(images)[0, :, 1, 2].sum(), images)
    if name == "deformable":  # the derivative by the offsets also reads the neighbouring pixels
        assert not gradient[:, :, :, :3].any() and not gradient[:, :, :, 7:].any()
        return
    seen = gradient[0].ne(0).any(0)
    assert seen.sum() == 4 and seen[2:4, 4:6].all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"backbone": "pyramid", "merging": "deformable"},
            [f"stages.{i}.merging.offset.weight" for i in (1, 2, 3)],
        ),
        ({"backbone": "pyramid", "merging": "patch"}, []),
        ({"backbone": "pyramid", "merging": "average"}, []),
        ({"backbone": "resnet"}, []),
        ({"backbone": "vit"}, []),
    ],
    ids=str,
)
def test_offset_parameters_are_the_weights_of_the_offset_convolutions(options, expected, micro):
    model = micro(image_size=(32, 64), **options)
    assert model.offset_parameters() == set(expected)
    assert set(expected) <= dict(model.named_parameters()).keys()
