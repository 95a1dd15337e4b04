"""Stand-alone self-attention in a window around each token (SASA).

Axis letters: B batch, N tokens, C channels, h heads, d channels of a head, H x W the
grid, k the window's side, S x T tiles, y x x the queries of a tile, Y x X its keys.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixers.core.contract import TokenGrid, TokenMixer
from mixers.core.errors import Refusal
from mixers.core.registry import register_mixer

_OUTSIDE = -1e4
"""A logit whose exp is exactly 0 beside any real one, and which float16 still holds."""

_KEY_COST = 48
"""What a tile's key costs, copied forward and added up backward, in pairs of query and key.

Fitted on a CPU to grids of 8 x 8 to 112 x 112 tokens, each cut in two to four ways.
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

    family = "attention"
    complexity = "N"
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
        border: Literal["zero", "masked"] = "zero",
        qkv_bias: bool = False,
        out_proj: bool = True,
    ) -> None:
        super().__init__(dim, grid, num_heads)
        self.head_dim = self.check_heads()
        if self.head_dim % 2:
            raise Refusal(
                f"local_attention: a head has {self.head_dim} channels, half of them for rows and "
                "half for columns: choose num_heads so that dim / num_heads is even."
            )
        if window < 1:
            raise Refusal(f"local_attention: a window of {window} is empty: give 1 or more.")
        self.window = window
        self.border = border
        self._cuts = cheapest_cuts(*grid[:2], window)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim) if out_proj else nn.Identity()
        # Entry i belongs to the offset i - (k - 1) // 2; every head has its own d / 2 channels.
        self.rel_row = nn.Parameter(torch.empty(window, num_heads, self.head_dim // 2))
        self.rel_column = nn.Parameter(torch.empty(window, num_heads, self.head_dim // 2))
        nn.init.trunc_normal_(self.rel_row, std=0.02)
        nn.init.trunc_normal_(self.rel_column, std=0.02)

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        rows, columns = self._cuts if grid == self.grid else cheapest_cuts(*grid[:2], self.window)
        q, k, v = self.qkv(x).unflatten(1, grid[:2]).chunk(3, dim=-1)  # (B, H, W, C) each
        q = self._heads(_queries(_queries(q, 1, rows), 3, columns))  # (B, S, T, h, y, x, d)
        k = self._heads(_keys(_keys(k, 1, rows), 3, columns))
        v = self._heads(_keys(_keys(v, 1, rows), 3, columns))  # (B, S, T, h, Y, X, d)

        # A relative logit is a row part plus a column part, and so is "outside the window".
        # Append both parts, for every row and column of keys, to q and the one-hot row and
        # column of the key to k: plain attention then computes the window, with no mask, no
        # bias tensor and no gather.
        q_row, q_column = q.chunk(2, dim=-1)  # (B, S, T, h, y, x, d/2) each
        table, outside = self._absolute(self.rel_row, rows)
        to_rows = torch.einsum("bsthyxd,syzhd->bsthyxz", q_row, table)
        to_rows = to_rows + outside[:, None, None, :, None].to(to_rows)
        table, outside = self._absolute(self.rel_column, columns)
        to_columns = torch.einsum("bsthyxd,txzhd->bsthyxz", q_column, table)
        to_columns = to_columns + outside[:, None, None].to(to_columns)
        appended = [to_rows, to_columns]
        k = torch.cat([k, _one_hot_position(k)], dim=-1).flatten(-3, -2)
        v = v.flatten(-3, -2)
        if self.border == "zero":
            # All positions outside the grid have value 0: together they are one key whose
            # logit is the log-sum-exp of theirs.
            appended.append(self._border_logit(q_row, q_column, rows, columns))
            k, v = F.pad(k, (0, 1, 0, 1)), F.pad(v, (0, 0, 0, 1))
            k[..., -1, -1] = 1.0
        q = torch.cat([q, *appended], dim=-1).flatten(-3, -2)
        # Fused kernels want four axes. The tiles join the heads: as samples they could exceed
        # the 65,535 that a CUDA launch takes.
        mixed = _attend(q.flatten(1, 3), k.flatten(1, 3), v.flatten(1, 3))
        return self.proj(self._merge(mixed, rows, columns))

    def formula_macs(self, grid: TokenGrid) -> int:
        """The paper's count: all k x k positions of every token, q · r counted like q · k."""
        projections = 3 if isinstance(self.proj, nn.Identity) else 4
        return grid.tokens * self.dim * (projections * self.dim + 3 * self.window**2)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, S, y, T, x, C) -> (B, S, T, h, y, x, d)."""
        return x.unflatten(-1, (self.num_heads, -1)).permute(0, 1, 3, 5, 2, 4, 6)

    def _absolute(self, table: Tensor, cut: "_Cut") -> tuple[Tensor, Tensor]:
        """(tiles, queries, keys, h, d/2): a tile's embeddings by the places of query and key.

        And (tiles, queries, keys): 0, or ``_OUTSIDE`` where the key is outside the window.
        """
        tile = torch.arange(cut.tiles, device=table.device)[:, None, None] * cut.queries
        query = tile + torch.arange(cut.queries, device=table.device)[:, None]
        first = (tile - cut.before).clamp(0, cut.length - cut.keys)  # first_keys, on the device
        key = first + torch.arange(cut.keys, device=table.device)
        index = key - query + cut.before
        outside = table.new_zeros(()).where((index >= 0) & (index < self.window), _OUTSIDE)
        return table[index.clamp(0, self.window - 1)], outside

    def _border_logit(
        self, q_row: Tensor, q_column: Tensor, rows: "_Cut", columns: "_Cut"
    ) -> Tensor:
        """(B, S, T, h, y, x, 1): log Σ exp of the relative logits that point outside the grid."""
        to_rows = torch.einsum("bsthyxd,ahd->bsthyxa", q_row, self.rel_row)
        to_columns = torch.einsum("bsthyxd,ahd->bsthyxa", q_column, self.rel_column)
        row_inside = self._inside(rows, to_rows.device)[:, None, None, :, None]
        column_inside = self._inside(columns, to_rows.device)[:, None, None]
        rows_out = to_rows.masked_fill(row_inside, _OUTSIDE).logsumexp(-1)
        rows_in = to_rows.masked_fill(~row_inside, _OUTSIDE).logsumexp(-1)
        columns_out = to_columns.masked_fill(column_inside, _OUTSIDE).logsumexp(-1)
        # outside = rows outside with any column, or rows inside with columns outside
        logit = torch.logaddexp(rows_out + to_columns.logsumexp(-1), rows_in + columns_out)
        return logit.unsqueeze(-1).to(to_rows)  # autocast sums exponentials in float32

    def _inside(self, cut: "_Cut", device: torch.device) -> Tensor:
        """(tiles, queries, k): does the neighbour at each offset lie on the grid?"""
        query = torch.arange(cut.tiles * cut.queries, device=device)[:, None]
        key = query + torch.arange(self.window, device=device) - cut.before
        return ((key >= 0) & (key < cut.length)).unflatten(0, (cut.tiles, -1))

    def _merge(self, x: Tensor, rows: "_Cut", columns: "_Cut") -> Tensor:
        """(B, S * T * h, y * x, d) -> (B, N, C), without the queries that fill the last tiles."""
        x = x.unflatten(2, (rows.queries, -1)).unflatten(1, (rows.tiles, columns.tiles, -1))
        x = x.permute(0, 1, 4, 2, 5, 3, 6)  # (B, S, y, T, x, h, d)
        x = x.reshape(len(x), rows.tiles * rows.queries, -1, self.dim)
        return x[:, : rows.length, : columns.length].flatten(1, 2)


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


class _Cut(NamedTuple):
    """An axis of the grid in tiles of queries, each with all keys that their windows reach.

    The first tile's keys begin with the axis and the last's end with it, so that no tile has
    keys off the grid: two tiles of 7 tokens, k = 7, need 10 keys each.
    """

    length: int
    queries: int
    keys: int
    before: int

    @property
    def tiles(self) -> int:
        return -(-self.length // self.queries)

    @property
    def first_keys(self) -> list[int]:
        last = self.length - self.keys
        return [min(max(i * self.queries - self.before, 0), last) for i in range(self.tiles)]


def cheapest_cuts(height: int, width: int, window: int) -> tuple[_Cut, _Cut]:
    """The cheapest tiles: few large ones have more pairs, many small ones copy more keys."""

    def cost(cuts: tuple[_Cut, _Cut]) -> int:
        rows, columns = cuts
        queries, keys = rows.queries * columns.queries, rows.keys * columns.keys
        return rows.tiles * columns.tiles * keys * (queries + _KEY_COST)

    sides = range(1, max(height, width) + 1)
    return min(((cut_axis(height, n, window), cut_axis(width, n, window)) for n in sides), key=cost)


def cut_axis(length: int, side: int, window: int) -> _Cut:
    """An axis in as few tiles of at most ``side`` tokens as there can be, alike."""
    before, after = (window - 1) // 2, window // 2
    queries = -(-length // -(-length // side))
    reached = (
        min(first + queries + after, length) - max(first - before, 0)
        for first in range(0, length, queries)
    )
    return _Cut(length, queries, max(reached), before)


def _queries(x: Tensor, dim: int, cut: _Cut) -> Tensor:
    """Along ``dim``, length -> (tiles, queries); zeros fill the last tile."""
    if missing := cut.tiles * cut.queries - cut.length:
        x = F.pad(x, (0, 0) * (x.ndim - 1 - dim) + (0, missing))
    return x.unflatten(dim, (cut.tiles, cut.queries))


def _keys(x: Tensor, dim: int, cut: _Cut) -> Tensor:
    """Along ``dim``, length -> (tiles, keys)."""
    if cut.tiles == 1:
        return x.unsqueeze(dim)
    if torch.jit.is_tracing():  # type: ignore[attr-defined]  # sees no Python function
        return _stretches(x, dim, cut)
    keys: Tensor = _Stretches.apply(x, dim, cut)
    return keys


def _stretches(x: Tensor, dim: int, cut: _Cut) -> Tensor:
    return torch.stack([x.narrow(dim, first, cut.keys) for first in cut.first_keys], dim)


class _Stretches(torch.autograd.Function):
    """``_stretches``, which overlap, and the sum of their gradients.

    One zeroed tensor for all of them: autograd makes one for every slice, which took a
    quarter of the mixer's time at 56 x 56. Nothing is added atomically, as a gather's or
    ``Tensor.unfold``'s gradient would be.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, cut: _Cut) -> Tensor:
        ctx.dim, ctx.cut = dim, cut
        return _stretches(x, dim, cut)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        dim, cut = ctx.dim, ctx.cut
        before, after = gradient.shape[:dim], gradient.shape[dim + 2 :]
        total = gradient.new_zeros(*before, cut.length, *after)
        for first, part in zip(cut.first_keys, gradient.unbind(dim), strict=True):
            total.narrow(dim, first, cut.keys).add_(part)
        return total, None, None
