"""From a PIL image to a normalised tensor, for training and for evaluation."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image, ImageOps
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp
from torch import Tensor
from torchvision import transforms

from mixerbench.config.schema import Protocol

Transform = Callable[[Image.Image], Tensor]

_CROP_PADDING = 4  # pixels; DeiT datasets.py, build_transform


def train_transform(protocol: Protocol) -> Transform:
    """DeiT's chain: crop, flip, RandAugment or jitter, tensor, normalise, erase.

    Random numbers are drawn from Python's, NumPy's and torch's global generators.
    """
    augmentation = protocol.recipe.augmentation
    chain: Any = create_transform(
        input_size=protocol.image_size,
        is_training=True,
        scale=tuple(augmentation.scale),
        ratio=tuple(augmentation.ratio),
        hflip=augmentation.hflip,
        color_jitter=augmentation.color_jitter,
        auto_augment=augmentation.auto_augment,
        interpolation=augmentation.interpolation,
        re_prob=augmentation.random_erasing,
        re_mode=augmentation.random_erasing_mode,
        re_count=augmentation.random_erasing_count,
        mean=tuple(protocol.data.mean),
        std=tuple(protocol.data.std),
    )
    if augmentation.crop == "padded":
        chain.transforms[0] = transforms.RandomCrop(protocol.image_size, padding=_CROP_PADDING)
    for step in chain.transforms:
        _accept_zero_bits(step)
    return chain  # type: ignore[no-any-return]


def eval_transform(protocol: Protocol) -> Transform:
    """Resize the shorter side to image_size / crop_ratio, crop the centre, normalise."""
    evaluation = protocol.evaluation
    chain: Any = create_transform(
        input_size=evaluation.image_size or protocol.image_size,
        is_training=False,
        crop_pct=evaluation.crop_ratio,
        interpolation=evaluation.interpolation,
        mean=tuple(protocol.data.mean),
        std=tuple(protocol.data.std),
    )
    return chain  # type: ignore[no-any-return]


def operations_of(step: Any) -> Iterator[AugmentOp]:
    """timm's operations in a step that chooses among several; nothing for any other step."""
    operations = [*getattr(step, "ops", ()), *itertools.chain(*getattr(step, "policy", ()))]
    return (operation for operation in operations if isinstance(operation, AugmentOp))


def _accept_zero_bits(step: Any) -> None:
    # RandAugment at full magnitude posterizes to 0 bits, about 0.14 % of images in DeiT's recipe.
    # Pillow returned black images when DeiT was written; now it raises.
    for operation in operations_of(step):
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    if bits_to_keep >= 8:
        return image
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return ImageOps.posterize(image, bits_to_keep)
