"""Feed-forward over patches: the tokens of each channel go through an MLP.

Axis letters: B batch, N tokens, C channels.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from mixers.core.contract import TokenGrid, TokenMixer
from mixers.core.errors import Refusal
from mixers.core.registry import register_mixer


@register_mixer("patch_ff")
class PatchFF(TokenMixer):
    """A two-layer MLP over the tokens, shared by all channels.

    ``y = W2 GELU(W1 x + b1) + b2`` for every channel's column x of N tokens. With
    ``hidden_dim`` a multiple of N its cost is quadratic in tokens, with a fixed one linear.

    Args:
        hidden_ratio: hidden width as a multiple of N.
        hidden_dim: hidden width as a number; replaces the ratio.
        norm: ``channels``, the block's own pre-norm, or ``tokens``: LayerNorm over the N
            tokens of each channel, as the report's code has it.
    """

    family = "mlp"
    complexity = "N^2"
    any_grid = False  # one weight per pair of positions
    mixes_prefix = True
    paper = "Do You Even Need Attention?, arXiv:2105.02723"
    formula = "y = W₂ GELU(W₁ x)"

    def __init__(
        self,
        dim: int,
        grid: TokenGrid,
        num_heads: int,
        *,
        hidden_ratio: float = 4.0,
        hidden_dim: int | None = None,
        norm: Literal["channels", "tokens"] = "channels",
    ) -> None:
        super().__init__(dim, grid, num_heads)
        tokens = grid.tokens
        hidden = hidden_dim if hidden_dim is not None else round(hidden_ratio * tokens)
        if hidden < 1:
            raise Refusal(f"patch_ff: a hidden width of {hidden} is empty: give 1 or more.")
        self.pre_norm = norm == "channels"
        self.norm = nn.Identity() if self.pre_norm else nn.LayerNorm(tokens, eps=1e-6)
        self.fc1 = nn.Linear(tokens, hidden)
        self.fc2 = nn.Linear(hidden, tokens)

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        self.check_grid(grid)
        # Only the branch is transposed. Multiplying from the left instead is slower (0.64x
        # measured): autograd then makes one weight gradient per sample.
        x = self.norm(x.transpose(1, 2))  # (B, C, N)
        x = self.fc2(F.gelu(self.fc1(x)))
        return x.transpose(1, 2)  # (B, N, C)
