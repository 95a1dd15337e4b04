"""``create_model``: the one entry for every combination of mixer, size, stem and backbone."""

from collections.abc import Mapping, Sequence
from typing import Any

from mixerbench.config.presets import with_changes
from mixerbench.config.schema import Regularization
from mixerbench.config.sizes import (
    Size,
    finer_patch_size,
    read_size,
    size_settings,
    sizes_of,
    token_grid,
)
from mixerbench.models.backbone import Backbone
from mixerbench.models.part_kinds import BACKBONES, STEMS
from mixerbench.models.positions import STD, PositionEmbedding
from mixers import MIXERS, TokenGrid
from mixers.core.errors import Refusal
from mixers.core.names import nearest
from mixers.core.plan import MixerSpec, check_names, read_plan

PATCH_SIZE = 16  # pixels; ViT's and DeiT's at 224 x 224

_DEFAULTS = {"backbone": "vit", "size": "base", "stem": "patch", "mixer": "attention"}


def create_model(
    mixer: MixerSpec | None = None,
    size: str | Size | Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    image_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    in_chans: int = 3,
    stem: str | Mapping[str, Any] | None = None,
    patch_size: int = PATCH_SIZE,
    backbone: str | Mapping[str, Any] | None = None,
    drop_path: float = 0.0,
    drop_path_schedule: str = "linear",
    dropout: float = 0.0,
    layer_scale: float | None = None,
    position_std: float = STD,
    **backbone_options: Any,
) -> Backbone:
    """Build a model: ``create_model(mixer="patch_ff", size="base")``.

    Args:
        mixer: a name, a schedule's name, ``{"name": ..., option: ...}``, or a list of these
            that is spread over the blocks, in staged backbones over the stages; "attention"
            if neither this nor a preset says otherwise.
        size: a name of the backbone's ``sizes``, or its numbers; "base".
        preset: a model of a paper, ``mixerbench list presets``; what is given beside it
            replaces its parts.
        image_size: pixels a side, or (height, width).
        stem, backbone: a name, or ``{"name": ..., option: ...}``; "patch" and "vit".
        patch_size: pixels a side of one token of an isotropic model; staged backbones start
            four times finer. A stem's own ``patch_size`` is taken as it is.
        position_std: standard deviation of learned position embeddings when training begins.
        backbone_options: options of the backbone, such as ``pool="token"``.

    Raises:
        Refusal: an unknown name or option, or parts that do not fit each other.
    """
    given = {"backbone": backbone, "size": size, "stem": stem, "mixer": mixer}
    if preset is not None:
        parts = with_changes(preset, given)
    else:
        parts = {
            part: _DEFAULTS[part] if choice is None else choice for part, choice in given.items()
        }
    plan = read_plan(parts["mixer"])
    check_names(plan, MIXERS.names())
    backbone_name, options = _name_and_options("backbone", parts["backbone"])
    divisor = BACKBONES.get(backbone_name).stem_divisor
    stem_name, stem_options = _name_and_options("stem", parts["stem"])
    stem_options = {"patch_size": finer_patch_size(patch_size, divisor)} | stem_options
    numbers = _size(parts["size"], backbone_name)
    height_width = (image_size, image_size) if isinstance(image_size, int) else image_size
    grid = TokenGrid(*token_grid(height_width, stem_options["patch_size"]))
    model = BACKBONES.create(
        backbone_name,
        STEMS.create(stem_name, in_chans, numbers.dims[0], **stem_options),
        grid,
        numbers,
        plan,
        num_classes,
        Regularization(drop_path, drop_path_schedule, dropout, layer_scale),
        **(options | backbone_options),
    )
    for module in model.modules():
        if isinstance(module, PositionEmbedding):
            module.rescale(position_std)
    return model


def _name_and_options(kind: str, part: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(part, str):
        return part, {}
    if "name" not in part:
        raise Refusal(f"a {kind} needs a name: {dict(part)} has none.")
    return str(part["name"]), {key: value for key, value in part.items() if key != "name"}


def _size(size: str | Size | Mapping[str, Any], backbone: str) -> Size:
    rows = BACKBONES.get(backbone).sizes
    if isinstance(size, str):
        if size not in rows:
            raise Refusal(f"unknown size {size!r} of backbone {backbone}. {nearest(size, rows)}")
        return sizes_of(rows)[size]
    form = size_settings(next(iter(rows.values())))
    if isinstance(size, Size):
        size = size.written_as(form if len(size.dims) == 1 else {})
    numbers = {key: value for key, value in size.items() if key != "name"}
    if sorted(numbers) != sorted(form):
        raise Refusal(
            f"a size of backbone {backbone} has {', '.join(form)}, not {', '.join(numbers)}."
        )
    if "dims" in form:
        counts = {len(n) if isinstance(n, Sequence) else 0 for n in numbers.values()}
        if len(counts) != 1 or counts == {0}:
            raise Refusal(
                f"a size of backbone {backbone} has as many dims as depths and num_heads, not "
                f"{numbers}."
            )
    for key, value in numbers.items():
        if min(value if isinstance(value, Sequence) else (value,)) < 1:
            raise Refusal(f"size.{key}={value}: give 1 or more.")
    return read_size(numbers)
