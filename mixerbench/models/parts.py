"""The contracts of the parts that are not token mixers."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from mixers import TokenGrid


class ChannelMixer(nn.Module, ABC):
    """The second sub-layer of a block: (B, N, C) -> (B, N, C), the residual is the block's.

    A channel mixer is built with ``dim`` (C), the ``grid`` that it is built for, the hidden
    width as a multiple of C (``mlp_ratio``) and the ``dropout`` inside it.
    """

    paper: ClassVar[str]
    any_grid: ClassVar[bool]
    """Does it run on another grid than the one it was built for?"""
    adds_sub_layer: ClassVar[bool] = True
    """False for ``none``: a block then has no norm and no residual for it."""
    pre_norm: ClassVar[bool] = True
    """Does the block normalise channels before it? False: it brings its own norm."""

    def __init__(self, dim: int, grid: TokenGrid, mlp_ratio: float, dropout: float) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        """Mix the channels of the tokens ``x`` (B, N, C) that lie on ``grid``."""
