"""The attention stem against SASA's formula; ResNet's stem; a norm after patches."""

import copy
import math
from itertools import product

import pytest
import torch
import torchvision
from formulas import assert_same, randomized
from torch import Tensor, nn
from torch.nn import functional as F

from mixerbench.models.part_kinds import STEMS

HALF = {torch.float16: 2e-2, torch.bfloat16: 8e-2}  # of the largest float32 value


def _stem(
    in_chans: int = 3, dim: int = 8, patch_size: int = 2, heads: int = 2, mixtures: int = 4
) -> nn.Module:
    options = {"patch_size": patch_size, "num_heads": heads, "mixtures": mixtures}
    return randomized(STEMS.create("attention", in_chans, dim, **options).double(), 0.7)


def attended(stem: nn.Module, images: Tensor) -> Tensor:
    """(B, C, height, width): y_ij = Σ_ab softmax_ab(q_ij · k_ab) ṽ_ab in each patch.

    ṽ_ab = Σ_m p(a, b, m) W^m x_ab, p(a, b, ·) = softmax_m((row(a) + column(b)) · ν^m).
    """
    side, heads, mixtures = stem.patch_size, stem.num_heads, stem.mixtures
    dim = stem.row.shape[1]
    d = dim // heads
    w_query, w_key = stem.qk.weight[:dim], stem.qk.weight[dim:]
    w_value = [stem.v.weight[m * dim : (m + 1) * dim] for m in range(mixtures)]
    samples, _, height, width = images.shape
    places = list(product(range(side), repeat=2))
    value_matrices = []
    for a, b in places:
        logits = [(stem.row[a] + stem.column[b]) @ stem.mixture[m] for m in range(mixtures)]
        total = sum(torch.exp(logit) for logit in logits)
        shares = [torch.exp(logit) / total for logit in logits]
        value_matrices.append(sum(shares[m] * w_value[m] for m in range(mixtures)))
    result = {}
    for n, top, left in product(range(samples), range(0, height, side), range(0, width, side)):
        pixels = [images[n, :, top + a, left + b] for a, b in places]
        keys = torch.stack([w_key @ pixel for pixel in pixels])
        values = torch.stack(
            [matrix @ pixel for matrix, pixel in zip(value_matrices, pixels, strict=True)]
        )
        for (a, b), pixel in zip(places, pixels, strict=True):
            query, mixed = w_query @ pixel, []
            for head in range(heads):
                part = slice(head * d, (head + 1) * d)
                weights = torch.exp(keys[:, part] @ query[part])
                mixed.append(weights @ values[:, part] / weights.sum())
            result[n, top + a, left + b] = torch.cat(mixed)
    positions = product(range(samples), range(height), range(width))
    image = torch.stack([result[position] for position in positions])
    return image.reshape(samples, height, width, dim).permute(0, 3, 1, 2)


