"""The two baselines that every comparison needs: no mixing, said in two ways."""

import torch
from torch import Tensor

from mixers.core.contract import TokenGrid, TokenMixer
from mixers.core.registry import register_mixer


@register_mixer("none")
class NoMixer(TokenMixer):
    """No mixer sub-layer at all: the block keeps its channel mixer only."""

    family = "none"
    complexity = "0"
    any_grid = True
    mixes_prefix = False
    mixes_tokens = False
    paper = "LIT's first stages: Pay Less Attention in Vision Transformers, arXiv:2105.14217"
    formula = "y = 0"
    adds_sub_layer = False

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        return torch.zeros_like(x)  # what an absent residual branch adds


@register_mixer("identity")
class Identity(TokenMixer):
    """Every token keeps what it has: the residual adds the normalised token itself."""

    family = "none"
    complexity = "0"
    any_grid = True
    mixes_prefix = False
    mixes_tokens = False
    paper = "MetaFormer Baselines for Vision, arXiv:2210.13452"
    formula = "y = x"

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        return x
