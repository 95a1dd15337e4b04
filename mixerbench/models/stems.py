"""Stems: from pixels (B, 3, height, width) to a map of features (B, C, H, W).

Every stem takes the number of input channels and the width C, and covers ``patch_size``
pixels a side with one token.
"""

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from mixerbench.models.part_kinds import register_stem
from mixers.core.contract import for_batch_norm
from mixers.core.errors import Refusal


@register_stem("patch")
class PatchStem(nn.Module):
    """One convolution that cuts the image into patches and projects each (ViT).

    Args:
        norm: a LayerNorm over the channels at the end, as pyramids have it (LIT, Swin).
    """

    paper = "An Image is Worth 16x16 Words, arXiv:2010.11929"

    def __init__(self, in_chans: int, dim: int, *, patch_size: int, norm: bool = False) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)
        self.norm = LayerNorm2d(dim, eps=1e-5) if norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.proj(images))


@register_stem("conv")
class ConvStem(nn.Module):
    """Convolutions of stride 2, each with BatchNorm and ReLU, then a projection.

    Channels double up to the width. As many halvings as the patch has factors of 2, so
    the number of tokens is that of the patch stem (section 4.2 of the paper).

    Args:
        kernel_size: of the convolutions, odd.
        max_pool: the last halving is a 3 x 3 max pooling. With 7 x 7 convolutions, without a
            projection and for patches of 4 pixels this is ResNet's stem (arXiv:1512.03385).
        project: a 1 x 1 convolution at the end.
    """

    paper = "Early Convolutions Help Transformers See Better, arXiv:2106.14881"

    def __init__(
        self,
        in_chans: int,
        dim: int,
        *,
        patch_size: int,
        kernel_size: int = 3,
        max_pool: bool = False,
        project: bool = True,
    ) -> None:
        super().__init__()
        halvings = patch_size.bit_length() - 1
        if patch_size != 2**halvings:
            raise Refusal(
                f"stem 'conv' halves the resolution step by step and cannot reach patches of "
                f"{patch_size} pixels: give a power of 2, or use stem=patch."
            )
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise Refusal(f"stem 'conv': kernel_size is odd, 1 or more, not {kernel_size}.")
        convolutions = halvings - max_pool
        if convolutions < 1 and not (project and convolutions == 0):
            raise Refusal(
                f"stem 'conv' has no convolution left for patches of {patch_size} pixels: give "
                "larger ones, or leave stem.max_pool and stem.project as they are."
            )
        self.patch_size = patch_size
        layers: list[nn.Module] = []
        channels = in_chans
        for step in range(convolutions):
            width = max(dim // 2 ** (convolutions - 1 - step), 1)
            layers += [
                nn.Conv2d(
                    channels, width, kernel_size, stride=2, padding=kernel_size // 2, bias=False
                ),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
        if max_pool:
            layers.append(nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
        self.layers = nn.Sequential(*layers)
        self.proj = nn.Conv2d(channels, dim, kernel_size=1) if project else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(self.layers(images))


@register_stem("attention")
class AttentionStem(nn.Module):
    """Attention within each patch, whose values know their place; then BatchNorm, max pooling.

    SASA, section 3.2 and appendix A.1, p x p pixels to a patch::

        y_ij = Σ_ab softmax_ab(q_ij · k_ab) ṽ_ab           over the (a, b) of the same patch
        ṽ_ab = (Σ_m p(a, b, m) W_V^m) x_ab
        p(a, b, ·) = softmax_m((row(a) + column(b)) · ν^m)   the same for all heads

    No 1/√d and no relative logits, as in the paper; its published FLOPs come out only with
    the latter, see ``mixerbench reproduce``.

    Args:
        num_heads: 4 in the paper.
        mixtures: value matrices m, 4 in the paper.
    """

    paper = "Stand-Alone Self-Attention in Vision Models, arXiv:1906.05909"
    no_weight_decay = ("row", "column", "mixture")

    def __init__(
        self, in_chans: int, dim: int, *, patch_size: int, num_heads: int = 4, mixtures: int = 4
    ) -> None:
        super().__init__()
        if mixtures < 1:
            raise Refusal(f"stem 'attention': mixtures={mixtures}: give 1 or more.")
        if num_heads < 1 or dim % num_heads:
            raise Refusal(
                f"stem 'attention' splits {dim} channels among {num_heads} heads, which does not "
                "come out even: choose stem.num_heads among the divisors of the width."
            )
        self.patch_size = patch_size
        self.num_heads = num_heads
        self.mixtures = mixtures
        self.qk = nn.Linear(in_chans, 2 * dim, bias=False)
        self.v = nn.Linear(in_chans, mixtures * dim, bias=False)
        # The paper gives no initialisation: these make logits of variance 1, so that the
        # mixtures differ from the start.
        std = (2 * dim) ** -0.25
        self.row = nn.Parameter(std * torch.randn(patch_size, dim))
        self.column = nn.Parameter(std * torch.randn(patch_size, dim))
        self.mixture = nn.Parameter(std * torch.randn(mixtures, dim))
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, images: Tensor) -> Tensor:
        side, heads = self.patch_size, self.num_heads
        B, C, height, width = images.shape
        H, W = height // side, width // side
        x = images.reshape(B, C, H, side, W, side).permute(0, 2, 4, 3, 5, 1)
        x = x.reshape(B * H * W, side * side, C)  # one patch is one sequence of pixels
        q, k = self.qk(x).unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        values = self.v(x).unflatten(2, (self.mixtures, -1))  # (B*H*W, p*p, m, dim)
        v = torch.einsum("nsmc,sm->nsc", values, self._shares())
        v = v.unflatten(2, (heads, -1)).transpose(1, 2)
        # Written out: fused kernels refuse as many short sequences as a batch of images has.
        x = (q @ k.transpose(2, 3)).softmax(dim=-1) @ v  # (B*H*W, h, p*p, d)
        x = x.transpose(2, 3).reshape(B, H * W, -1, side * side).transpose(1, 2)
        # Max pooling aligned with the patches is a maximum over the pixels of each.
        return self.norm(for_batch_norm(x)).amax(dim=3).unflatten(2, (H, W))

    def _shares(self) -> Tensor:
        """(p*p, m): the share of each value matrix at each place of a patch."""
        place = (self.row[:, None, :] + self.column[None, :, :]).flatten(0, 1)
        return F.linear(place, self.mixture).softmax(dim=-1)
