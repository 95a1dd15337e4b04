"""Stems: from pixels (B, 3, height, width) to a map of features (B, C, H, W).

Every stem takes the number of input channels and the width C, and covers ``patch_size``
pixels a side with one token.
"""

from torch import Tensor, nn

from mixerbench.models.registry import register_stem


@register_stem("patch")
class PatchStem(nn.Module):
    """One convolution that cuts the image into patches and projects each (ViT)."""

    paper = "An Image is Worth 16x16 Words, arXiv:2010.11929"

    def __init__(self, in_chans: int, dim: int, *, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images)


@register_stem("conv")
class ConvStem(nn.Module):
    """3 x 3 convolutions of stride 2, each with BatchNorm and ReLU, then a projection.

    Channels double up to the width. As many halvings as the patch has factors of 2, so
    the number of tokens is that of the patch stem (section 4.2 of the paper).
    """

    paper = "Early Convolutions Help Transformers See Better, arXiv:2106.14881"

    def __init__(self, in_chans: int, dim: int, *, patch_size: int) -> None:
        super().__init__()
        halvings = patch_size.bit_length() - 1
        if patch_size != 2**halvings:
            raise ValueError(
                f"stem 'conv' halves the resolution step by step and cannot reach patches of "
                f"{patch_size} pixels: give a power of 2, or use stem=patch."
            )
        self.patch_size = patch_size
        layers: list[nn.Module] = []
        channels = in_chans
        for step in range(halvings):
            width = max(dim // 2 ** (halvings - 1 - step), 1)
            layers += [
                nn.Conv2d(channels, width, kernel_size=3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
        self.layers = nn.Sequential(*layers)
        self.proj = nn.Conv2d(channels, dim, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(self.layers(images))
