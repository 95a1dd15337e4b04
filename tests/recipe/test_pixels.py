"""The two halves of the chain against the whole one, and the levels of ``data.pixels``."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from mixerbench.config.schema import PIXELS, Protocol
from mixerbench.recipe.augmentation import eval_transform, operations_of, train_transform
from mixerbench.recipe.pixels import EvalPixels, Normalize, TrainPixels

pytestmark = pytest.mark.slow  # thousands of images

PHOTOGRAPHS = load_sample_images().images
CPU = torch.device("cpu")


def photograph(number: int) -> np.ndarray:
    """Another crop each time, 160 x 120 pixels."""
    top, left = 41 * number % 300, 67 * number % 470
    return PHOTOGRAPHS[number % 2][top : top + 120, left : left + 160]


def finished(protocol: Protocol, pixels: np.ndarray, erased: object = None) -> Tensor:
    image = Normalize(protocol.data, CPU, torch.float32)(torch.from_numpy(pixels.copy())[None])[0]
    for (top, left, height, width), noise in zip(*(erased or ((), ())), strict=True):
        image[:, top : top + height, left : left + width] = noise
    return image


def state() -> tuple[object, ...]:
    """Of the three generators that augmentation draws from."""
    numpy = np.random.get_state()
    return random.getstate(), numpy[1].tobytes(), numpy[2], torch.get_rng_state().numpy().tobytes()


CHAINS: dict[str, dict[str, object]] = {
    "DeiT's": {},
    "every image erased": {"recipe__augmentation__random_erasing": 1.0},
    "several boxes": {
        "recipe__augmentation__random_erasing": 1.0,
        "recipe__augmentation__random_erasing_count": 3,
    },
    "boxes of one colour": {
        "recipe__augmentation__random_erasing": 1.0,
        "recipe__augmentation__random_erasing_mode": "rand",
    },
    "black boxes": {
        "recipe__augmentation__random_erasing": 1.0,
        "recipe__augmentation__random_erasing_mode": "const",
    },
    "either filter": {"recipe__augmentation__interpolation": "random"},
    "bilinear": {"recipe__augmentation__interpolation": "bilinear"},
    "jitter": {"recipe__augmentation__auto_augment": None},
    "AugMix": {"recipe__augmentation__auto_augment": "augmix-m3-w3"},
    "padded": {"recipe__augmentation__crop": "padded", "image_size": 96},
}


@pytest.mark.parametrize("chain", [*CHAINS, "imagenet_deit3", "cifar10"])
def test_exact_halves_give_the_whole_chains_tensors_and_leave_its_draws(chain, protocol, seed_all):
    name = chain if chain not in CHAINS else "imagenet_deit"
    settings = protocol(name, **{"image_size": 64} | CHAINS.get(chain, {}))
    whole, half = train_transform(settings), TrainPixels(settings)
    for seed in range(60):
        pixels = photograph(seed)
        seed_all(seed)
        expected, after = whole(Image.fromarray(pixels)), state()
        seed_all(seed)
        actual = finished(settings, *half(pixels))
        assert torch.equal(actual, expected)
        assert state() == after


def test_fp64_gets_the_floats_of_fp32(protocol):
    data = protocol().data
    images = torch.randint(0, 256, (2, 5, 4, 3), dtype=torch.uint8)
    single, double = (Normalize(data, CPU, dtype)(images) for dtype in (torch.float, torch.double))
    assert double.dtype == torch.float64
    assert torch.equal(double, single.double())
    assert single.is_contiguous()


@pytest.mark.parametrize("pixels", PIXELS)
@pytest.mark.parametrize("name", ["imagenet_deit", "imagenet_deit3", "cifar10"])
def test_evaluation_is_the_same_at_every_level(pixels, name, protocol):
    settings = protocol(name, data__pixels=pixels)
    half, whole = EvalPixels(settings), eval_transform(settings)
    for number in range(4):
        image = photograph(number)
        assert torch.equal(finished(settings, half(image)), whole(Image.fromarray(image)))


@pytest.mark.parametrize("pixels", PIXELS[1:])
@pytest.mark.parametrize("chain", ["imagenet_deit", "imagenet_deit3"])
def test_every_level_draws_the_same_numbers(pixels, chain, protocol, seed_all):
    exact, other = (
        TrainPixels(protocol(chain, image_size=64, data__pixels=level))
        for level in ("exact", pixels)
    )
    for seed in range(60):
        seed_all(seed)
        one, erased = exact(photograph(seed))
        after = state()
        seed_all(seed)
        another, also_erased = other(photograph(seed))
        assert state() == after
        assert one.shape == another.shape == (64, 64, 3)
        assert also_erased.boxes == erased.boxes
        assert all(map(torch.equal, also_erased.noise, erased.noise))


PLAIN = {
    "recipe__augmentation__auto_augment": None,
    "recipe__augmentation__color_jitter": None,
    "recipe__augmentation__random_erasing": 0.0,
}


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
@pytest.mark.parametrize("size", [64, 224])  # shrunk, enlarged
def test_same_law_resizes_within_one_level_nearly_always(interpolation, size, protocol, seed_all):
    fields = PLAIN | {"image_size": size, "recipe__augmentation__interpolation": interpolation}
    exact, other = (
        TrainPixels(protocol(data__pixels=level, **fields)) for level in ("exact", "same-law")
    )
    differences = []
    for seed in range(30):
        seed_all(seed)
        one = exact(photograph(seed))[0].astype(int)
        seed_all(seed)
        differences.append(np.abs(other(photograph(seed))[0] - one))
    difference = np.concatenate(differences)
    assert difference.max() <= 6
    assert (difference > 1).mean() < 2e-4
    assert 0 < (difference > 0).mean() < 0.1


GEOMETRIC = ["Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"]


@pytest.fixture
def operation(protocol) -> Callable[[str, str], Callable[[Image.Image], Image.Image]]:
    """One of RandAugment's operations, done to every image."""

    def get(name: str, level: str) -> Callable[[Image.Image], Image.Image]:
        half = TrainPixels(protocol(image_size=64, data__pixels=level))
        operations = (op for step in half._steps for op in operations_of(step))
        (found,) = (op for op in operations if op.name == name)
        found.prob = 1.0
        return found

    return get


@pytest.mark.parametrize("name", GEOMETRIC)
def test_opencv_turns_and_shears_as_pillow_does_with_another_filter(name, operation, seed_all):
    ours, pillows = operation(name, "same-law-opencv"), operation(name, "exact")
    smooth = Image.fromarray(PHOTOGRAPHS[0][100:220, 200:360]).resize((320, 240))
    for seed in range(20):
        seed_all(seed)
        actual = np.asarray(ours(smooth)).astype(int)
        seed_all(seed)
        expected = np.asarray(pillows(smooth)).astype(int)
        difference = np.abs(actual - expected).max(-1)
        assert np.median(difference) <= 1
        assert (difference > 16).mean() < 0.02  # edges of the image, and sharp ones in it
