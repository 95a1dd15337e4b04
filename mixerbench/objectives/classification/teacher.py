"""The teacher of a distillation: any timm model, frozen."""

import textwrap

import timm
from timm.models import load_state_dict
from torch import nn

from mixerbench.config.schema import Distillation
from mixerbench.errors import Refusal
from mixerbench.models.weights import check_numbers


def create_teacher(distillation: Distillation, num_classes: int) -> nn.Module | None:
    """The frozen teacher, any timm model, or None where the recipe has none.

    Raises:
        Refusal: no such timm model, weights that do not fit it, or a classifier for other
            classes.
    """
    if distillation.kind == "none":
        return None
    name, path = distillation.teacher, distillation.teacher_checkpoint
    if not timm.is_model(name):
        raise Refusal(f"teacher {name!r} is not a timm model: see timm.list_models().")
    published = timm.get_pretrained_cfg_value(name, "num_classes")
    if path is None and published is not None and published != num_classes:
        # timm would leave the published classifier out, and put a random one in its place.
        raise Refusal(
            f"teacher {name!r}: its pretrained weights tell {published} classes apart and the data "
            f"has {num_classes}. Train a teacher on this data and give its file, "
            "recipe.distillation.teacher_checkpoint=FILE."
        )
    try:
        teacher = timm.create_model(name, pretrained=path is None, num_classes=num_classes)
        if path is not None:  # DeiT takes the teacher's weights, not their moving average
            weights = load_state_dict(path, use_ema=False, weights_only=True)
            check_numbers(weights, teacher.state_dict())
            teacher.load_state_dict(weights)
        else:
            check_numbers(teacher.state_dict(), teacher.state_dict())
    except Exception as error:  # of the file system, pickle, safetensors, torch or timm
        reason = textwrap.shorten(str(error) or type(error).__name__, 400, placeholder=" ...")
        raise Refusal(
            f"teacher {name!r}: cannot load {path or 'its pretrained weights'} for {num_classes} "
            f"classes: {reason}"
        ) from None
    return teacher.eval().requires_grad_(False)
