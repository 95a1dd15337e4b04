"""Every mixer at every size as a timm model: ``timm.create_model("mixerbench_patch_ff_base")``.

timm finds no models by itself: ``import mixerbench.models`` registers these. Mixers that
are registered later (plugins, a notebook's own class) are added as they come.
"""

from functools import partial
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from torch import nn

from mixerbench.models.factory import create_model
from mixerbench.models.vit import ViT
from mixers import MIXERS
from mixers.core.errors import Refusal
from mixers.core.plan import SCHEDULES

__all__: list[str] = []  # timm appends the names
default_cfgs: dict[str, Any] = {}

_PREFIX = "mixerbench"
_OUR_NAMES = {
    "img_size": "image_size",
    "drop_path_rate": "drop_path",
    "drop_rate": "dropout",
    "init_values": "layer_scale",
    "global_pool": "pool",
}
"""timm's words for arguments of ``create_model``."""


def register_timm_models(mixer: str) -> None:
    """Register ``mixerbench_<mixer>_<size>`` for every size of the isotropic backbone."""
    for size in ViT.sizes:
        name = f"{_PREFIX}_{mixer}_{size}"
        if is_model(name):  # a notebook's class, defined again: found by its name all the same
            continue
        default_cfgs.update(
            generate_default_cfgs(
                {
                    name: {
                        # DeiT's input; timm's ViT configurations normalise by 0.5 instead.
                        "input_size": (3, 224, 224),
                        "fixed_input_size": not MIXERS.facts(mixer)["any_grid"]
                        if mixer not in SCHEDULES
                        else False,
                        "interpolation": "bicubic",
                        "crop_pct": 0.875,
                        "mean": (0.485, 0.456, 0.406),
                        "std": (0.229, 0.224, 0.225),
                        "first_conv": "stem.proj",
                        "classifier": "head",
                    }
                }
            )
        )
        entry = partial(_build, name, mixer, size)
        entry.__name__ = name  # type: ignore[attr-defined]
        entry.__module__ = __name__
        register_model(entry)


def _build(
    name: str, mixer: str, size: str, pretrained: bool = False, **arguments: Any
) -> nn.Module:
    if pretrained:
        raise Refusal(f"{name} has no published weights: build it with pretrained=False.")
    return build_model_with_cfg(partial(_create, mixer, size), name, pretrained=False, **arguments)


def _create(mixer: str, size: str, **arguments: Any) -> nn.Module:
    # Here and not in _build: build_model_with_cfg adds timm's words of its own.
    renamed = {_OUR_NAMES.get(key, key): value for key, value in arguments.items()}
    return create_model(mixer, size, **renamed)


for _mixer in (*MIXERS.names(), *SCHEDULES):
    register_timm_models(_mixer)
MIXERS.on_register(register_timm_models)
