"""The sizes of the isotropic backbone, and how many tokens an image gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class ViTSize:
    """Width, number of blocks, heads of the mixers that have heads."""

    dim: int
    depth: int
    num_heads: int


SIZES: Mapping[str, ViTSize] = MappingProxyType(
    {
        "micro": ViTSize(64, 4, 4),  # seconds on a CPU; of no paper
        "tiny": ViTSize(192, 12, 3),  # DeiT, arXiv:2012.12877, table 1
        "small": ViTSize(384, 12, 6),  # DeiT
        "base": ViTSize(768, 12, 12),  # ViT, arXiv:2010.11929, table 1, and DeiT
        "large": ViTSize(1024, 24, 16),  # ViT
        "huge": ViTSize(1280, 32, 16),  # ViT; its patches are 14 pixels a side
    }
)


def token_grid(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """(rows, columns) of tokens for an image of (height, width) pixels.

    Raises:
        ValueError: the patches do not tile the image.
    """
    if patch_size < 1:
        raise ValueError(f"patch_size={patch_size}: give 1 or more.")
    height, width = image_size
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"an image of {height} x {width} pixels is not divisible into patches of "
            f"{patch_size} x {patch_size}: choose a multiple of {patch_size}, such as "
            f"{max(round(height / patch_size), 1) * patch_size}, or another patch size."
        )
    return height // patch_size, width // patch_size
