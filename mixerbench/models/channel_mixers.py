"""Channel mixers: what a block does with the channels of each token."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixerbench.models.part_kinds import register_channel_mixer
from mixerbench.models.parts import ChannelMixer
from mixers import TokenGrid
from mixers.attention import Attention
from mixers.core.contract import check_grid


@register_channel_mixer("mlp")
class ChannelMLP(ChannelMixer):
    """Two linear layers with GELU between, each token by itself (ViT)."""

    paper = "An Image is Worth 16x16 Words, arXiv:2010.11929"
    any_grid = True

    def __init__(self, dim: int, grid: TokenGrid, mlp_ratio: float, dropout: float) -> None:
        super().__init__(dim, grid, mlp_ratio, dropout)
        hidden = int(dim * mlp_ratio)
        self.fc1 = nn.Linear(dim, hidden)
        self.drop1 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop2 = nn.Dropout(dropout)

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        return self.drop2(self.fc2(self.drop1(F.gelu(self.fc1(x)))))


@register_channel_mixer("feature_attention")
class FeatureAttention(ChannelMixer):
    """Attention between the features: C is the sequence, the N tokens are the embedding.

    One head, for N is prime at 224 pixels (197). The attention-only ablation of the paper;
    its code is not published: the norm over tokens is that of the paper's feed-forward over
    tokens, and ``mlp_ratio`` has no meaning here.
    """

    paper = "Do You Even Need Attention?, arXiv:2105.02723"
    any_grid = False  # one weight per pair of positions
    pre_norm = False

    def __init__(self, dim: int, grid: TokenGrid, mlp_ratio: float, dropout: float) -> None:
        super().__init__(dim, grid, mlp_ratio, dropout)
        self.grid = grid
        self.features = TokenGrid(1, dim)
        self.norm = nn.LayerNorm(grid.tokens, eps=1e-6)
        self.attention = Attention(grid.tokens, self.features, num_heads=1, proj_drop=dropout)

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        check_grid("feature_attention", self.grid, grid)
        x = self.norm(x.transpose(1, 2))  # (B, C, N)
        return self.attention(x, self.features).transpose(1, 2)


@register_channel_mixer("none")
class NoChannelMixer(ChannelMixer):
    """No channel mixer at all: the block keeps its token mixer only."""

    paper = "the ablation that shows what the channel mixer is worth"
    any_grid = True
    adds_sub_layer = False

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        return torch.zeros_like(x)  # what an absent residual branch adds
