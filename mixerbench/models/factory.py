"""``create_model``: the one entry for every combination of mixer, size, stem and backbone."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from mixerbench.config.sizes import SIZES, ViTSize, token_grid
from mixerbench.models.registry import BACKBONES, STEMS
from mixers import MIXERS, TokenGrid
from mixers.catalog import nearest
from mixers.plan import MixerSpec, check_names, read_plan

PATCH_SIZE = 16  # pixels; ViT's and DeiT's at 224 x 224


def create_model(
    mixer: MixerSpec = "attention",
    size: str | ViTSize | Mapping[str, int] = "base",
    *,
    image_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    in_chans: int = 3,
    stem: str | Mapping[str, Any] = "patch",
    patch_size: int = PATCH_SIZE,
    backbone: str | Mapping[str, Any] = "vit",
    drop_path: float = 0.0,
    drop_path_schedule: str = "linear",
    dropout: float = 0.0,
    layer_scale: float | None = None,
    **backbone_options: Any,
) -> nn.Module:
    """Build a model: ``create_model(mixer="patch_ff", size="base")``.

    Args:
        mixer: a name, a schedule's name, ``{"name": ..., option: ...}``, or a list of these
            that is spread over the blocks.
        size: a name of ``SIZES``, or width, depth and heads themselves.
        image_size: pixels a side, or (height, width).
        stem, backbone: a name, or ``{"name": ..., option: ...}``.
        patch_size: pixels a side of one token, unless the stem's own options say it.
        backbone_options: options of the backbone, such as ``pool="token"``.

    Raises:
        ValueError: an unknown name or option, or parts that do not fit each other.
    """
    plan = read_plan(mixer)
    check_names(plan, MIXERS.names())
    backbone_name, options = _name_and_options("backbone", backbone)
    width = _size(size)
    stem_name, stem_options = _name_and_options("stem", stem)
    stem_options = {"patch_size": patch_size} | stem_options
    height_width = (image_size, image_size) if isinstance(image_size, int) else image_size
    grid = TokenGrid(*token_grid(height_width, stem_options["patch_size"]))
    built_stem = STEMS.create(stem_name, in_chans, width.dim, **stem_options)
    return BACKBONES.create(
        backbone_name,
        built_stem,
        grid,
        width,
        plan,
        num_classes,
        drop_path,
        drop_path_schedule,
        dropout,
        layer_scale,
        **(options | backbone_options),
    )


def _name_and_options(kind: str, part: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(part, str):
        return part, {}
    if "name" not in part:
        raise ValueError(f"a {kind} needs a name: {dict(part)} has none.")
    return str(part["name"]), {key: value for key, value in part.items() if key != "name"}


def _size(size: str | ViTSize | Mapping[str, int]) -> ViTSize:
    if isinstance(size, ViTSize):
        return size
    if isinstance(size, Mapping):
        numbers = {key: value for key, value in size.items() if key != "name"}
        wanted = [field.name for field in dataclasses.fields(ViTSize)]
        if sorted(numbers) != sorted(wanted):
            raise ValueError(f"a size has {', '.join(wanted)}, not {', '.join(numbers)}.")
        return ViTSize(**numbers)
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}. {nearest(size, SIZES)}")
    return SIZES[size]