def oracle(stem: nn.Module, images: Tensor) -> Tensor:
    """Attention, BatchNorm over every pixel, the maximum of each patch."""
    x, norm, side = attended(stem, images), stem.norm, stem.patch_size
    mean, var = norm.running_mean, norm.running_var
    if stem.training:
        mean = x.mean(dim=(0, 2, 3))
        var = (x - mean[:, None, None]).square().mean(dim=(0, 2, 3))
    scale = norm.weight / torch.sqrt(var + 1e-5)
    x = (x - mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
    H, W = images.shape[2] // side, images.shape[3] // side
    tokens = [
        x[:, :, i * side : (i + 1) * side, j * side : (j + 1) * side].flatten(2).max(dim=2).values
        for i, j in product(range(H), range(W))
    ]
    return torch.stack(tokens, dim=2).unflatten(2, (H, W))


CASES = {  # in_chans, dim, patch_size, heads, mixtures, (height, width) in patches
    "patches of one pixel": (3, 8, 1, 2, 4, (2, 3)),
    "patches of 2": (3, 8, 2, 2, 4, (3, 2)),
    "patches of 3": (3, 8, 3, 2, 4, (1, 3)),
    "patches of 4, four heads as in the paper": (3, 8, 4, 4, 4, (2, 1)),
    "patches of 8": (3, 4, 8, 1, 4, (1, 2)),
    "grey images": (1, 8, 2, 2, 4, (2, 3)),
    "one head": (3, 6, 2, 1, 4, (2, 3)),
    "heads of one channel": (3, 4, 2, 4, 4, (2, 3)),
    "one value matrix": (3, 8, 2, 2, 1, (2, 3)),
    "more value matrices than places": (3, 4, 1, 2, 5, (2, 3)),
    "grey, one head, one value matrix": (1, 4, 3, 1, 1, (2, 1)),
}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("case", CASES)
def test_is_the_papers_formula_and_so_are_its_gradients(case, training):
    in_chans, dim, side, heads, mixtures, (rows, columns) = CASES[case]
    stem = _stem(in_chans, dim, side, heads, mixtures).train(training)
    images = torch.randn(
        2, in_chans, rows * side, columns * side, dtype=torch.float64, requires_grad=True
    )
    expected = oracle(stem, images)
    actual = stem(images)
    assert actual.shape == (2, dim, rows, columns)
    assert_same(actual, expected)
    weights = torch.randn_like(expected)
    wanted = [images, *stem.parameters()]
    ours = torch.autograd.grad((actual * weights).sum(), wanted)
    theirs = torch.autograd.grad((expected * weights).sum(), wanted)
    for one, other in zip(ours, theirs, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("side", [1, 2, 4])
def test_norm_and_maximum_are_resnets_modules_on_the_assembled_image(side):
    stem = _stem(patch_size=side).train()
    norm, pool = copy.deepcopy(stem.norm), nn.MaxPool2d(side)
    images = torch.randn(2, 3, 2 * side, 3 * side, dtype=torch.float64)
    image = attended(stem, images)
    assert_same(stem(images), pool(norm(image)))
    assert_same(stem.norm.running_mean, norm.running_mean)
    assert_same(stem.norm.running_var, norm.running_var)
    assert_same(stem.eval()(images), pool(norm.eval()(image)))


def test_with_equal_value_matrices_it_is_plain_attention():
    stem = _stem(dim=8, patch_size=3, heads=2).eval()
    with torch.no_grad():
        matrix = stem.v.weight[:8].clone()
        stem.v.weight.copy_(matrix.repeat(4, 1))
        stem.norm.reset_running_stats()
        stem.norm.reset_parameters()
    images = torch.randn(2, 3, 6, 9, dtype=torch.float64)
    actual = stem(images)
    for i, j in product(range(2), range(3)):
        pixels = images[:, :, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3].flatten(2).transpose(1, 2)
        parts = [F.linear(pixels, w) for w in (stem.qk.weight[:8], stem.qk.weight[8:], matrix)]
        q, k, v = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in parts)
        y = (q @ k.transpose(2, 3)).softmax(dim=-1) @ v
        y = y.transpose(1, 2).flatten(2).amax(dim=1)
        assert_same(actual[:, :, i, j], y / math.sqrt(1 + 1e-5))


def test_one_mixture_does_not_look_at_its_place():
    stem = _stem(mixtures=1).eval()
    images = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    before = stem(images)
    with torch.no_grad():
        stem.row += 1.0
        stem.mixture *= -2.0
    assert torch.equal(stem(images), before)


def test_places_matter_and_rows_are_not_columns():
    stem = _stem(patch_size=3).eval()
    images = torch.randn(2, 3, 3, 6, dtype=torch.float64)
    turned = images.unflatten(3, (2, 3)).transpose(2, 4).flatten(3)  # each patch transposed
    there = stem(turned)
    assert not torch.allclose(there, stem(images))
    with torch.no_grad():
        row = stem.row.clone()
        stem.row.copy_(stem.column)
        stem.column.copy_(row)
    assert_same(stem(images), there)


def test_a_patch_sees_its_own_pixels_only():
    stem = _stem().eval()
    images = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(stem(images)[0, :, 1, 2].sum(), images)
    seen = gradient.ne(0).any(1)
    assert seen[0, 2:4, 4:6].all()
    assert seen.sum() == 4


def test_any_memory_layout_gives_the_same_tokens():
    stem = _stem().eval()
    images = torch.randn(2, 3, 4, 12, dtype=torch.float64)[:, :, :, ::2]
    expected = stem(images.contiguous())
    assert_same(stem(images), expected)
    assert_same(stem(images.contiguous(memory_format=torch.channels_last)), expected)


def test_the_value_matrices_differ_from_the_start():
    torch.manual_seed(0)
    stem = STEMS.create("attention", 3, 64, patch_size=4)
    place = (stem.row[:, None] + stem.column).flatten(0, 1)
    logits = place @ stem.mixture.T
    assert 0.5 < logits.std() < 2.0


def test_tables_take_no_weight_decay(micro):
    model = micro(stem={"name": "attention", "patch_size": 8})
    tables = {f"stem.{name}" for name in ("row", "column", "mixture")}
    assert tables <= model.no_weight_decay()
    assert tables <= dict(model.named_parameters()).keys()


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", STEMS.names())
def test_half_precision_stays_near_single(name, dtype):
    stem = randomized(STEMS.create(name, 3, 16, patch_size=4), 0.4).eval()
    images = torch.randn(2, 3, 8, 12)
    with torch.no_grad():
        expected = stem(images)
        actual = copy.deepcopy(stem).to(dtype)(images.to(dtype))
    assert actual.dtype == dtype
    assert (actual.float() - expected).abs().max() <= HALF[dtype] * expected.abs().max()


@pytest.mark.parametrize("name", STEMS.names())
def test_bfloat16_autocast_stays_near_float32(name):
    stem = randomized(STEMS.create(name, 3, 16, patch_size=4), 0.4).eval()
    images = torch.randn(2, 3, 8, 12)
    with torch.no_grad():
        expected = stem(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = stem(images)
    worst = (actual.float() - expected).abs().max()
    assert worst <= HALF[torch.bfloat16] * expected.abs().max()


# --- ResNet's stem ------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_the_conv_stem_can_be_resnets(training):
    resnet = randomized(torchvision.models.resnet18().double(), 0.1)
    theirs = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
    ours = STEMS.create(
        "conv", 3, 64, patch_size=4, kernel_size=7, max_pool=True, project=False
    ).double()
    ours.layers.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    actual, expected = ours.train(training)(images), theirs.train(training)(images)
    assert torch.equal(actual, expected)
    for one, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert torch.equal(one, other)
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("max_pool", [False, True])
@pytest.mark.parametrize("project", [False, True])
def test_the_conv_stem_keeps_tokens_and_width_with_every_option(kernel_size, max_pool, project):
    options = {"kernel_size": kernel_size, "max_pool": max_pool, "project": project}
    stem = STEMS.create("conv", 3, 24, patch_size=8, **options)
    assert stem(torch.randn(2, 3, 16, 40)).shape == (2, 24, 2, 5)
    convolutions = [m for m in stem.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 3 - max_pool + project
    assert all(m.kernel_size == (kernel_size, kernel_size) for m in convolutions[: 3 - max_pool])
    assert any(isinstance(m, nn.MaxPool2d) for m in stem.modules()) == max_pool


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("conv", {"patch_size": 12}, "patches of 12 pixels"),
        ("conv", {"patch_size": 4, "kernel_size": 4}, "kernel_size is odd, 1 or more, not 4"),
        ("conv", {"patch_size": 4, "kernel_size": 0}, "kernel_size is odd, 1 or more, not 0"),
        ("conv", {"patch_size": 4, "kernel_size": -3}, "kernel_size is odd, 1 or more, not -3"),
        ("conv", {"patch_size": 1, "max_pool": True}, "no convolution left for patches of 1"),
        ("conv", {"patch_size": 1, "project": False}, "no convolution left for patches of 1"),
        (
            "conv",
            {"patch_size": 2, "max_pool": True, "project": False},
            "no convolution left for patches of 2",
        ),
        ("attention", {"patch_size": 4, "num_heads": 3}, "splits 8 channels among 3 heads"),
        ("attention", {"patch_size": 4, "heads": 2}, "has no option 'heads'"),
        pytest.param(
            "attention",
            {"patch_size": 4, "num_heads": 0},
            "num_heads",
        ),
        pytest.param(
            "attention",
            {"patch_size": 4, "mixtures": 0},
            "mixtures",
        ),
    ],
    ids=str,
)
def test_a_stem_refuses_what_it_cannot_be_in_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        STEMS.create(name, 3, 8, **options)
    assert "\n" not in str(error.value)


# --- a norm after patches -----------------------------------------------------------------------


def test_the_norm_of_the_patch_stem_is_over_the_channels_of_each_token():
    stem = randomized(STEMS.create("patch", 3, 8, patch_size=2, norm=True).double())
    images = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    features, plain = stem(images), stem.proj(images)
    for n, i, j in product(range(2), range(2), range(3)):
        token = plain[n, :, i, j]
        mean = token.sum() / 8
        var = (token - mean).square().sum() / 8
        normed = (token - mean) / torch.sqrt(var + 1e-5)
        assert_same(features[n, :, i, j], normed * stem.norm.weight + stem.norm.bias)


def test_the_patch_stem_has_no_norm_unless_it_is_asked_for():
    stem = STEMS.create("patch", 3, 8, patch_size=2)
    assert set(dict(stem.named_parameters())) == {"proj.weight", "proj.bias"}
