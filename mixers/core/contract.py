"""The contract between a token mixer and everything that uses one.

Axis letters: B batch, N tokens (prefix first, then the grid row by row), C channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, NewType

from torch import Tensor, nn

from mixers.core.errors import Refusal
from mixers.core.plan import MixerChoice
from mixers.core.spec import Family


class TokenGrid(NamedTuple):
    """The geometry of a token sequence."""

    height: int
    width: int
    prefix: int = 0  # class and distillation tokens, in front of the grid

    @property
    def tokens(self) -> int:
        """N, the length of the sequence."""
        return self.prefix + self.height * self.width

    def __str__(self) -> str:
        return f"{self.height} x {self.width}" + (f" + {self.prefix}" if self.prefix else "")


class Place(NamedTuple):
    """Where in a model a mixer stands; all numbers but ``depth`` count from 0."""

    block: int
    depth: int  # blocks of the whole model
    block_in_stage: int
    stage: int  # an isotropic model has one


Stride = NewType("Stride", int)
"""2 where a mixer is to halve the grid (rounding up), else 1."""


class TokenMixer(nn.Module, ABC):
    """Exchanges information between tokens: (B, N, C) -> (B, N, C).

    A mixer is built with ``dim`` (C), the ``grid`` that it is built for, ``num_heads``
    (which a mixer without heads ignores), and its own keyword-only arguments: their
    names, types (``Literal`` for choices) and defaults are its configuration. The class
    attributes are facts that the backbones, the recipe and the documentation read: literals.

    Two keyword-only arguments are no options, but given by the backbone to a mixer that asks:
    ``place: Place``, and ``stride: Stride`` to one that can halve the grid itself.
    """

    family: ClassVar[Family] = "other"
    """What kind of operation mixes the tokens; pages group by it."""
    any_grid: ClassVar[bool]
    """Does it run on another grid than the one it was built for?"""
    grid_options: ClassVar[tuple[str, ...]] = ()
    """Options that tie a mixer for any grid to the one it was built for."""
    mixes_prefix: ClassVar[bool]
    """Does it carry information from the grid to prefix tokens? Back again it need not."""
    mixes_tokens: ClassVar[bool] = True
    """False for a baseline in which no token hears of another."""
    paper: ClassVar[str]
    """Where it comes from: title and arXiv number."""
    formula: ClassVar[str] = ""
    """What it computes with its default options, in a line of mathematics.

    x and y are (N, C), x_i is token i; biases of linear layers are left out.
    """
    no_weight_decay: ClassVar[tuple[str, ...]] = ()
    """Names of its parameters that take no weight decay (1-D parameters never do)."""
    mixes_channels: ClassVar[bool] = False
    """Is it its own channel mixer, so that a paper's model has no other?"""
    batch_statistics: ClassVar[bool] = False
    """Does an image's output in training depend on the others of its batch, as BatchNorm's does?"""
    complexity: ClassVar[str] = ""
    """How its cost grows with the number of tokens: "N", "N log N", "N^2"."""
    operators: ClassVar[Mapping[str, str]] = {}
    """Traced operators that no counter knows (``"aten::fft_fft2"``) -> name of a static method.

    The method takes the shapes of the operator's inputs (None for what is no tensor) and of its
    outputs, and returns the multiply-adds.
    """
    adds_sub_layer: ClassVar[bool] = True
    """False for ``none``: a block then has no mixer, no norm and no residual for it."""
    stride: int = 1
    """Set by a mixer that is given a stride: its output lies on a grid so many times smaller."""
    pre_norm: bool = True
    """Does the block normalise channels before this mixer? False: it brings its own norm."""
    built_as: MixerChoice | None = None
    """Set by the registry: the name and the options that it was built by."""
    given: Mapping[str, Any] = MappingProxyType({})
    """Set by the registry: the place and the stride that it asked for and was built with."""

    def __init__(self, dim: int, grid: TokenGrid, num_heads: int) -> None:
        super().__init__()
        self.dim = dim
        self.grid = grid
        self.num_heads = num_heads

    @abstractmethod
    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        """Mix the tokens ``x`` (B, N, C) that lie on ``grid``; the residual is the block's."""

    def init_weights(self) -> None:
        """Called after the model has initialised all linear layers (truncated normal 0.02)."""

    def formula_macs(self, grid: TokenGrid) -> int | None:
        """Multiply-adds of one image by the paper's formula, where the code executes others."""
        return None

    def check_grid(self, grid: TokenGrid) -> None:
        """Refuse a grid that the weights do not fit.

        Raises:
            Refusal: ``grid`` is not the one that this mixer was built for.
        """
        check_grid(type(self).__name__, self.grid, grid)

    def check_heads(self) -> int:
        """The channels of one head.

        Raises:
            Refusal: ``dim`` is not a multiple of ``num_heads``.
        """
        if self.num_heads < 1 or self.dim % self.num_heads:
            raise Refusal(
                f"mixer {type(self).__name__} splits {self.dim} channels among {self.num_heads} "
                "heads, which does not come out even: choose a divisor of the width."
            )
        return self.dim // self.num_heads


def as_image(x: Tensor, grid: TokenGrid) -> Tensor:
    """The tokens of the grid as an image, (B, N, C) -> (B, C, H, W): a view, without the prefix."""
    x = x[:, grid.prefix :] if grid.prefix else x
    return x.transpose(1, 2).unflatten(2, (grid.height, grid.width))


def as_tokens(image: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H*W, C), row by row: a view where that is possible."""
    return image.flatten(2).transpose(1, 2)


def for_batch_norm(image: Tensor) -> Tensor:
    """(B, C, H, W) in the memory order in which BatchNorm computes right gradients.

    PyTorch 2.15's on a CPU returns wrong ones for some images of width 1 whose strides fit two
    memory formats: leave it no choice.
    """
    return image.contiguous()


def check_grid(name: str, built_for: TokenGrid, grid: TokenGrid) -> None:
    """Refuse a grid that weights per position do not fit.

    Raises:
        Refusal: ``grid`` is not ``built_for``.
    """
    if grid != built_for:
        raise Refusal(
            f"mixer {name} was built for {built_for} tokens and got {grid}: it has weights per "
            "position. Build the model for this resolution, or use a mixer that runs on any grid "
            "('mixerbench list mixers' shows which do)."
        )
