"""Stand-alone self-attention in a window around each token (SASA).

Axis letters: B batch, N tokens, C channels, h heads, d channels of a head, H x W the
grid, k the window's side.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixers.base import TokenGrid, TokenMixer
from mixers.registry import register_mixer

_OUTSIDE = -1e4
"""A logit whose exp is exactly 0 beside any real one, and which float16 still holds."""


@register_mixer("local_attention")
class LocalAttention(TokenMixer):
    """Each token attends to the k x k tokens around it, with relative row ⊕ column logits.

    SASA, equations 2 and 3: ``y_ij = Σ_ab softmax_ab(q_ij · k_ab + q_ij · r_(a-i, b-j)) v_ab``,
    r being a row-offset and a column-offset embedding of d/2 channels each, concatenated;
    as in the paper, no 1/√d. The window of an even side reaches one token further down
    and right than up and left.

    Args:
        window: k, tokens a side.
        border: ``zero`` as in the paper: positions outside the grid have k = v = 0 and take
            part in the softmax with their relative logit; ``masked``: they take no part.
        qkv_bias: biases of the query, key and value projection.
        out_proj: a linear layer after the heads, as transformer blocks have it.
    """

    any_grid = True
    mixes_prefix = False  # a class token has no neighbours
    paper = "Stand-Alone Self-Attention in Vision Models, arXiv:1906.05909"
    no_weight_decay = ("rel_row", "rel_column")

    def __init__(
        self,
        dim: int,
        grid: TokenGrid,
        num_heads: int,
        *,
        window: int = 7,
        border: str = "zero",
        qkv_bias: bool = False,
        out_proj: bool = True,
    ) -> None:
        super().__init__(dim, grid, num_heads)
        self.head_dim = self.check_heads()
        if self.head_dim % 2:
            raise ValueError(
                f"local_attention: a head has {self.head_dim} channels, half of them for rows and "
                "half for columns: choose num_heads so that dim / num_heads is even."
            )
        if window < 1:
            raise ValueError(f"local_attention: a window of {window} is empty: give 1 or more.")
        if border not in ("zero", "masked"):
            raise ValueError(f"local_attention: border is 'zero' or 'masked', not {border!r}.")
        self.window = window
        self.border = border
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim) if out_proj else nn.Identity()
        # Entry i belongs to the offset i - (k - 1) // 2; every head has its own d / 2 channels.
        self.rel_row = nn.Parameter(torch.empty(window, num_heads, self.head_dim // 2))
        self.rel_column = nn.Parameter(torch.empty(window, num_heads, self.head_dim // 2))
        nn.init.trunc_normal_(self.rel_row, std=0.02)
        nn.init.trunc_normal_(self.rel_column, std=0.02)

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        B, N, C = x.shape
        H, W = grid.height, grid.width
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, N, d) each

        # A relative logit is a row part plus a column part, and so is "outside the window".
        # Append both parts, at absolute rows and columns, to q and the one-hot row and column
        # of the key to k: plain attention then computes the window, with no mask, no bias
        # tensor and no gather.
        q_row, q_column = q.reshape(B, self.num_heads, H, W, self.head_dim).chunk(2, dim=-1)
        row_table, row_outside = self._absolute(self.rel_row, H)
        column_table, column_outside = self._absolute(self.rel_column, W)
        row_logits = torch.einsum("bhywd,yzhd->bhywz", q_row, row_table)
        column_logits = torch.einsum("bhywd,wzhd->bhywz", q_column, column_table)
        row_logits = row_logits.masked_fill(row_outside[:, None, :], _OUTSIDE)
        column_logits = column_logits.masked_fill(column_outside, _OUTSIDE)
        extra = [row_logits.reshape(B, -1, N, H), column_logits.reshape(B, -1, N, W)]
        position = _one_hot_position(grid, k)  # (N, H + W)
        position = position.expand(B, self.num_heads, -1, -1)

        if self.border == "zero":
            # All positions outside the grid have value 0: together they are one key whose
            # logit is the log-sum-exp of theirs.
            extra.append(self._border_logit(q_row, q_column).reshape(B, -1, N, 1))
            position = F.pad(position, (0, 1))
            k = torch.cat([k, position], dim=-1)
            k = F.pad(k, (0, 0, 0, 1))
            k[..., -1, -1] = 1.0
            v = F.pad(v, (0, 0, 0, 1))
        else:
            k = torch.cat([k, position], dim=-1)
        q = torch.cat([q, *extra], dim=-1)
        # Fused kernels want v as wide as q and k.
        v = F.pad(v, (0, q.shape[-1] - self.head_dim))
        x = F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., : self.head_dim]
        return self.proj(x.transpose(1, 2).reshape(B, N, C))

    def _absolute(self, table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """(length, length, h, d/2) embeddings for (query, key) and where the window ends."""
        here = torch.arange(length, device=table.device)
        index = here[None, :] - here[:, None] + (self.window - 1) // 2
        outside = (index < 0) | (index >= self.window)
        return table[index.clamp(0, self.window - 1)], outside

    def _border_logit(self, q_row: Tensor, q_column: Tensor) -> Tensor:
        """(B, h, H, W): log Σ exp of the relative logits that point outside the grid."""
        H, W = q_row.shape[2:4]
        rows = torch.einsum("bhywd,ahd->bhywa", q_row, self.rel_row)
        columns = torch.einsum("bhywd,ahd->bhywa", q_column, self.rel_column)
        row_inside = self._inside(H, rows.device)[:, None, :]
        column_inside = self._inside(W, rows.device)
        rows_out = rows.masked_fill(row_inside, _OUTSIDE).logsumexp(-1)
        rows_in = rows.masked_fill(~row_inside, _OUTSIDE).logsumexp(-1)
        columns_out = columns.masked_fill(column_inside, _OUTSIDE).logsumexp(-1)
        # outside = rows outside with any column, or rows inside with columns outside
        return torch.logaddexp(rows_out + columns.logsumexp(-1), rows_in + columns_out)

    def _inside(self, length: int, device: torch.device) -> Tensor:
        """(length, k): does the neighbour at each offset lie on the grid?"""
        here = torch.arange(length, device=device)[:, None]
        offset = torch.arange(self.window, device=device)[None, :] - (self.window - 1) // 2
        return (here + offset >= 0) & (here + offset < length)


def _one_hot_position(grid: TokenGrid, like: Tensor) -> Tensor:
    """(N, H + W): the row and the column of each token, one-hot."""
    rows = torch.eye(grid.height, dtype=like.dtype, device=like.device)
    columns = torch.eye(grid.width, dtype=like.dtype, device=like.device)
    return torch.cat(
        [rows.repeat_interleave(grid.width, 0), columns.repeat(grid.height, 1)], dim=-1
    )
