"""scikit-learn's digits: real images that are always there, and one split for ever."""

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from mixerbench.config.schema import Run
from mixerbench.data.images import Splits
from mixerbench.data.loader import eval_loader, train_loader
from mixerbench.data.source import open_images

DIGEST = "1c2d8ffe77351cfc"
"""Rows of the leaderboard hold this split. It must not change without a new protocol."""


@pytest.fixture(scope="module")
def splits(protocol) -> Splits:
    return open_images(protocol("digits"))


def test_every_image_is_in_one_split(splits):
    train, val = (
        {images.name(index) for index in range(len(images.targets))}
        for images in (splits.train, splits.val)
    )
    assert not train & val
    assert train | val == {str(number) for number in range(1797)}


def test_split_has_not_changed(splits):
    assert splits.digest() == DIGEST
    assert (len(splits.train.targets), len(splits.val.targets)) == (1258, 539)


def test_validation_has_three_tenths_of_every_class(splits):
    val, train = Counter(splits.val.targets), Counter(splits.train.targets)
    for label in range(10):
        total = val[label] + train[label]
        assert abs(val[label] - 0.3 * total) <= 0.5


def test_classes_are_the_ten_digits(splits):
    assert list(splits.train.classes) == list(splits.val.classes) == [str(i) for i in range(10)]


def test_images_are_the_published_ones_in_256_levels(splits):
    published = load_digits()
    for images in (splits.train, splits.val):
        for index in range(0, len(images.targets), 97):
            number = int(images.name(index))
            pixels = images.load(index).astype(float)
            assert pixels.shape == (8, 8, 3)
            # 16 becomes 255; half a level of rounding.
            assert np.abs(pixels - published.images[number][..., None] * 255 / 16).max() <= 0.5
            assert images.targets[index] == published.target[number]


def test_protocols_mean_and_deviation_are_those_of_the_pixels(splits, protocol):
    images = splits.train
    pixels = np.stack([images.load(i) for i in range(len(images.targets))]) / 255
    data = protocol("digits").data
    # Given to three digits, of all images; the training images are 70 % of them.
    assert pixels.mean(axis=(0, 1, 2)) == pytest.approx(data.mean, abs=2e-3)
    assert pixels.std(axis=(0, 1, 2)) == pytest.approx(data.std, abs=2e-3)


def test_models_see_24_pixels(splits, protocol):
    settings, cpu = protocol("digits"), torch.device("cpu")
    images, targets, *_ = next(iter(eval_loader(splits.val, settings, Run(), cpu)))
    assert (images.shape, targets.shape) == ((256, 3, 24, 24), (256,))
    loader, _ = train_loader(splits.train, settings, Run(), cpu)
    images, *_ = next(iter(loader))
    assert images.shape == (settings.recipe.batch.micro_batch_size, 3, 24, 24)
