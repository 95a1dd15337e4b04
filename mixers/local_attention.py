"""Stand-alone self-attention in a window around each token (SASA).

Axis letters: B batch, N tokens, C channels, h heads, d channels of a head, H x W the
grid, k the window's side, S x T blocks, y x x the queries of a block, Y x X its keys.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixers.base import TokenGrid, TokenMixer
from mixers.registry import register_mixer

_OUTSIDE = -1e4
"""A logit whose exp is exactly 0 beside any real one, and which float16 still holds."""

_BLOCK_SIDE = 7
"""Queries a side of a block, at most. 8 is as fast, 4, 10 and 14 are not; 7 divides 28 and 56."""

_HALO_FROM = 2.2
"""Blocks are used from so many tokens per key of a block: for k = 7, from 18 x 18 tokens.

Measured on a CPU: all tokens at once win up to 1.8, blocks from 2.25, 13-fold at 56 x 56.
"""


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
    formula = "y_i = W_o concat_h(Σ_{j ∈ N(i)} softmax_j(q_iᵀ k_j + q_iᵀ r_{j−i}) v_j)"
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
        C = self.dim
        # Blocks of queries, each with all keys that their windows reach: the block and a halo.
        # A small grid is one block, and its keys are its own tokens.
        halo = self._halo_pays(grid)
        block = (_block_side(grid.height), _block_side(grid.width)) if halo else grid[:2]
        reach = ((self.window - 1) // 2, self.window // 2) if halo else (0, 0)
        qkv = self.qkv(x).unflatten(1, grid[:2])  # (B, H, W, 3 * C)
        q = _blocks(qkv[..., :C], block, (0, 0), self.num_heads)  # (B, S, T, h, y, x, d)
        kv = _blocks(qkv[..., C:], block, reach, 2 * self.num_heads)
        k, v = kv.chunk(2, dim=3)  # (B, S, T, h, Y, X, d) each

        # A relative logit is a row part plus a column part, and so is "outside the window".
        # Append both parts, for every row and column of keys, to q and the one-hot row and
        # column of the key to k: plain attention then computes the window, with no mask, no
        # bias tensor and no gather.
        q_row, q_column = q.chunk(2, dim=-1)
        appended = self._relative_logits(q_row, q_column, grid, block, reach)
        k = torch.cat([k, _one_hot_position(k)], dim=-1).flatten(-3, -2)
        v = v.flatten(-3, -2)
        if self.border == "zero" and not halo:  # a halo holds these positions: k = v = 0
            # All positions outside the grid have value 0: together they are one key whose
            # logit is the log-sum-exp of theirs.
            appended.append(self._border_logit(q_row, q_column))
            k, v = F.pad(k, (0, 1, 0, 1)), F.pad(v, (0, 0, 0, 1))
            k[..., -1, -1] = 1.0
        q = torch.cat([q, *appended], dim=-1).flatten(-3, -2)
        # Fused kernels want four axes. The blocks join the heads: as samples they could exceed
        # the 65,535 that a CUDA launch takes.
        mixed = _attend(q.flatten(1, 3), k.flatten(1, 3), v.flatten(1, 3))
        return self.proj(_merge(mixed, grid, block, self.num_heads))

    def formula_macs(self, grid: TokenGrid) -> int:
        """The paper's count: all k x k positions of every token, q · r counted like q · k."""
        projections = 3 if isinstance(self.proj, nn.Identity) else 4
        return grid.tokens * self.dim * (projections * self.dim + 3 * self.window**2)

    def _halo_pays(self, grid: TokenGrid) -> bool:
        rows, columns = (_block_side(length) + self.window - 1 for length in grid[:2])
        return grid.height * grid.width > _HALO_FROM * rows * columns

    def _relative_logits(
        self,
        q_row: Tensor,
        q_column: Tensor,
        grid: TokenGrid,
        block: tuple[int, int],
        reach: tuple[int, int],
    ) -> list[Tensor]:
        """(B, S, T, h, y, x, Y) for each row and (B, S, T, h, y, x, X) for each column of keys."""
        row_table, row_outside = self._absolute(self.rel_row, grid.height, block[0], reach)
        column_table, column_outside = self._absolute(self.rel_column, grid.width, block[1], reach)
        rows = torch.einsum("...hywd,yzhd->...hywz", q_row, row_table)
        columns = torch.einsum("...hywd,wzhd->...hywz", q_column, column_table)
        rows = rows.masked_fill(row_outside[:, None, None, :, None], _OUTSIDE)
        return [rows, columns.masked_fill(column_outside[:, None, None], _OUTSIDE)]

    def _absolute(
        self, table: Tensor, length: int, side: int, reach: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """(side, keys, h, d/2) embeddings for (query, key), alike in all blocks of an axis.

        And (blocks or 1, side, keys): which keys are outside the window or a masked border.
        """
        before, after = reach
        start = torch.arange(0, length, side, device=table.device)[:, None, None]
        query = torch.arange(side, device=table.device)[:, None]
        key = torch.arange(-before, side + after, device=table.device)
        index = key - query + (self.window - 1) // 2
        outside = ((index < 0) | (index >= self.window)).unsqueeze(0)
        if self.border == "masked":
            outside = outside | (start + key < 0) | (start + key >= length)
        return table[index.clamp(0, self.window - 1)], outside

    def _border_logit(self, q_row: Tensor, q_column: Tensor) -> Tensor:
        """(B, 1, 1, h, H, W, 1): log Σ exp of the relative logits that point outside the grid."""
        H, W = q_row.shape[-3:-1]
        rows = torch.einsum("...hywd,ahd->...hywa", q_row, self.rel_row)
        columns = torch.einsum("...hywd,ahd->...hywa", q_column, self.rel_column)
        row_inside = self._inside(H, rows.device)[:, None, :]
        column_inside = self._inside(W, rows.device)
        rows_out = rows.masked_fill(row_inside, _OUTSIDE).logsumexp(-1)
        rows_in = rows.masked_fill(~row_inside, _OUTSIDE).logsumexp(-1)
        columns_out = columns.masked_fill(column_inside, _OUTSIDE).logsumexp(-1)
        # outside = rows outside with any column, or rows inside with columns outside
        logit = torch.logaddexp(rows_out + columns.logsumexp(-1), rows_in + columns_out)
        return logit.unsqueeze(-1)

    def _inside(self, length: int, device: torch.device) -> Tensor:
        """(length, k): does the neighbour at each offset lie on the grid?"""
        here = torch.arange(length, device=device)[:, None]
        offset = torch.arange(self.window, device=device)[None, :] - (self.window - 1) // 2
        return (here + offset >= 0) & (here + offset < length)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ) v; q and k are wider than v."""
    if q.device.type == "cpu":  # as fast as the fused kernel, up to 1.35 times on small grids
        return (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    width = v.shape[-1]
    v = F.pad(v, (0, q.shape[-1] - width))  # fused kernels want one width
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :width]


def _one_hot_position(k: Tensor) -> Tensor:
    """(B, S, T, h, Y, X, Y + X): the row and the column of each key, one-hot."""
    *_, height, width, _ = k.shape
    rows = torch.eye(height, dtype=k.dtype, device=k.device)[:, None].expand(-1, width, -1)
    columns = torch.eye(width, dtype=k.dtype, device=k.device).expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).expand(*k.shape[:-1], -1)


def _block_side(length: int) -> int:
    """The smallest side that needs no more blocks than ``_BLOCK_SIDE`` does."""
    return -(-length // -(-length // _BLOCK_SIDE))


def _blocks(image: Tensor, block: tuple[int, int], reach: tuple[int, int], heads: int) -> Tensor:
    """(B, H, W, C) -> (B, S, T, h, y, x, d): blocks and what they reach, zeros off the map."""
    image = _cut(image, 1, block[0], reach)
    image = _cut(image, 3, block[1], reach)  # (B, S, y, T, x, C)
    return image.unflatten(-1, (heads, -1)).permute(0, 1, 3, 5, 2, 4, 6)


def _cut(x: Tensor, dim: int, side: int, reach: tuple[int, int]) -> Tensor:
    """Along ``dim``, length -> (blocks, before + side + after), a block every ``side``.

    Made of slices: the compiled backward of Tensor.unfold and F.unfold adds atomically.
    """
    length, (before, after) = x.shape[dim], reach
    if side == length and reach == (0, 0):
        return x.unsqueeze(dim)  # saves small grids a copy: 5 to 10 % of the mixer
    blocks, size = -(-length // side), before + side + after
    pieces = -(-size // side)  # a stretch is a piece of so many neighbours in a row
    filled = (blocks + pieces - 1) * side - before - length
    x = F.pad(x, (0, 0) * (x.ndim - 1 - dim) + (before, filled)).unflatten(dim, (-1, side))
    stretches = torch.cat([x.narrow(dim, i, blocks) for i in range(pieces)], dim=dim + 1)
    return stretches.narrow(dim + 1, 0, size)


def _merge(x: Tensor, grid: TokenGrid, block: tuple[int, int], heads: int) -> Tensor:
    """(B, S * T * h, y * x, d) -> (B, N, C), without the queries that fill the last blocks."""
    B, _, _, d = x.shape
    S, T = -(-grid.height // block[0]), -(-grid.width // block[1])
    x = x.reshape(B, S, T, heads, *block, d).permute(0, 1, 4, 2, 5, 3, 6)
    x = x.reshape(B, S * block[0], T * block[1], heads * d)
    return x[:, : grid.height, : grid.width].reshape(B, -1, heads * d)
