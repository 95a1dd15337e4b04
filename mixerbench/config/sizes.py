"""The size of a model, and how many tokens an image gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Union

from mixerbench.errors import Refusal

SizeRow = tuple[Union[int, tuple[int, ...]], ...]
"""Width, depth and heads as a backbone's file lists them: numbers, or numbers by stage."""

_ISOTROPIC = ("dim", "depth", "num_heads")
_STAGED = ("dims", "depths", "num_heads")


@dataclass(frozen=True)
class Size:
    """Widths, numbers of blocks and heads, stage by stage; an isotropic model is one stage."""

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]

    def written_as(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """The size in the form of ``numbers``: as settings of the same backbone say it."""
        values = (self.dims, self.depths, self.num_heads)
        if "dim" in numbers:
            return {key: value[0] for key, value in zip(_ISOTROPIC, values, strict=True)}
        return {key: list(value) for key, value in zip(_STAGED, values, strict=True)}


def size_settings(row: SizeRow) -> dict[str, Any]:
    """A row of a backbone's sizes as settings have it: ``dim``, ... or ``dims``, ..."""
    if isinstance(row[0], int):
        return dict(zip(_ISOTROPIC, row, strict=True))
    return {key: list(numbers) for key, numbers in zip(_STAGED, row, strict=True)}  # type: ignore[arg-type]


def read_size(numbers: Mapping[str, Any]) -> Size:
    """The size that settings give, in either form; a name beside the numbers does not matter."""
    if "dim" in numbers:
        return Size(*((numbers[key],) for key in _ISOTROPIC))
    return Size(*(tuple(numbers[key]) for key in _STAGED))


def sizes_of(rows: Mapping[str, SizeRow]) -> dict[str, Size]:
    """The named sizes of a backbone, from the rows of its class."""
    return {name: read_size(size_settings(row)) for name, row in rows.items()}


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
