"""Learned position embeddings, one vector per token."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixers import TokenGrid
from mixers.core.errors import Refusal

STD = 0.02  # ViT's; of a truncated normal distribution


class PositionEmbedding(nn.Module):
    """A table of one vector per position, resized for another grid than its own.

    Args:
        grid: the grid of the model, whose prefix tokens have a vector each that is not resized.
        table: (rows, columns) that are stored; None: those of ``grid``.
        resize: ``bicubic``, antialiased, as timm does; ``bilinear``, not antialiased, as the
            feed-forward models of arXiv:2105.02723 do.
    """

    no_weight_decay = ("table",)

    def __init__(
        self,
        dim: int,
        grid: TokenGrid,
        *,
        table: tuple[int, int] | None = None,
        resize: str = "bicubic",
    ) -> None:
        super().__init__()
        rows, columns = self._size(table or (grid.height, grid.width))
        self.grid = TokenGrid(rows, columns, grid.prefix)
        self.resize = resize
        self.table = nn.Parameter(torch.empty(1, self.grid.tokens, dim))
        nn.init.trunc_normal_(self.table, std=STD)

    def rescale(self, std: float) -> None:
        """Give the freshly drawn table another standard deviation; no new numbers are drawn."""
        with torch.no_grad():
            self.table.mul_(std / STD)

    @staticmethod
    def _size(table: Sequence[int]) -> Sequence[int]:
        if len(table) != 2 or min(table) < 1:
            raise Refusal(f"pos_table={list(table)}: give [rows, columns], 1 or more each.")
        return table

    def forward(self, grid: TokenGrid) -> Tensor:
        """(1, N, C): what is added to the tokens on ``grid``."""
        if grid == self.grid:
            return self.table
        prefix, table = self.table[:, : grid.prefix], self.table[:, grid.prefix :]
        image = table.transpose(1, 2).unflatten(2, (self.grid.height, self.grid.width))
        if image.dtype in (torch.float16, torch.bfloat16):  # antialiasing has no half kernel
            image = image.float()
        image = F.interpolate(
            image,
            size=(grid.height, grid.width),
            mode=self.resize,
            align_corners=False,
            antialias=self.resize == "bicubic",
        )
        return torch.cat([prefix, image.flatten(2).transpose(1, 2).to(prefix.dtype)], dim=1)
