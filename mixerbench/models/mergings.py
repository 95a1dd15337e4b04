"""Merging: from one stage of a pyramid to the next, (B, C, H, W) -> (B, C', H/2, W/2).

Every merging takes the widths before and after, and merges 2 x 2 tokens into one.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from mixerbench.models.part_kinds import register_merging


@register_merging("deformable")
class DeformableMerging(nn.Module):
    """A 2 x 2 convolution of stride 2 that moves its sampling points, BatchNorm, GELU (LIT).

    The offsets, in pixels, (y, x) for each kernel position row by row, come from a
    convolution of the same shape that starts at zero; values between pixels are bilinear,
    outside the image zero (section 3.3; deformable convolution: arXiv:1703.06211).
    """

    paper = "Less is More: Pay Less Attention in Vision Transformers, arXiv:2105.14217"
    offset_parameters = ("offset.weight",)
    """Parameters that the recipe may train more slowly (``optimizer.offset_lr_scale``)."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.offset = nn.Conv2d(in_dim, 2 * 2 * 2, kernel_size=2, stride=2)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]
        self.conv = nn.Conv2d(in_dim, out_dim, kernel_size=2, stride=2)
        self.norm = nn.BatchNorm2d(out_dim)

    def forward(self, image: Tensor) -> Tensor:
        tensors = (image, self.offset(image), *self.conv.parameters())  # weight and bias
        dtype = torch.promote_types(image.dtype, torch.float32)  # no kernel for all half types
        merged = deform_conv2d(*(one.to(dtype) for one in tensors), stride=2).to(image.dtype)
        return F.gelu(self.norm(merged))


@register_merging("patch")
class PatchMerging(nn.Module):
    """The 2 x 2 tokens one behind the other, LayerNorm, a linear layer without bias (Swin)."""

    paper = "Swin Transformer, arXiv:2103.14030"

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_dim)
        self.reduction = nn.Linear(4 * in_dim, out_dim, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        pairs = image.permute(0, 2, 3, 1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        tokens = pairs.permute(0, 1, 3, 4, 2, 5).flatten(3)  # column by column, as Swin's weights
        return self.reduction(self.norm(tokens)).permute(0, 3, 1, 2)


@register_merging("average")
class AverageMerging(nn.Module):
    """The mean of the 2 x 2 tokens, then a linear layer to the new width."""

    paper = "the ablation of deformable merging: nothing learned in space"

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, out_dim, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(F.avg_pool2d(image, 2))
