"""The sizes of the backbones, and how many tokens an image gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mixerbench.errors import Refusal


@dataclass(frozen=True)
class ViTSize:
    """Width, number of blocks, heads of the mixers that have heads."""

    dim: int
    depth: int
    num_heads: int


@dataclass(frozen=True)
class StagedSize:
    """Widths, numbers of blocks and heads, stage by stage."""

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]


Size = ViTSize | StagedSize

_BOTTLENECKS = (64, 128, 256, 512)  # ResNet, arXiv:1512.03385, table 1
_SASA_HEADS = (8, 8, 8, 8)  # SASA, arXiv:1906.05909, section 4.1

SIZES: Mapping[str, Mapping[str, Size]] = MappingProxyType(
    {
        "vit": {
            "micro": ViTSize(64, 4, 4),  # seconds on a CPU; of no paper
            "tiny": ViTSize(192, 12, 3),  # DeiT, arXiv:2012.12877, table 1
            "small": ViTSize(384, 12, 6),  # DeiT
            "base": ViTSize(768, 12, 12),  # ViT, arXiv:2010.11929, table 1, and DeiT
            "large": ViTSize(1024, 24, 16),  # ViT
            "huge": ViTSize(1280, 32, 16),  # ViT; its patches are 14 pixels a side
        },
        # LIT, arXiv:2105.14217: Ti, S, M and B
        "pyramid": {
            "micro": StagedSize((16, 32, 64, 128), (1, 1, 2, 1), (1, 2, 4, 8)),  # of no paper
            "tiny": StagedSize((64, 128, 320, 512), (3, 4, 6, 3), (1, 2, 5, 8)),
            "small": StagedSize((96, 192, 384, 768), (2, 2, 6, 2), (3, 6, 12, 24)),
            "medium": StagedSize((96, 192, 384, 768), (2, 2, 18, 2), (3, 6, 12, 24)),
            "base": StagedSize((128, 256, 512, 1024), (2, 2, 18, 2), (4, 8, 16, 32)),
        },
        "resnet": {
            "micro": StagedSize((16, 32, 64, 128), (1, 1, 1, 1), _SASA_HEADS),  # of no paper
            "r26": StagedSize(_BOTTLENECKS, (1, 2, 4, 1), _SASA_HEADS),
            "r38": StagedSize(_BOTTLENECKS, (2, 3, 5, 2), _SASA_HEADS),
            "r50": StagedSize(_BOTTLENECKS, (3, 4, 6, 3), _SASA_HEADS),
        },
    }
)
"""Backbone -> name -> size."""


def token_grid(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """(rows, columns) of tokens for an image of (height, width) pixels.

    Raises:
        Refusal: the patches do not tile the image.
    """
    if patch_size < 1:
        raise Refusal(f"patch_size={patch_size}: give 1 or more.")
    height, width = image_size
    if height % patch_size or width % patch_size:
        raise Refusal(
            f"an image of {height} x {width} pixels is not divisible into patches of "
            f"{patch_size} x {patch_size}: choose a multiple of {patch_size}, such as "
            f"{max(round(height / patch_size), 1) * patch_size}, or another patch size."
        )
    return height // patch_size, width // patch_size


def finer_patch_size(patch_size: int, divisor: int) -> int:
    """The stem's patches in a backbone that starts ``divisor`` times finer than a ViT."""
    return max(patch_size // divisor, 1) if patch_size > 0 else patch_size


def halved_grid(rows: int, columns: int, stage: int) -> tuple[int, int]:
    """The grid of stage ``stage`` (from 1) of a pyramid, from that of the stage before.

    Raises:
        Refusal: it has an odd side.
    """
    if rows % 2 or columns % 2:
        raise Refusal(
            f"backbone pyramid cannot halve {rows} x {columns} tokens for stage {stage}: give an "
            "image whose sides are multiples of 8 patches of the stem, or smaller patches "
            "(stem.patch_size)."
        )
    return rows // 2, columns // 2
