"""Convolution over the token grid: the mixer that attention replaced."""

from torch import Tensor, nn
from torch.nn import functional as F

from mixers.core.contract import Stride, TokenGrid, TokenMixer, as_image, as_tokens
from mixers.core.errors import Refusal
from mixers.core.registry import register_mixer


@register_mixer("convolution")
class Convolution(TokenMixer):
    """A k x k convolution over the grid, zeros around it (ResNet's spatial convolution).

    Args:
        kernel_size: k, odd.
        depthwise: every channel by itself, without mixing channels.
        bias: a bias per channel.
    """

    family = "convolution"
    complexity = "N"
    any_grid = True
    mixes_prefix = False  # a class token has no neighbours
    paper = "Deep Residual Learning for Image Recognition, arXiv:1512.03385"
    formula = "y_i = Σ_{j ∈ N(i)} W_{j−i} x_j"

    def __init__(
        self,
        dim: int,
        grid: TokenGrid,
        num_heads: int,
        *,
        kernel_size: int = 3,
        depthwise: bool = False,
        bias: bool = False,
        stride: Stride,
    ) -> None:
        super().__init__(dim, grid, num_heads)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise Refusal(f"convolution: kernel_size is odd, 1 or more, not {kernel_size}.")
        self.stride = stride
        groups = dim if depthwise else 1
        self.conv = nn.Conv2d(
            dim, dim, kernel_size, padding=kernel_size // 2, groups=groups, bias=bias
        )

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        conv = self.conv
        image = F.conv2d(
            as_image(x, grid), conv.weight, conv.bias, self.stride, conv.padding, groups=conv.groups
        )
        return as_tokens(image)
