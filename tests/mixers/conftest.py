"""What the mixers' tests share: one table of tolerances and the comparison with an oracle."""

from collections.abc import Callable

import pytest
import torch
from formulas import randomized
from torch import Tensor

from mixers import TokenGrid, TokenMixer

TOLERANCES = {  # of the reference's largest value, or of 0.01 where that is smaller
    torch.float64: 1e-11,  # the same sums in another order
    torch.float32: 1e-5,
    torch.bfloat16: 3e-2,  # 8 bits of mantissa, rounded at every layer
}

Oracle = Callable[[TokenMixer, Tensor, TokenGrid], Tensor]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    """Equal up to the tolerance of ``dtype``, relative to the largest expected value."""

    def check(
        actual: Tensor, expected: Tensor, dtype: torch.dtype = torch.float64, what: str = "values"
    ) -> None:
        assert actual.shape == expected.shape, f"{what}: {actual.shape} for {expected.shape}"
        worst = (actual.double() - expected.double()).abs().max().item()
        allowed = TOLERANCES[dtype] * max(expected.abs().max().item(), 0.01)
        assert worst <= allowed, (
            f"{what} differ by {worst:.3g}, {allowed:.3g} are allowed ({dtype})"
        )

    return check


@pytest.fixture(scope="session")
def randomize() -> Callable[[torch.nn.Module], torch.nn.Module]:
    """Every parameter far from its initial value, so that no part of the formula is silent."""

    return randomized


@pytest.fixture(scope="session")
def assert_matches_oracle(assert_close, randomize) -> Callable[..., None]:
    """Values and the gradients of the input and of every parameter, in float64."""

    def check(mixer: TokenMixer, oracle: Oracle, grid: TokenGrid) -> None:
        mixer = randomize(mixer.double())
        x = torch.randn(2, grid.tokens, mixer.dim, dtype=torch.float64, requires_grad=True)
        weights = torch.randn(2, grid.tokens, mixer.dim, dtype=torch.float64)
        names = ["the input", *dict(mixer.named_parameters())]
        wanted = [x, *mixer.parameters()]
        actual, expected = mixer(x, grid), oracle(mixer, x, grid)
        assert_close(actual, expected)
        of_mixer = torch.autograd.grad((actual * weights).sum(), wanted)
        of_oracle = torch.autograd.grad((expected * weights).sum(), wanted)
        for name, one, other in zip(names, of_mixer, of_oracle, strict=True):
            assert_close(one, other, what=f"gradients of {name}")

    return check
