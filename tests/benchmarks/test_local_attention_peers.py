"""The peers of local attention that only a GPU can run: their numbers, without their kernels."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixers import TokenGrid, create_mixer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def na2d(query: Tensor, key: Tensor, value: Tensor, *, kernel_size: int, scale: float) -> Tensor:
    """Neighbourhood attention (arXiv:2204.07143): windows that would leave the grid move in."""
    height, width = query.shape[1:3]

    def neighbours(length: int) -> Tensor:
        place = torch.arange(length)
        first = (place - kernel_size // 2).clamp(0, length - kernel_size)[:, None]
        return (place >= first) & (place < first + kernel_size)

    window = neighbours(height)[:, None, :, None] & neighbours(width)[None, :, None, :]
    logits = scale * torch.einsum("bijhd,byxhd->bhijyx", query, key)
    weights = logits.masked_fill(~window, -torch.inf).flatten(-2).softmax(-1)
    return torch.einsum("bhijyx,byxhd->bijhd", weights.unflatten(-1, (height, width)), value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("peer", ["natten", "flex"])
@pytest.mark.parametrize(("window", "grid"), [(3, (5, 4)), (5, (5, 9)), (7, (14, 8))])
def test_computes_what_ours_does(peer, window, grid, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delitem(sys.modules, "local_attention", raising=False)
    import local_attention

    grid = TokenGrid(*grid)
    mixer = create_mixer("local_attention", 12, grid, 3, window=window, border="masked")
    for parameter in mixer.double().parameters():
        torch.nn.init.normal_(parameter)
    forward = {
        "natten": lambda: local_attention.natten(mixer, grid, na2d),
        "flex": lambda: local_attention.flex(mixer, grid, compiled=False),
    }[peer]()
    x = torch.randn(2, grid.tokens, 12, dtype=torch.float64)
    with torch.no_grad():  # PyTorch has no backward pass of flex_attention on a CPU
        torch.testing.assert_close(forward(x), mixer(x, grid), rtol=1e-9, atol=1e-9)
