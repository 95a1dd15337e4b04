"""Stems: both cut an image into the same number of tokens, in the same order."""

from itertools import product

import pytest
import torch
from torch import nn

from mixerbench.models.part_kinds import STEMS


def _build(name: str, dim: int = 16, patch_size: int = 4) -> nn.Module:
    return STEMS.create(name, 3, dim, patch_size=patch_size)


def test_a_token_of_the_patch_stem_is_the_projection_of_its_own_pixels():
    stem, images = _build("patch").double(), torch.randn(2, 3, 8, 12, dtype=torch.float64)
    features = stem(images)
    assert features.shape == (2, 16, 2, 3)
    for b, i, j in product(range(2), range(2), range(3)):
        pixels = images[b, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
        token = [(stem.proj.weight[c] * pixels).sum() + stem.proj.bias[c] for c in range(16)]
        torch.testing.assert_close(features[b, :, i, j], torch.stack(token))


@pytest.mark.parametrize("patch_size", [1, 2, 4, 8, 16, 32])
def test_the_conv_stem_gives_as_many_tokens_as_the_patch_stem(patch_size):
    images = torch.randn(2, 3, 2 * patch_size, 3 * patch_size)
    for name in ("patch", "conv"):
        assert _build(name, patch_size=patch_size)(images).shape == (2, 16, 2, 3)


@pytest.mark.parametrize("patch_size", [3, 6, 12, 14, 24])
def test_the_conv_stem_refuses_a_patch_that_is_no_power_of_two(patch_size):
    with pytest.raises(ValueError, match=f"patches of {patch_size} pixels") as error:
        _build("conv", patch_size=patch_size)
    assert "\n" not in str(error.value)
    _build("patch", patch_size=patch_size)


def test_the_conv_stem_doubles_its_channels_up_to_the_width():
    convolutions = [m for m in _build("conv", 64, 16).modules() if isinstance(m, nn.Conv2d)]
    *halving, projection = convolutions
    assert [m.out_channels for m in halving] == [8, 16, 32, 64]
    assert {(m.kernel_size, m.stride, m.padding) for m in halving} == {((3, 3), (2, 2), (1, 1))}
    assert (projection.kernel_size, projection.out_channels) == ((1, 1), 64)


def test_every_halving_of_the_conv_stem_is_normalised_and_rectified():
    layers = [type(layer) for layer in _build("conv", 64, 16).layers]
    assert layers == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 4


@pytest.mark.parametrize("name", STEMS.names())
def test_a_stem_declares_its_paper(name):
    assert "arXiv:" in STEMS.get(name).paper


@pytest.mark.parametrize("name", STEMS.names())
def test_a_stem_takes_images_with_any_number_of_channels(name, micro):
    model = micro(stem=name, in_chans=1)
    assert model(torch.randn(2, 1, 32, 48)).shape == (2, 7)


@pytest.mark.parametrize("name", STEMS.names())
def test_the_patch_size_is_said_once_or_in_the_stems_own_options(name, micro):
    by_model = micro(stem=name, patch_size=8)
    by_stem = micro(stem={"name": name, "patch_size": 8})
    assert by_model.grid == by_stem.grid == (4, 6, 0)
