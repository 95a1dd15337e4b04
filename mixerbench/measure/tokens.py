"""A single mixer layer as a function of its tokens: what it costs, and how far it looks.

Axis letters: B batch, N tokens (row by row, no prefix), C channels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from mixerbench.measure.flops import count_macs
from mixers import MIXERS, TokenGrid, TokenMixer, create_mixer

DIM: Final = 192
HEADS: Final = 3
"""The width and heads of size tiny: at 14 x 14 tokens a layer costs what it does on the board."""

SIDES: Final = (7, 14, 28, 42)
"""Patches of 16 pixels in images of 112, 224, 448 and 672. 7 divides them, and so the tiles
of local attention come out even; at 56, patch_ff alone would count for seconds."""

_NOISE: Final = 1e-9
"""A smaller influence, as a share of the largest, is rounding: of a Fourier transform, say."""


def macs_by_tokens(
    name: str,
    options: Mapping[str, Any],
    *,
    dim: int = DIM,
    num_heads: int = HEADS,
    sides: Sequence[int] = SIDES,
) -> dict[int, int]:
    """Multiply-adds of one mixer layer on square grids, by their number of tokens.

    What is executed is counted, as on the board (``flops.CONVENTION``); norm, residual and
    channel mixer of the block are not included. A mixer may execute a small grid in another way
    than a large one: local attention takes the first of ``SIDES`` at once, the others in tiles.

    Raises:
        CountingError: as ``count_macs``.
        ValueError: an unknown mixer or option, or a grid that the mixer refuses.
    """
    macs = {}
    for side in sides:
        with torch.random.fork_rng(devices=[]):
            mixer = create_mixer(name, dim, TokenGrid(side, side), num_heads, **options)
        macs[side * side] = count_macs(_OnImage(mixer), side, dim).total
    return macs


def formula_macs_by_tokens(
    name: str,
    options: Mapping[str, Any],
    *,
    dim: int = DIM,
    num_heads: int = HEADS,
    sides: Sequence[int] = SIDES,
) -> dict[int, int]:
    """Tokens -> multiply-adds by the paper's formula; empty where the code executes just these.

    Raises:
        ValueError: an unknown mixer or option, or a grid that the mixer refuses.
    """
    if MIXERS.get(name).formula_macs is TokenMixer.formula_macs:
        return {}
    macs = {}
    for side in sides:
        grid = TokenGrid(side, side)
        with torch.random.fork_rng(devices=[]):
            own = create_mixer(name, dim, grid, num_heads, **options).formula_macs(grid)
        if own is not None:
            macs[grid.tokens] = own
    return macs


def growth_exponent(macs_by_tokens: Mapping[int, float]) -> float | None:
    """p in MACs ∝ tokens^p between the two largest grids; None where nothing is multiplied.

    No fit through all grids: that would average over what a mixer does on small grids. It is
    the power at these two grids and this width, which tends to the asymptotic one only where the
    products of tokens outweigh the projections: of attention's 4 N C² + 2 N² C, from N = 2 C
    on. So attention has 1.75 from 28 x 28 to 42 x 42 tokens of 192 channels, and 2 in the limit.
    """
    if len(macs_by_tokens) < 2:
        return None
    (fewer, less), (more, most) = sorted(macs_by_tokens.items())[-2:]
    if not (less > 0 and most > 0):
        return None
    return math.log(most / less) / math.log(more / fewer)


class Reach(NamedTuple):
    """The tokens that a mixer's output at the centre token depends on."""

    influence: tuple[tuple[float, ...], ...]
    """(side, side): the influence of every input token, 1 for the largest, 0 for none."""
    share: float
    """Of all tokens, those with an influence."""


def reach(
    name: str,
    options: Mapping[str, Any],
    *,
    side: int = 14,
    seed: int = 0,
    dim: int = 32,
    num_heads: int = 2,
    inputs: int = 4,
) -> Reach:
    """Measure how much of each token one layer carries to the token in the centre.

    The influence of token j is the Frobenius norm of ∂y_centre / ∂x_j, (C, C), as root mean
    square over random ``inputs``, in float64. Weights are the initial ones with a little
    noise, so that a layer that starts at zero lets something through: the mixer decides which
    tokens can be seen; training changes how much each counts.

    Raises:
        ValueError: an unknown mixer or option, or a combination that the mixer refuses.
    """
    grid = TokenGrid(side, side)
    centre = side // 2 * side + side // 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mixer = create_mixer(name, dim, grid, num_heads, **options).double().eval()
        for parameter in mixer.requires_grad_(False).parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        tokens = torch.randn(inputs, grid.tokens, dim, dtype=torch.float64)
    squares = torch.zeros(grid.tokens, dtype=torch.float64)
    for x in tokens:
        # One copy for each channel of the output: a single backward pass then has all C rows.
        copies = x.repeat(dim, 1, 1).requires_grad_()  # (C, N, C)
        y = mixer(copies, grid)
        if y.requires_grad:  # else it depends on no token, as the output of none
            (rows,) = torch.autograd.grad(y[:, centre].diagonal().sum(), copies)
            squares += rows.square().sum((0, 2))
    influence = squares.sqrt()
    if influence.any():
        influence /= influence.max()
    share = (influence > _NOISE).double().mean().item()
    rows_of_grid: list[list[float]] = (
        influence.where(influence > _NOISE, 0.0).view(grid[:2]).tolist()
    )
    return Reach(tuple(map(tuple, rows_of_grid)), share)


class _OnImage(nn.Module):
    """A mixer as a model whose pixels are the tokens, for what measures models of images."""

    def __init__(self, mixer: TokenMixer) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, image: Tensor) -> Tensor:
        return self.mixer(image.flatten(2).transpose(1, 2), self.mixer.grid)  # (B, N, C)
