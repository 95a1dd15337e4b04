"""Backbones of seconds: micro models, their images, and which combinations are possible."""

import inspect
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixerbench.config.sizes import sizes_of
from mixerbench.models import create_model
from mixerbench.models.backbone import Backbone
from mixerbench.models.part_kinds import BACKBONES, STEMS
from mixers import MIXERS, list_mixers
from mixers.core.plan import SCHEDULES, assign, choices_in, read_plan

IMAGE = (32, 64)  # pixels: 2 x 4 patches of 16, or 8 x 16 of 4, which halve three times
TURNED = (64, 32)
CLASSES = 7
PLANS = [*list_mixers(), *SCHEDULES]
NAMES = BACKBONES.names()
SIZES = {name: sizes_of(BACKBONES.get(name).sizes) for name in NAMES}

every_plan = pytest.mark.parametrize("plan", PLANS)
every_backbone = pytest.mark.parametrize("backbone", NAMES)
every_stem = pytest.mark.parametrize("stem", STEMS.names())


def is_staged(backbone: str) -> bool:
    return len(SIZES[backbone]["micro"].dims) > 1


def takes_option(backbone: str, option: str) -> bool:
    parameter = inspect.signature(BACKBONES.get(backbone).__init__).parameters.get(option)
    return parameter is not None and parameter.kind is inspect.Parameter.KEYWORD_ONLY


STAGED = [backbone for backbone in NAMES if is_staged(backbone)]
staged = pytest.mark.parametrize("backbone", STAGED)


def pools_of(backbone: str) -> tuple[str, ...]:
    return ("avg", "token") if takes_option(backbone, "pool") else ("avg",)


def fits(plan: str, backbone: str, pool: str) -> bool:
    """By the facts that mixers declare: the class token needs a mixer that carries to it.

    It lies in every block of an isotropic backbone, in the last stage only of a staged one.
    """
    choices = assign(read_plan(plan), SIZES[backbone]["micro"].depths)[-1]
    facts = [MIXERS.facts(choice.name) for choice in choices]
    mixing = [fact["mixes_prefix"] for fact in facts if fact["adds_sub_layer"]]
    return pool == "avg" or (bool(mixing) and all(mixing))


def runs_on_any_grid(plan: str) -> bool:
    return all(MIXERS.facts(choice.name)["any_grid"] for choice in choices_in(read_plan(plan)))


COMBINATIONS = [
    (plan, backbone, stem, pool)
    for plan, backbone, stem in product(PLANS, NAMES, STEMS.names())
    for pool in pools_of(backbone)
]


def build_micro(mixer: Any = "attention", backbone: str = "vit", **options: Any) -> nn.Module:
    """The micro size on a small image that is not square."""
    defaults = {"size": "micro", "image_size": IMAGE, "num_classes": CLASSES}
    return create_model(mixer, backbone=backbone, **defaults | options)


def random_images(
    height_width: tuple[int, int] = IMAGE, samples: int = 2, channels: int = 3
) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(samples, channels, *height_width, generator=generator)


def pool_option(backbone: str, pool: str) -> dict[str, str]:
    return {"pool": pool} if takes_option(backbone, "pool") else {}


def blocks_of(model: Backbone) -> Iterator[nn.Module]:
    """The blocks of any backbone, in the order in which they run."""
    return iter(model.blocks_in_order())


def assert_trains(model: nn.Module, images: Tensor) -> None:
    """Logits of the right shape, and a finite gradient for every parameter."""
    logits = model(images)
    assert logits.shape == (len(images), CLASSES)
    F.cross_entropy(logits.float(), torch.arange(len(images)) % CLASSES).backward()
    silent = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all()
    ]
    assert silent == []


def refusal_of(build: Callable[[], Any], message: str) -> str:
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)
    return str(error.value)


ONE_OF_EACH = list(product(NAMES, STEMS.names()))
one_of_each = pytest.mark.parametrize(("backbone", "stem"), ONE_OF_EACH)
TABLES = [{"name": "attention", "rel_pos_bias": True}, "local_attention"]


def trained_once(model: nn.Module) -> nn.Module:
    """After a step of training: no weight and no statistic is where it started."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model(random_images(samples=4)).square().sum().backward()
    optimizer.step()
    return model.eval()
