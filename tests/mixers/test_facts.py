"""The facts that every mixer declares, and what follows from them."""

import math

import pytest
import torch
from torch import Tensor, nn

from mixerbench.measure.flops import CountingError, count_macs
from mixerbench.models import create_model
from mixers import MIXERS, TokenGrid, TokenMixer, list_mixers, register_mixer
from mixers.core.conformance import NonconformingMixer, check_mixer
from mixers.core.contract import as_image, as_tokens

BUILT_IN = list_mixers()
SIDE, DIM = 4, 64  # of vit micro on 16 x 16 pixels in patches of 4


class Fourier(TokenMixer):
    """The real part of a Fourier transform over the tokens (FNet)."""

    family = "fourier"
    complexity = "N log N"
    any_grid = mixes_prefix = True
    paper = "arXiv:2105.03824"

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        return torch.view_as_real(torch.fft.fft(x, dim=1))[..., 0]


class CountedFourier(Fourier):
    operators = {"aten::fft_fft": "fft_macs", "aten::view_as_real": "no_macs"}  # noqa: RUF012

    @staticmethod
    def fft_macs(inputs: list, outputs: list) -> int:
        """2.5 N log N of each channel, as a Cooley-Tukey transform of real numbers."""
        samples, tokens, channels = inputs[0]
        assert outputs == [list(inputs[0])]
        return round(2.5 * samples * channels * tokens * math.log2(tokens))

    @staticmethod
    def no_macs(inputs: list, outputs: list) -> int:
        return 0


def _micro(mixer: str, **options: object) -> nn.Module:
    given = {"size": "micro", "image_size": 16, "patch_size": 4, "num_classes": 3}
    return create_model(mixer, **given | options)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_mixer_declares_its_family_and_its_growth(name: str) -> None:
    facts = MIXERS.facts(name)
    assert facts["family"] != "other"
    assert facts["complexity"]
    assert (facts["family"] == "none") == (not facts["mixes_tokens"])
    assert not facts["mixes_channels"]
    assert not facts["batch_statistics"]


def test_an_operator_that_no_counter_knows_is_refused(clean_registry: None) -> None:
    register_mixer("fourier_uncounted")(Fourier)
    with pytest.raises(CountingError, match=r"aten::fft_fft.*Declare a formula"):
        count_macs(_micro("fourier_uncounted"), 16)


def test_it_is_counted_by_the_formula_that_its_mixer_declares(clean_registry: None) -> None:
    register_mixer("fourier_counted")(CountedFourier)
    count = count_macs(_micro("fourier_counted"), 16)
    tokens = SIDE**2
    expected = 4 * round(2.5 * DIM * tokens * math.log2(tokens))
    assert count.by_operator["fft_fft"] == expected
    assert count.total - expected == count_macs(_micro("none"), 16).total
    assert count.by_module["blocks.0.mixer"] == expected // 4


def test_a_formula_for_a_known_operator_is_refused(clean_registry: None) -> None:
    class Linear(CountedFourier):
        operators = {"aten::linear": "no_macs"}  # noqa: RUF012

    register_mixer("fourier_linear")(Linear)
    with pytest.raises(CountingError, match="declares a formula for aten::linear"):
        count_macs(_micro("fourier_linear"), 16)


class Centred(TokenMixer):
    """Minus the mean of the batch, in training."""

    any_grid = mixes_prefix = True
    paper = ""

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        x = x - x.mean(0, keepdim=True) if self.training else x
        return x + x.mean(1, keepdim=True)


def test_batch_statistics_are_refused_unless_they_are_declared() -> None:
    class Declared(Centred):
        batch_statistics = True

    check_mixer(Declared(8, TokenGrid(3, 4), 1))
    with pytest.raises(NonconformingMixer, match="batch independence in training"):
        check_mixer(Centred(8, TokenGrid(3, 4), 1))


def test_tokens_and_images_are_two_views_of_one_thing() -> None:
    grid = TokenGrid(2, 3, prefix=1)
    x = torch.randn(2, grid.tokens, 5)
    image = as_image(x, grid)
    assert image.shape == (2, 5, 2, 3)
    assert torch.equal(image[:, :, 1, 2], x[:, 1 + 5])
    assert torch.equal(as_tokens(image), x[:, 1:])
