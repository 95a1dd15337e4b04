"""Multi-head self-attention over all tokens.

Axis letters: B batch, N tokens, C channels, h heads, d channels of a head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixers.core.contract import TokenGrid, TokenMixer
from mixers.core.registry import register_mixer


@register_mixer("attention")
class Attention(TokenMixer):
    """Every token looks at every token: softmax(q kᵀ / √d + bias) v (ViT, DeiT).

    Parameter names are timm's, so DeiT's weights load.

    Args:
        qkv_bias: biases of the query, key and value projection.
        attn_drop: dropout on the attention weights.
        proj_drop: dropout on the output projection.
        rel_pos_bias: add a learned 2-D relative position bias per head (Swin, LIT); prefix
            tokens get none. A model with it runs only on the grid that it was built for.
    """

    family = "attention"
    complexity = "N^2"
    any_grid = True
    grid_options = ("rel_pos_bias",)
    mixes_prefix = True
    paper = "An Image is Worth 16x16 Words, arXiv:2010.11929"
    formula = "y = concat_h(softmax(Q_h K_hᵀ / √d) V_h) W_o, Q, K, V = x W_q, x W_k, x W_v"
    no_weight_decay = ("rel_pos_table",)

    def __init__(
        self,
        dim: int,
        grid: TokenGrid,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        rel_pos_bias: bool = False,
    ) -> None:
        super().__init__(dim, grid, num_heads)
        self.head_dim = self.check_heads()
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.rel_pos_table: nn.Parameter | None = None
        self.rel_pos_index: Tensor
        if rel_pos_bias:
            offsets = (2 * grid.height - 1) * (2 * grid.width - 1)
            self.rel_pos_table = nn.Parameter(torch.empty(offsets, num_heads))
            nn.init.trunc_normal_(self.rel_pos_table, std=0.02)
            self.register_buffer("rel_pos_index", relative_index(grid), persistent=False)

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim)
        # Their gradients are then stacked as the linear layer wants them, with no copy.
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # (B, h, N, d) each
        dropout = self.attn_drop if self.training else 0.0
        x = F.scaled_dot_product_attention(
            q, k, v, attn_mask=self._bias(grid, q.dtype), dropout_p=dropout
        )
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(B, N, C)))

    def _bias(self, grid: TokenGrid, dtype: torch.dtype) -> Tensor | None:
        if self.rel_pos_table is None:
            return None
        self.check_grid(grid)
        bias = self.rel_pos_table[self.rel_pos_index].permute(2, 0, 1)  # (h, H*W, H*W)
        # (left, right, top, bottom): zero rows and columns for the prefix tokens in front
        return F.pad(bias, (grid.prefix, 0, grid.prefix, 0)).to(dtype)


def relative_index(grid: TokenGrid) -> Tensor:
    """(H*W, H*W): the table's row for each (query, key), by (Δrow, Δcolumn) = query - key."""
    row = torch.arange(grid.height).repeat_interleave(grid.width)
    column = torch.arange(grid.width).repeat(grid.height)
    delta_row = row[:, None] - row[None, :] + grid.height - 1
    delta_column = column[:, None] - column[None, :] + grid.width - 1
    return delta_row * (2 * grid.width - 1) + delta_column
